//! The counters of known frequency that a PC has: ACPI's PM timer, the HPET, the 8254.
//!
//! Pins ACPI 6.5, 4.8.3.3 "Power Management Timer"; IA-PC HPET Specification 1.0a, 2.3 "Memory Mapped Registers"; Intel
//! 8254 datasheet (231164-005).

#![allow(unsafe_code)] // Ports and device registers.

use crate::acpi::{PmTimer, PmTimerPlace};
use crate::address_space;
use crate::calibrate::Reference;
use core::ptr::NonNull;
use x86_64::instructions::port::{Port, PortReadOnly, PortWriteOnly};

/// The PM timer.
pub struct PowerManagementTimer {
    register: Register,
    mask: u64,
}

enum Register {
    Port(PortReadOnly<u32>),
    Memory(NonNull<u32>),
}

/// ACPI 6.5, 4.8.3.3: 3.579545 MHz.
const PM_TIMER_HERTZ: u64 = 3_579_545;

impl PowerManagementTimer {
    /// The one that ACPI describes, if its register can be reached.
    pub fn new(timer: &PmTimer) -> Option<Self> {
        let register = match timer.place {
            PmTimerPlace::Port(port) => Register::Port(PortReadOnly::new(port)),
            PmTimerPlace::Memory(address) => Register::Memory(address_space::map_device(address, 4).ok()?.cast()),
        };
        Some(Self { register, mask: timer.mask })
    }
}

impl Reference for PowerManagementTimer {
    fn name(&self) -> &'static str {
        "PM timer"
    }
    fn hertz(&self) -> u64 {
        PM_TIMER_HERTZ
    }
    fn read(&mut self) -> u64 {
        let value = match &mut self.register {
            // SAFETY: ACPI says that this is the timer; reading it has no effect.
            Register::Port(port) => unsafe { port.read() },
            // SAFETY: as above; the register is mapped.
            Register::Memory(pointer) => unsafe { pointer.read_volatile() },
        };
        u64::from(value) & self.mask
    }
    fn mask(&self) -> u64 {
        self.mask
    }
}

/// The HPET's main counter.
pub struct Hpet {
    registers: NonNull<u8>,
    hertz: u64,
}

/// Registers by offset.
const HPET_CAPABILITIES: usize = 0x00;
const HPET_CONFIGURATION: usize = 0x10;
const HPET_COUNTER: usize = 0xf0;
/// Femtoseconds in a second, and the longest period that the specification allows.
const FEMTOSECONDS: u64 = 1_000_000_000_000_000;
const LONGEST_PERIOD: u64 = 100_000_000;
/// General configuration: the counter runs.
const HPET_ENABLED: u32 = 1;

impl Hpet {
    /// The one at physical `address`, set going if it stands.
    pub fn new(address: u64) -> Option<Self> {
        let registers = address_space::map_device(address, 1024).ok()?;
        let mut hpet = Self { registers, hertz: 0 };
        let period = u64::from(hpet.load(HPET_CAPABILITIES + 4));
        if period == 0 || period > LONGEST_PERIOD {
            return None;
        }
        hpet.hertz = FEMTOSECONDS / period;
        let configuration = hpet.pointer(HPET_CONFIGURATION);
        let value = hpet.load(HPET_CONFIGURATION) | HPET_ENABLED;
        // SAFETY: letting the counter run affects nothing: no comparator is enabled by this host.
        unsafe { configuration.write_volatile(value) };
        Some(hpet)
    }

    fn pointer(&self, offset: usize) -> *mut u32 {
        // SAFETY: 1 KiB of registers is mapped.
        unsafe { self.registers.add(offset) }.cast::<u32>().as_ptr()
    }

    fn load(&self, offset: usize) -> u32 {
        // SAFETY: 32-bit reads of the registers are allowed and have no effect.
        unsafe { self.pointer(offset).read_volatile() }
    }
}

impl Reference for Hpet {
    fn name(&self) -> &'static str {
        "HPET"
    }
    fn hertz(&self) -> u64 {
        self.hertz
    }
    fn read(&mut self) -> u64 {
        u64::from(self.load(HPET_COUNTER))
    }
    /// Only the low half is read: some are 32 bits wide.
    fn mask(&self) -> u64 {
        u64::from(u32::MAX)
    }
}

/// Counter 0 of the 8254, as it runs freely.
pub struct IntervalTimer {
    counter: Port<u8>,
    command: PortWriteOnly<u8>,
}

/// The 8254's input: 105/88 MHz.
const PIT_HERTZ: u64 = 1_193_182;
/// Control words: counter 0, low then high byte, mode 2; and latch counter 0.
const PIT_MODE: u8 = 0x34;
const PIT_LATCH: u8 = 0x00;

impl IntervalTimer {
    /// Sets counter 0 to count through all 65536 values. Its interrupt is masked in this host.
    pub fn new() -> Self {
        let mut timer = Self { counter: Port::new(0x40), command: PortWriteOnly::new(0x43) };
        // SAFETY: the 8254 belongs to the host alone.
        unsafe { timer.command.write(PIT_MODE) };
        for _ in 0..2 {
            // SAFETY: as above; a count of 0 means 65536.
            unsafe { timer.counter.write(0) };
        }
        timer
    }
}

impl Default for IntervalTimer {
    fn default() -> Self {
        Self::new()
    }
}

impl Reference for IntervalTimer {
    fn name(&self) -> &'static str {
        "8254"
    }
    fn hertz(&self) -> u64 {
        PIT_HERTZ
    }
    fn read(&mut self) -> u64 {
        // SAFETY: latching affects only the next two reads.
        unsafe { self.command.write(PIT_LATCH) };
        // SAFETY: reads the latched low byte.
        let low = unsafe { self.counter.read() };
        // SAFETY: reads the latched high byte.
        let high = unsafe { self.counter.read() };
        // It counts down.
        u64::from(!u16::from_le_bytes([low, high]))
    }
    fn mask(&self) -> u64 {
        0xffff
    }
}
