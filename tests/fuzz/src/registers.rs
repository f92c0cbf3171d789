//! A device as a guest and time treat it: any access at any moment.

use crate::heap::without_allocating;
use crate::input::Input;
use crate::wires::World;
use devices::{Clock, Device, Nanos};
use std::sync::Arc;

/// Most calls of wires that one access, expiry or event may make.
const MOST_CALLS: u64 = 2048;
/// How often [`Device::expire`] may be asked before nothing is due any more.
const MOST_EXPIRIES: u32 = 1100;
/// Steps of one script.
const MOST_STEPS: usize = 512;

/// A device under test and what only its own kind can be told.
pub struct Subject<D: Device> {
    /// The device.
    pub device: D,
    /// What its wires end at.
    pub world: Arc<World>,
    /// Bytes of registers that it decodes.
    pub registers: u64,
    /// Something that the host, or another device, does to it.
    pub event: fn(&mut D, &mut Input<'_>),
}

impl<D: Device> Subject<D> {
    /// Plays `script`.
    pub fn play(mut self, script: &[u8]) {
        let mut script = Input::new(script);
        for _ in 0..MOST_STEPS {
            if script.is_empty() {
                break;
            }
            without_allocating(|| self.step(&mut script));
            self.check();
        }
    }

    fn step(&mut self, script: &mut Input<'_>) {
        let kind = script.u8();
        match kind & 15 {
            0..=4 => {
                let (offset, count) = self.place(kind, script);
                let mut data = [0x5a; 8];
                self.device.read(offset, &mut data[..count]);
            }
            5..=10 => {
                let (offset, count) = self.place(kind, script);
                let value = script.value().to_le_bytes();
                self.device.write(offset, &value[..count]);
            }
            11 => self.world.advance(script.u16().into()),
            12 => self.world.advance(script.value()),
            13 => {
                if let Some(deadline) = self.device.deadline() {
                    self.world.set(deadline.0);
                }
                self.device.expire(self.world.now());
            }
            14 => (self.event)(&mut self.device, script),
            _ => {
                if script.u8() < 32 {
                    self.device.reset();
                }
            }
        }
    }

    /// Offset and size of an access: of the upper bits of `kind`, two choose the size and one an offset anywhere.
    fn place(&self, kind: u8, script: &mut Input<'_>) -> (u64, usize) {
        let count = match kind >> 4 & 3 {
            0 => 1,
            1 => 2,
            2 => 4,
            _ => 1 + script.below(8),
        };
        let offset = match kind >> 6 {
            0 | 1 if self.registers <= 256 => u64::from(script.u8()) % self.registers,
            0 | 1 => u64::from(script.u16()) % self.registers,
            2 => (u64::from(script.u16()) % self.registers) & !(count as u64 - 1),
            _ => script.value(),
        };
        (offset, count)
    }

    fn check(&mut self) {
        assert!(self.world.take_calls() <= MOST_CALLS, "one step used its wires {MOST_CALLS} times");
        let now = self.world.now();
        let mut expiries = 0;
        while self.device.deadline().is_some_and(|at| at <= now) {
            assert!(expiries < MOST_EXPIRIES, "something stays due at {now:?}");
            without_allocating(|| self.device.expire(now));
            expiries += 1;
            assert!(self.world.take_calls() <= MOST_CALLS, "one expiry used its wires {MOST_CALLS} times");
        }
        assert!(self.device.deadline() != Some(Nanos(0)), "nothing can be due before the machine was made");
    }
}
