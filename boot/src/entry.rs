//! The 32-bit entries: from a loader's flat protected mode to Rust in long mode.
//!
//! Two loaders enter here, PVH by the ELF note and Multiboot2 by its header's entry-address tag; both give a flat 32-bit
//! protected mode with paging off and a pointer to their information in EBX. The assembly clears .bss, fills the early
//! page tables, switches to long mode, takes a stack and calls [`start`]; every decision is made in Rust behind that.
//!
//! The early tables map the first 4 GiB at 0 and at [`layout::DIRECT_MAP`], and the first GiB at
//! [`layout::IMAGE_BASE`], all writable and executable in 2 MiB pages: the kernel replaces them before anything else.
//!
//! Does not check for long mode: no CPU with VT-x or AMD-V that Gearshift could use is without it.

#![allow(unsafe_code)] // Entry from the loader: naked functions, linker symbols and physical memory as bytes.

use crate::{BootError, BootInfo, PhysicalMemory, PhysicalRange, layout, multiboot2, pvh};
use core::arch::{global_asm, naked_asm};
use core::mem::offset_of;
use core::sync::atomic::AtomicU64;

/// One page table of 512 entries; filled by assembly, hence atomic.
type Table = [AtomicU64; 512];

/// The early page tables. Zero until the entry fills them.
#[repr(C, align(4096))]
struct EarlyTables {
    root: Table,
    low: Table,
    high: Table,
    directories: [Table; 4],
}

static EARLY_TABLES: EarlyTables = EarlyTables {
    root: [const { AtomicU64::new(0) }; 512],
    low: [const { AtomicU64::new(0) }; 512],
    high: [const { AtomicU64::new(0) }; 512],
    directories: [const { [const { AtomicU64::new(0) }; 512] }; 4],
};

/// The boot CPU's first stack.
#[repr(C, align(4096))]
pub(crate) struct BootStack([AtomicU64; layout::BOOT_STACK_SIZE / 8]);

pub(crate) static BOOT_STACK: BootStack = BootStack([const { AtomicU64::new(0) }; layout::BOOT_STACK_SIZE / 8]);

/// Present and writable. SDM 3A 4.5.4 "Linear-Address Translation with 4-Level Paging and 5-Level Paging".
const TABLE_FLAGS: u64 = 0x3;
/// Present, writable and a 2 MiB page.
const LARGE_PAGE_FLAGS: u64 = 0x83;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
const LARGE_PAGES: u64 = layout::EARLY_MAPPED / LARGE_PAGE_SIZE;
/// Bytes into the root table of the entry that covers a virtual address.
const fn root_offset(address: u64) -> u64 {
    (address >> 39 & 511) * 8
}
/// Bytes into a table below the root of the entry that covers [`layout::IMAGE_BASE`].
const HIGH_OFFSET: u64 = (layout::IMAGE_BASE >> 30 & 511) * 8;

/// CR4.PAE. SDM 3A 2.5 "Control Registers".
const CR4_PAE: u32 = 1 << 5;
/// CR0.PG, CR0.WP and CR0.PE.
const CR0_PAGED: u32 = 1 << 31 | 1 << 16 | 1;
/// IA32_EFER and its LME bit. SDM 3A 2.2.1 "Extended Feature Enable Register".
const EFER: u32 = 0xc000_0080;
const EFER_LME: u32 = 1 << 8;

/// What EBP carries for the two entries.
const FROM_PVH: u32 = 1;
const FROM_MULTIBOOT2: u32 = 2;

// XEN_ELFNOTE_PHYS32_ENTRY: the physical address of the 32-bit entry, 8 bytes as an ELF64 image gives it.
// The name is 4 bytes long, so that 4-byte alignment holds throughout.
global_asm!(
    ".pushsection .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad {entry} - {base}",
    ".popsection",
    entry = sym pvh_entry,
    base = const layout::IMAGE_BASE,
    options(att_syntax)
);

// Multiboot2 header, 3.1.1 "The layout of Multiboot2 header", in the first 32 KiB of the file, with the i386
// entry-address tag (3.1.6; ELF's own entry is virtual), the module-alignment tag (3.1.11) and the end tag. No
// Multiboot 1 header: QEMU would prefer it to PVH.
global_asm!(
    ".pushsection .multiboot2, \"a\", @progbits",
    ".balign 8",
    "1: .long 0xe85250d6, 0, 2f - 1b",
    ".long -(0xe85250d6 + (2f - 1b))",
    ".short 3, 0",
    ".long 12, {entry} - {base}",
    ".balign 8",
    ".short 6, 0",
    ".long 8",
    ".short 0, 0",
    ".long 8",
    "2:",
    ".popsection",
    entry = sym multiboot2_entry,
    base = const layout::IMAGE_BASE,
    options(att_syntax)
);

// Flat 64-bit code and a flat data segment, until the kernel loads its own.
global_asm!(
    ".pushsection .rodata.boot, \"a\", @progbits",
    ".balign 8",
    "1: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "2:",
    ".globl boot_gdt_pointer",
    "boot_gdt_pointer: .short 2b - 1b - 1",
    ".long 1b - {base}",
    ".popsection",
    base = const layout::IMAGE_BASE,
    options(att_syntax)
);

/// PVH: EBX points to `hvm_start_info`.
///
/// # Safety
/// For the loader only.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn pvh_entry() -> ! {
    naked_asm!(
        ".code32",
        "movl ${protocol}, %ebp",
        "jmp {switch}",
        ".code64",
        protocol = const FROM_PVH,
        switch = sym switch_to_long_mode,
        options(att_syntax)
    )
}

/// Multiboot2: EAX holds the loader's magic number, EBX points to the information.
///
/// # Safety
/// For the loader only.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn multiboot2_entry() -> ! {
    naked_asm!(
        ".code32",
        "movl ${protocol}, %ebp",
        "cmpl ${magic}, %eax",
        "je {switch}",
        // Another loader that read the header: its magic number takes the place of the protocol, and is refused later.
        "movl %eax, %ebp",
        "jmp {switch}",
        ".code64",
        protocol = const FROM_MULTIBOOT2,
        magic = const multiboot2::MAGIC,
        switch = sym switch_to_long_mode,
        options(att_syntax)
    )
}

/// From 32-bit protected mode to [`start`].
///
/// 1. EBP: the protocol. EBX: the loader's information. Nothing else is live, there is no stack, interrupts are off.
/// 2. Symbols are virtual; what runs before the far jump subtracts the image's base to get where the loader put them.
/// 3. .bss is cleared first, because the tables and the stack are in it.
///
/// # Safety
/// For the entries above only.
#[unsafe(naked)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn switch_to_long_mode() -> ! {
    naked_asm!(
        ".code32",
        "cli",
        "cld",
        "movl $__bss_start - {base}, %edi",
        "movl $__bss_end - {base}, %ecx",
        "subl %edi, %ecx",
        "shrl $2, %ecx",
        "xorl %eax, %eax",
        "rep stosl",
        // 2048 pages of 2 MiB in four directories that follow each other.
        "movl ${tables} - {base} + {directories}, %edi",
        "movl ${large}, %eax",
        "movl ${large_pages}, %ecx",
        "2: movl %eax, (%edi)",
        "addl ${large_size}, %eax",
        "addl $8, %edi",
        "decl %ecx",
        "jnz 2b",
        // The four directories below `low`, the first of them below `high` too.
        "movl ${tables} - {base}, %edi",
        "leal {directories} + {flags}(%edi), %eax",
        "movl %eax, {high} + {high_offset}(%edi)",
        "movl %eax, {low}(%edi)",
        "addl $0x1000, %eax",
        "movl %eax, {low} + 8(%edi)",
        "addl $0x1000, %eax",
        "movl %eax, {low} + 16(%edi)",
        "addl $0x1000, %eax",
        "movl %eax, {low} + 24(%edi)",
        "leal {low} + {flags}(%edi), %eax",
        "movl %eax, (%edi)",
        "movl %eax, {direct_offset}(%edi)",
        "leal {high} + {flags}(%edi), %eax",
        "movl %eax, {image_offset}(%edi)",
        // Long mode: SDM 3A 11.8.5 "Initializing IA-32e Mode".
        "movl %cr4, %eax",
        "orl ${pae}, %eax",
        "movl %eax, %cr4",
        "movl %edi, %cr3",
        "movl ${efer}, %ecx",
        "rdmsr",
        "orl ${lme}, %eax",
        "wrmsr",
        "movl %cr0, %eax",
        "orl ${paged}, %eax",
        "movl %eax, %cr0",
        "lgdt boot_gdt_pointer - {base}",
        "ljmp $0x08, $3f - {base}",
        ".code64",
        "3: movabsq $4f, %rax",
        "jmpq *%rax",
        "4: movl $0x10, %eax",
        "movl %eax, %ds",
        "movl %eax, %es",
        "movl %eax, %ss",
        "xorl %eax, %eax",
        "movl %eax, %fs",
        "movl %eax, %gs",
        "movq ${stack} + {stack_size}, %rsp",
        "movl %ebp, %edi",
        "movl %ebx, %esi",
        "xorl %ebp, %ebp",
        "call {start}",
        "ud2",
        base = const layout::IMAGE_BASE,
        tables = sym EARLY_TABLES,
        directories = const offset_of!(EarlyTables, directories),
        low = const offset_of!(EarlyTables, low),
        high = const offset_of!(EarlyTables, high),
        large = const LARGE_PAGE_FLAGS,
        large_size = const LARGE_PAGE_SIZE,
        large_pages = const LARGE_PAGES,
        flags = const TABLE_FLAGS,
        direct_offset = const root_offset(layout::DIRECT_MAP),
        image_offset = const root_offset(layout::IMAGE_BASE),
        high_offset = const HIGH_OFFSET,
        pae = const CR4_PAE,
        efer = const EFER,
        lme = const EFER_LME,
        paged = const CR0_PAGED,
        stack = sym BOOT_STACK,
        stack_size = const layout::BOOT_STACK_SIZE,
        start = sym start,
        options(att_syntax)
    )
}

unsafe extern "Rust" {
    /// The kernel's first function, defined by its binary. Runs on the boot stack and the early page tables with
    /// interrupts off.
    pub(crate) safe fn gearshift_main(boot: Result<BootInfo<'static>, BootError>) -> !;

    static __image_start: u8;
    static __image_end: u8;
}

/// Reads what the loader told and hands it to the kernel.
extern "C" fn start(protocol: u32, information: u32) -> ! {
    let information = u64::from(information);
    gearshift_main(match protocol {
        FROM_PVH => pvh::parse(&EarlyMap, information, image()),
        FROM_MULTIBOOT2 => multiboot2::parse(&EarlyMap, information, image()),
        magic => Err(BootError::UnknownLoader(magic)),
    })
}

/// Where the image lies in physical memory: both 32-bit entries load it at virtual minus base.
fn image() -> PhysicalRange {
    let start = (&raw const __image_start as u64).wrapping_sub(layout::IMAGE_BASE);
    PhysicalRange { start, end: start + image_length() }
}

/// Bytes of the image, .bss included.
pub(crate) fn image_length() -> u64 {
    (&raw const __image_end as u64).wrapping_sub(&raw const __image_start as u64)
}

/// Physical memory through the early tables' direct map.
struct EarlyMap;

impl PhysicalMemory<'static> for EarlyMap {
    fn bytes(&self, address: u64, length: u64) -> Option<&'static [u8]> {
        let range = PhysicalRange::new(address, length)?;
        if address == 0 || range.end > layout::EARLY_MAPPED {
            return None;
        }
        let pointer = (layout::DIRECT_MAP + address) as *const u8;
        // SAFETY: the early tables map all of the range, here and, by the kernel's tables, later; nothing writes to what
        // the loader left, because the allocator is told what is occupied.
        Some(unsafe { core::slice::from_raw_parts(pointer, length as usize) })
    }
}
