//! QEMU's isa-debug-exit: a test guest writes its result and the machine ends.
//!
//! Source: QEMU `hw/misc/debugexit.c`: four ports; reads give zero. Opt-in per machine, for a guest that probes ports at random
//! would end itself.

use crate::{Device, PowerEvent, PowerSink};
use alloc::sync::Arc;

/// The ports.
pub struct DebugExit {
    power: Arc<dyn PowerSink>,
}

impl DebugExit {
    /// How many ports.
    pub const PORTS: u64 = 4;

    /// Ports whose writes go to `power`.
    pub fn new(power: Arc<dyn PowerSink>) -> DebugExit {
        DebugExit { power }
    }
}

impl Device for DebugExit {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        self.power.request(PowerEvent::DebugExit(u32::from_le_bytes(bytes)));
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::RecordedPower;

    #[test]
    fn a_write_ends_the_machine_with_its_value() {
        let power = RecordedPower::new();
        let mut exit = DebugExit::new(power.clone());
        exit.write(0, &[0x21]);
        exit.write(0, &0x1234_5678u32.to_le_bytes());
        assert_eq!(power.events(), [PowerEvent::DebugExit(0x21), PowerEvent::DebugExit(0x1234_5678)]);
    }
}
