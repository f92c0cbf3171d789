//! The 8254 and port 0x61. Datasheet: Intel 8254 (231164); ICH9 (316972) 13.7.1 "NMI_SC".

use crate::port;

/// Counts per second.
pub const FREQUENCY: u64 = 1_193_182;
const CHANNEL_0: u16 = 0x40;
const COMMAND: u16 = 0x43;
/// NMI status and control: bit 0 gates channel 2, bit 1 the speaker, bit 5 shows channel 2's output.
pub const CONTROL_B: u16 = 0x61;
const GATE_2: u8 = 1 << 0;
const SPEAKER: u8 = 1 << 1;
const OUTPUT_2: u8 = 1 << 5;

/// Programs `channel` with `mode` (0 to 5) and a 16-bit `count`, low byte first.
pub fn program(channel: u8, mode: u8, count: u16) {
    port::write8(COMMAND, channel << 6 | 0x30 | mode << 1);
    port::write8(CHANNEL_0 + u16::from(channel), count as u8);
    port::write8(CHANNEL_0 + u16::from(channel), (count >> 8) as u8);
}

/// The latched count of `channel`.
pub fn count(channel: u8) -> u16 {
    port::write8(COMMAND, channel << 6);
    let low = port::read8(CHANNEL_0 + u16::from(channel));
    let high = port::read8(CHANNEL_0 + u16::from(channel));
    u16::from(low) | u16::from(high) << 8
}

/// The latched status byte of `channel`, by the read-back command.
pub fn status(channel: u8) -> u8 {
    port::write8(COMMAND, 0xe0 | 2 << channel);
    port::read8(CHANNEL_0 + u16::from(channel))
}

/// Opens or closes the gate of channel 2, speaker off.
pub fn gate_2(open: bool) {
    let others = port::read8(CONTROL_B) & 0x0c;
    port::write8(CONTROL_B, others & !SPEAKER | if open { GATE_2 } else { 0 });
}

/// The output of channel 2.
pub fn output_2() -> bool {
    port::read8(CONTROL_B) & OUTPUT_2 != 0
}
