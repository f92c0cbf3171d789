//! Recording fakes for what is injected into a device. Tests only.

use crate::{ByteSink, ByteSource, Clock, InterruptMessage, IrqLine, MessageSink, Nanos, PowerEvent, PowerSink};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use spin::Mutex;

/// A wire that remembers its level and counts its rising edges.
#[derive(Default)]
pub struct RecordedLine {
    level: AtomicBool,
    edges: AtomicUsize,
}

impl RecordedLine {
    pub fn new() -> Arc<RecordedLine> {
        Arc::default()
    }
    pub fn is_high(&self) -> bool {
        self.level.load(Ordering::SeqCst)
    }
    pub fn rising_edges(&self) -> usize {
        self.edges.load(Ordering::SeqCst)
    }
}

impl IrqLine for RecordedLine {
    fn set(&self, asserted: bool) {
        if !self.level.swap(asserted, Ordering::SeqCst) && asserted {
            self.edges.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A clock that the test moves.
#[derive(Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    pub fn at(nanos: u64) -> Arc<ManualClock> {
        Arc::new(ManualClock(AtomicU64::new(nanos)))
    }
    pub fn set(&self, now: Nanos) {
        self.0.store(now.0, Ordering::SeqCst);
    }
    pub fn advance(&self, nanos: u64) {
        self.0.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Nanos {
        Nanos(self.0.load(Ordering::SeqCst))
    }
}

/// Keeps all that was put.
#[derive(Default)]
pub struct RecordedBytes(Mutex<Vec<u8>>);

impl RecordedBytes {
    pub fn new() -> Arc<RecordedBytes> {
        Arc::default()
    }
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().clone()
    }
}

impl ByteSink for RecordedBytes {
    fn put(&self, byte: u8) {
        self.0.lock().push(byte);
    }
}

/// A source that gives what the test typed.
#[derive(Default)]
pub struct TypedBytes(Mutex<VecDeque<u8>>);

impl TypedBytes {
    pub fn new() -> Arc<TypedBytes> {
        Arc::default()
    }
    pub fn type_in(&self, bytes: &[u8]) {
        self.0.lock().extend(bytes);
    }
    pub fn left(&self) -> usize {
        self.0.lock().len()
    }
}

impl ByteSource for TypedBytes {
    fn take(&self) -> Option<u8> {
        self.0.lock().pop_front()
    }
}

/// Keeps all power events.
#[derive(Default)]
pub struct RecordedPower(Mutex<Vec<PowerEvent>>);

impl RecordedPower {
    pub fn new() -> Arc<RecordedPower> {
        Arc::default()
    }
    pub fn events(&self) -> Vec<PowerEvent> {
        self.0.lock().clone()
    }
}

impl PowerSink for RecordedPower {
    fn request(&self, event: PowerEvent) {
        self.0.lock().push(event);
    }
}

/// Keeps all interrupt messages; takes them unless told to refuse.
#[derive(Default)]
pub struct RecordedMessages {
    messages: Mutex<Vec<InterruptMessage>>,
    refuses: AtomicBool,
}

impl RecordedMessages {
    pub fn new() -> Arc<RecordedMessages> {
        Arc::default()
    }
    pub fn taken(&self) -> Vec<InterruptMessage> {
        core::mem::take(&mut self.messages.lock())
    }
    pub fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::SeqCst);
    }
}

impl MessageSink for RecordedMessages {
    fn deliver(&self, message: &InterruptMessage) -> bool {
        self.messages.lock().push(*message);
        !self.refuses.load(Ordering::SeqCst)
    }
}
