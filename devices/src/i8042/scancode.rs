//! Keys and their scan codes.

/// Prefix of the keys that the AT keyboard had not.
pub(super) const EXTENDED: u8 = 0xe0;
/// Set 2: the key that follows was released.
pub(super) const RELEASED: u8 = 0xf0;
/// Set 1: added to the code of a released key.
pub(super) const RELEASED_BIT: u8 = 0x80;

/// Whether a key went down (or repeats) or up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Down.
    Pressed,
    /// Up.
    Released,
}

/// The keys of a 105-key keyboard, by their caps on a US layout. The number is the scan code of set 2, with the 0xe0
/// prefix in the upper byte; Print Screen and Pause have sequences of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names are the caps")]
pub enum KeyCode {
    Escape = 0x76,
    F1 = 0x05,
    F2 = 0x06,
    F3 = 0x04,
    F4 = 0x0c,
    F5 = 0x03,
    F6 = 0x0b,
    F7 = 0x83,
    F8 = 0x0a,
    F9 = 0x01,
    F10 = 0x09,
    F11 = 0x78,
    F12 = 0x07,
    PrintScreen = 0xe07c,
    ScrollLock = 0x7e,
    Pause = 0xe177,
    Backquote = 0x0e,
    Digit1 = 0x16,
    Digit2 = 0x1e,
    Digit3 = 0x26,
    Digit4 = 0x25,
    Digit5 = 0x2e,
    Digit6 = 0x36,
    Digit7 = 0x3d,
    Digit8 = 0x3e,
    Digit9 = 0x46,
    Digit0 = 0x45,
    Minus = 0x4e,
    Equal = 0x55,
    Backspace = 0x66,
    Tab = 0x0d,
    Q = 0x15,
    W = 0x1d,
    E = 0x24,
    R = 0x2d,
    T = 0x2c,
    Y = 0x35,
    U = 0x3c,
    I = 0x43,
    O = 0x44,
    P = 0x4d,
    BracketLeft = 0x54,
    BracketRight = 0x5b,
    Backslash = 0x5d,
    CapsLock = 0x58,
    A = 0x1c,
    S = 0x1b,
    D = 0x23,
    F = 0x2b,
    G = 0x34,
    H = 0x33,
    J = 0x3b,
    K = 0x42,
    L = 0x4b,
    Semicolon = 0x4c,
    Quote = 0x52,
    Enter = 0x5a,
    ShiftLeft = 0x12,
    IntlBackslash = 0x61,
    Z = 0x1a,
    X = 0x22,
    C = 0x21,
    V = 0x2a,
    B = 0x32,
    N = 0x31,
    M = 0x3a,
    Comma = 0x41,
    Period = 0x49,
    Slash = 0x4a,
    ShiftRight = 0x59,
    ControlLeft = 0x14,
    MetaLeft = 0xe01f,
    AltLeft = 0x11,
    Space = 0x29,
    AltRight = 0xe011,
    MetaRight = 0xe027,
    Menu = 0xe02f,
    ControlRight = 0xe014,
    Insert = 0xe070,
    Home = 0xe06c,
    PageUp = 0xe07d,
    Delete = 0xe071,
    End = 0xe069,
    PageDown = 0xe07a,
    ArrowUp = 0xe075,
    ArrowLeft = 0xe06b,
    ArrowDown = 0xe072,
    ArrowRight = 0xe074,
    NumLock = 0x77,
    NumpadDivide = 0xe04a,
    NumpadMultiply = 0x7c,
    NumpadSubtract = 0x7b,
    NumpadAdd = 0x79,
    NumpadEnter = 0xe05a,
    NumpadDecimal = 0x71,
    Numpad0 = 0x70,
    Numpad1 = 0x69,
    Numpad2 = 0x72,
    Numpad3 = 0x7a,
    Numpad4 = 0x6b,
    Numpad5 = 0x73,
    Numpad6 = 0x74,
    Numpad7 = 0x6c,
    Numpad8 = 0x75,
    Numpad9 = 0x7d,
}

impl KeyCode {
    /// The set 2 bytes of this event, into `buffer`.
    pub(super) fn set_2(self, state: KeyState, buffer: &mut [u8; 8]) -> &[u8] {
        let sequence: &[u8] = match (self, state) {
            // Pause sends everything when it goes down and nothing when it comes up.
            (KeyCode::Pause, KeyState::Pressed) => &[0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77],
            (KeyCode::Pause, KeyState::Released) => &[],
            (KeyCode::PrintScreen, KeyState::Pressed) => &[0xe0, 0x12, 0xe0, 0x7c],
            (KeyCode::PrintScreen, KeyState::Released) => &[0xe0, 0xf0, 0x7c, 0xe0, 0xf0, 0x12],
            _ => {
                let [code, prefix] = (self as u16).to_le_bytes();
                match (prefix == EXTENDED, state) {
                    (false, KeyState::Pressed) => &[code],
                    (false, KeyState::Released) => &[RELEASED, code],
                    (true, KeyState::Pressed) => &[EXTENDED, code],
                    (true, KeyState::Released) => &[EXTENDED, RELEASED, code],
                }
            }
        };
        for (cell, byte) in buffer.iter_mut().zip(sequence) {
            *cell = *byte;
        }
        buffer.get(..sequence.len()).unwrap_or_default()
    }
}

/// The 8042's translation of set 2 codes below 0x80 to set 1.
const SET_1: [u8; 128] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59, //
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b, //
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d, //
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f, //
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61, //
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76, //
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f, //
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54, //
];

/// Translates a stream of set 2 bytes to set 1, one byte at a time.
#[derive(Default)]
pub(super) struct Translator {
    /// The prefix of a released key was swallowed; the next code gets its bit.
    released: bool,
}

impl Translator {
    /// The set 1 byte for `byte`, or none for the prefix of a released key.
    pub(super) fn translate(&mut self, byte: u8) -> Option<u8> {
        if byte == RELEASED {
            self.released = true;
            return None;
        }
        let code = match byte {
            0x83 => 0x41,
            0x84 => 0x54,
            _ => SET_1.get(usize::from(byte)).copied().unwrap_or(byte),
        };
        let bit = if core::mem::take(&mut self.released) { RELEASED_BIT } else { 0 };
        Some(code | bit)
    }
}
