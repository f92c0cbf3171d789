//! What Limine is asked for, and where it enters: in long mode, on its own page tables.
//!
//! Pins The Limine Boot Protocol, base revision 2, "Machine state at entry" and "Entry memory layout". Its tables map the image
//! where it is linked and all RAM at a direct map, which must be ours too, so that they serve as the early tables.

#![allow(unsafe_code)] // The entry, the requests' section, and physical memory as bytes.

use crate::entry::{BOOT_STACK, gearshift_main, image_length};
use crate::limine::{self, Handover};
use crate::{BootError, BootInfo, PhysicalMemory, PhysicalRange, layout};
use ::limine::BaseRevision;
use ::limine::request::{
    ExecutableAddressRequest, ExecutableFileRequest, HhdmRequest, MemoryMapRequest, ModuleRequest, RsdpRequest,
};
use core::arch::{global_asm, naked_asm};

#[used]
#[unsafe(link_section = ".requests")]
static REVISION: BaseRevision = BaseRevision::with_revision(2);
#[used]
#[unsafe(link_section = ".requests")]
static DIRECT_MAP: HhdmRequest = HhdmRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static MEMORY_MAP: MemoryMapRequest = MemoryMapRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static MODULES: ModuleRequest = ModuleRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static FILE: ExecutableFileRequest = ExecutableFileRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static ADDRESS: ExecutableAddressRequest = ExecutableAddressRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static RSDP: RsdpRequest = RsdpRequest::new();

// The same descriptors as the 32-bit entries load, by their virtual address.
global_asm!(
    ".pushsection .rodata.boot, \"a\", @progbits",
    ".balign 8",
    "1: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "2:",
    ".globl limine_gdt_pointer",
    "limine_gdt_pointer: .short 2b - 1b - 1",
    ".quad 1b",
    ".popsection",
    options(att_syntax)
);

/// Limine: long mode, interrupts off, every general register 0.
///
/// 1. The boot stack and flat segments take the place of Limine's; .bss is clear and mapped already.
/// 2. Its page tables stay until the kernel has its own.
///
/// # Safety
/// For the loader only.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn limine_entry() -> ! {
    naked_asm!(
        "cli",
        "cld",
        "movq ${stack} + {stack_size}, %rsp",
        "lgdt limine_gdt_pointer(%rip)",
        "pushq $0x08",
        "leaq 2f(%rip), %rax",
        "pushq %rax",
        "lretq",
        "2: movl $0x10, %eax",
        "movl %eax, %ds",
        "movl %eax, %es",
        "movl %eax, %ss",
        "xorl %eax, %eax",
        "movl %eax, %fs",
        "movl %eax, %gs",
        "xorl %ebp, %ebp",
        "call {start}",
        "ud2",
        stack = sym BOOT_STACK,
        stack_size = const layout::BOOT_STACK_SIZE,
        start = sym start,
        options(att_syntax)
    )
}

/// Reads what Limine told and hands it to the kernel.
extern "C" fn start() -> ! {
    gearshift_main(read())
}

/// The address of a response.
fn place<T>(response: Option<&T>) -> Option<u64> {
    response.map(|response| response as *const T as u64)
}

fn read() -> Result<BootInfo<'static>, BootError> {
    if !REVISION.is_supported() {
        return Err(BootError::LoaderTooOld);
    }
    let (Some(map), Some(address)) = (DIRECT_MAP.get_response(), ADDRESS.get_response()) else {
        return Err(BootError::LoaderTooOld);
    };
    if map.offset() != layout::DIRECT_MAP {
        return Err(BootError::MemoryElsewhere(map.offset()));
    }
    let image = PhysicalRange::new(address.physical_base(), image_length());
    let image = image.ok_or(BootError::RegionWraps(address.physical_base()))?;
    let handover = Handover {
        direct_map: map.offset(),
        memory_map: place(MEMORY_MAP.get_response()),
        modules: place(MODULES.get_response()),
        file: place(FILE.get_response()),
        rsdp: place(RSDP.get_response()),
    };
    let low = LimineMap { end: layout::EARLY_MAPPED };
    limine::parse(&low, &LimineMap { end: u64::MAX >> 16 }, &handover, image)
}

/// Physical memory below `end` through Limine's direct map.
struct LimineMap {
    end: u64,
}

impl PhysicalMemory<'static> for LimineMap {
    fn bytes(&self, address: u64, length: u64) -> Option<&'static [u8]> {
        let range = PhysicalRange::new(address, length)?;
        if range.end > self.end {
            return None;
        }
        let pointer = (layout::DIRECT_MAP + address) as *const u8;
        // SAFETY: Limine maps the first 4 GiB and all that its memory map calls its own, and the parser asks for nothing
        // else; the kernel's tables map RAM at the same place; nothing writes to what the loader left.
        Some(unsafe { core::slice::from_raw_parts(pointer, length as usize) })
    }
}
