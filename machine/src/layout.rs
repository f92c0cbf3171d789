//! Where things lie in the guest's address spaces: QEMU q35's map, which stock firmware and drivers know.
//!
//! Source: QEMU `hw/i386/pc_q35.c` and the datasheets (82G33 MCH 316966, ICH9 316972) for the register addresses.

use arrayvec::ArrayVec;

/// Where RAM below 4 GiB ends at the latest: ECAM and the PCI hole follow.
pub const LOW_RAM_LIMIT: u64 = 0x8000_0000;
/// Where RAM continues above 4 GiB.
pub const HIGH_RAM_BASE: u64 = 1 << 32;
/// Start of the legacy video window; RAM pauses here.
pub const VIDEO_WINDOW: u64 = 0xa_0000;
/// Start of the area where the RSDP and option ROMs live.
pub const ROM_WINDOW: u64 = 0xc_0000;
/// Where RAM continues after the legacy hole.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// PCI Express enhanced configuration, 256 buses of 1 MiB.
pub const ECAM_BASE: u64 = 0xb000_0000;
/// Size of the ECAM window in bytes.
pub const ECAM_SIZE: u64 = 0x1000_0000;
/// IOAPIC registers.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Size of the IOAPIC's window in bytes.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// HPET registers.
pub const HPET_BASE: u64 = 0xfed0_0000;
/// Size of the HPET's window in bytes.
pub const HPET_SIZE: u64 = 0x400;
/// Where every local APIC starts.
pub const LAPIC_BASE: u64 = 0xfee0_0000;

/// ACPI power-management registers, as q35 firmware programs PMBASE.
pub const PM_BASE: u16 = 0x600;
/// Bytes of I/O space at [`PM_BASE`].
pub const PM_SIZE: u64 = 0x80;
/// The first serial port.
pub const COM1: u16 = 0x3f8;
/// Debug console of SeaBIOS and OVMF.
pub const DEBUG_CONSOLE: u16 = 0x402;
/// QEMU's isa-debug-exit, opt-in.
pub const DEBUG_EXIT: u16 = 0xf4;

/// Global system interrupts, which are IOAPIC pins.
pub mod gsi {
    /// The 8254 by way of the override of ISA interrupt 0.
    pub const PIT: u32 = 2;
    /// Keyboard.
    pub const KEYBOARD: u32 = 1;
    /// First serial port.
    pub const COM1: u32 = 4;
    /// Real-time clock.
    pub const RTC: u32 = 8;
    /// ACPI system control interrupt.
    pub const SCI: u32 = 9;
    /// PS/2 mouse.
    pub const MOUSE: u32 = 12;
}

/// How RAM of a size is laid out: `(start, bytes)` below 4 GiB and, if it does not all fit, above.
pub const fn ram_split(bytes: u64) -> ((u64, u64), Option<(u64, u64)>) {
    if bytes <= LOW_RAM_LIMIT {
        ((0, bytes), None)
    } else {
        ((0, LOW_RAM_LIMIT), Some((HIGH_RAM_BASE, bytes - LOW_RAM_LIMIT)))
    }
}

/// Where the guest has RAM: `(start, bytes)`, ascending. RAM pauses at the legacy video window.
pub fn ram_ranges(bytes: u64) -> ArrayVec<(u64, u64), 3> {
    let ((_, low), high) = ram_split(bytes);
    let mut ranges = ArrayVec::new();
    ranges.push((0, low.min(VIDEO_WINDOW)));
    if low > ROM_WINDOW {
        ranges.push((ROM_WINDOW, low - ROM_WINDOW));
    }
    ranges.extend(high);
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_pauses_at_the_video_window() {
        let ranges = ram_ranges(5 << 30);
        assert_eq!(ranges[..], [(0, 0xa_0000), (0xc_0000, (2 << 30) - 0xc_0000), (4 << 30, 3 << 30)]);
    }

    #[test]
    fn ram_continues_above_4_gib_and_nothing_is_lost() {
        assert_eq!(ram_split(128 << 20), ((0, 128 << 20), None));
        assert_eq!(ram_split(LOW_RAM_LIMIT), ((0, LOW_RAM_LIMIT), None));
        assert_eq!(ram_split(5 << 30), ((0, 2 << 30), Some((4 << 30, 3 << 30))));
    }

    #[test]
    fn windows_do_not_overlap() {
        let mut windows = [
            (0, LOW_RAM_LIMIT),
            (ECAM_BASE, ECAM_SIZE),
            (IOAPIC_BASE, IOAPIC_SIZE),
            (HPET_BASE, HPET_SIZE),
            (LAPIC_BASE, 0x1000),
            (HIGH_RAM_BASE, 1 << 30),
        ];
        windows.sort();
        for pair in windows.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }
}
