//! One console as the host keeps it: what was printed last, how much of it the serial line has shown, and what was typed and
//! not yet taken. Pure; `console` has one for each machine and one for the monitor.

use crate::queue::Queue;
use alloc::boxed::Box;
use alloc::vec;

/// Bytes of input that are kept.
const INPUT: usize = 4 << 10;
/// What is shown again when the line comes back to a console: at most so many lines and bytes.
const SCREEN_LINES: usize = 24;
const SCREEN_BYTES: u64 = 4 << 10;

/// The text and input of one console.
pub struct Channel {
    /// A ring; its length is a power of 2.
    text: Box<[u8]>,
    /// Bytes printed since the start.
    printed: u64,
    /// How many of them the line has taken, or passed over.
    shown: u64,
    input: Queue<INPUT>,
}

impl Channel {
    /// Nothing printed, nothing typed; keeps the last `bytes` of what will be printed.
    ///
    /// # Panics
    /// If `bytes` is no power of 2.
    pub fn new(bytes: usize) -> Self {
        assert!(bytes.is_power_of_two(), "the ring's length is a power of 2");
        Self { text: vec![0; bytes].into_boxed_slice(), printed: 0, shown: 0, input: Queue::new() }
    }

    /// Prints; over the oldest text when the line does not take it.
    #[inline]
    pub fn print(&mut self, byte: u8) {
        let at = self.place(self.printed);
        if let Some(place) = self.text.get_mut(at) {
            *place = byte;
        }
        self.printed = self.printed.wrapping_add(1);
    }

    /// Whether the line has all.
    #[inline]
    pub fn is_shown(&self) -> bool {
        self.shown == self.printed
    }

    /// The next byte for the line.
    #[inline]
    pub fn show(&mut self) -> Option<u8> {
        let waiting = self.printed.wrapping_sub(self.shown);
        if waiting == 0 {
            return None;
        }
        if waiting > self.text.len() as u64 {
            self.shown = self.printed.wrapping_sub(self.text.len() as u64);
        }
        let byte = self.byte(self.shown);
        self.shown = self.shown.wrapping_add(1);
        Some(byte)
    }

    /// The line has come to this console: has it show the last screen again.
    pub fn show_again(&mut self) {
        let held = self.printed.min(self.text.len() as u64).min(SCREEN_BYTES);
        let start = self.printed - held;
        let mut lines = 0;
        let mut first_whole = self.printed;
        let mut at = self.printed;
        while at > start {
            at -= 1;
            if self.byte(at) == b'\n' && at + 1 < self.printed {
                lines += 1;
                first_whole = at + 1;
                if lines == SCREEN_LINES {
                    break;
                }
            }
        }
        // A first line that was cut is left out, unless it is all there is.
        self.shown = if lines == SCREEN_LINES || start > 0 && lines > 0 { first_whole } else { start };
    }

    /// Keeps typed `byte`; false when there is no room.
    pub fn type_in(&mut self, byte: u8) -> bool {
        self.input.push(byte)
    }

    /// Takes the oldest typed byte.
    #[inline]
    pub fn take(&mut self) -> Option<u8> {
        self.input.pop()
    }

    /// Forgets what was typed.
    pub fn forget_input(&mut self) {
        while self.input.pop().is_some() {}
    }

    fn place(&self, position: u64) -> usize {
        position as usize & (self.text.len() - 1)
    }

    #[inline]
    fn byte(&self, position: u64) -> u8 {
        self.text.get(self.place(position)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(channel: &mut Channel, text: &str) {
        text.bytes().for_each(|byte| channel.print(byte));
    }

    fn shown(channel: &mut Channel) -> String {
        core::iter::from_fn(|| channel.show()).map(char::from).collect()
    }

    #[test]
    fn the_line_gets_every_byte_once() {
        let mut channel = Channel::new(16);
        assert!(channel.is_shown());
        for round in 0..50 {
            print(&mut channel, &format!("line {round:03}\n"));
            assert!(!channel.is_shown());
            assert_eq!(shown(&mut channel), format!("line {round:03}\n"));
            assert!(channel.is_shown());
        }
    }

    #[test]
    fn a_line_that_does_not_take_it_misses_the_oldest() {
        let mut channel = Channel::new(8);
        print(&mut channel, "0123456789");
        assert_eq!(shown(&mut channel), "23456789");
    }

    #[test]
    fn a_short_text_is_shown_again_whole() {
        let mut channel = Channel::new(64);
        print(&mut channel, "hello\n~ # ");
        assert_eq!(shown(&mut channel), "hello\n~ # ");
        channel.show_again();
        assert_eq!(shown(&mut channel), "hello\n~ # ");
        let mut empty = Channel::new(64);
        empty.show_again();
        assert_eq!(shown(&mut empty), "");
    }

    #[test]
    fn a_long_text_is_shown_again_from_a_whole_line_on() {
        let mut channel = Channel::new(16 << 10);
        (0..100).for_each(|number| print(&mut channel, &format!("{number}\n")));
        print(&mut channel, "prompt ");
        channel.show_again();
        let wanted: String = (77..100).map(|number| format!("{number}\n")).collect();
        assert_eq!(shown(&mut channel), wanted + "prompt ");
        // Long lines: what lies in the last 4 KiB.
        (0..10).for_each(|number| print(&mut channel, &format!("{number}{}\n", "x".repeat(999))));
        channel.show_again();
        let again = shown(&mut channel);
        assert!(again.starts_with("6x") && again.len() == 4 * 1001, "{}", again.len());
    }

    #[test]
    fn a_line_longer_than_a_screen_is_shown_again_in_part() {
        let mut channel = Channel::new(8 << 10);
        print(&mut channel, &"y".repeat(10_000));
        channel.show_again();
        assert_eq!(shown(&mut channel).len(), 4096);
        let mut small = Channel::new(16);
        print(&mut small, "0\n11111\n22222\n33333\n");
        small.show_again();
        assert_eq!(shown(&mut small), "22222\n33333\n", "the first of what is held was cut");
    }

    #[test]
    fn typed_bytes_wait_and_can_be_forgotten() {
        let mut channel = Channel::new(16);
        assert!(channel.type_in(b'a') && channel.type_in(b'b'));
        assert_eq!(channel.take(), Some(b'a'));
        channel.forget_input();
        assert_eq!(channel.take(), None);
        assert!((0..INPUT).all(|_| channel.type_in(b'x')) && !channel.type_in(b'x'));
    }
}
