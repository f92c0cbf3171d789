//! The PS/2 mouse, with the wheel and five-button extensions.

use super::queue::Queue;
use super::spec::{mouse as command, reply};
use bitflags::bitflags;

bitflags! {
    /// Buttons that are down.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MouseButtons: u8 {
        /// Left.
        const LEFT = 1 << 0;
        /// Right.
        const RIGHT = 1 << 1;
        /// Middle.
        const MIDDLE = 1 << 2;
        /// Fourth.
        const FOURTH = 1 << 3;
        /// Fifth.
        const FIFTH = 1 << 4;
    }
}

/// What the mouse did since the last report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MouseReport {
    /// Counts to the right.
    pub right: i32,
    /// Counts away from the user.
    pub up: i32,
    /// Notches of the wheel towards the user.
    pub wheel: i32,
    /// The buttons that are down now.
    pub buttons: MouseButtons,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Stream,
    Remote,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    None,
    Resolution,
    SampleRate,
}

/// Bytes of movement that wait for the host; more is added up.
const EVENT_BYTES: usize = 16;
const REPLY_BYTES: usize = 16;
/// How far movement is added up while the host does not fetch it.
const MOST_COUNTS: i32 = 4096;
/// A packet's nine-bit counts.
const PACKET_COUNTS: i32 = 255;
/// A packet's four-bit wheel.
const PACKET_WHEEL: i32 = 7;

pub(super) struct Mouse {
    events: Queue<EVENT_BYTES>,
    replies: Queue<REPLY_BYTES>,
    reporting: bool,
    mode: Mode,
    wrap: bool,
    scaling: bool,
    resolution: u8,
    sample_rate: u8,
    /// The last three sample rates, oldest first.
    knocks: [u8; 3],
    id: u8,
    parameter: Parameter,
    right: i32,
    up: i32,
    wheel: i32,
    buttons: MouseButtons,
    buttons_sent: MouseButtons,
    last_sent: u8,
}

impl Mouse {
    pub(super) fn new() -> Mouse {
        Mouse {
            events: Queue::new(),
            replies: Queue::new(),
            reporting: false,
            mode: Mode::Stream,
            wrap: false,
            scaling: false,
            resolution: 2,
            sample_rate: 100,
            knocks: [0; 3],
            id: command::ID_PLAIN,
            parameter: Parameter::None,
            right: 0,
            up: 0,
            wheel: 0,
            buttons: MouseButtons::empty(),
            buttons_sent: MouseButtons::empty(),
            last_sent: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        let buttons = self.buttons;
        *self = Mouse { buttons, ..Mouse::new() };
    }

    /// Adds movement; what does not fit into the queue now is sent when it does.
    pub(super) fn report(&mut self, report: MouseReport) {
        let add = |sum: i32, more: i32| sum.saturating_add(more).clamp(-MOST_COUNTS, MOST_COUNTS);
        self.right = add(self.right, report.right);
        self.up = add(self.up, report.up);
        self.wheel = add(self.wheel, report.wheel);
        self.buttons = report.buttons;
        self.stream();
    }

    /// The next byte for the host.
    pub(super) fn send(&mut self) -> Option<u8> {
        if self.replies.is_empty() && self.events.is_empty() {
            self.stream();
        }
        let byte = self.replies.pop().or_else(|| self.events.pop())?;
        self.last_sent = byte;
        Some(byte)
    }

    /// Makes packets of what moved while there is room for them.
    fn stream(&mut self) {
        if !self.reporting || self.mode != Mode::Stream || self.wrap {
            return;
        }
        while self.has_news() {
            let (packet, len) = self.packet();
            if !self.events.push_all(packet.get(..len).unwrap_or_default()) {
                break;
            }
            self.take_packet();
        }
    }

    fn has_news(&self) -> bool {
        let wheel = self.id != command::ID_PLAIN && self.wheel != 0;
        self.right != 0 || self.up != 0 || wheel || self.buttons != self.buttons_sent
    }

    /// The next packet and its length.
    fn packet(&self) -> ([u8; 4], usize) {
        let (right, up) = (counts(self.right), counts(self.up));
        let mut first = command::ALWAYS | self.buttons.bits() & 0b111;
        if right < 0 {
            first |= command::X_SIGN;
        }
        if up < 0 {
            first |= command::Y_SIGN;
        }
        let wheel = self.wheel.clamp(-PACKET_WHEEL, PACKET_WHEEL);
        let last = match self.id {
            command::ID_FIVE_BUTTONS => wheel as u8 & 0x0f | (self.buttons.bits() >> 3 & 0b11) << 4,
            _ => wheel as u8,
        };
        ([first, right as u8, up as u8, last], if self.id == command::ID_PLAIN { 3 } else { 4 })
    }

    /// Takes off what [`Mouse::packet`] holds.
    fn take_packet(&mut self) {
        self.right -= counts(self.right);
        self.up -= counts(self.up);
        if self.id == command::ID_PLAIN {
            self.wheel = 0;
        }
        self.wheel -= self.wheel.clamp(-PACKET_WHEEL, PACKET_WHEEL);
        self.buttons_sent = self.buttons;
    }

    fn forget_movement(&mut self) {
        self.events.clear();
        (self.right, self.up, self.wheel) = (0, 0, 0);
        self.buttons_sent = self.buttons;
    }

    fn answer(&mut self, bytes: &[u8]) {
        self.replies.push_all(bytes);
    }

    fn acknowledge(&mut self) {
        self.answer(&[reply::ACKNOWLEDGE]);
    }

    fn set_defaults(&mut self) {
        self.reporting = false;
        self.mode = Mode::Stream;
        self.scaling = false;
        self.resolution = 2;
        self.sample_rate = 100;
        self.forget_movement();
    }

    fn status(&self) -> [u8; 3] {
        let buttons = self.buttons;
        let mut first = 0;
        for (button, bit) in [(MouseButtons::RIGHT, 0), (MouseButtons::MIDDLE, 1), (MouseButtons::LEFT, 2)] {
            first |= u8::from(buttons.contains(button)) << bit;
        }
        first |= u8::from(self.scaling) << 4 | u8::from(self.reporting) << 5 | u8::from(self.mode == Mode::Remote) << 6;
        [first, self.resolution, self.sample_rate]
    }

    /// A byte from the host.
    pub(super) fn receive(&mut self, byte: u8) {
        if self.wrap && byte != command::LEAVE_WRAP_MODE && byte != command::RESET {
            self.answer(&[byte]);
            return;
        }
        let parameter = core::mem::replace(&mut self.parameter, Parameter::None);
        match parameter {
            Parameter::Resolution if byte <= 3 => {
                self.resolution = byte;
                self.acknowledge();
                return;
            }
            Parameter::SampleRate if byte <= 200 => {
                self.set_sample_rate(byte);
                self.acknowledge();
                return;
            }
            _ => {}
        }
        match byte {
            command::SCALING_1_TO_1 => self.scaling = false,
            command::SCALING_2_TO_1 => self.scaling = true,
            command::SET_RESOLUTION => self.parameter = Parameter::Resolution,
            command::STATUS => {
                let [flags, resolution, rate] = self.status();
                self.answer(&[reply::ACKNOWLEDGE, flags, resolution, rate]);
                return;
            }
            command::STREAM_MODE => {
                self.mode = Mode::Stream;
                self.forget_movement();
            }
            command::READ_DATA => {
                self.acknowledge();
                let (packet, len) = self.packet();
                self.answer(packet.get(..len).unwrap_or_default());
                self.take_packet();
                return;
            }
            command::LEAVE_WRAP_MODE => self.wrap = false,
            command::WRAP_MODE => {
                self.forget_movement();
                self.wrap = true;
            }
            command::REMOTE_MODE => {
                self.mode = Mode::Remote;
                self.forget_movement();
            }
            command::IDENTIFY => {
                self.answer(&[reply::ACKNOWLEDGE, self.id]);
                return;
            }
            command::SET_SAMPLE_RATE => self.parameter = Parameter::SampleRate,
            command::ENABLE => {
                self.forget_movement();
                self.reporting = true;
            }
            command::DISABLE => self.reporting = false,
            command::SET_DEFAULTS => self.set_defaults(),
            command::RESEND => {
                self.answer(&[self.last_sent]);
                return;
            }
            command::RESET => {
                self.reset();
                self.answer(&[reply::ACKNOWLEDGE, reply::SELF_TEST_PASSED, self.id]);
                return;
            }
            _ => {
                self.answer(&[reply::RESEND]);
                return;
            }
        }
        self.acknowledge();
    }

    fn set_sample_rate(&mut self, rate: u8) {
        self.sample_rate = rate;
        self.knocks.rotate_left(1);
        self.knocks[2] = rate;
        match self.knocks {
            command::WHEEL_KNOCK => self.id = command::ID_WHEEL,
            command::FIVE_BUTTONS_KNOCK => self.id = command::ID_FIVE_BUTTONS,
            _ => {}
        }
    }
}

/// What one packet can carry of a movement.
fn counts(movement: i32) -> i32 {
    movement.clamp(-PACKET_COUNTS, PACKET_COUNTS)
}
