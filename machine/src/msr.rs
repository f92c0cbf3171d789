//! Which MSRs a guest has, and where each one's value lives: a table that denies by default.
//!
//! An MSR that no row names raises #GP(0), on reads and on writes. Manuals: SDM 4 chapter 2 "Model-Specific Registers",
//! SDM 3A 12.11 "Memory Type Range Registers"; APM 2 appendix A; Processor Programming Reference for AMD family 17h.
//! Neighbours: [`crate::processor`] carries out the rows that need the vCPU or its local APIC.

use crate::cpuid::Vendor;
use vcpu::SystemMsr;

/// The access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Whom a row is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maker {
    Both,
    Intel,
    Amd,
}

/// Where an MSR's value lives and what a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Reads as this; a write raises #GP(0).
    Constant(u64),
    /// Reads as this; a write is accepted and lost.
    Ignored(u64),
    /// A write is accepted and lost; a read raises #GP(0).
    WriteOnly,
    /// Kept in [`MsrFile`]; nothing else follows from it.
    Stored(Slot),
    /// Switched with the vCPU.
    System(SystemMsr),
    /// IA32_TIME_STAMP_COUNTER.
    Tsc,
    /// IA32_TSC_ADJUST.
    TscAdjust,
    /// IA32_SPEC_CTRL, where the guest has it.
    SpecCtrl,
    /// IA32_PRED_CMD, where the guest has it; a write that exits has no effect but its check.
    PredCmd,
    /// IA32_ARCH_CAPABILITIES, where the guest has it.
    ArchCapabilities,
    /// IA32_EFER.
    Efer,
    /// IA32_APIC_BASE.
    ApicBase,
    /// IA32_TSC_DEADLINE.
    TscDeadline,
    /// The x2APIC's registers.
    Apic,
    /// Synthetic MSRs of the Hyper-V interface.
    Hyperv,
}

/// A place in [`MsrFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// IA32_MTRR_PHYSBASEn and PHYSMASKn by turns.
    MtrrVariable,
    /// IA32_MTRR_FIX64K_00000.
    MtrrFixed64K,
    /// IA32_MTRR_FIX16K_80000 and A0000.
    MtrrFixed16K,
    /// IA32_MTRR_FIX4K_C0000 to F8000.
    MtrrFixed4K,
    /// IA32_MTRR_DEF_TYPE.
    MtrrDefault,
    /// IA32_MCG_STATUS.
    McgStatus,
    /// AMD configuration registers that software reads back.
    AmdConfiguration,
}

struct Row {
    first: u32,
    last: u32,
    maker: Maker,
    place: Place,
}

const fn row(msr: u32, maker: Maker, place: Place) -> Row {
    Row { first: msr, last: msr, maker, place }
}

const fn range(first: u32, last: u32, maker: Maker, place: Place) -> Row {
    Row { first, last, maker, place }
}

const VARIABLE_RANGES: usize = 8;
/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write combining.
const MTRR_CAP: u64 = VARIABLE_RANGES as u64 | 1 << 8 | 1 << 10;
/// IA32_FEATURE_CONTROL: locked, VMX off.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// IA32_MISC_ENABLE: fast strings; BTS and PEBS unavailable.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;
/// VM_CR: LOCK and SVMDIS, so that SVM is off and stays so.
const VM_CR_LOCKED_OFF: u64 = 1 << 3 | 1 << 4;
/// HWCR: TscFreqSel, so that the TSC counts at P0; SmmLock is not set, MCi_STATUS writes are not allowed.
const HWCR: u64 = 1 << 24;
/// RAPL power unit as real processors give it, with counters that never move.
const RAPL_POWER_UNIT: u64 = 0x000a_1003;

/// Sorted by `first`.
static TABLE: &[Row] = &[
    row(0x10, Maker::Both, Place::Tsc),
    row(0x17, Maker::Intel, Place::Constant(0)),
    row(0x1b, Maker::Both, Place::ApicBase),
    row(0x34, Maker::Intel, Place::Constant(0)),
    row(0x3a, Maker::Intel, Place::Constant(FEATURE_CONTROL_LOCKED)),
    row(0x3b, Maker::Both, Place::TscAdjust),
    row(0x48, Maker::Both, Place::SpecCtrl),
    row(0x49, Maker::Both, Place::PredCmd),
    row(0x79, Maker::Intel, Place::WriteOnly),
    row(0x8b, Maker::Both, Place::Ignored(0)),
    row(0xce, Maker::Intel, Place::Constant(0)),
    row(0xfe, Maker::Both, Place::Constant(MTRR_CAP)),
    row(0x10a, Maker::Intel, Place::ArchCapabilities),
    row(0x140, Maker::Intel, Place::Ignored(0)),
    row(0x174, Maker::Both, Place::System(SystemMsr::SysenterCs)),
    row(0x175, Maker::Both, Place::System(SystemMsr::SysenterEsp)),
    row(0x176, Maker::Both, Place::System(SystemMsr::SysenterEip)),
    row(0x179, Maker::Both, Place::Constant(0)),
    row(0x17a, Maker::Both, Place::Stored(Slot::McgStatus)),
    row(0x1a0, Maker::Intel, Place::Ignored(MISC_ENABLE)),
    row(0x1ad, Maker::Intel, Place::Constant(0)),
    row(0x1d9, Maker::Both, Place::Ignored(0)),
    range(0x200, 0x20f, Maker::Both, Place::Stored(Slot::MtrrVariable)),
    row(0x250, Maker::Both, Place::Stored(Slot::MtrrFixed64K)),
    range(0x258, 0x259, Maker::Both, Place::Stored(Slot::MtrrFixed16K)),
    range(0x268, 0x26f, Maker::Both, Place::Stored(Slot::MtrrFixed4K)),
    row(0x277, Maker::Both, Place::System(SystemMsr::Pat)),
    row(0x2ff, Maker::Both, Place::Stored(Slot::MtrrDefault)),
    row(0x606, Maker::Intel, Place::Constant(RAPL_POWER_UNIT)),
    row(0x611, Maker::Intel, Place::Constant(0)),
    row(0x619, Maker::Intel, Place::Constant(0)),
    row(0x639, Maker::Intel, Place::Constant(0)),
    row(0x641, Maker::Intel, Place::Constant(0)),
    row(0x6e0, Maker::Both, Place::TscDeadline),
    range(0x800, 0x8ff, Maker::Both, Place::Apic),
    range(0x4000_0000, 0x4000_01ff, Maker::Both, Place::Hyperv),
    row(0xc000_0080, Maker::Both, Place::Efer),
    row(0xc000_0081, Maker::Both, Place::System(SystemMsr::Star)),
    row(0xc000_0082, Maker::Both, Place::System(SystemMsr::Lstar)),
    row(0xc000_0083, Maker::Both, Place::System(SystemMsr::Cstar)),
    row(0xc000_0084, Maker::Both, Place::System(SystemMsr::Sfmask)),
    // IA32_FS_BASE and IA32_GS_BASE (C000_0100h, C000_0101h) are segment state: backends never let them exit.
    row(0xc000_0102, Maker::Both, Place::System(SystemMsr::KernelGsBase)),
    row(0xc000_0103, Maker::Both, Place::System(SystemMsr::TscAux)),
    // Performance event selectors and counters of K7: there, never counting.
    range(0xc001_0000, 0xc001_0007, Maker::Amd, Place::Ignored(0)),
    row(0xc001_0010, Maker::Amd, Place::Ignored(0)),
    row(0xc001_0015, Maker::Amd, Place::Ignored(HWCR)),
    row(0xc001_001f, Maker::Amd, Place::Ignored(0)),
    row(0xc001_0055, Maker::Amd, Place::Ignored(0)),
    range(0xc001_0061, 0xc001_0064, Maker::Amd, Place::Ignored(0)),
    range(0xc001_0112, 0xc001_0113, Maker::Amd, Place::Ignored(0)),
    row(0xc001_0114, Maker::Amd, Place::Constant(VM_CR_LOCKED_OFF)),
    range(0xc001_1020, 0xc001_102f, Maker::Amd, Place::Stored(Slot::AmdConfiguration)),
];

/// For each MSR up to the x2APIC's the first row that does not end before it, so that the hot ones are not searched for.
static LOW_ROWS: [u8; 0x900] = {
    let mut rows = [0; 0x900];
    let mut msr = 0;
    let mut at = 0;
    while msr < rows.len() {
        if TABLE[at].last < msr as u32 {
            at += 1;
        } else {
            rows[msr] = at as u8;
            msr += 1;
        }
    }
    rows
};

/// Where `msr` lives for a guest of this vendor; [`Refused`] if it has none.
#[inline]
pub fn place(msr: u32, vendor: Vendor) -> Result<Place, Refused> {
    let at = match LOW_ROWS.get(msr as usize) {
        Some(&number) => number.into(),
        None => TABLE.partition_point(|row| row.last < msr),
    };
    let row = TABLE.get(at).filter(|row| row.first <= msr).ok_or(Refused)?;
    let there = match row.maker {
        Maker::Both => true,
        Maker::Intel => vendor == Vendor::Intel,
        Maker::Amd => vendor == Vendor::Amd,
    };
    if there { Ok(row.place) } else { Err(Refused) }
}

/// The MSRs of one vCPU that only hold what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrFile {
    variable: [u64; VARIABLE_RANGES * 2],
    fixed: [u64; 11],
    default_type: u64,
    mcg_status: u64,
    amd_configuration: [u64; 16],
    /// Mask of physical-address bits that variable ranges may use.
    address_mask: u64,
}

impl MsrFile {
    /// After reset as firmware leaves it: MTRRs on, everything write-back but the hole below 4 GiB. A machine that starts
    /// without firmware needs this, for kernels compare the MTRRs of all processors with what they expect of a PC.
    pub fn new(physical_address_bits: u32) -> MsrFile {
        let address_mask = (1u64 << physical_address_bits.clamp(32, 52)) - 1;
        MsrFile {
            variable: [0; VARIABLE_RANGES * 2],
            fixed: [0; 11],
            default_type: 0,
            mcg_status: 0,
            amd_configuration: [0; 16],
            address_mask,
        }
    }

    /// What QEMU's firmware sets up before it starts a kernel: write-back by default, uncacheable from `hole` to 4 GiB,
    /// fixed ranges write-back for RAM and uncacheable for video memory.
    pub fn set_as_firmware_does(&mut self, hole: u64) {
        const WRITE_BACK_ALL: u64 = 0x0606_0606_0606_0606;
        const WRITE_PROTECT_ALL: u64 = 0x0505_0505_0505_0505;
        self.fixed = [WRITE_BACK_ALL; 11];
        // A0000h to BFFFFh is the second 16 KiB register.
        self.fixed[2] = 0;
        for rom in &mut self.fixed[3..] {
            *rom = WRITE_PROTECT_ALL;
        }
        let size = (1u64 << 32) - hole;
        self.variable[0] = hole;
        self.variable[1] = !(size - 1) & self.address_mask & !0xfff | MTRR_VALID;
        self.default_type = MTRR_ENABLE | MTRR_FIXED_ENABLE | WRITE_BACK;
    }

    /// Reads the register of `slot` with number `msr`.
    pub fn read(&self, slot: Slot, msr: u32) -> Result<u64, Refused> {
        let found = match slot {
            Slot::MtrrVariable => self.variable.get((msr & 0xf) as usize),
            Slot::MtrrFixed64K => self.fixed.first(),
            Slot::MtrrFixed16K => self.fixed.get(1 + (msr & 1) as usize),
            Slot::MtrrFixed4K => self.fixed.get(3 + (msr & 7) as usize),
            Slot::MtrrDefault => Some(&self.default_type),
            Slot::McgStatus => Some(&self.mcg_status),
            Slot::AmdConfiguration => self.amd_configuration.get((msr & 0xf) as usize),
        };
        found.copied().ok_or(Refused)
    }

    /// Writes the register of `slot` with number `msr`, checked as the processor does.
    pub fn write(&mut self, slot: Slot, msr: u32, value: u64) -> Result<(), Refused> {
        let valid = match slot {
            Slot::MtrrVariable if msr & 1 == 0 => {
                value & !(self.address_mask & !0xfff | 0xff) == 0 && is_memory_type(value as u8)
            }
            Slot::MtrrVariable => value & !(self.address_mask & !0xfff | MTRR_VALID) == 0,
            Slot::MtrrFixed64K | Slot::MtrrFixed16K | Slot::MtrrFixed4K => {
                value.to_le_bytes().into_iter().all(is_memory_type)
            }
            Slot::MtrrDefault => value & !(MTRR_ENABLE | MTRR_FIXED_ENABLE | 0xff) == 0 && is_memory_type(value as u8),
            // Software may clear the status; setting a bit raises #GP on AMD, and does nothing useful on Intel.
            Slot::McgStatus => value == 0,
            Slot::AmdConfiguration => true,
        };
        if !valid {
            return Err(Refused);
        }
        let found = match slot {
            Slot::MtrrVariable => self.variable.get_mut((msr & 0xf) as usize),
            Slot::MtrrFixed64K => self.fixed.first_mut(),
            Slot::MtrrFixed16K => self.fixed.get_mut(1 + (msr & 1) as usize),
            Slot::MtrrFixed4K => self.fixed.get_mut(3 + (msr & 7) as usize),
            Slot::MtrrDefault => Some(&mut self.default_type),
            Slot::McgStatus => Some(&mut self.mcg_status),
            Slot::AmdConfiguration => self.amd_configuration.get_mut((msr & 0xf) as usize),
        };
        *found.ok_or(Refused)? = value;
        Ok(())
    }
}

const MTRR_VALID: u64 = 1 << 11;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_FIXED_ENABLE: u64 = 1 << 10;
const WRITE_BACK: u64 = 6;

/// SDM 3A table 12-8 "Memory Types That Can Be Encoded in MTRRs".
fn is_memory_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

/// Whether `value` may be written to IA32_PAT: eight encodable types, with UC- (7) beside those of the MTRRs.
pub fn is_valid_pat(value: u64) -> bool {
    value.to_le_bytes().into_iter().all(|kind| is_memory_type(kind) || kind == 7)
}

/// Whether `address` is canonical with 48-bit linear addresses; MSRs that hold addresses refuse others.
pub fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// Whether `value` may be written to `msr`; bits that the register does not have, or an address that is not canonical,
/// raise #GP(0).
pub fn is_valid_system(msr: SystemMsr, value: u64) -> bool {
    match msr {
        SystemMsr::Lstar
        | SystemMsr::Cstar
        | SystemMsr::KernelGsBase
        | SystemMsr::SysenterEsp
        | SystemMsr::SysenterEip => is_canonical(value),
        SystemMsr::Sfmask | SystemMsr::TscAux => value >> 32 == 0,
        SystemMsr::Pat => is_valid_pat(value),
        SystemMsr::Star | SystemMsr::SysenterCs => true,
        SystemMsr::DebugCtl => value == 0,
        // Its bits are the processor's: `registers` asks what the guest has.
        SystemMsr::SpecCtrl => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_without_overlap() {
        for pair in TABLE.windows(2) {
            assert!(pair[0].last < pair[1].first, "{:#x}", pair[1].first);
            assert!(pair[0].first <= pair[0].last);
        }
    }

    #[test]
    fn unknown_and_other_makers_registers_are_refused() {
        for msr in [0, 0x11, 0x180, 0x480, 0x20_0000, 0xc000_0104, 0xc001_0117, u32::MAX] {
            assert_eq!(place(msr, Vendor::Intel), Err(Refused), "{msr:#x}");
            assert_eq!(place(msr, Vendor::Amd), Err(Refused), "{msr:#x}");
        }
        assert_eq!(place(0x3a, Vendor::Amd), Err(Refused));
        assert_eq!(place(0xc001_0114, Vendor::Intel), Err(Refused));
    }

    #[test]
    fn nested_virtualization_is_locked_off() {
        assert_eq!(place(0x3a, Vendor::Intel), Ok(Place::Constant(1)));
        assert_eq!(place(0xc001_0114, Vendor::Amd), Ok(Place::Constant(0x18)));
    }

    #[test]
    fn ranges_reach_their_last_register() {
        assert_eq!(place(0x20f, Vendor::Amd), Ok(Place::Stored(Slot::MtrrVariable)));
        assert_eq!(place(0x210, Vendor::Amd), Err(Refused));
        assert_eq!(place(0x8ff, Vendor::Amd), Ok(Place::Apic));
        assert_eq!(place(0x900, Vendor::Amd), Err(Refused));
        assert_eq!(place(0x4000_0105, Vendor::Intel), Ok(Place::Hyperv));
    }

    #[test]
    fn mtrrs_hold_valid_values_only() {
        let mut file = MsrFile::new(40);
        file.write(Slot::MtrrFixed4K, 0x26f, 0x0606_0606_0606_0505).unwrap();
        assert_eq!(file.read(Slot::MtrrFixed4K, 0x26f), Ok(0x0606_0606_0606_0505));
        assert_eq!(file.read(Slot::MtrrFixed4K, 0x26e), Ok(0));
        assert_eq!(file.write(Slot::MtrrFixed64K, 0x250, 0x02), Err(Refused));
        assert_eq!(file.write(Slot::MtrrVariable, 0x200, 1 << 40), Err(Refused));
        assert_eq!(file.write(Slot::MtrrVariable, 0x200, 0x8000_0007), Err(Refused));
        assert_eq!(file.write(Slot::MtrrVariable, 0x201, 1), Err(Refused));
        file.write(Slot::MtrrVariable, 0x201, 0xff_8000_0800).unwrap();
        assert_eq!(file.write(Slot::MtrrDefault, 0x2ff, 0xc06), Ok(()));
        assert_eq!(file.write(Slot::MtrrDefault, 0x2ff, 0x1c06), Err(Refused));
    }

    #[test]
    fn firmware_values_are_values_that_a_guest_could_write() {
        let mut file = MsrFile::new(40);
        file.set_as_firmware_does(0x8000_0000);
        let mut copy = MsrFile::new(40);
        for (slot, msrs) in [
            (Slot::MtrrVariable, 0x200..=0x20f),
            (Slot::MtrrFixed64K, 0x250..=0x250),
            (Slot::MtrrFixed16K, 0x258..=0x259),
            (Slot::MtrrFixed4K, 0x268..=0x26f),
            (Slot::MtrrDefault, 0x2ff..=0x2ff),
        ] {
            for msr in msrs {
                copy.write(slot, msr, file.read(slot, msr).unwrap()).unwrap();
            }
        }
        assert_eq!(copy, file);
        assert_eq!(file.read(Slot::MtrrVariable, 0x201), Ok(0xff_8000_0800));
    }

    #[test]
    fn pat_and_addresses_are_checked() {
        assert!(is_valid_pat(0x0007_0406_0007_0406));
        assert!(!is_valid_pat(0x0200_0000_0000_0000));
        assert!(is_valid_system(SystemMsr::Lstar, 0xffff_8000_0000_0000));
        assert!(!is_valid_system(SystemMsr::Lstar, 0x0000_8000_0000_0000));
        assert!(!is_valid_system(SystemMsr::TscAux, 1 << 32));
    }
}
