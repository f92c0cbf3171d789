//! The AT keyboard (MF2): its commands and its scan code queue.

use super::queue::Queue;
use super::scancode::{KeyCode, KeyState, Translator};
use super::spec::{keyboard as command, reply};
use bitflags::bitflags;

bitflags! {
    /// The keyboard's lights.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Leds: u8 {
        /// Scroll Lock.
        const SCROLL_LOCK = 1 << 0;
        /// Num Lock.
        const NUM_LOCK = 1 << 1;
        /// Caps Lock.
        const CAPS_LOCK = 1 << 2;
    }
}

/// The scan code set that the keyboard sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScanCodeSet {
    One = 1,
    Two = 2,
}

/// What the next byte from the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    None,
    Leds,
    ScanCodeSet,
    Typematic,
}

/// Bytes of scan codes that wait for the host.
const EVENT_BYTES: usize = 64;
/// The longest answer is three bytes; some may wait while the host holds the keyboard off.
const REPLY_BYTES: usize = 16;

pub(super) struct Keyboard {
    events: Queue<EVENT_BYTES>,
    replies: Queue<REPLY_BYTES>,
    scanning: bool,
    set: ScanCodeSet,
    leds: Leds,
    parameter: Parameter,
    last_sent: u8,
}

impl Keyboard {
    pub(super) fn new() -> Keyboard {
        Keyboard {
            events: Queue::new(),
            replies: Queue::new(),
            scanning: true,
            set: ScanCodeSet::Two,
            leds: Leds::empty(),
            parameter: Parameter::None,
            last_sent: 0,
        }
    }

    pub(super) fn leds(&self) -> Leds {
        self.leds
    }

    /// A key event. True unless it was lost, for scanning is off or the queue is full.
    pub(super) fn key(&mut self, key: KeyCode, state: KeyState) -> bool {
        self.scan_codes(key.set_2(state, &mut [0; 8]))
    }

    /// A sequence of at most 8 set 2 bytes, taken as a whole or not at all.
    pub(super) fn scan_codes(&mut self, set_2: &[u8]) -> bool {
        if !self.scanning || set_2.len() > 8 {
            return false;
        }
        match self.set {
            ScanCodeSet::Two => self.events.push_all(set_2),
            ScanCodeSet::One => {
                let mut translator = Translator::default();
                let (mut bytes, mut len) = ([0; 8], 0);
                for code in set_2.iter().filter_map(|byte| translator.translate(*byte)) {
                    if let Some(cell) = bytes.get_mut(len) {
                        *cell = code;
                        len += 1;
                    }
                }
                self.events.push_all(bytes.get(..len).unwrap_or_default())
            }
        }
    }

    /// The next byte for the host; answers go before scan codes.
    pub(super) fn send(&mut self) -> Option<u8> {
        let byte = self.replies.pop().or_else(|| self.events.pop())?;
        self.last_sent = byte;
        Some(byte)
    }

    pub(super) fn reset(&mut self) {
        *self = Keyboard::new();
    }

    fn answer(&mut self, bytes: &[u8]) {
        self.replies.push_all(bytes);
    }

    fn set_defaults(&mut self) {
        self.set = ScanCodeSet::Two;
        self.events.clear();
    }

    /// A byte from the host.
    pub(super) fn receive(&mut self, byte: u8) {
        // A command ends one that still waits for its parameter.
        let parameter = core::mem::replace(&mut self.parameter, Parameter::None);
        if parameter != Parameter::None && byte < command::SET_LEDS {
            self.take_parameter(parameter, byte);
            return;
        }
        match byte {
            command::SET_LEDS => self.ask(Parameter::Leds),
            command::SCAN_CODE_SET => self.ask(Parameter::ScanCodeSet),
            command::SET_TYPEMATIC => self.ask(Parameter::Typematic),
            command::ECHO => self.answer(&[reply::ECHO]),
            command::IDENTIFY => {
                let [first, second] = reply::KEYBOARD_ID;
                self.answer(&[reply::ACKNOWLEDGE, first, second]);
            }
            command::ENABLE => {
                self.events.clear();
                self.scanning = true;
                self.answer(&[reply::ACKNOWLEDGE]);
            }
            command::DISABLE => {
                self.set_defaults();
                self.scanning = false;
                self.answer(&[reply::ACKNOWLEDGE]);
            }
            command::SET_DEFAULTS => {
                self.set_defaults();
                self.scanning = true;
                self.answer(&[reply::ACKNOWLEDGE]);
            }
            command::RESEND => self.answer(&[self.last_sent]),
            command::RESET => {
                self.reset();
                self.answer(&[reply::ACKNOWLEDGE, reply::SELF_TEST_PASSED]);
            }
            _ => self.answer(&[reply::RESEND]),
        }
    }

    fn ask(&mut self, parameter: Parameter) {
        self.parameter = parameter;
        self.answer(&[reply::ACKNOWLEDGE]);
    }

    fn take_parameter(&mut self, parameter: Parameter, byte: u8) {
        match (parameter, byte) {
            (Parameter::Leds, _) => self.leds = Leds::from_bits_truncate(byte),
            (Parameter::ScanCodeSet, 0) => {
                self.answer(&[reply::ACKNOWLEDGE, self.set as u8]);
                return;
            }
            (Parameter::ScanCodeSet, 1) => self.set = ScanCodeSet::One,
            (Parameter::ScanCodeSet, 2) => self.set = ScanCodeSet::Two,
            (Parameter::ScanCodeSet, _) => {
                self.answer(&[reply::RESEND]);
                return;
            }
            // Whoever presses the keys repeats them.
            (Parameter::Typematic | Parameter::None, _) => {}
        }
        self.answer(&[reply::ACKNOWLEDGE]);
    }
}
