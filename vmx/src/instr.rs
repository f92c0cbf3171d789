//! The instructions that this backend needs, one function each.
//!
//! A function is safe only where every argument is harmless. Neighbours: `vmcs.rs` for all that concerns a VMCS, `lib.rs`
//! for the state that is switched with a vCPU. It keeps nothing and decides nothing.
//!
//! Unsafe because it is inline assembly: this file, `entry.rs` and `vmcs.rs` are the hardware files of the crate.
//!
//! Manual: Intel SDM 2 and 3C (December 2024, 325462-086), chapter 31 "VMX Instruction Reference".
#![allow(unsafe_code)]

use core::arch::asm;
use core::ptr::NonNull;
use vcpu::Hpa;

/// How a VMX instruction failed, SDM 3C 31.2 "Conventions".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmFail {
    /// There is no current VMCS to hold an error number.
    Invalid,
    /// The VM-instruction error field of the current VMCS says why.
    Valid,
}

/// CF and ZF after a VMX instruction.
const fn outcome(carry: u8, zero: u8) -> Result<(), VmFail> {
    match (carry, zero) {
        (0, 0) => Ok(()),
        (0, _) => Err(VmFail::Valid),
        _ => Err(VmFail::Invalid),
    }
}

macro_rules! vmx_with_pointer {
    ($($(#[$doc:meta])* $name:ident = $instruction:literal;)*) => {$(
        $(#[$doc])*
        pub unsafe fn $name(region: Hpa) -> Result<(), VmFail> {
            let (carry, zero): (u8, u8);
            // SAFETY: the caller upholds this function's contract; the operand is a readable 8-byte local.
            unsafe {
                asm!(
                    concat!($instruction, " qword ptr [{region}]"),
                    "setc {carry}",
                    "setz {zero}",
                    region = in(reg) &region.0,
                    carry = out(reg_byte) carry,
                    zero = out(reg_byte) zero,
                    options(nostack),
                );
            }
            outcome(carry, zero)
        }
    )*};
}

vmx_with_pointer! {
    /// VMXON: enters VMX root operation.
    ///
    /// # Safety
    /// CR4.VMXE is set, `region` is a VMXON region of this CPU alone and stays so until VMXOFF.
    vmxon = "vmxon";
    /// VMCLEAR: writes a VMCS back to memory and makes it neither active nor current here.
    ///
    /// # Safety
    /// The CPU is in VMX operation and `region` is a VMCS that is active on no other CPU.
    vmclear = "vmclear";
    /// VMPTRLD: makes a VMCS current.
    ///
    /// # Safety
    /// As for [`vmclear`], and the region's revision identifier is this CPU's.
    vmptrld = "vmptrld";
}

/// VMPTRST: the current VMCS, or all ones.
///
/// # Safety
/// The CPU is in VMX operation.
pub unsafe fn vmptrst() -> Hpa {
    let mut region = Hpa(0);
    // SAFETY: the operand is a writable 8-byte local; the caller answers for VMX operation.
    unsafe { asm!("vmptrst qword ptr [{}]", in(reg) &mut region.0, options(nostack)) };
    region
}

/// VMREAD. A refusal is a broken invariant of the host (no current VMCS, or a field that this CPU lacks) and stops it here.
///
/// # Safety
/// A VMCS is current on this CPU.
#[inline(always)]
pub unsafe fn vmread(field: u64) -> u64 {
    let value;
    // SAFETY: reads a field of the current VMCS, which the caller vouches for; UD2 ends what must not happen.
    // A VMCS is no memory of Rust's: nothing else has to be looked at anew afterwards.
    unsafe { asm!("vmread {}, {}", "ja 2f", "ud2", "2:", out(reg) value, in(reg) field, options(nomem, nostack)) };
    value
}

/// VMWRITE. A refusal stops the CPU here, as for [`vmread`].
///
/// # Safety
/// A VMCS is current on this CPU, and `value` is one that the host can bear in `field`.
#[inline(always)]
pub unsafe fn vmwrite(field: u64, value: u64) {
    // SAFETY: writes a field of the current VMCS, which the caller vouches for; UD2 ends what must not happen.
    unsafe { asm!("vmwrite {}, {}", "ja 2f", "ud2", "2:", in(reg) field, in(reg) value, options(nomem, nostack)) };
}

/// The descriptor of INVEPT and INVVPID.
#[repr(C)]
struct InvalidationDescriptor {
    low: u64,
    high: u64,
}

/// INVEPT of `kind` (1 single context, 2 all) for the tables of `pointer`.
pub fn invept(kind: u64, pointer: u64) -> Result<(), VmFail> {
    let (carry, zero): (u8, u8);
    let descriptor = InvalidationDescriptor { low: pointer, high: 0 };
    // SAFETY: forgetting cached translations harms nobody; outside VMX operation the instruction is #UD.
    unsafe {
        asm!(
            "invept {kind}, xmmword ptr [{descriptor}]",
            "setc {carry}",
            "setz {zero}",
            kind = in(reg) kind,
            descriptor = in(reg) &descriptor,
            carry = out(reg_byte) carry,
            zero = out(reg_byte) zero,
            options(nostack),
        );
    }
    outcome(carry, zero)
}

/// INVVPID of `kind` (1 single context, 2 all) for `vpid`.
pub fn invvpid(kind: u64, vpid: u16) -> Result<(), VmFail> {
    let (carry, zero): (u8, u8);
    let descriptor = InvalidationDescriptor { low: vpid.into(), high: 0 };
    // SAFETY: forgetting cached translations harms nobody; outside VMX operation the instruction is #UD.
    unsafe {
        asm!(
            "invvpid {kind}, xmmword ptr [{descriptor}]",
            "setc {carry}",
            "setz {zero}",
            kind = in(reg) kind,
            descriptor = in(reg) &descriptor,
            carry = out(reg_byte) carry,
            zero = out(reg_byte) zero,
            options(nostack),
        );
    }
    outcome(carry, zero)
}

/// RDMSR.
///
/// # Safety
/// The MSR exists on this CPU.
#[inline]
pub unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller vouches that the MSR exists; no MSR that is read here has side effects.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR.
///
/// # Safety
/// The MSR takes this value, and the host can bear it.
#[inline]
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller vouches for MSR and value.
    unsafe { asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack)) };
}

/// VERW of a data segment: on processors with MD_CLEAR it empties the buffers that the guest could read.
#[inline]
pub fn clear_buffers() {
    let selector: u16 = 0;
    // SAFETY: looks at a descriptor and changes ZF. The null selector is as good as any; it must lie in memory.
    unsafe { asm!("verw word ptr [{}]", in(reg) &selector, options(nostack, readonly)) };
}

/// RDTSC.
#[inline(always)]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading the time-stamp counter has no side effects.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

macro_rules! readable {
    ($($(#[$doc:meta])* $name:ident = $register:literal;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name() -> u64 {
            let value;
            // SAFETY: the host runs at privilege level 0, where reading this register has no side effects.
            unsafe { asm!(concat!("mov {}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    )*};
}

readable! {
    /// CR0.
    cr0 = "cr0";
    /// CR2; while a vCPU is resident, the guest's.
    cr2 = "cr2";
    /// CR3.
    cr3 = "cr3";
    /// CR4.
    cr4 = "cr4";
    /// DR0; while a vCPU is resident, DR0 to DR3 and DR6 are the guest's.
    dr0 = "dr0";
    /// DR1.
    dr1 = "dr1";
    /// DR2.
    dr2 = "dr2";
    /// DR3.
    dr3 = "dr3";
    /// DR6.
    dr6 = "dr6";
}

macro_rules! writable {
    ($($(#[$doc:meta])* $name:ident = $register:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// The register takes this value, and the host can bear it.
        #[inline]
        pub unsafe fn $name(value: u64) {
            // SAFETY: the caller vouches for the value.
            unsafe { asm!(concat!("mov ", $register, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    )*};
}

writable! {
    /// Writes CR0.
    set_cr0 = "cr0";
    /// Writes CR2.
    set_cr2 = "cr2";
    /// Writes CR4.
    set_cr4 = "cr4";
    /// Writes DR0.
    set_dr0 = "dr0";
    /// Writes DR1.
    set_dr1 = "dr1";
    /// Writes DR2.
    set_dr2 = "dr2";
    /// Writes DR3.
    set_dr3 = "dr3";
    /// Writes DR6.
    set_dr6 = "dr6";
}

macro_rules! selectors {
    ($($name:ident = $instruction:literal;)*) => {$(
        /// The selector in this register.
        pub fn $name() -> u16 {
            let value: u16;
            // SAFETY: storing a selector has no side effects.
            unsafe { asm!($instruction, out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    )*};
}

selectors! {
    cs = "mov {:x}, cs";
    ss = "mov {:x}, ss";
    tr = "str {:x}";
}

/// What SGDT and SIDT store.
#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
pub struct TablePointer {
    /// The last valid offset.
    pub limit: u16,
    /// Linear base address.
    pub base: u64,
}

/// SGDT.
pub fn sgdt() -> TablePointer {
    let mut pointer = TablePointer::default();
    // SAFETY: stores ten bytes into a local of ten bytes.
    unsafe { asm!("sgdt [{}]", in(reg) &mut pointer, options(nostack, preserves_flags)) };
    pointer
}

/// SIDT.
pub fn sidt() -> TablePointer {
    let mut pointer = TablePointer::default();
    // SAFETY: stores ten bytes into a local of ten bytes.
    unsafe { asm!("sidt [{}]", in(reg) &mut pointer, options(nostack, preserves_flags)) };
    pointer
}

/// Lets the host's interrupts that are pending now run: STI takes effect after the NOP that follows it.
#[inline]
pub fn take_interrupts() {
    // SAFETY: the host's interrupt handlers return here with everything restored.
    unsafe { asm!("sti", "nop", "cli") };
}

/// Runs the host's NMI handler for an NMI that an exit has consumed; its IRET ends the blocking of NMIs.
pub fn deliver_nmi() {
    // SAFETY: the host's handler returns here with everything restored.
    unsafe { asm!("int 2") };
}

/// Runs the host's machine-check handler for a machine check that an exit has consumed.
pub fn deliver_machine_check() {
    // SAFETY: the host's handler returns here with everything restored, or not at all.
    unsafe { asm!("int 18") };
}

/// XSETBV of XCR0.
///
/// # Safety
/// CR4.OSXSAVE is set and the processor allows the value.
pub unsafe fn set_xcr0(value: u64) {
    // SAFETY: the caller vouches for CR4.OSXSAVE and the value; the host uses no vector state.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack)) };
}

macro_rules! state_movers {
    ($($(#[$doc:meta])* $name:ident = $instruction:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// `area` is 64-byte aligned and large enough for the components of `mask`, which XCR0 has enabled.
        pub unsafe fn $name(area: NonNull<u8>, mask: u64) {
            // SAFETY: the caller vouches for the area; the host keeps nothing in vector registers.
            unsafe {
                asm!(
                    concat!($instruction, " [{}]"),
                    in(reg) area.as_ptr(),
                    in("eax") mask as u32,
                    in("edx") (mask >> 32) as u32,
                    options(nostack),
                );
            }
        }
    )*};
}

state_movers! {
    /// XSAVE64.
    xsave = "xsave64";
    /// XRSTOR64.
    xrstor = "xrstor64";
    /// FXSAVE64, for processors without XSAVE; `mask` does nothing.
    fxsave = "fxsave64";
    /// FXRSTOR64, for processors without XSAVE; `mask` does nothing.
    fxrstor = "fxrstor64";
}

/// One arm for each vector register: there is no instruction that takes the register's number as an operand.
macro_rules! for_vector_register {
    ($number:expr, $value:expr, $before:literal, $after:literal) => {
        for_vector_register!(@ $number, $value, $before, $after,
            0 "0", 1 "1", 2 "2", 3 "3", 4 "4", 5 "5", 6 "6", 7 "7",
            8 "8", 9 "9", 10 "10", 11 "11", 12 "12", 13 "13", 14 "14", 15 "15")
    };
    (@ $number:expr, $value:expr, $before:literal, $after:literal, $($index:literal $name:literal),*) => {
        match $number & 15 {
            $(
                // SAFETY: moves between a vector register, which is the guest's, and 16 or 32 bytes of a local; the
                // callers use VEX encodings only when XCR0 enables them.
                $index => unsafe {
                    asm!(concat!($before, $name, $after), in(reg) $value, options(nostack, preserves_flags));
                },
            )*
            _ => {}
        }
    };
}

/// XMM register `number`.
pub fn xmm(number: u8) -> [u8; 16] {
    let mut value = [0; 16];
    for_vector_register!(number, value.as_mut_ptr(), "movups [{}], xmm", "");
    value
}

/// Writes XMM register `number` and leaves what lies above.
pub fn set_xmm(number: u8, value: [u8; 16]) {
    for_vector_register!(number, value.as_ptr(), "movups xmm", ", [{}]");
}

/// YMM register `number`.
///
/// # Safety
/// XCR0 has AVX state enabled.
pub unsafe fn ymm(number: u8) -> [u8; 32] {
    let mut value = [0; 32];
    for_vector_register!(number, value.as_mut_ptr(), "vmovups [{}], ymm", "");
    value
}

/// Writes YMM register `number`, clearing what lies above.
///
/// # Safety
/// XCR0 has AVX state enabled.
pub unsafe fn set_ymm(number: u8, value: [u8; 32]) {
    for_vector_register!(number, value.as_ptr(), "vmovups ymm", ", [{}]");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carry_means_no_current_vmcs_and_zero_an_error_number() {
        assert_eq!(outcome(0, 0), Ok(()));
        assert_eq!(outcome(1, 0), Err(VmFail::Invalid));
        assert_eq!(outcome(0, 1), Err(VmFail::Valid));
    }

    #[test]
    fn the_descriptor_tables_of_this_very_processor_can_be_read() {
        assert_eq!(size_of::<TablePointer>(), 10);
        assert_ne!(cs() & 0xfff8, 0);
        assert!(rdtsc() <= rdtsc());
    }
}
