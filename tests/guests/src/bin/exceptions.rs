//! Exceptions: the right one with the right error code for each cause, delivered where the manual says.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use guest::attempt;
use guest::paging::{self, Page, fault};
use guest::report::{equal, excused};
use guest::trap::{self, Caught, Frame, vector};
use guest::{apic, cpu, user};

guest::guest!("exceptions", run);

const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;

static mut MEMORY: Page = Page([0; 4096]);

fn kind(caught: Option<Caught>) -> Option<(u8, u64)> {
    caught.map(Caught::kind)
}

/// Expects the code to raise `vector` with `error`.
macro_rules! raises {
    ($what:literal, $vector:expr, $error:expr, $code:literal $(, $($operand:tt)*)?) => {
        // SAFETY: the instruction raises an exception, which is caught.
        equal($what, kind(unsafe { attempt!($code $(, $($operand)*)?) }), Some(($vector, $error)))
    };
}

fn run() {
    undefined();
    faults();
    page_faults();
    system();
    single_steps();
    breakpoints();
    floating_point();
    alignment();
    gates();
}

/// Instructions of VMX, SVM and SMX do not exist here.
fn undefined() {
    let memory = &raw mut MEMORY;
    raises!("ud2", vector::UD, 0, "ud2");
    raises!("vmcall", vector::UD, 0, "vmcall", in("rax") 0, in("rcx") 0);
    raises!("vmmcall", vector::UD, 0, "vmmcall", in("rax") 0, in("rcx") 0);
    raises!("vmrun", vector::UD, 0, "vmrun", in("rax") memory);
    raises!("vmload", vector::UD, 0, "vmload", in("rax") memory);
    raises!("vmsave", vector::UD, 0, "vmsave", in("rax") memory);
    raises!("stgi", vector::UD, 0, "stgi");
    raises!("clgi", vector::UD, 0, "clgi");
    raises!("skinit", vector::UD, 0, "skinit", in("eax") 0);
    raises!("invlpga", vector::UD, 0, "invlpga", in("rax") 0, in("ecx") 1);
    raises!("vmxon", vector::UD, 0, "vmxon [{m}]", m = in(reg) memory);
    raises!("vmxoff", vector::UD, 0, "vmxoff");
    raises!("vmptrld", vector::UD, 0, "vmptrld [{m}]", m = in(reg) memory);
    raises!("vmptrst", vector::UD, 0, "vmptrst [{m}]", m = in(reg) memory);
    raises!("vmclear", vector::UD, 0, "vmclear [{m}]", m = in(reg) memory);
    raises!("vmread", vector::UD, 0, "vmread rax, rax", out("rax") _);
    raises!("vmwrite", vector::UD, 0, "vmwrite rax, rax", in("rax") 0);
    raises!("vmlaunch", vector::UD, 0, "vmlaunch");
    raises!("vmresume", vector::UD, 0, "vmresume");
    raises!("invept", vector::UD, 0, "invept rax, [{m}]", in("rax") 1_u64, m = in(reg) memory);
    raises!("invvpid", vector::UD, 0, "invvpid rax, [{m}]", in("rax") 1_u64, m = in(reg) memory);
    raises!("vmfunc", vector::UD, 0, "vmfunc", in("eax") 0);
    raises!("getsec", vector::UD, 0, "getsec", in("eax") 0);
    raises!("rsm-outside-smm", vector::UD, 0, "rsm");
    raises!("lock-on-register", vector::UD, 0, ".byte 0xf0, 0x01, 0xc0");
}

fn faults() {
    raises!("divide-by-zero", vector::DE, 0, "xor ecx, ecx\ndiv ecx", out("ecx") _, inout("eax") 1 => _, inout("edx") 0 => _);
    raises!("load-not-canonical", vector::GP, 0, "mov rax, [{a}]", a = in(reg) NON_CANONICAL, out("rax") _);
    raises!("store-not-canonical", vector::GP, 0, "mov [{a}], rax", a = in(reg) NON_CANONICAL);
    raises!(
        "stack-not-canonical", vector::SS, 0, "mov r10, rbp\nmov rbp, {a}\nmov rax, [rbp]\n22:\nmov rbp, r10",
        a = in(reg) NON_CANONICAL, out("rax") _, out("r10") _
    );
    raises!("bad-selector", vector::GP, 0xf8, "mov ds, {s:e}", s = in(reg) 0xf8);
    raises!("null-stack-selector-at-user-level", vector::GP, 0, "mov ss, {s:e}", s = in(reg) 3);
    raises!("code-into-ss", vector::GP, 0x8, "mov ss, {s:e}", s = in(reg) 8);
    let (cr0, cr4) = (cpu::read_cr0(), cpu::read_cr4());
    // Where the test bed takes one of these values, nothing of the guest survives.
    for (what, value) in [
        ("cr0-paging-without-protection", 0x8000_0000),
        ("cr0-high-bit", cr0 | 1 << 32),
        ("cr0-nw-without-cd", cr0 | cpu::CR0_NW),
    ] {
        if !excused(what) {
            // SAFETY: the value is refused.
            equal(what, kind(unsafe { attempt!("mov cr0, {v}", v = in(reg) value) }), Some((vector::GP, 0)));
        }
    }
    for (what, value) in [
        ("cr4-pae-off-in-long-mode", cr4 & !(1 << 5)),
        ("cr4-reserved-bit", cr4 | 1 << 31),
        ("cr4-high-bit", cr4 | 1 << 32),
        ("cr4-vmxe-refused", cr4 | cpu::CR4_VMXE),
    ] {
        if !excused(what) {
            // SAFETY: the value is refused.
            equal(what, kind(unsafe { attempt!("mov cr4, {v}", v = in(reg) value) }), Some((vector::GP, 0)));
        }
    }
    raises!("cr8-reserved-bit", vector::GP, 0, "mov cr8, {v}", v = in(reg) 0x10_u64);
    cpu::write_cr0(cr0);
    cpu::write_cr4(cr4);
    cpu::write_cr8(0);
    raises!("cr1-does-not-exist", vector::UD, 0, ".byte 0x0f, 0x20, 0xc8", out("rax") _);
    raises!("dr7-high-bit", vector::GP, 0, "mov dr7, {v}", v = in(reg) 1_u64 << 32);
    raises!("dr6-high-bit", vector::GP, 0, "mov dr6, {v}", v = in(reg) 1_u64 << 32);
    equal("cr0-unharmed", cpu::read_cr0() & 0x8000_0001, 0x8000_0001);
}

fn page_faults() {
    let physical = &raw const MEMORY as u64;
    let bits = paging::PRESENT | paging::WRITABLE | paging::USER;
    let read = |address: u64| {
        // SAFETY: a page fault is caught, and a read harms nothing.
        unsafe { attempt!("mov al, [{a}]", a = in(reg) address, out("al") _) }
            .map(|caught| (caught.kind(), caught.address))
    };
    let write = |address: u64| {
        // SAFETY: the page is MEMORY.
        unsafe { attempt!("mov byte ptr [{a}], 1", a = in(reg) address) }.map(|caught| (caught.kind(), caught.address))
    };
    let at = paging::window(1) + 0x123;
    let faults = |error: u64| Some(((vector::PF, error), at));
    paging::set(1, 0);
    equal("read-not-present", read(at), faults(0));
    equal("write-not-present", write(at), faults(fault::WRITE));
    paging::set(1, physical | bits);
    equal("read-present", read(at), None);
    equal("accessed-set", paging::get(1) & (paging::ACCESSED | paging::DIRTY), paging::ACCESSED);
    equal("write-present", write(at), None);
    equal("dirty-set", paging::get(1) & (paging::ACCESSED | paging::DIRTY), paging::ACCESSED | paging::DIRTY);
    paging::set(1, physical | paging::PRESENT | paging::USER);
    equal("write-read-only", write(at), faults(fault::WRITE | fault::PRESENT));
    cpu::write_cr0(cpu::read_cr0() & !cpu::CR0_WP);
    equal("write-read-only-without-wp", write(at), None);
    cpu::write_cr0(cpu::read_cr0() | cpu::CR0_WP);
    paging::set(1, physical | bits | 1 << 51);
    if cpu::leaf(0x8000_0008, 0).eax & 0xff < 52 {
        equal("reserved-bit", read(at), faults(fault::RESERVED | fault::PRESENT));
    }
    let efer = cpu::read_msr(cpu::EFER).unwrap_or(0);
    let _ = cpu::write_msr(cpu::EFER, efer | cpu::EFER_NXE);
    // SAFETY: MEMORY is written while nothing else uses it: a RET.
    unsafe { (&raw mut MEMORY.0).cast::<u8>().add(0x123).write_volatile(0xc3) };
    paging::set(1, physical | bits);
    // SAFETY: the page holds a RET.
    equal("fetch", kind(unsafe { attempt!("call {a}", a = in(reg) at) }), None);
    paging::set(1, physical | bits | paging::NO_EXECUTE);
    // SAFETY: the call faults after it pushed its return address, which is dropped.
    let caught =
        unsafe { attempt!("mov r10, rsp\ncall {a}\n22:\nmov rsp, r10\njmp 23f\n23:", a = in(reg) at, out("r10") _) };
    equal("fetch-not-executable", caught.map(|c| (c.kind(), c.address)), faults(fault::FETCH | fault::PRESENT));
    // A read over the border of a present and an absent page: CR2 is where the absent page begins.
    paging::set(1, physical | bits);
    paging::set(2, 0);
    // SAFETY: the fault is caught.
    let caught = unsafe { attempt!("mov rax, [{a}]", a = in(reg) paging::window(2) - 4, out("rax") _) };
    equal("fault-across-pages", caught.map(|c| c.address), Some(paging::window(2)));
    user_faults();
}

static USER_CAUGHT: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

extern "C" fn touch_supervisor_page() {
    // SAFETY: the fault is caught, at level 3.
    let caught = unsafe { attempt!("mov al, [{a}]", a = in(reg) paging::window(3), out("al") _) };
    USER_CAUGHT[0].store(caught.map_or(0, |c| u64::from(c.vector) << 32 | c.error), Ordering::SeqCst);
    // SAFETY: as above.
    let caught = unsafe { attempt!("hlt") };
    USER_CAUGHT[1].store(caught.map_or(0, |c| u64::from(c.vector) << 32 | c.error), Ordering::SeqCst);
}

fn user_faults() {
    paging::set(3, &raw const MEMORY as u64 | paging::PRESENT | paging::WRITABLE);
    user::call(touch_supervisor_page, 0);
    let seen = USER_CAUGHT[0].load(Ordering::SeqCst);
    equal("user-reads-supervisor-page", (seen >> 32, seen as u32 as u64), (14, fault::USER | fault::PRESENT));
    equal("user-hlt", USER_CAUGHT[1].load(Ordering::SeqCst), 13 << 32);
}

static USER_RESULTS: [AtomicU64; 11] = [const { AtomicU64::new(0) }; 11];

/// Tried at level 3, in this order; what each has to raise.
const USER_EXPECTED: [(&str, u8); 11] = [
    ("user-rdmsr", vector::GP),
    ("user-wbinvd", vector::GP),
    ("user-mov-cr0", vector::GP),
    ("user-invlpg", vector::GP),
    ("user-out", vector::GP),
    ("user-in", vector::GP),
    ("user-cli", vector::GP),
    ("user-lgdt", vector::GP),
    ("user-vmmcall", vector::UD),
    ("user-vmcall", vector::UD),
    ("user-rdpmc", vector::GP),
];

extern "C" fn privileged() {
    // SAFETY: each raises an exception, which is caught.
    let results = unsafe {
        [
            attempt!("rdmsr", in("ecx") 0x1b, out("eax") _, out("edx") _),
            attempt!("wbinvd"),
            attempt!("mov rax, cr0", out("rax") _),
            attempt!("invlpg [rax]", in("rax") 0),
            attempt!("out 0x80, al", in("al") 0_u8),
            attempt!("in al, 0x21", out("al") _),
            attempt!("cli"),
            attempt!("lgdt [rax]", in("rax") &raw const MEMORY),
            attempt!("vmmcall", in("rax") 0),
            attempt!("vmcall", in("rax") 0),
            attempt!("rdpmc", in("ecx") 0, out("eax") _, out("edx") _),
        ]
    };
    for (slot, caught) in USER_RESULTS.iter().zip(results) {
        slot.store(caught.map_or(0, |c| u64::from(c.vector) << 32 | c.error), Ordering::SeqCst);
    }
}

/// Privileged instructions at level 3 raise their exception before anything exits.
fn system() {
    user::call(privileged, 0);
    for ((what, vector), seen) in USER_EXPECTED.into_iter().zip(&USER_RESULTS) {
        equal(what, seen.load(Ordering::SeqCst), u64::from(vector) << 32);
    }
}

static STEPS: AtomicU64 = AtomicU64::new(0);
static LAST_STATUS: AtomicU64 = AtomicU64::new(0);
static LAST_RIP: AtomicU64 = AtomicU64::new(0);

fn on_debug(frame: &mut Frame) {
    STEPS.fetch_add(1, Ordering::SeqCst);
    LAST_STATUS.store(cpu::read_dr6(), Ordering::SeqCst);
    LAST_RIP.store(frame.rip, Ordering::SeqCst);
    cpu::write_dr6(0xffff_0ff0);
    // An instruction breakpoint would be met again.
    frame.rflags |= 1 << 16;
}

/// With TF set, each instruction traps once, also those that a hypervisor executes on the guest's behalf.
fn single_steps() {
    trap::on(vector::DB, on_debug);
    macro_rules! steps {
        ($what:literal, $count:literal, $code:literal $(, $($operand:tt)*)?) => {{
            STEPS.store(0, Ordering::SeqCst);
            // SAFETY: TF is set for the code and cleared after it; the handler returns.
            unsafe {
                asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", $code, "pushfq", "and qword ptr [rsp], -0x101", "popfq" $(, $($operand)*)?);
            }
            // The code's instructions, then PUSHFQ, AND and POPFQ.
            equal($what, STEPS.load(Ordering::SeqCst), $count + 3);
        }};
    }
    steps!("step-nop", 1, "nop");
    equal("step-status", LAST_STATUS.load(Ordering::SeqCst) & 0xe00f, 0x4000);
    steps!("step-cpuid", 3, "xchg r8, rbx\ncpuid\nxchg r8, rbx", inout("eax") 0 => _, out("ecx") _, out("edx") _, out("r8") _);
    steps!("step-in", 1, "in al, 0x21", out("al") _);
    steps!("step-out", 1, "out 0x80, al", in("al") 0_u8);
    steps!("step-rdmsr", 1, "rdmsr", in("ecx") 0x1b, out("eax") _, out("edx") _);
    steps!("step-mmio", 1, "mov eax, [{a}]", a = in(reg) apic::BASE + 0x20, out("eax") _);
    steps!("step-wbinvd", 1, "wbinvd");
    steps!("step-rep-outsb", 3, "rep outsb", in("dx") 0x80_u16, inout("rsi") &raw const MEMORY => _, inout("rcx") 3_u64 => _);
    steps!("step-mov-cr", 2, "mov rax, cr4\nmov cr4, rax", out("rax") _);
    trap::off(vector::DB);
}

fn breakpoints() {
    static BREAKPOINT_RIP: AtomicU64 = AtomicU64::new(0);
    trap::on(vector::BP, |frame| BREAKPOINT_RIP.store(frame.rip, Ordering::SeqCst));
    let after: u64;
    // SAFETY: the handler returns.
    unsafe { asm!("int3", "22:", "lea {}, [rip + 22b]", out(reg) after) };
    equal("int3-is-a-trap", BREAKPOINT_RIP.load(Ordering::SeqCst), after);
    trap::off(vector::BP);

    trap::on(vector::DB, on_debug);
    STEPS.store(0, Ordering::SeqCst);
    let memory = &raw mut MEMORY as u64;
    cpu::write_dr0(memory + 8);
    cpu::write_dr7(0x400 | 1 | 0b1101 << 16);
    // SAFETY: MEMORY is this program's.
    unsafe { asm!("mov dword ptr [{}], 1", "nop", in(reg) memory + 8) };
    equal("data-breakpoint", (STEPS.load(Ordering::SeqCst), LAST_STATUS.load(Ordering::SeqCst) & 0xf), (1, 1));
    let target: u64;
    // SAFETY: only computes an address.
    unsafe { asm!("lea {}, [rip + 24f]", "jmp 25f", "24:", "nop", "ret", "25:", out(reg) target) };
    STEPS.store(0, Ordering::SeqCst);
    cpu::write_dr0(target);
    cpu::write_dr7(0x400 | 1);
    // SAFETY: the code is NOP and RET.
    unsafe { asm!("call {}", in(reg) target) };
    equal("instruction-breakpoint", (STEPS.load(Ordering::SeqCst), LAST_RIP.load(Ordering::SeqCst)), (1, target));
    cpu::write_dr7(0x400);
    cpu::write_dr0(0x1234_5678_9abc);
    cpu::write_dr3(0x4321);
    equal("debug-registers-kept", (cpu::read_dr0(), cpu::read_dr3()), (0x1234_5678_9abc, 0x4321));
    trap::off(vector::DB);
}

fn floating_point() {
    cpu::write_cr0(cpu::read_cr0() | cpu::CR0_TS);
    raises!("task-switched-fpu", vector::NM, 0, "fnop");
    raises!("task-switched-sse", vector::NM, 0, "xorps xmm0, xmm0");
    // SAFETY: CLTS only clears CR0.TS.
    equal("clts", (unsafe { attempt!("clts\nfnop") }, cpu::read_cr0() & cpu::CR0_TS), (None, 0));
    cpu::write_cr0(cpu::read_cr0() | cpu::CR0_EM);
    raises!("emulated-fpu", vector::NM, 0, "fnop");
    cpu::write_cr0(cpu::read_cr0() & !cpu::CR0_EM);
    let control = 0x37b_u16; // zero divide unmasked
    // SAFETY: the exception is caught by the waiting instruction and cleared.
    let caught = unsafe { attempt!("fninit\nfldcw [{c}]\nfld1\nfldz\nfdivp\nfwait", c = in(reg) &raw const control) };
    equal("x87-divide", kind(caught), Some((vector::MF, 0)));
    // SAFETY: resets the x87 unit.
    unsafe { asm!("fninit") };
    let (unmasked, masked) = (0x1d80_u32, 0x1f80_u32);
    let (one, zero) = (1.0_f32.to_bits(), 0_u32);
    // SAFETY: the exception is caught.
    let caught = unsafe {
        attempt!("ldmxcsr [{u}]\nmovd xmm0, {one:e}\nmovd xmm1, {zero:e}\ndivss xmm0, xmm1", u = in(reg) &raw const unmasked, one = in(reg) one, zero = in(reg) zero)
    };
    equal("sse-divide", kind(caught), Some((vector::XM, 0)));
    // SAFETY: restores the default.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const masked) };
}

static ALIGNMENT: AtomicU64 = AtomicU64::new(0);

extern "C" fn misaligned() {
    // SAFETY: MEMORY is open to level 3.
    let caught = unsafe { attempt!("mov eax, [{a} + 1]", a = in(reg) &raw const MEMORY, out("eax") _) };
    ALIGNMENT.store(caught.map_or(0, |c| u64::from(c.vector) << 32 | c.error), Ordering::SeqCst);
}

fn alignment() {
    const AC: u64 = 1 << 18;
    cpu::write_cr0(cpu::read_cr0() | cpu::CR0_AM);
    user::call(misaligned, AC);
    equal("alignment-check", ALIGNMENT.load(Ordering::SeqCst), u64::from(vector::AC) << 32);
    cpu::write_cr0(cpu::read_cr0() & !cpu::CR0_AM);
    user::call(misaligned, AC);
    equal("no-alignment-check-without-am", ALIGNMENT.load(Ordering::SeqCst), 0);
    // SAFETY: MOVAPS of a misaligned address raises #GP.
    let caught = unsafe { attempt!("movaps xmm0, [{a} + 1]", a = in(reg) &raw const MEMORY) };
    equal("misaligned-movaps", kind(caught), Some((vector::GP, 0)));
}

/// Software interrupts, and faults while delivering them.
fn gates() {
    static HITS: AtomicU64 = AtomicU64::new(0);
    trap::on(0x91, |_| {
        HITS.fetch_add(1, Ordering::SeqCst);
    });
    // SAFETY: the handler returns.
    unsafe { asm!("int 0x91") };
    equal("software-interrupt", HITS.load(Ordering::SeqCst), 1);
    trap::remove_gate(0x92);
    raises!("gate-not-present", vector::NP, 0x92 * 8 + 2, "int 0x92");
    extern "C" fn closed() {
        // SAFETY: the gate is closed to level 3.
        let caught = unsafe { attempt!("int 0x91") };
        HITS.store(caught.map_or(0, |c| u64::from(c.vector) << 32 | c.error), Ordering::SeqCst);
    }
    user::call(closed, 0);
    equal("gate-closed-to-user", HITS.load(Ordering::SeqCst), 13 << 32 | (0x91 * 8 + 2));
    // A #GP whose gate is absent raises #NP while it is delivered: a double fault, with error code 0.
    trap::remove_gate(vector::GP);
    raises!("double-fault", vector::DF, 0, "mov rax, [{a}]", a = in(reg) NON_CANONICAL, out("rax") _);
    trap::restore_gate(vector::GP);
    trap::restore_gate(0x92);
    raises!("after-the-double-fault", vector::GP, 0, "mov rax, [{a}]", a = in(reg) NON_CANONICAL, out("rax") _);
}
