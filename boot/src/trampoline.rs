//! The way of an application processor from its start-up IPI to 64-bit code of the kernel.
//!
//! Key types: [`Trampoline`], a page below 1 MiB as the processor finds it, and [`Arrival`], where it is to go. The page
//! holds the code of `trampoline_code` and behind it a [`Parameters`]; the code finds both by its own CS, so that any page
//! will do. Whoever fills the page is `kernel`, which also brings page tables that map the page where it is.
//!
//! One processor goes through at a time. Should one come late, when its stack was meant for another, it finds no stack and
//! halts: the stack is taken by an exchange.
//!
//! Pins Intel SDM Volume 3A, 10.4 "Multiple-Processor (MP) Initialization", 11.8.5 "Initializing IA-32e Mode" (325384-083).

use core::mem::offset_of;

/// Bytes of the page.
pub const SIZE: usize = 4096;
/// A page must end at or below this: a start-up IPI names it by 8 bits, and the video memory follows.
pub const LIMIT: u64 = 0xa_0000;
/// Where the parameters lie in the page.
const PARAMETERS: usize = 0x800;

/// Selectors of the page's own GDT. The 64-bit code segment is where the kernel's is, so that its IDT works at once.
const CODE64: u16 = 0x08;
const CODE32: u16 = 0x18;
/// Flat descriptors under those selectors. SDM 3A figure 3-8 "Segment Descriptor".
const GDT: [u64; 4] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_9b00_0000_ffff];

/// Where an application processor goes, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Physical address, below 4 GiB, of a root page table that maps the page itself and whatever else is named here.
    pub early_root: u32,
    /// 64-bit code, entered with RDI and RCX as below and RSP at the stack's top.
    pub entry: u64,
    /// RSP.
    pub stack: u64,
    /// RDI.
    pub argument: u64,
    /// RCX: the root page table to go on with, which may lie anywhere.
    pub root: u64,
}

/// What the code reads. Offsets are proved below.
#[repr(C)]
struct Parameters {
    gdt: [u64; 4],
    to_protected: FarPointer,
    to_long: FarPointer,
    gdt_limit: u16,
    gdt_base: [u16; 2],
    early_root: u32,
    entry: u64,
    stack: u64,
    argument: u64,
    root: u64,
}

/// An m16:32 operand.
#[repr(C)]
struct FarPointer {
    offset: u32,
    selector: u16,
}

const _: () = {
    assert!(offset_of!(Parameters, to_protected) == 32 && offset_of!(Parameters, to_long) == 40);
    assert!(offset_of!(FarPointer, selector) == 4);
    assert!(offset_of!(Parameters, gdt_base) == offset_of!(Parameters, gdt_limit) + 2);
    assert!(offset_of!(Parameters, stack) % 8 == 0 && offset_of!(Parameters, root) + 8 <= SIZE - PARAMETERS);
};

/// A page for the processor to start in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trampoline {
    page: u32,
}

impl Trampoline {
    /// In the page at physical `address`; `None` unless that is a page between the BIOS's data and [`LIMIT`].
    pub fn at(address: u64) -> Option<Self> {
        let page = u32::try_from(address).ok()?;
        let fits = page >= SIZE as u32 && page.is_multiple_of(SIZE as u32) && address + SIZE as u64 <= LIMIT;
        fits.then_some(Self { page })
    }

    /// The vector of the start-up IPI.
    pub fn vector(self) -> u8 {
        (self.page >> 12) as u8
    }

    /// What the page must hold before the IPI is sent.
    ///
    /// # Panics
    /// If `code` is too long for its place.
    pub fn fill(self, code: &Code<'_>, arrival: &Arrival) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        assert!(code.bytes.len() <= PARAMETERS, "the code ends before its parameters");
        bytes[..code.bytes.len()].copy_from_slice(code.bytes);
        let mut put = |at: usize, value: &[u8]| bytes[PARAMETERS + at..][..value.len()].copy_from_slice(value);
        for (number, descriptor) in GDT.iter().enumerate() {
            put(8 * number, &descriptor.to_le_bytes());
        }
        for (at, offset, selector) in [
            (offset_of!(Parameters, to_protected), code.protected, CODE32),
            (offset_of!(Parameters, to_long), code.long, CODE64),
        ] {
            put(at, &(self.page + offset).to_le_bytes());
            put(at + offset_of!(FarPointer, selector), &selector.to_le_bytes());
        }
        put(offset_of!(Parameters, gdt_limit), &(size_of_val(&GDT) as u16 - 1).to_le_bytes());
        put(offset_of!(Parameters, gdt_base), &(self.page + PARAMETERS as u32).to_le_bytes());
        put(offset_of!(Parameters, early_root), &arrival.early_root.to_le_bytes());
        for (at, value) in [
            (offset_of!(Parameters, entry), arrival.entry),
            (offset_of!(Parameters, stack), arrival.stack),
            (offset_of!(Parameters, argument), arrival.argument),
            (offset_of!(Parameters, root), arrival.root),
        ] {
            put(at, &value.to_le_bytes());
        }
        bytes
    }
}

/// The code, wherever it is copied to, and two places in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code<'a> {
    /// The instructions.
    pub bytes: &'a [u8],
    /// Offset of what runs in protected mode.
    pub protected: u32,
    /// Offset of what runs in 64-bit mode.
    pub long: u32,
}

#[cfg(target_os = "none")]
pub use assembly::code;

/// The code itself, which only the bare target has.
#[cfg(target_os = "none")]
mod assembly {
    #![allow(unsafe_code)] // Assembly, and the bytes between its labels.

    use super::{Code, PARAMETERS, Parameters};
    use core::arch::global_asm;
    use core::mem::offset_of;

    /// The data segment in the page's GDT.
    const DATA: u16 = 0x10;
    /// CR0.PE; CR0.PG and CR0.WP; CR4.PAE. SDM 3A 2.5 "Control Registers".
    const PROTECTED: u32 = 1;
    const PAGED: u32 = 1 << 31 | 1 << 16;
    const PAE: u32 = 1 << 5;
    /// IA32_EFER, its LME and NXE bits: the kernel's tables have no-execute pages. SDM 3A 2.2.1.
    const EFER: u32 = 0xc000_0080;
    const LME_NXE: u32 = 1 << 8 | 1 << 11;

    // 1. CS is the page's segment, IP 0; nothing else is known. Interrupts are off after INIT.
    // 2. EBX carries the page's address all the way.
    // 3. The stack is taken by exchange; whoever finds none halts.
    global_asm!(
        ".pushsection .rodata.trampoline, \"a\", @progbits",
        ".balign 16",
        ".globl trampoline_code, trampoline_protected, trampoline_long, trampoline_end",
        "trampoline_code:",
        ".code16",
        "cli",
        "cld",
        "movw %cs, %ax",
        "movw %ax, %ds",
        "movzwl %ax, %ebx",
        "shll $4, %ebx",
        "lgdtl {gdt_pointer}",
        "movl %cr0, %eax",
        "orl ${protected}, %eax",
        "movl %eax, %cr0",
        "ljmpl *{to_protected}",
        "trampoline_protected:",
        ".code32",
        "movw ${data}, %ax",
        "movw %ax, %ds",
        "movw %ax, %es",
        "movw %ax, %ss",
        "movl %cr4, %eax",
        "orl ${pae}, %eax",
        "movl %eax, %cr4",
        "movl {early_root}(%ebx), %eax",
        "movl %eax, %cr3",
        "movl ${efer}, %ecx",
        "rdmsr",
        "orl ${lme_nxe}, %eax",
        "wrmsr",
        "movl %cr0, %eax",
        "orl ${paged}, %eax",
        "movl %eax, %cr0",
        "ljmpl *{to_long}(%ebx)",
        "trampoline_long:",
        ".code64",
        "xorl %eax, %eax",
        "xchgq %rax, {stack}(%rbx)",
        "testq %rax, %rax",
        "jz 2f",
        "movq %rax, %rsp",
        "movq {argument}(%rbx), %rdi",
        "movq {root}(%rbx), %rcx",
        "jmpq *{entry}(%rbx)",
        "2: hlt",
        "jmp 2b",
        "trampoline_end:",
        ".popsection",
        gdt_pointer = const PARAMETERS + offset_of!(Parameters, gdt_limit),
        to_protected = const PARAMETERS + offset_of!(Parameters, to_protected),
        to_long = const PARAMETERS + offset_of!(Parameters, to_long),
        early_root = const PARAMETERS + offset_of!(Parameters, early_root),
        entry = const PARAMETERS + offset_of!(Parameters, entry),
        stack = const PARAMETERS + offset_of!(Parameters, stack),
        argument = const PARAMETERS + offset_of!(Parameters, argument),
        root = const PARAMETERS + offset_of!(Parameters, root),
        data = const DATA,
        protected = const PROTECTED,
        pae = const PAE,
        efer = const EFER,
        lme_nxe = const LME_NXE,
        paged = const PAGED,
        options(att_syntax)
    );

    unsafe extern "C" {
        static trampoline_code: u8;
        static trampoline_protected: u8;
        static trampoline_long: u8;
        static trampoline_end: u8;
    }

    /// The code in the image.
    pub fn code() -> Code<'static> {
        let start = &raw const trampoline_code;
        let behind = |label: *const u8| (label as usize).wrapping_sub(start as usize);
        let length = behind(&raw const trampoline_end);
        // SAFETY: both labels are in the one section above, whose bytes lie in the image's constants.
        let bytes = unsafe { core::slice::from_raw_parts(start, length) };
        let (protected, long) = (behind(&raw const trampoline_protected), behind(&raw const trampoline_long));
        Code { bytes, protected: protected as u32, long: long as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_one_that_a_start_up_ipi_can_name() {
        assert_eq!(Trampoline::at(0x9_f000).map(Trampoline::vector), Some(0x9f));
        assert_eq!(Trampoline::at(0x1000).map(Trampoline::vector), Some(1));
        for address in [0, 0x800, 0x1001, 0xa_0000, 0x10_0000, 1 << 32 | 0x8000] {
            assert_eq!(Trampoline::at(address), None, "{address:#x}");
        }
    }

    #[test]
    fn the_page_holds_code_then_parameters_with_addresses_of_the_page() {
        let arrival =
            Arrival { early_root: 0x9_8000, entry: 0x1122_3344_5566_7788, stack: 2, argument: 3, root: 1 << 40 };
        let code = Code { bytes: &[0xfa, 0xfc], protected: 0x30, long: 0x60 };
        let page = Trampoline::at(0x9_9000).unwrap().fill(&code, &arrival);
        let qword = |at: usize| u64::from_le_bytes(page[at..][..8].try_into().unwrap());
        let dword = |at: usize| u32::from_le_bytes(page[at..][..4].try_into().unwrap());
        let word = |at: usize| u16::from_le_bytes(page[at..][..2].try_into().unwrap());
        assert_eq!(page[..3], [0xfa, 0xfc, 0]);
        assert_eq!(qword(0x808), 0x00af_9b00_0000_ffff, "64-bit code at selector 8");
        assert_eq!((dword(0x820), word(0x824)), (0x9_9030, 0x18));
        assert_eq!((dword(0x828), word(0x82c)), (0x9_9060, 0x08));
        assert_eq!((word(0x830), dword(0x832)), (31, 0x9_9800), "limit and base of the GDT");
        assert_eq!(dword(0x838), 0x9_8000);
        assert_eq!([qword(0x840), qword(0x848), qword(0x850), qword(0x858)], [0x1122_3344_5566_7788, 2, 3, 1 << 40]);
    }
}
