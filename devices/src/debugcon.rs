//! QEMU's debug console: one port, on which firmware writes its log.
//!
//! Source: QEMU `docs/specs` and `hw/char/debugcon.c`: a read of the port gives E9h, by which software finds it.

use crate::{ByteSink, Device};
use alloc::sync::Arc;

/// What a read gives.
const PRESENT: u8 = 0xe9;

/// The port.
pub struct DebugConsole {
    output: Arc<dyn ByteSink>,
}

impl DebugConsole {
    /// A console that sends to `output`.
    pub fn new(output: Arc<dyn ByteSink>) -> DebugConsole {
        DebugConsole { output }
    }
}

impl Device for DebugConsole {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        for byte in data {
            self.output.put(*byte);
        }
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::RecordedBytes;

    #[test]
    fn writes_are_sent_and_reads_tell_that_it_is_there() {
        let sink = RecordedBytes::new();
        let mut console = DebugConsole::new(sink.clone());
        console.write(0, b"a");
        console.write(0, b"bc");
        let mut byte = [0];
        console.read(0, &mut byte);
        assert_eq!((sink.bytes(), byte), (b"abc".to_vec(), [0xe9]));
    }
}
