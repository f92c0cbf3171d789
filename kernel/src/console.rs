//! The consoles of this host's machines, and the monitor's, on the one serial line COM1.
//!
//! The line shows the console in focus and types to it; Ctrl-A and a digit moves the focus to that machine, Ctrl-A m to the
//! monitor. Each console keeps what was printed last ([`crate::channel`]), so that an unfocused machine loses nothing that
//! fits and the line shows the last screen again. Key type: [`Console`], a machine's end.
//!
//! A machine that prints waits for nobody: it takes its own console's lock, and the line's only if that is free; whoever has
//! that looks again before he leaves it.

#![allow(unsafe_code)] // The UART's data register.

use crate::channel::Channel;
use crate::idt;
use crate::keys::{Key, Keys};
use crate::lock::Lock;
use crate::queue::Queue;
use crate::serial::{self, CONSOLE, Port};
use crate::{acpi, ioapic};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use devices::{ByteSink, ByteSource};
use uart_16550::backend::Backend;
use uart_16550::spec::registers::{IER, LSR, offsets};

/// ISA interrupt of COM1.
const IRQ: u8 = 4;
/// What the transmitter's FIFO takes when it is empty.
const FIFO: u32 = 16;
/// Bytes of text that are kept of a machine's console, and of the monitor's.
const MACHINE_TEXT: usize = 32 << 10;
const MONITOR_TEXT: usize = 16 << 10;
/// The monitor's place among the consoles; machines follow from 1.
const MONITOR: usize = 0;
/// Keys behind Ctrl-A.
const KEY_MONITOR: u8 = b'm';
const KEY_HELP: u8 = b'h';
const HELP: &str = "Ctrl-A 1..9 console of that machine, Ctrl-A m monitor, Ctrl-A h this line, Ctrl-A Ctrl-A types Ctrl-A";

static PLACES: spin::Once<Vec<Place>> = spin::Once::new();
/// Whose console the line shows.
static FOCUS: AtomicUsize = AtomicUsize::new(MONITOR);
static LINE: Lock<Line> =
    Lock::new(Line { keys: Keys::new(), commands: Queue::new(), notices: Queue::new(), credit: 0, awaits_room: false });
/// Something was printed since the line was last looked at.
static NEWS: AtomicBool = AtomicBool::new(false);

/// Who is told about input.
pub type Listener = Box<dyn Fn() + Send + Sync>;

/// A console.
struct Place {
    name: String,
    /// False for a machine without a console.
    shows: bool,
    channel: Lock<Channel>,
    listener: Lock<Option<Listener>>,
}

/// The line's own state.
struct Line {
    keys: Keys,
    /// Keys typed behind Ctrl-A that mean nothing here.
    commands: Queue<16>,
    /// The host's own words, shown before what the console in focus prints.
    notices: Queue<1024>,
    /// Bytes that the transmitter takes without being asked.
    credit: u32,
    /// The transmitter's interrupt is on.
    awaits_room: bool,
}

/// One console's two directions, as a guest's UART wants them.
#[derive(Clone, Copy)]
pub struct Console {
    number: usize,
    place: &'static Place,
}

/// Lets COM1 interrupt the CPU with the local APIC `destination`. Returns whether there is a serial line.
pub fn init(platform: &acpi::Platform, destination: u32) -> bool {
    let vector = idt::add_device_handler(interrupt);
    if let Some(port) = CONSOLE.lock().as_mut() {
        if !ioapic::route_isa(platform, IRQ, vector, destination) {
            return false;
        }
        port.enable_interrupts(IER::DATA_READY);
        return true;
    }
    false
}

/// Makes the consoles of all machines, by name and whether they are shown, and the monitor's; once. `focus` is the number of
/// the one that the line shows at first, 0 for the monitor.
pub fn set_up<'a>(machines: impl Iterator<Item = (&'a str, bool)>, focus: usize) {
    let place = |name: &str, shows, text| Place {
        name: String::from(name),
        shows,
        channel: Lock::new(Channel::new(text)),
        listener: Lock::new(None),
    };
    let mut places = Vec::new();
    places.push(place("monitor", true, MONITOR_TEXT));
    places.extend(machines.map(|(name, shows)| place(name, shows, if shows { MACHINE_TEXT } else { 1 })));
    PLACES.call_once(|| places);
    FOCUS.store(focus, Ordering::SeqCst);
}

/// The console of machine `number`, counted from 1, or with 0 the monitor's.
///
/// # Panics
/// Before [`set_up`], or if there is none.
pub fn of(number: usize) -> Console {
    let places = PLACES.get().expect("consoles are set up before they are used");
    Console { number, place: &places[number] }
}

/// The next key typed behind Ctrl-A that has no meaning here.
pub fn take_command() -> Option<u8> {
    LINE.lock().commands.pop()
}

/// Shows a line of the host's own, whatever console has the focus.
pub fn notice(text: fmt::Arguments<'_>) {
    // A writer that never fails.
    let _ = write!(LINE.lock(), "\r\n[gearshift: {text}]\r\n");
    pump();
}

/// Moves the focus; false if there is no such console.
pub fn focus(number: usize) -> bool {
    let moved = LINE.lock().focus(number);
    pump();
    moved
}

/// Sends what is kept, waiting for the port: at the end of a run. Gives up on a port that does not move.
pub fn flush() {
    const PATIENCE: u32 = 1_000_000;
    // A host that broke may have left them locked.
    let (Some(mut line), Some(mut port)) = (LINE.try_lock(), CONSOLE.try_lock()) else { return };
    let Some(port) = port.as_mut() else { return };
    let mut waited = 0;
    while waited < PATIENCE {
        match line.transmit(port) {
            Sent::All => return,
            Sent::Some => waited = 0,
            Sent::Nothing => waited += 1,
        }
    }
}

/// Hands the line what waits for it. If somebody else has it, he does.
pub fn pump() {
    loop {
        NEWS.store(true, Ordering::SeqCst);
        let Some(mut line) = LINE.try_lock() else { return };
        // Who writes the log to the same port pumps when he has done.
        let Some(mut port) = CONSOLE.try_lock() else { return };
        NEWS.store(false, Ordering::SeqCst);
        if let Some(port) = port.as_mut() {
            let left = line.transmit(port) != Sent::All;
            line.await_room(port, left);
        }
        drop(port);
        drop(line);
        // Between the last look and the release somebody may have come, and gone when he found it taken.
        fence(Ordering::SeqCst);
        if !NEWS.load(Ordering::SeqCst) {
            return;
        }
    }
}

impl Console {
    /// Sets who is told, from the interrupt, that something was typed; what was typed before is forgotten.
    pub fn listen(&self, listener: Option<Listener>) {
        let before = core::mem::replace(&mut *self.place.listener.lock(), listener);
        drop(before);
        self.place.channel.lock().forget_input();
    }

    /// The machine's name.
    pub fn name(&self) -> &'static str {
        &self.place.name
    }
}

impl ByteSink for Console {
    fn put(&self, byte: u8) {
        if !self.place.shows {
            return;
        }
        self.place.channel.lock().print(byte);
        if FOCUS.load(Ordering::SeqCst) == self.number {
            pump();
        }
    }
}

impl ByteSource for Console {
    fn take(&self) -> Option<u8> {
        self.place.channel.lock().take()
    }
}

/// Text with the line ends of a terminal.
impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut channel = self.place.channel.lock();
        for byte in text.bytes() {
            if byte == b'\n' {
                channel.print(b'\r');
            }
            channel.print(byte);
        }
        drop(channel);
        pump();
        Ok(())
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // The host's own lines are short and few; one that does not fit is cut.
            self.notices.push(byte);
        }
        Ok(())
    }
}

/// What the transmitter took.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// All that there was, or nothing because there was nothing.
    All,
    /// A part.
    Some,
    /// Nothing, and there is something.
    Nothing,
}

impl Line {
    /// Hands the transmitter what it takes.
    fn transmit(&mut self, port: &mut Port) -> Sent {
        let Some(place) = PLACES.get().and_then(|places| places.get(FOCUS.load(Ordering::SeqCst))) else { return Sent::All };
        let mut channel = place.channel.lock();
        let mut sent = Sent::Nothing;
        while !self.notices.is_empty() || !channel.is_shown() {
            if self.credit == 0 {
                if !port.lsr().contains(LSR::THR_EMPTY) {
                    return sent;
                }
                self.credit = if serial::console_is_shared() { 1 } else { FIFO };
            }
            let Some(byte) = self.notices.pop().or_else(|| channel.show()) else { break };
            // SAFETY: the data register of our own port; the transmitter has room.
            unsafe { port.backend_mut().write(offsets::DATA as u8, byte) };
            self.credit -= 1;
            sent = Sent::Some;
        }
        Sent::All
    }

    /// Switches the transmitter's interrupt on while something is left.
    fn await_room(&mut self, port: &mut Port, left: bool) {
        if left && !self.awaits_room {
            port.enable_interrupts(IER::THR_EMPTY);
        } else if !left && self.awaits_room {
            port.disable_interrupts(IER::THR_EMPTY);
        }
        self.awaits_room = left;
    }

    /// Takes a byte from the line.
    fn receive(&mut self, byte: u8) {
        match self.keys.feed(byte) {
            Some(Key::Guest(byte)) => self.type_in(FOCUS.load(Ordering::SeqCst), Some(byte)),
            Some(Key::Command(digit @ b'1'..=b'9')) => self.focus_by_key(digit),
            Some(Key::Command(KEY_MONITOR)) => {
                self.focus(MONITOR);
            }
            Some(Key::Command(KEY_HELP)) => {
                let _ = write!(self, "\r\n[gearshift: {HELP}]\r\n");
            }
            Some(Key::Command(other)) => {
                self.commands.push(other);
                self.type_in(MONITOR, None);
            }
            None => {}
        }
    }

    /// Moves the focus to the machine with this digit.
    fn focus_by_key(&mut self, digit: u8) {
        if !self.focus(usize::from(digit - b'0')) {
            // A writer that never fails.
            let _ = write!(self, "\r\n[gearshift: no machine {} with a console]\r\n", char::from(digit));
        }
    }

    /// Gives a console a byte, or has it look for a command.
    fn type_in(&mut self, number: usize, byte: Option<u8>) {
        let Some(place) = PLACES.get().and_then(|places| places.get(number)) else { return };
        if let Some(byte) = byte
            && !place.channel.lock().type_in(byte)
        {
            return;
        }
        if let Some(listener) = &*place.listener.lock() {
            listener();
        }
    }

    /// Moves the focus and shows the last screen there. False if there is no such console.
    fn focus(&mut self, number: usize) -> bool {
        let Some(place) = PLACES.get().and_then(|places| places.get(number)).filter(|place| place.shows) else { return false };
        let what = if number == MONITOR { "" } else { "console of " };
        // A writer that never fails.
        let _ = write!(self, "\r\n[gearshift: {what}{}]\r\n", place.name);
        place.channel.lock().show_again();
        FOCUS.store(number, Ordering::SeqCst);
        true
    }
}

/// COM1's interrupt: takes all input, refills the transmitter, and leaves no cause pending, for the line is
/// edge-triggered.
fn interrupt() {
    /// Rounds until a line that never falls silent is left for the next interrupt.
    const ROUNDS: usize = 256;
    let mut line = LINE.lock();
    if let Some(port) = CONSOLE.lock().as_mut() {
        for _ in 0..ROUNDS {
            while let Ok(byte) = port.try_receive_byte() {
                line.receive(byte);
            }
            let left = line.transmit(port) != Sent::All;
            line.await_room(port, left);
            if !port.isr().has_pending_interrupt() {
                break;
            }
        }
    }
    drop(line);
    // Who printed meanwhile left it to us.
    if NEWS.load(Ordering::SeqCst) {
        pump();
    }
}
