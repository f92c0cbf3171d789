//! Architectural processor state as plain values, the same for both vendors.
//!
//! Manuals: Intel SDM (December 2024, 325462-086) volumes 1 and 3A; AMD APM volume 2 (24593, revision 3.42).

use bitfield_struct::bitfield;

/// A general-purpose register, by its number in instruction encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Gpr {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rsp = 4,
    Rbp = 5,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
    R12 = 12,
    R13 = 13,
    R14 = 14,
    R15 = 15,
}

impl Gpr {
    /// All sixteen, by number.
    pub const ALL: [Gpr; 16] = [
        Gpr::Rax,
        Gpr::Rcx,
        Gpr::Rdx,
        Gpr::Rbx,
        Gpr::Rsp,
        Gpr::Rbp,
        Gpr::Rsi,
        Gpr::Rdi,
        Gpr::R8,
        Gpr::R9,
        Gpr::R10,
        Gpr::R11,
        Gpr::R12,
        Gpr::R13,
        Gpr::R14,
        Gpr::R15,
    ];

    /// The register with this number; only the low four bits count.
    #[inline]
    pub const fn from_number(number: u8) -> Gpr {
        Self::ALL[(number & 15) as usize]
    }

    /// Byte offset of this register inside [`Gprs`], for entry stubs.
    pub const fn offset(self) -> usize {
        self as usize * 8
    }
}

/// The sixteen general-purpose registers, in encoding order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Gprs(pub [u64; 16]);

impl Gprs {
    /// Reads one register.
    #[inline]
    pub const fn get(&self, register: Gpr) -> u64 {
        self.0[register as usize]
    }

    /// Writes all 64 bits of one register.
    #[inline]
    pub const fn set(&mut self, register: Gpr, value: u64) {
        self.0[register as usize] = value;
    }
}

/// A segment register, by its number in instruction encodings; then the two system segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegmentName {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
    Ldtr = 6,
    Tr = 7,
}

impl SegmentName {
    /// All eight, by number.
    pub const ALL: [SegmentName; 8] = [
        SegmentName::Es,
        SegmentName::Cs,
        SegmentName::Ss,
        SegmentName::Ds,
        SegmentName::Fs,
        SegmentName::Gs,
        SegmentName::Ldtr,
        SegmentName::Tr,
    ];
}

/// The attribute bits of a segment descriptor, as VMX's access rights place them (SDM 3C 25.4.1 "Guest Register State").
/// SVM packs bits 12-15 into 8-11; its backend converts.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SegmentAttributes {
    /// Segment type; for code and data: bit 3 code, bit 1 readable or writable, bit 0 accessed.
    #[bits(4)]
    pub kind: u8,
    /// S: code or data (1) or system (0).
    pub code_or_data: bool,
    /// Descriptor privilege level.
    #[bits(2)]
    pub dpl: u8,
    /// P: present.
    pub present: bool,
    #[bits(4)]
    __: u8,
    /// AVL.
    pub available: bool,
    /// L: 64-bit code.
    pub long: bool,
    /// D/B: 32-bit default size.
    pub big: bool,
    /// G: the limit counts pages.
    pub granularity: bool,
    /// The register holds no usable segment (VMX), or its descriptor is not present (SVM).
    pub unusable: bool,
    #[bits(15)]
    __: u16,
}

/// One segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Attributes of the loaded descriptor.
    pub attributes: SegmentAttributes,
    /// The last valid offset in bytes, already scaled by G.
    pub limit: u32,
    /// Linear base address.
    pub base: u64,
}

impl Segment {
    /// A real-mode data segment for `selector`: base 16 times the selector, 64 KiB, writable.
    pub const fn real_mode(selector: u16) -> Segment {
        Segment {
            selector,
            attributes: SegmentAttributes::from_bits(0x93),
            limit: 0xffff,
            base: (selector as u64) << 4,
        }
    }

    /// A flat 4 GiB 32-bit code segment of privilege level 0.
    pub const fn flat_code32(selector: u16) -> Segment {
        Segment { selector, attributes: SegmentAttributes::from_bits(0xc09b), limit: u32::MAX, base: 0 }
    }

    /// A flat 64-bit code segment of privilege level 0.
    pub const fn flat_code64(selector: u16) -> Segment {
        Segment { selector, attributes: SegmentAttributes::from_bits(0xa09b), limit: u32::MAX, base: 0 }
    }

    /// A flat 4 GiB writable data segment of privilege level 0.
    pub const fn flat_data(selector: u16) -> Segment {
        Segment { selector, attributes: SegmentAttributes::from_bits(0xc093), limit: u32::MAX, base: 0 }
    }

    /// A present local descriptor table of no use.
    pub const fn null_ldt() -> Segment {
        Segment { selector: 0, attributes: SegmentAttributes::from_bits(0x82), limit: 0xffff, base: 0 }
    }

    /// A busy 32-bit or 64-bit task state segment at `base` with the limit that reset leaves.
    pub const fn busy_tss(base: u64) -> Segment {
        Segment { selector: 0, attributes: SegmentAttributes::from_bits(0x8b), limit: 0xffff, base }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// The last valid offset in bytes.
    pub limit: u16,
}

/// The MSRs that a backend switches with the vCPU and lets the guest access without an exit where that is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SystemMsr {
    /// IA32_STAR, C000_0081h.
    Star,
    /// IA32_LSTAR, C000_0082h.
    Lstar,
    /// IA32_CSTAR, C000_0083h.
    Cstar,
    /// IA32_FMASK, C000_0084h.
    Sfmask,
    /// IA32_KERNEL_GS_BASE, C000_0102h.
    KernelGsBase,
    /// IA32_SYSENTER_CS, 174h.
    SysenterCs,
    /// IA32_SYSENTER_ESP, 175h.
    SysenterEsp,
    /// IA32_SYSENTER_EIP, 176h.
    SysenterEip,
    /// IA32_PAT, 277h. Always exits; the machine checks the value and sets it.
    Pat,
    /// IA32_TSC_AUX, C000_0103h.
    TscAux,
    /// IA32_DEBUGCTL, 1D9h. Always exits.
    DebugCtl,
    /// IA32_SPEC_CTRL, 48h, as the guest sees it. Means something only where [`crate::GuestSpeculation`] has it.
    SpecCtrl,
}

impl SystemMsr {
    /// How many there are.
    pub const COUNT: usize = 12;

    /// All of them, in the order of [`SystemMsrs`].
    pub const ALL: [SystemMsr; Self::COUNT] = [
        SystemMsr::Star,
        SystemMsr::Lstar,
        SystemMsr::Cstar,
        SystemMsr::Sfmask,
        SystemMsr::KernelGsBase,
        SystemMsr::SysenterCs,
        SystemMsr::SysenterEsp,
        SystemMsr::SysenterEip,
        SystemMsr::Pat,
        SystemMsr::TscAux,
        SystemMsr::DebugCtl,
        SystemMsr::SpecCtrl,
    ];

    /// The MSR's number.
    pub const fn number(self) -> u32 {
        match self {
            SystemMsr::Star => 0xc000_0081,
            SystemMsr::Lstar => 0xc000_0082,
            SystemMsr::Cstar => 0xc000_0083,
            SystemMsr::Sfmask => 0xc000_0084,
            SystemMsr::KernelGsBase => 0xc000_0102,
            SystemMsr::SysenterCs => 0x174,
            SystemMsr::SysenterEsp => 0x175,
            SystemMsr::SysenterEip => 0x176,
            SystemMsr::Pat => 0x277,
            SystemMsr::TscAux => 0xc000_0103,
            SystemMsr::DebugCtl => 0x1d9,
            SystemMsr::SpecCtrl => 0x48,
        }
    }
}

/// Values of all [`SystemMsr`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemMsrs([u64; SystemMsr::COUNT]);

impl SystemMsrs {
    /// Reads one.
    #[inline]
    pub const fn get(&self, msr: SystemMsr) -> u64 {
        self.0[msr as usize]
    }

    /// Writes one.
    #[inline]
    pub const fn set(&mut self, msr: SystemMsr, value: u64) {
        self.0[msr as usize] = value;
    }
}

/// IA32_PAT after reset: WB, WT, UC-, UC, twice. SDM 3A 12.12.4 "Programming the PAT".
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

impl Default for SystemMsrs {
    fn default() -> Self {
        let mut msrs = SystemMsrs([0; SystemMsr::COUNT]);
        msrs.set(SystemMsr::Pat, PAT_RESET);
        msrs
    }
}

/// Everything that software can see of one processor, but for its vector registers, TSC and local APIC.
///
/// Reset, INIT, start-up, loaders and reports move it whole, so that no field can be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchState {
    /// General-purpose registers with RSP.
    pub gprs: Gprs,
    /// Instruction pointer.
    pub rip: u64,
    /// Flags; bit 1 is always set.
    pub rflags: u64,
    /// Segment registers by [`SegmentName`].
    pub segments: [Segment; 8],
    /// Global descriptor table.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTable,
    /// Control register 0.
    pub cr0: u64,
    /// Page-fault linear address.
    pub cr2: u64,
    /// Root of the guest's own page tables.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// IA32_EFER as the guest sees it, without SVME.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// Debug status.
    pub dr6: u64,
    /// Debug control.
    pub dr7: u64,
    /// MSRs that are switched with the vCPU.
    pub msrs: SystemMsrs,
}

impl ArchState {
    /// After power-up or RESET#: SDM 3A table 10-1 "IA-32 and Intel 64 Processor States Following Power-up, Reset, or
    /// INIT". `signature` is the processor signature that EDX then holds.
    pub const fn reset(signature: u32) -> ArchState {
        let mut gprs = Gprs([0; 16]);
        gprs.set(Gpr::Rdx, signature as u64);
        let data = Segment::real_mode(0);
        let code = Segment {
            selector: 0xf000,
            attributes: SegmentAttributes::from_bits(0x9b),
            limit: 0xffff,
            base: 0xffff_0000,
        };
        let mut msrs = SystemMsrs([0; SystemMsr::COUNT]);
        msrs.set(SystemMsr::Pat, PAT_RESET);
        ArchState {
            gprs,
            rip: 0xfff0,
            rflags: rflags::FIXED,
            segments: [data, code, data, data, data, data, Segment::null_ldt(), Segment::busy_tss(0)],
            gdtr: DescriptorTable { base: 0, limit: 0xffff },
            idtr: DescriptorTable { base: 0, limit: 0xffff },
            cr0: cr0::ET | cr0::NW | cr0::CD,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            msrs,
        }
    }

    /// After INIT of a processor in `self`: as reset, but CR0.CD and NW, XCR0 and the MSRs keep their values; SDM 3A
    /// table 10-1.
    pub const fn after_init(&self, signature: u32) -> ArchState {
        let mut state = ArchState::reset(signature);
        state.cr0 = cr0::ET | (self.cr0 & (cr0::CD | cr0::NW));
        state.xcr0 = self.xcr0;
        state.msrs = self.msrs;
        state
    }

    /// Where a start-up IPI with `page` makes an initialised processor begin: CS base `page` times 4096, IP 0.
    pub const fn start_at(&mut self, page: u8) {
        let selector = (page as u16) << 8;
        self.segments[SegmentName::Cs as usize] = Segment {
            selector,
            attributes: SegmentAttributes::from_bits(0x9b),
            limit: 0xffff,
            base: (page as u64) << 12,
        };
        self.rip = 0;
    }

    /// One segment register.
    pub const fn segment(&self, name: SegmentName) -> &Segment {
        &self.segments[name as usize]
    }
}

/// How the instruction at RIP is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, or a 16-bit code segment.
    Bits16,
    /// A 32-bit code segment, in legacy or compatibility mode.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

impl CodeSize {
    /// 16, 32 or 64.
    pub const fn bits(self) -> u32 {
        match self {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        }
    }

    /// What `efer` and the code segment's attributes make of it.
    #[inline]
    pub const fn of(efer_value: u64, code: SegmentAttributes) -> CodeSize {
        if efer_value & efer::LMA != 0 && code.long() {
            CodeSize::Bits64
        } else if code.big() {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    /// `rip` plus `length`, wrapped as the instruction pointer of this size wraps: at 4 GiB in 32-bit code, at 2^64 in
    /// 64-bit code. A 16-bit instruction pointer that runs past 64 KiB is left there: the next fetch faults on the limit.
    #[inline]
    pub const fn advance(self, rip: u64, length: u64) -> u64 {
        match self {
            CodeSize::Bits64 => rip.wrapping_add(length),
            CodeSize::Bits32 | CodeSize::Bits16 => (rip as u32).wrapping_add(length as u32) as u64,
        }
    }
}

/// Bits of RFLAGS, SDM 1 3.4.3 "EFLAGS Register".
#[allow(missing_docs)]
pub mod rflags {
    pub const CF: u64 = 1 << 0;
    /// Reserved, always one.
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
}

/// Bits of CR0, SDM 3A 2.5 "Control Registers".
#[allow(missing_docs)]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4, SDM 3A 2.5 "Control Registers".
#[allow(missing_docs)]
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const VMXE: u64 = 1 << 13;
    pub const SMXE: u64 = 1 << 14;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
    pub const CET: u64 = 1 << 23;
    pub const PKS: u64 = 1 << 24;
}

/// Bits of IA32_EFER, SDM 3A 2.2.1 "Extended Feature Enable Register"; SVME and later: APM 2 3.1.7.
#[allow(missing_docs)]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const SVME: u64 = 1 << 12;
    pub const LMSLE: u64 = 1 << 13;
    pub const FFXSR: u64 = 1 << 14;
    pub const TCE: u64 = 1 << 15;
    /// Automatic IBRS.
    pub const AIBRSE: u64 = 1 << 21;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_starts_at_the_reset_vector() {
        let state = ArchState::reset(0x0080_0f12);
        assert_eq!(state.segment(SegmentName::Cs).base + state.rip, 0xffff_fff0);
        assert_eq!(state.cr0, 0x6000_0010);
        assert_eq!(state.gprs.get(Gpr::Rdx), 0x0080_0f12);
        assert_eq!(state.dr6, 0xffff_0ff0);
    }

    #[test]
    fn init_keeps_what_the_manual_keeps_and_start_up_sets_cs() {
        let mut before = ArchState::reset(1);
        before.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE;
        before.xcr0 = 7;
        before.msrs.set(SystemMsr::Lstar, 5);
        let mut after = before.after_init(1);
        assert_eq!(after.cr0, cr0::ET);
        assert_eq!((after.xcr0, after.msrs.get(SystemMsr::Lstar)), (7, 5));
        after.start_at(0x9a);
        assert_eq!(after.segment(SegmentName::Cs).selector, 0x9a00);
        assert_eq!(after.segment(SegmentName::Cs).base, 0x9_a000);
        assert_eq!(after.rip, 0);
    }

    #[test]
    fn the_instruction_pointer_wraps_at_the_code_size() {
        assert_eq!(CodeSize::Bits64.advance(u64::MAX, 2), 1);
        assert_eq!(CodeSize::Bits32.advance(0xffff_ffff, 2), 1);
        assert_eq!(CodeSize::Bits16.advance(0xffff, 2), 0x1_0001);
    }

    #[test]
    fn code_size_needs_long_mode_for_the_long_bit() {
        let long = SegmentAttributes::from_bits(0xa09b);
        assert_eq!(CodeSize::of(efer::LMA, long), CodeSize::Bits64);
        assert_eq!(CodeSize::of(0, long), CodeSize::Bits16);
        assert_eq!(CodeSize::of(efer::LMA, SegmentAttributes::from_bits(0xc09b)), CodeSize::Bits32);
    }

    #[test]
    fn attribute_bits_stand_where_vmx_has_them() {
        let code = SegmentAttributes::from_bits(0xa09b);
        assert_eq!((code.kind(), code.code_or_data(), code.dpl(), code.present()), (0xb, true, 0, true));
        assert!(code.long() && code.granularity() && !code.big() && !code.unusable());
        assert!(SegmentAttributes::from_bits(1 << 16).unusable());
    }
}
