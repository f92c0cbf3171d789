//! What is injected into devices: fakes that count instead of recording, so that they never allocate.

use devices::lapic::TscTime;
use devices::{
    ByteSink, ByteSource, Clock, CpuSignals, EoiSink, InterruptMessage, IrqLine, MessageSink, Nanos, PowerEvent,
    PowerSink,
};
use machine::tsc::HostTsc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// All far ends of a device's wires in one: a clock that the script moves, and a count of all calls.
#[derive(Default)]
pub struct World {
    now: AtomicU64,
    calls: AtomicU64,
    input: AtomicU64,
    level: AtomicBool,
}

/// The end of guest time as far as the targets go: 146 years.
pub const END_OF_TIME: u64 = 1 << 62;

impl World {
    /// A world at time 0.
    pub fn new() -> Arc<World> {
        Arc::default()
    }

    /// Lets time pass, up to [`END_OF_TIME`].
    pub fn advance(&self, nanos: u64) {
        self.set(self.now.load(Ordering::Relaxed).saturating_add(nanos));
    }

    /// Moves the clock to `nanos` if that lies ahead, up to [`END_OF_TIME`].
    pub fn set(&self, nanos: u64) {
        self.now.fetch_max(nanos.min(END_OF_TIME), Ordering::Relaxed);
    }

    /// How often a wire was used since this was asked last.
    pub fn take_calls(&self) -> u64 {
        self.calls.swap(0, Ordering::Relaxed)
    }

    /// Makes `bytes` of input available.
    pub fn offer(&self, bytes: u8) {
        self.input.store(bytes.into(), Ordering::Relaxed);
    }

    fn called(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}

impl Clock for World {
    fn now(&self) -> Nanos {
        Nanos(self.now.load(Ordering::Relaxed))
    }
}

impl TscTime for World {
    fn moment(&self, tsc: u64) -> Nanos {
        Nanos(tsc)
    }
}

impl HostTsc for World {
    fn now(&self) -> (u64, Nanos) {
        let now = self.now.load(Ordering::Relaxed);
        (now, Nanos(now))
    }
    fn span(&self, ticks: u64) -> u64 {
        ticks
    }
}

impl IrqLine for World {
    fn set(&self, asserted: bool) {
        self.called();
        self.level.store(asserted, Ordering::Relaxed);
    }
}

impl ByteSink for World {
    fn put(&self, _byte: u8) {
        self.called();
    }
}

impl ByteSource for World {
    fn take(&self) -> Option<u8> {
        self.called();
        let left = self.input.load(Ordering::Relaxed);
        self.input.store(left.saturating_sub(1), Ordering::Relaxed);
        (left > 0).then_some(left as u8)
    }
}

impl PowerSink for World {
    fn request(&self, _event: PowerEvent) {
        self.called();
    }
}

impl MessageSink for World {
    fn deliver(&self, message: &InterruptMessage) -> bool {
        self.called();
        message.vector >= 16
    }
}

impl EoiSink for World {
    fn eoi(&self, _vector: u8) {
        self.called();
    }
}

impl CpuSignals for World {
    fn interrupt_pending(&self) {
        self.called();
    }
    fn nmi(&self) {
        self.called();
    }
    fn init(&self) {
        self.called();
    }
    fn start_up(&self, _page: u8) {
        self.called();
    }
}
