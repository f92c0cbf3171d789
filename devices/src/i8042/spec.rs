//! Bits and commands of the 8042 controller, the AT keyboard and the PS/2 mouse.

use bitflags::bitflags;

bitflags! {
    /// Status register, port 0x64.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u8 {
        /// Output buffer full: port 0x60 has a byte for the processor.
        const OBF = 1 << 0;
        /// Input buffer full; never seen set, for the controller takes bytes at once.
        const IBF = 1 << 1;
        /// System flag, a copy of the command byte's.
        const SYS = 1 << 2;
        /// The last byte written was a command.
        const COMMAND = 1 << 3;
        /// The keyboard is not locked.
        const UNLOCKED = 1 << 4;
        /// The byte in the output buffer is the mouse's.
        const AUX_OBF = 1 << 5;
    }

    /// The controller's command byte.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandByte: u8 {
        /// Keyboard bytes raise IRQ1.
        const KEYBOARD_INTERRUPT = 1 << 0;
        /// Mouse bytes raise IRQ12.
        const AUX_INTERRUPT = 1 << 1;
        /// The system passed its self-test.
        const SYS = 1 << 2;
        /// The keyboard is held off.
        const KEYBOARD_DISABLED = 1 << 4;
        /// The mouse is held off.
        const AUX_DISABLED = 1 << 5;
        /// Scan codes are translated from set 2 to set 1.
        const TRANSLATE = 1 << 6;
    }

    /// The controller's output port.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OutputPort: u8 {
        /// Low resets the processor.
        const NOT_RESET = 1 << 0;
        /// Address line 20 is open.
        const A20 = 1 << 1;
        /// IRQ12.
        const AUX_OBF = 1 << 5;
        /// IRQ1.
        const OBF = 1 << 4;
    }
}

/// Commands to the controller, port 0x64.
pub mod command {
    /// Read the command byte; up to 0x3f the rest of the controller's RAM.
    pub const READ_RAM: u8 = 0x20;
    /// Write the command byte; up to 0x7f the rest of the controller's RAM.
    pub const WRITE_RAM: u8 = 0x60;
    pub const DISABLE_AUX: u8 = 0xa7;
    pub const ENABLE_AUX: u8 = 0xa8;
    pub const TEST_AUX: u8 = 0xa9;
    pub const SELF_TEST: u8 = 0xaa;
    pub const TEST_KEYBOARD: u8 = 0xab;
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    pub const READ_INPUT_PORT: u8 = 0xc0;
    pub const READ_OUTPUT_PORT: u8 = 0xd0;
    pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
    pub const WRITE_AUX_BUFFER: u8 = 0xd3;
    pub const WRITE_AUX: u8 = 0xd4;
    pub const READ_TEST_INPUTS: u8 = 0xe0;
    /// Pulse low those of the output port's lower four bits that are 0.
    pub const PULSE: u8 = 0xf0;
}

/// The controller's self-test passed.
pub const SELF_TEST_PASSED: u8 = 0x55;
/// An interface test found no error.
pub const TEST_PASSED: u8 = 0x00;
/// Input port: the keyboard is not inhibited.
pub const INPUT_PORT: u8 = 0x80;

/// Answers of keyboard and mouse.
pub mod reply {
    pub const ACKNOWLEDGE: u8 = 0xfa;
    pub const RESEND: u8 = 0xfe;
    pub const SELF_TEST_PASSED: u8 = 0xaa;
    pub const ECHO: u8 = 0xee;
    /// What an MF2 keyboard calls itself.
    pub const KEYBOARD_ID: [u8; 2] = [0xab, 0x83];
}

/// Commands to the keyboard.
pub mod keyboard {
    pub const SET_LEDS: u8 = 0xed;
    pub const ECHO: u8 = 0xee;
    pub const SCAN_CODE_SET: u8 = 0xf0;
    pub const IDENTIFY: u8 = 0xf2;
    pub const SET_TYPEMATIC: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DISABLE: u8 = 0xf5;
    pub const SET_DEFAULTS: u8 = 0xf6;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;
}

/// Commands to the mouse.
pub mod mouse {
    pub const SCALING_1_TO_1: u8 = 0xe6;
    pub const SCALING_2_TO_1: u8 = 0xe7;
    pub const SET_RESOLUTION: u8 = 0xe8;
    pub const STATUS: u8 = 0xe9;
    pub const STREAM_MODE: u8 = 0xea;
    pub const READ_DATA: u8 = 0xeb;
    pub const LEAVE_WRAP_MODE: u8 = 0xec;
    pub const WRAP_MODE: u8 = 0xee;
    pub const REMOTE_MODE: u8 = 0xf0;
    pub const IDENTIFY: u8 = 0xf2;
    pub const SET_SAMPLE_RATE: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DISABLE: u8 = 0xf5;
    pub const SET_DEFAULTS: u8 = 0xf6;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;

    /// Ids: a plain mouse, one with a wheel, one with a wheel and five buttons.
    pub const ID_PLAIN: u8 = 0;
    pub const ID_WHEEL: u8 = 3;
    pub const ID_FIVE_BUTTONS: u8 = 4;
    /// The sample rates that, set one after the other, turn the wheel on.
    pub const WHEEL_KNOCK: [u8; 3] = [200, 100, 80];
    /// The same for five buttons.
    pub const FIVE_BUTTONS_KNOCK: [u8; 3] = [200, 200, 80];
    /// Packet, first byte: always set.
    pub const ALWAYS: u8 = 1 << 3;
    /// Packet, first byte: movement to the left.
    pub const X_SIGN: u8 = 1 << 4;
    /// Packet, first byte: movement down.
    pub const Y_SIGN: u8 = 1 << 5;
}
