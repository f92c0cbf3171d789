//! What a typed byte means: input for the guest, or a command for the monitor behind Ctrl-A. Pure.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// A typed key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// For the guest.
    Guest(u8),
    /// For the monitor.
    Command(u8),
}

/// Splits typed bytes.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// Nothing typed yet.
    pub const fn new() -> Self {
        Self { escaped: false }
    }

    /// What `byte` is; nothing yet for Ctrl-A itself. Ctrl-A a, and Ctrl-A twice, give the guest one Ctrl-A.
    pub fn feed(&mut self, byte: u8) -> Option<Key> {
        match (core::mem::take(&mut self.escaped), byte) {
            (false, ESCAPE) => {
                self.escaped = true;
                None
            }
            (false, byte) => Some(Key::Guest(byte)),
            (true, ESCAPE | b'a') => Some(Key::Guest(ESCAPE)),
            (true, byte) => Some(Key::Command(byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_follows_the_escape_is_a_command() {
        let mut keys = Keys::new();
        let typed: Vec<_> = b"l\x01h\x01a\x01\x01s".iter().filter_map(|&byte| keys.feed(byte)).collect();
        assert_eq!(typed, [Key::Guest(b'l'), Key::Command(b'h'), Key::Guest(1), Key::Guest(1), Key::Guest(b's')]);
    }
}
