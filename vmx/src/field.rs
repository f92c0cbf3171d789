//! VMCS fields: each is a constant whose type carries its width and what a wrong value in it can do.
//!
//! Key types: [`Field`], the widths [`U16`], [`U32`], [`U64`] and [`Natural`], the areas [`Guest`], [`Host`], [`Control`]
//! and [`Information`]. Neighbours: `vmcs.rs` reads and writes fields; the encodings are those of the `x86` crate. This
//! module touches no hardware.
//!
//! Manual: Intel SDM 3C and 3D (December 2024, 325462-086), chapter 25 "Virtual Machine Control Structures" and appendix B
//! "Field Encoding in VMCS".

use core::marker::PhantomData;
use x86::vmx::vmcs::{control, guest, host, ro};

/// How wide a field is, and the Rust type of its value.
pub trait FieldWidth {
    /// The value's type.
    type Value: Copy;
    /// Bits 14:13 of the encoding, SDM 3D appendix B.
    const CODE: u32;
    /// What VMREAD delivered, as a value.
    fn from_register(register: u64) -> Self::Value;
    /// What VMWRITE is given.
    fn to_register(value: Self::Value) -> u64;
}

macro_rules! widths {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $value:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub enum $name {}

        impl FieldWidth for $name {
            type Value = $value;
            const CODE: u32 = $code;
            #[inline(always)]
            fn from_register(register: u64) -> $value {
                register as $value
            }
            #[inline(always)]
            fn to_register(value: $value) -> u64 {
                value as u64
            }
        }
    )*};
}

widths! {
    /// 16 bits.
    U16 = 0, u16;
    /// 64 bits on every processor.
    U64 = 1, u64;
    /// 32 bits.
    U32 = 2, u32;
    /// As wide as a register: 64 bits on processors with Intel 64.
    Natural = 3, u64;
}

/// What a wrong value in a field can do.
pub trait Area {}

/// A field whose every value affects the guest alone, or makes the processor refuse the entry: guest state, and the
/// controls that only time or mask what the guest sees.
#[derive(Clone, Copy, Debug)]
pub enum Guest {}
/// A control that, written wrongly, lets the guest reach what it must not.
#[derive(Clone, Copy, Debug)]
pub enum Control {}
/// What the processor loads for the host at an exit.
#[derive(Clone, Copy, Debug)]
pub enum Host {}
/// What the processor tells about an exit; never written.
#[derive(Clone, Copy, Debug)]
pub enum Information {}

impl Area for Guest {}
impl Area for Control {}
impl Area for Host {}
impl Area for Information {}

/// Areas whose fields only code that knows what it does may write.
pub trait Delicate: Area {}
impl Delicate for Control {}
impl Delicate for Host {}

/// One VMCS field: its encoding, with width and area in the type.
pub struct Field<W, A> {
    encoding: u32,
    kind: PhantomData<(W, A)>,
}

impl<W, A> Clone for Field<W, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W, A> Copy for Field<W, A> {}

impl<W: FieldWidth, A: Area> Field<W, A> {
    /// The field with this encoding.
    ///
    /// # Panics
    /// When the encoding's width bits disagree with `W`, or it names the high half of a 64-bit field; at compile time
    /// for constants.
    pub const fn new(encoding: u32) -> Self {
        assert!(encoding >> 13 & 3 == W::CODE, "the field has another width");
        assert!(encoding & 1 == 0, "this is the high half of a field");
        Self { encoding, kind: PhantomData }
    }

    /// What VMREAD and VMWRITE take.
    #[inline(always)]
    pub const fn encoding(self) -> u64 {
        self.encoding as u64
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $area:ident { $($name:ident: $width:ident = $encoding:expr;)* })*) => {$($(
        #[allow(missing_docs)]
        pub const $name: Field<$width, $area> = Field::new($encoding);
    )*)*};
}

fields! {
    Guest {
        GUEST_INTERRUPT_STATUS: U16 = guest::INTERRUPT_STATUS;
        GUEST_LINK_POINTER: U64 = guest::LINK_PTR_FULL;
        GUEST_DEBUGCTL: U64 = guest::IA32_DEBUGCTL_FULL;
        GUEST_PAT: U64 = guest::IA32_PAT_FULL;
        GUEST_EFER: U64 = guest::IA32_EFER_FULL;
        GUEST_GDTR_LIMIT: U32 = guest::GDTR_LIMIT;
        GUEST_IDTR_LIMIT: U32 = guest::IDTR_LIMIT;
        GUEST_INTERRUPTIBILITY: U32 = guest::INTERRUPTIBILITY_STATE;
        GUEST_ACTIVITY: U32 = guest::ACTIVITY_STATE;
        GUEST_SYSENTER_CS: U32 = guest::IA32_SYSENTER_CS;
        PREEMPTION_TIMER: U32 = guest::VMX_PREEMPTION_TIMER_VALUE;
        GUEST_CR0: Natural = guest::CR0;
        GUEST_CR3: Natural = guest::CR3;
        GUEST_CR4: Natural = guest::CR4;
        GUEST_GDTR_BASE: Natural = guest::GDTR_BASE;
        GUEST_IDTR_BASE: Natural = guest::IDTR_BASE;
        GUEST_DR7: Natural = guest::DR7;
        GUEST_RSP: Natural = guest::RSP;
        GUEST_RIP: Natural = guest::RIP;
        GUEST_RFLAGS: Natural = guest::RFLAGS;
        GUEST_PENDING_DEBUG: Natural = guest::PENDING_DBG_EXCEPTIONS;
        GUEST_SYSENTER_ESP: Natural = guest::IA32_SYSENTER_ESP;
        GUEST_SYSENTER_EIP: Natural = guest::IA32_SYSENTER_EIP;
        // Controls that only mask or time what the guest sees.
        TSC_OFFSET: U64 = control::TSC_OFFSET_FULL;
        EOI_EXIT_0: U64 = control::EOI_EXIT0_FULL;
        EOI_EXIT_1: U64 = control::EOI_EXIT1_FULL;
        EOI_EXIT_2: U64 = control::EOI_EXIT2_FULL;
        EOI_EXIT_3: U64 = control::EOI_EXIT3_FULL;
        ENTRY_INTERRUPTION: U32 = control::VMENTRY_INTERRUPTION_INFO_FIELD;
        ENTRY_ERROR_CODE: U32 = control::VMENTRY_EXCEPTION_ERR_CODE;
        ENTRY_INSTRUCTION_LENGTH: U32 = control::VMENTRY_INSTRUCTION_LEN;
        TPR_THRESHOLD: U32 = control::TPR_THRESHOLD;
        PLE_GAP: U32 = control::PLE_GAP;
        PLE_WINDOW: U32 = control::PLE_WINDOW;
        CR0_SHADOW: Natural = control::CR0_READ_SHADOW;
        CR4_SHADOW: Natural = control::CR4_READ_SHADOW;
    }
    Control {
        VPID: U16 = control::VPID;
        MSR_BITMAP: U64 = control::MSR_BITMAPS_ADDR_FULL;
        VIRTUAL_APIC: U64 = control::VIRT_APIC_ADDR_FULL;
        APIC_ACCESS: U64 = control::APIC_ACCESS_ADDR_FULL;
        EPT_POINTER: U64 = control::EPTP_FULL;
        XSS_EXITING: U64 = control::XSS_EXITING_BITMAP_FULL;
        ENCLS_EXITING: U64 = control::ENCLS_EXITING_BITMAP_FULL;
        PIN_CONTROLS: U32 = control::PINBASED_EXEC_CONTROLS;
        PRIMARY_CONTROLS: U32 = control::PRIMARY_PROCBASED_EXEC_CONTROLS;
        SECONDARY_CONTROLS: U32 = control::SECONDARY_PROCBASED_EXEC_CONTROLS;
        EXCEPTION_BITMAP: U32 = control::EXCEPTION_BITMAP;
        PAGE_FAULT_MASK: U32 = control::PAGE_FAULT_ERR_CODE_MASK;
        PAGE_FAULT_MATCH: U32 = control::PAGE_FAULT_ERR_CODE_MATCH;
        CR3_TARGET_COUNT: U32 = control::CR3_TARGET_COUNT;
        EXIT_CONTROLS: U32 = control::VMEXIT_CONTROLS;
        EXIT_MSR_STORE_COUNT: U32 = control::VMEXIT_MSR_STORE_COUNT;
        EXIT_MSR_LOAD_COUNT: U32 = control::VMEXIT_MSR_LOAD_COUNT;
        ENTRY_CONTROLS: U32 = control::VMENTRY_CONTROLS;
        ENTRY_MSR_LOAD_COUNT: U32 = control::VMENTRY_MSR_LOAD_COUNT;
        CR0_MASK: Natural = control::CR0_GUEST_HOST_MASK;
        CR4_MASK: Natural = control::CR4_GUEST_HOST_MASK;
    }
    Host {
        HOST_ES: U16 = host::ES_SELECTOR;
        HOST_CS: U16 = host::CS_SELECTOR;
        HOST_SS: U16 = host::SS_SELECTOR;
        HOST_DS: U16 = host::DS_SELECTOR;
        HOST_FS: U16 = host::FS_SELECTOR;
        HOST_GS: U16 = host::GS_SELECTOR;
        HOST_TR: U16 = host::TR_SELECTOR;
        HOST_PAT: U64 = host::IA32_PAT_FULL;
        HOST_EFER: U64 = host::IA32_EFER_FULL;
        HOST_SYSENTER_CS: U32 = host::IA32_SYSENTER_CS;
        HOST_CR0: Natural = host::CR0;
        HOST_CR3: Natural = host::CR3;
        HOST_CR4: Natural = host::CR4;
        HOST_FS_BASE: Natural = host::FS_BASE;
        HOST_GS_BASE: Natural = host::GS_BASE;
        HOST_TR_BASE: Natural = host::TR_BASE;
        HOST_GDTR_BASE: Natural = host::GDTR_BASE;
        HOST_IDTR_BASE: Natural = host::IDTR_BASE;
        HOST_SYSENTER_ESP: Natural = host::IA32_SYSENTER_ESP;
        HOST_SYSENTER_EIP: Natural = host::IA32_SYSENTER_EIP;
        HOST_RSP: Natural = host::RSP;
        HOST_RIP: Natural = host::RIP;
    }
    Information {
        GUEST_PHYSICAL_ADDRESS: U64 = ro::GUEST_PHYSICAL_ADDR_FULL;
        INSTRUCTION_ERROR: U32 = ro::VM_INSTRUCTION_ERROR;
        EXIT_REASON: U32 = ro::EXIT_REASON;
        EXIT_INTERRUPTION: U32 = ro::VMEXIT_INTERRUPTION_INFO;
        EXIT_ERROR_CODE: U32 = ro::VMEXIT_INTERRUPTION_ERR_CODE;
        VECTORING: U32 = ro::IDT_VECTORING_INFO;
        VECTORING_ERROR_CODE: U32 = ro::IDT_VECTORING_ERR_CODE;
        EXIT_INSTRUCTION_LENGTH: U32 = ro::VMEXIT_INSTRUCTION_LEN;
        EXIT_QUALIFICATION: Natural = ro::EXIT_QUALIFICATION;
    }
}

/// The four fields of one guest segment register.
#[derive(Clone, Copy)]
pub struct SegmentFields {
    /// Selector.
    pub selector: Field<U16, Guest>,
    /// Limit in bytes.
    pub limit: Field<U32, Guest>,
    /// Access rights.
    pub rights: Field<U32, Guest>,
    /// Linear base address.
    pub base: Field<Natural, Guest>,
}

const fn segment(number: u32) -> SegmentFields {
    SegmentFields {
        selector: Field::new(guest::ES_SELECTOR + 2 * number),
        limit: Field::new(guest::ES_LIMIT + 2 * number),
        rights: Field::new(guest::ES_ACCESS_RIGHTS + 2 * number),
        base: Field::new(guest::ES_BASE + 2 * number),
    }
}

/// The segment registers, by the numbers of [`vcpu::SegmentName`].
pub const SEGMENTS: [SegmentFields; 8] =
    [segment(0), segment(1), segment(2), segment(3), segment(4), segment(5), segment(6), segment(7)];

/// The page-directory-pointer-table entries of PAE paging.
pub const PDPTES: [Field<U64, Guest>; 4] = [
    Field::new(guest::PDPTE0_FULL),
    Field::new(guest::PDPTE1_FULL),
    Field::new(guest::PDPTE2_FULL),
    Field::new(guest::PDPTE3_FULL),
];

/// Access rights of the code segment, read more often than the rest.
pub const GUEST_CS_RIGHTS: Field<U32, Guest> = SEGMENTS[1].rights;
/// Access rights of the stack segment, which hold the privilege level.
pub const GUEST_SS_RIGHTS: Field<U32, Guest> = SEGMENTS[2].rights;

#[cfg(test)]
mod tests {
    use super::*;
    use vcpu::SegmentName;

    #[test]
    fn segment_fields_follow_the_numbers_of_the_contract() {
        for (name, selector, base) in [
            (SegmentName::Es, guest::ES_SELECTOR, guest::ES_BASE),
            (SegmentName::Cs, guest::CS_SELECTOR, guest::CS_BASE),
            (SegmentName::Ss, guest::SS_SELECTOR, guest::SS_BASE),
            (SegmentName::Ds, guest::DS_SELECTOR, guest::DS_BASE),
            (SegmentName::Fs, guest::FS_SELECTOR, guest::FS_BASE),
            (SegmentName::Gs, guest::GS_SELECTOR, guest::GS_BASE),
            (SegmentName::Ldtr, guest::LDTR_SELECTOR, guest::LDTR_BASE),
            (SegmentName::Tr, guest::TR_SELECTOR, guest::TR_BASE),
        ] {
            let fields = SEGMENTS[name as usize];
            assert_eq!(fields.selector.encoding(), u64::from(selector));
            assert_eq!(fields.base.encoding(), u64::from(base));
        }
        assert_eq!(SEGMENTS[7].limit.encoding(), u64::from(guest::TR_LIMIT));
        assert_eq!(SEGMENTS[7].rights.encoding(), u64::from(guest::TR_ACCESS_RIGHTS));
    }

    #[test]
    fn widths_cut_values_as_the_fields_do() {
        assert_eq!(U16::from_register(0x1_2345), 0x2345);
        assert_eq!(U32::from_register(0x1_2345_6789), 0x2345_6789);
        assert_eq!(Natural::from_register(u64::MAX), u64::MAX);
    }

    #[test]
    #[should_panic(expected = "another width")]
    fn a_field_of_another_width_is_refused() {
        let _: Field<U32, Guest> = Field::new(guest::RIP);
    }
}
