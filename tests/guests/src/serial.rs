//! Polled output on COM1.

use crate::port;
use core::fmt;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = 0x3fd;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// Polls after which a transmitter that never empties is taken for absent.
const PATIENCE: u32 = 100_000;

/// The first serial port, as whoever was here before left its line settings.
pub struct Com1;

impl fmt::Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let mut left = PATIENCE;
            while port::read8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 && left > 0 {
                left -= 1;
            }
            port::write8(DATA, byte);
        }
        Ok(())
    }
}
