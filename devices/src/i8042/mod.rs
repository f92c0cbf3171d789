//! 8042 keyboard controller with a keyboard and a PS/2 mouse.
//!
//! Manuals: IBM Personal System/2 Hardware Interface Technical Reference, October 1990, "Keyboard and Auxiliary Device
//! Controller"; Microsoft "Keyboard Scan Code Specification" 1.3a; the wheel extension is Microsoft's IntelliMouse.
//!
//! [`I8042`] decodes a data port (offset 0) and a status and command port (offset 4). Keys and movement come from the
//! host by [`I8042::key`], [`I8042::scan_codes`] and [`I8042::mouse`]; queues are bounded, a key event that does not fit
//! is lost as a whole and movement is added up. Bytes pass at once: the input buffer is never full.
//! [`SystemControl`] is port 0x92 with its own A20 and reset bits.
//!
//! Not here: scan code set 3, typematic repeat (the host's keyboard does it), a working A20 gate (the line is always
//! open; the bits are only kept).

mod keyboard;
mod mouse;
mod queue;
mod scancode;
mod spec;
#[cfg(test)]
mod tests;

pub use keyboard::Leds;
pub use mouse::{MouseButtons, MouseReport};
pub use scancode::{KeyCode, KeyState};

use crate::{Device, IrqLine, PowerEvent, PowerSink};
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use keyboard::Keyboard;
use mouse::Mouse;
use scancode::Translator;
use spec::{CommandByte, INPUT_PORT, OutputPort, SELF_TEST_PASSED, Status, TEST_PASSED, command};

/// Who put a byte into the output buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Keyboard,
    Aux,
}

/// What the next byte written to the data port means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    ForKeyboard,
    Ram(usize),
    OutputPort,
    KeyboardBuffer,
    AuxBuffer,
    ForAux,
}

/// Answers of the controller that wait for the output buffer.
const ANSWERS: usize = 8;
/// Bytes of RAM in the controller; the first is the command byte.
const RAM: usize = 32;

/// The controller and what is plugged into it.
pub struct I8042 {
    keyboard_line: Arc<dyn IrqLine>,
    aux_line: Arc<dyn IrqLine>,
    power: Arc<dyn PowerSink>,
    keyboard: Keyboard,
    mouse: Mouse,
    translator: Translator,
    output: Option<Source>,
    /// The byte last put into the output buffer; it can be read again.
    output_byte: u8,
    answers: ArrayVec<(Source, u8), ANSWERS>,
    command: CommandByte,
    ram: [u8; RAM],
    output_port: OutputPort,
    expected: Expected,
    last_was_command: bool,
}

impl I8042 {
    /// Offset of port 0x60.
    pub const DATA: u64 = 0;
    /// Offset of port 0x64.
    pub const COMMAND: u64 = 4;

    /// A controller as firmware leaves it: IRQ1 (`keyboard_line`) and translation on, IRQ12 (`aux_line`) off.
    pub fn new(keyboard_line: Arc<dyn IrqLine>, aux_line: Arc<dyn IrqLine>, power: Arc<dyn PowerSink>) -> I8042 {
        I8042 {
            keyboard_line,
            aux_line,
            power,
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
            translator: Translator::default(),
            output: None,
            output_byte: 0,
            answers: ArrayVec::new(),
            command: COMMAND_AT_RESET,
            ram: [0; RAM],
            output_port: OutputPort::NOT_RESET | OutputPort::A20,
            expected: Expected::ForKeyboard,
            last_was_command: false,
        }
    }

    /// A key went down or up. False if the event was lost.
    pub fn key(&mut self, key: KeyCode, state: KeyState) -> bool {
        let taken = self.keyboard.key(key, state);
        self.fill_output();
        taken
    }

    /// One key event as the set 2 bytes of a real keyboard, at most 8. False if it was lost.
    pub fn scan_codes(&mut self, set_2: &[u8]) -> bool {
        let taken = self.keyboard.scan_codes(set_2);
        self.fill_output();
        taken
    }

    /// The mouse moved, or its buttons changed.
    pub fn mouse(&mut self, report: MouseReport) {
        self.mouse.report(report);
        self.fill_output();
    }

    /// The keyboard's lights.
    pub fn leds(&self) -> Leds {
        self.keyboard.leds()
    }

    /// If the output buffer is empty, moves the next byte into it and raises its interrupt.
    fn fill_output(&mut self) {
        if self.output.is_some() {
            return;
        }
        if let Some((source, byte)) = self.next_byte() {
            self.output = Some(source);
            self.output_byte = byte;
            let (line, enable) = match source {
                Source::Keyboard => (&self.keyboard_line, CommandByte::KEYBOARD_INTERRUPT),
                Source::Aux => (&self.aux_line, CommandByte::AUX_INTERRUPT),
            };
            if self.command.contains(enable) {
                line.set(true);
            }
        }
    }

    fn next_byte(&mut self) -> Option<(Source, u8)> {
        if let Some(answer) = self.answers.pop_at(0) {
            return Some(answer);
        }
        if !self.command.contains(CommandByte::KEYBOARD_DISABLED) {
            // The prefix of a released key gives no byte of its own; the queue is bounded, and so is this.
            while let Some(byte) = self.keyboard.send() {
                if !self.command.contains(CommandByte::TRANSLATE) {
                    return Some((Source::Keyboard, byte));
                }
                if let Some(byte) = self.translator.translate(byte) {
                    return Some((Source::Keyboard, byte));
                }
            }
        }
        if !self.command.contains(CommandByte::AUX_DISABLED) {
            return self.mouse.send().map(|byte| (Source::Aux, byte));
        }
        None
    }

    fn lower_lines(&self) {
        self.keyboard_line.set(false);
        self.aux_line.set(false);
    }

    /// The lines follow the command byte while a byte waits.
    fn update_lines(&self) {
        let keyboard = self.output == Some(Source::Keyboard) && self.command.contains(CommandByte::KEYBOARD_INTERRUPT);
        let aux = self.output == Some(Source::Aux) && self.command.contains(CommandByte::AUX_INTERRUPT);
        self.keyboard_line.set(keyboard);
        self.aux_line.set(aux);
    }

    fn answer(&mut self, source: Source, byte: u8) {
        // A guest that asks and never reads gets no more answers than the controller can hold.
        let _ = self.answers.try_push((source, byte));
    }

    fn status(&self) -> Status {
        let mut status = Status::UNLOCKED;
        status.set(Status::OBF, self.output.is_some());
        status.set(Status::AUX_OBF, self.output == Some(Source::Aux));
        status.set(Status::SYS, self.command.contains(CommandByte::SYS));
        status.set(Status::COMMAND, self.last_was_command);
        status
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.output_byte;
        if self.output.take().is_some() {
            self.lower_lines();
            self.fill_output();
        }
        byte
    }

    fn read_ram(&self, index: usize) -> u8 {
        if index == 0 { self.command.bits() } else { self.ram.get(index).copied().unwrap_or(0) }
    }

    fn write_ram(&mut self, index: usize, value: u8) {
        if index == 0 {
            self.command = CommandByte::from_bits_truncate(value);
            self.update_lines();
        } else if let Some(cell) = self.ram.get_mut(index) {
            *cell = value;
        }
    }

    fn set_output_port(&mut self, value: u8) {
        self.output_port = OutputPort::from_bits_truncate(value) & (OutputPort::NOT_RESET | OutputPort::A20);
        if !self.output_port.contains(OutputPort::NOT_RESET) {
            self.power.request(PowerEvent::Reset);
        }
    }

    fn read_output_port(&self) -> u8 {
        let mut port = self.output_port;
        port.set(OutputPort::OBF, self.output == Some(Source::Keyboard));
        port.set(OutputPort::AUX_OBF, self.output == Some(Source::Aux));
        // The upper lines are the keyboard's clock and data, idle.
        port.bits() | 0xc0
    }

    fn write_command(&mut self, value: u8) {
        self.last_was_command = true;
        self.expected = Expected::ForKeyboard;
        match value {
            command::READ_RAM..0x40 => self.answer(Source::Keyboard, self.read_ram(usize::from(value & 0x1f))),
            command::WRITE_RAM..0x80 => self.expected = Expected::Ram(usize::from(value & 0x1f)),
            command::DISABLE_AUX => self.command |= CommandByte::AUX_DISABLED,
            command::ENABLE_AUX => self.command -= CommandByte::AUX_DISABLED,
            command::DISABLE_KEYBOARD => self.command |= CommandByte::KEYBOARD_DISABLED,
            command::ENABLE_KEYBOARD => self.command -= CommandByte::KEYBOARD_DISABLED,
            command::TEST_AUX | command::TEST_KEYBOARD => self.answer(Source::Keyboard, TEST_PASSED),
            command::SELF_TEST => {
                self.command |= CommandByte::SYS;
                self.answer(Source::Keyboard, SELF_TEST_PASSED);
            }
            command::READ_INPUT_PORT => self.answer(Source::Keyboard, INPUT_PORT),
            command::READ_OUTPUT_PORT => self.answer(Source::Keyboard, self.read_output_port()),
            command::WRITE_OUTPUT_PORT => self.expected = Expected::OutputPort,
            command::WRITE_KEYBOARD_BUFFER => self.expected = Expected::KeyboardBuffer,
            command::WRITE_AUX_BUFFER => self.expected = Expected::AuxBuffer,
            command::WRITE_AUX => self.expected = Expected::ForAux,
            command::READ_TEST_INPUTS => self.answer(Source::Keyboard, 0),
            command::PULSE.. if value & OutputPort::NOT_RESET.bits() == 0 => {
                self.power.request(PowerEvent::Reset);
            }
            _ => {}
        }
        self.fill_output();
    }

    fn write_data(&mut self, value: u8) {
        self.last_was_command = false;
        match core::mem::replace(&mut self.expected, Expected::ForKeyboard) {
            // A byte for a device lets it send again.
            Expected::ForKeyboard => {
                self.command -= CommandByte::KEYBOARD_DISABLED;
                self.keyboard.receive(value);
            }
            Expected::ForAux => {
                self.command -= CommandByte::AUX_DISABLED;
                self.mouse.receive(value);
            }
            Expected::Ram(index) => self.write_ram(index, value),
            Expected::OutputPort => self.set_output_port(value),
            Expected::KeyboardBuffer => self.answer(Source::Keyboard, value),
            Expected::AuxBuffer => self.answer(Source::Aux, value),
        }
        self.fill_output();
    }
}

/// IRQ1 on, system flag set, translation on.
const COMMAND_AT_RESET: CommandByte =
    CommandByte::KEYBOARD_INTERRUPT.union(CommandByte::SYS).union(CommandByte::TRANSLATE);

impl Device for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(byte) = data.first_mut() {
            match offset {
                I8042::DATA => *byte = self.read_data(),
                I8042::COMMAND => *byte = self.status().bits(),
                _ => {}
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(byte) = data.first() {
            match offset {
                I8042::DATA => self.write_data(*byte),
                I8042::COMMAND => self.write_command(*byte),
                _ => {}
            }
        }
    }

    fn reset(&mut self) {
        self.keyboard.reset();
        self.mouse.reset();
        self.translator = Translator::default();
        self.output = None;
        self.answers.clear();
        self.command = COMMAND_AT_RESET;
        self.ram = [0; RAM];
        self.output_port = OutputPort::NOT_RESET | OutputPort::A20;
        self.expected = Expected::ForKeyboard;
        self.last_was_command = false;
        self.lower_lines();
    }
}

/// Port 0x92, "System Control Port A": fast A20 and fast reset.
pub struct SystemControl {
    power: Arc<dyn PowerSink>,
    value: u8,
}

impl SystemControl {
    const FAST_RESET: u8 = 1 << 0;
    const A20: u8 = 1 << 1;

    /// The port, with A20 open.
    pub fn new(power: Arc<dyn PowerSink>) -> SystemControl {
        SystemControl { power, value: SystemControl::A20 }
    }
}

impl Device for SystemControl {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.value;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, Some(value)) = (offset, data.first()) {
            let rises = value & !self.value & SystemControl::FAST_RESET != 0;
            self.value = value & (SystemControl::A20 | SystemControl::FAST_RESET);
            if rises {
                self.power.request(PowerEvent::Reset);
            }
        }
    }

    fn reset(&mut self) {
        self.value = SystemControl::A20;
    }
}
