//! The PVH entry: page tables, long mode, descriptor tables, then the guest's main function.
//!
//! The whole address space below 4 GiB is mapped to itself by 2 MiB pages, writable and open to user mode.

use crate::{cpu, port, trap};
use core::arch::global_asm;
use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, Ordering};

/// 64-bit code segment of privilege level 0.
pub const CODE64: u16 = 0x08;
/// Flat data segment of privilege level 0.
pub const DATA: u16 = 0x10;
/// Flat 32-bit code segment of privilege level 0.
pub const CODE32: u16 = 0x18;
/// 64-bit code segment of privilege level 3.
pub const USER_CODE64: u16 = 0x33;
/// Flat data segment of privilege level 3.
pub const USER_DATA: u16 = 0x3b;
/// Task state segment.
pub const TASK: u16 = 0x40;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_entry

    .section .text.entry, "ax", @progbits
    .code32
    .globl pvh_entry
    # In: ebx = hvm_start_info, flat segments, paging and interrupts off. Prepares for Rust and stops.
    pvh_entry:
        cld
        cli
        mov dword ptr [{start_info}], ebx
        mov esp, offset boot_stack_top
        # Level 4 and level 3, then four level-2 tables one after the other. 7: present, writable, user.
        mov eax, offset boot_level3
        or eax, 7
        mov dword ptr [boot_level4], eax
        mov eax, offset boot_level2
        or eax, 7
        mov edi, offset boot_level3
        mov ecx, 4
    1:  mov dword ptr [edi], eax
        add eax, 4096
        add edi, 8
        dec ecx
        jnz 1b
        mov eax, 0x87
        mov edi, offset boot_level2
        mov ecx, 2048
    2:  mov dword ptr [edi], eax
        add eax, 0x200000
        add edi, 8
        dec ecx
        jnz 2b
        lgdt [boot_gdt_pointer]
        mov eax, cr4
        or eax, 0x620          # PAE, OSFXSR, OSXMMEXCPT
        mov cr4, eax
        mov eax, offset boot_level4
        mov cr3, eax
        mov ecx, 0xc0000080    # EFER
        rdmsr
        or eax, 0x100          # LME
        wrmsr
        mov eax, 0x80010033    # PG, WP, NE, ET, MP, PE
        mov cr0, eax
        push 0x08
        mov eax, offset boot_long
        push eax
        retf
    .code64
    boot_long:
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        xor eax, eax
        mov fs, eax
        mov gs, eax
        mov esp, offset boot_stack_top
        fninit
        call {rust}
        ud2

    .data
    .balign 16
    .globl boot_gdt
    boot_gdt:
        .quad 0
        .quad 0x00af9b000000ffff    # 08: 64-bit code
        .quad 0x00cf93000000ffff    # 10: data
        .quad 0x00cf9b000000ffff    # 18: 32-bit code
        .quad 0x000f9b000000ffff    # 20: 16-bit code
        .quad 0x000f93000000ffff    # 28: 16-bit data
        .quad 0x00affb000000ffff    # 30: 64-bit user code
        .quad 0x00cff3000000ffff    # 38: user data
        .quad 0, 0                  # 40: task state segment
    boot_gdt_end:
    .globl boot_gdt_pointer
    boot_gdt_pointer:
        .word boot_gdt_end - boot_gdt - 1
        .quad boot_gdt
    .globl boot_tss
    .balign 16
    boot_tss:
        .long 0
        .quad boot_trap_stack_top, 0, 0      # RSP0 to RSP2
        .quad 0
        .quad boot_ist_stack_top             # IST1
        .zero 56                             # IST2 to IST7, reserved
        .word 0
        .word 104                            # I/O map: past the end, no port is open
    .globl boot_tss_end
    boot_tss_end:

    .bss
    .balign 4096
    .globl boot_level4, boot_level3, boot_level2, boot_stack_top
    boot_level4: .zero 4096
    boot_level3: .zero 4096
    boot_level2: .zero 4 * 4096
    .zero 0x8000
    boot_stack_top:
    .zero 0x4000
    boot_trap_stack_top:
    .zero 0x4000
    boot_ist_stack_top:
    "#,
    start_info = sym START_INFO,
    rust = sym start,
);

/// Where the loader put `hvm_start_info`.
static START_INFO: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    fn guest_main() -> !;
    static mut boot_gdt: [u64; 10];
    static boot_tss: [u8; 104];
}

/// A 64-bit task state segment, available; SDM 3A 8.2.3 "TSS Descriptor in 64-bit mode".
fn load_task_register() {
    let base = &raw const boot_tss as u64;
    let low = 0x67 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    // SAFETY: the table is writable, nothing else uses its last two entries, and they describe the TSS beside it.
    unsafe {
        let gdt = &raw mut boot_gdt;
        (*gdt)[usize::from(TASK) / 8] = low;
        (*gdt)[usize::from(TASK) / 8 + 1] = base >> 32;
        core::arch::asm!("ltr {:x}", in(reg) TASK);
    }
}

extern "C" fn start() -> ! {
    load_task_register();
    trap::load_table();
    // Firmware may have left the legacy interrupt controllers open.
    port::write8(crate::pic::MASTER_DATA, 0xff);
    port::write8(crate::pic::SLAVE_DATA, 0xff);
    cpu::write_cr0(cpu::read_cr0() & !(cpu::CR0_CD | cpu::CR0_NW));
    // SAFETY: the guest! macro of the program defines it.
    unsafe { guest_main() }
}

/// A 32-bit word of `hvm_start_info`; 0 where the loader gave none.
fn start_info(offset: u32) -> u32 {
    match START_INFO.load(Ordering::Relaxed) {
        0 => 0,
        // SAFETY: the loader put the structure of at least 56 bytes there, and all memory is mapped.
        info => unsafe { core::ptr::read_volatile((info + offset) as *const u32) },
    }
}

/// The command line, empty if there is none or it is no UTF-8.
pub fn command_line() -> &'static str {
    match start_info(24) {
        0 => "",
        // SAFETY: the loader put a zero-terminated string there, which nobody writes.
        at => unsafe { CStr::from_ptr(at as *const core::ffi::c_char) }.to_str().unwrap_or(""),
    }
}

/// The value of `key` in the command line, written `key=value` between spaces.
pub fn option(key: &str) -> Option<&'static str> {
    command_line().split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The root of the page tables that map everything to itself.
pub fn root_table() -> u64 {
    cpu::read_cr3() & !0xfff
}

/// The ACPI root pointer's address as the loader passed it, 0 for none.
pub fn rsdp() -> u32 {
    start_info(32)
}
