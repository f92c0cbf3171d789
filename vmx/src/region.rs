//! The memory that the processor reads and writes by itself, and the registers that are switched with a vCPU.
//!
//! Manual: Intel SDM 3C (December 2024, 325462-086), 25.11 "Software Use of the VMCS and Related Structures"; SDM 1, chapter
//! 13 "Managing State Using the XSAVE Feature Set". Key types: [`Frame`] (a typed page), [`HostCpu`] (VMX operation of one host
//! CPU), [`Switched`] (vector, debug and system-call registers), [`FrameTables`] (memory for `paging`), [`Removals`] (how a
//! vCPU learns that translations went) and [`GuestWords`] (guest memory, for the entries that PAE paging keeps in
//! registers). Neighbours: `lib` and `vmcs` own these, `instr` has the instructions.
//!
//! This file may be unsafe because it turns frames into typed memory and moves whole register files.
#![allow(unsafe_code)]

use crate::capability::{Capability, Features};
use crate::instr;
use crate::paging;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use raw_cpuid::CpuIdReaderNative;
use vcpu::memory::Gpa;
use vcpu::speculation::{IBPB, PRED_CMD, SPEC_CTRL};
use vcpu::tables::TableMemory;
use vcpu::vector_area::RESET_IMAGE;
use vcpu::{CreateError, Defences, FrameSource, Hpa, LastResident, OutOfFrames, SystemMsr, cr0, cr4};
use x86::msr::IA32_FEATURE_CONTROL;

const FRAME: usize = 4096;

/// A run of frames, given back when it goes.
struct Block {
    source: Arc<dyn FrameSource>,
    first: Hpa,
    count: usize,
}

impl Block {
    fn new(source: &Arc<dyn FrameSource>, count: usize) -> Result<Block, OutOfFrames> {
        Ok(Block { source: source.clone(), first: source.allocate(count)?, count })
    }

    fn pointer(&self) -> NonNull<u8> {
        self.source.pointer(self.first)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.source.free(self.first, self.count);
    }
}

/// What may live in a [`Frame`].
///
/// # Safety
/// Zeroes are a valid value, any other bytes that the processor writes are too; a size and an alignment of at most 4096.
pub unsafe trait FrameContent {}

/// A VMCS or VMXON region: only its first word is software's. SDM 3C 25.2 "Format of the VMCS Region".
#[repr(C)]
pub struct Region {
    /// The revision identifier of IA32_VMX_BASIC.
    pub revision: u32,
    abort: u32,
    data: [u32; FRAME / 4 - 2],
}

const _: () = assert!(size_of::<Region>() == FRAME);

/// The MSR bitmap, bit by bit as `controls::msr_bit` counts.
pub type MsrBitmap = [u8; FRAME];

// SAFETY: integers only.
unsafe impl FrameContent for Region {}
// SAFETY: bytes.
unsafe impl FrameContent for MsrBitmap {}

/// A `T` alone in its own frame, at a known physical address.
pub struct Frame<T: FrameContent> {
    content: NonNull<T>,
    block: Block,
}

// SAFETY: the frame belongs to this value alone, wherever it goes.
unsafe impl<T: FrameContent + Send> Send for Frame<T> {}
// SAFETY: a shared frame gives nothing but shared references to its content.
unsafe impl<T: FrameContent + Sync> Sync for Frame<T> {}

impl<T: FrameContent> Frame<T> {
    /// A zeroed one.
    pub fn new(source: &Arc<dyn FrameSource>) -> Result<Self, OutOfFrames> {
        let block = Block::new(source, 1)?;
        Ok(Self { content: block.pointer().cast(), block })
    }

    /// Where the processor finds it.
    #[inline]
    pub fn physical(&self) -> Hpa {
        self.block.first
    }
}

impl<T: FrameContent> Deref for Frame<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the frame is ours while `self` lives, zeroed at first and valid for T whatever was written since. Nobody
        // looks at a region while the processor has it active.
        unsafe { self.content.as_ref() }
    }
}

impl<T: FrameContent> DerefMut for Frame<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { self.content.as_mut() }
    }
}

/// VMX operation of one host CPU.
pub struct HostCpu {
    /// The VMXON region, the processor's until VMXOFF.
    _region: Frame<Region>,
    /// The base of the CPU's own TSS, which tells CPUs apart.
    tr_base: u64,
    last: LastResident,
    /// Another vCPU's coming needs a barrier.
    barrier: bool,
}

/// What the CPU that calls this can do.
///
/// # Errors
/// Guests cannot run there.
///
/// # Safety
/// Ring 0.
pub unsafe fn detect() -> Result<Capability, crate::capability::Refusal> {
    // SAFETY: `detect` reads only MSRs that exist, and the caller answers for ring 0.
    Capability::detect(&CpuIdReaderNative, |msr| unsafe { instr::rdmsr(msr) })
}

impl HostCpu {
    /// Switches VMX operation on for the CPU that calls: firmware's lock, CR0, CR4, VMXON; and what guests' vector registers
    /// need. SDM 3C 24.7 "Enabling and Entering VMX Operation".
    ///
    /// # Errors
    /// No frames; this CPU differs from the first one; or it does not enter VMX operation.
    ///
    /// # Safety
    /// Ring 0 on a CPU where nobody else uses VMX.
    pub unsafe fn enable(first: &Capability, frames: &Arc<dyn FrameSource>) -> Result<HostCpu, CreateError> {
        // SAFETY: ring 0.
        let own = unsafe { detect() }.map_err(|refusal| CreateError(refusal.to_string()))?;
        if (Capability { feature_control: first.feature_control, ..own.clone() }) != *first {
            return Err(CreateError(String::from(
                "the processors of this host differ in their virtualization features; use ones of the same kind",
            )));
        }
        if !own.feature_control.locked() {
            let open = own.feature_control.with_locked(true).with_vmx_outside_smx(true);
            // SAFETY: the MSR exists, is not locked, and takes these bits.
            unsafe { instr::wrmsr(IA32_FEATURE_CONTROL, open.into_bits()) };
        }
        // TS and EM would make vector instructions fault; a guest's registers are moved by them.
        let cr0_value = (instr::cr0() | own.cr0.ones | cr0::MP | cr0::NE) & !(cr0::EM | cr0::TS);
        let mut cr4_value = instr::cr4() | own.cr4.ones | cr4::VMXE | cr4::OSFXSR | cr4::OSXMMEXCPT;
        if own.has(Features::XSAVE) {
            cr4_value |= cr4::OSXSAVE;
        }
        if cr0_value & !own.cr0.may != 0 || cr4_value & !own.cr4.may != 0 {
            return Err(CreateError(String::from(
                "the host runs with a control-register bit that this processor does not allow in VMX operation",
            )));
        }
        let mut region = Frame::<Region>::new(frames)?;
        region.revision = own.basic.revision();
        // SAFETY: adds bits that VMX operation demands and that leave the host's paging and protection as they are.
        unsafe { instr::set_cr0(cr0_value) };
        // SAFETY: likewise; the processor has what is switched on.
        unsafe { instr::set_cr4(cr4_value) };
        // SAFETY: CR4.VMXE is set, the lock allows it, and the region is this CPU's alone from here on.
        let entered = unsafe { instr::vmxon(region.physical()) };
        entered.map_err(|_| {
            let number = own.basic.revision();
            CreateError(format!(
                "this processor does not enter VMX operation (VMXON failed, revision {number:#x}); is another hypervisor active?"
            ))
        })?;
        // Whatever ran before may have left translations. Both kinds exist if the instructions do.
        let _ = instr::invept(crate::capability::Invalidation::All as u64, 0);
        if own.has(Features::VPID) {
            let _ = instr::invvpid(crate::capability::Invalidation::All as u64, 0);
        }
        let speculation = own.speculation;
        if speculation.host_spec_ctrl != 0 {
            // SAFETY: the register exists, and has the bits, where the host wants some.
            unsafe { instr::wrmsr(SPEC_CTRL, speculation.host_spec_ctrl) };
        }
        Ok(HostCpu {
            _region: region,
            tr_base: crate::vmcs::tr_base(),
            last: LastResident::new(),
            barrier: speculation.defences.contains(Defences::PREDICTOR_BARRIER),
        })
    }

    /// Whether this is the CPU whose TSS is at `tr_base`.
    pub fn is_at(&self, tr_base: u64) -> bool {
        self.tr_base == tr_base
    }

    /// Notes that the vCPU of this identity comes, and drops the branch predictions that another one has left.
    ///
    /// # Safety
    /// On this CPU, in ring 0.
    pub unsafe fn receive(&self, identity: u64) {
        if self.last.changes_to(identity) && self.barrier {
            // SAFETY: the register exists where `barrier` is set; forgetting predictions harms nobody.
            unsafe { instr::wrmsr(PRED_CMD, IBPB) };
        }
    }
}

/// The registers that stay in the processor while a vCPU is resident: vector registers with XCR0, CR2, DR0 to DR3, DR6, the
/// system-call MSRs, TSC_AUX and SPEC_CTRL. The host uses none of them between an exit and the next entry; what it needs of
/// SPEC_CTRL is added to the guest's.
pub struct Switched {
    area: Block,
    /// With XSAVE: all bits of XCR0 that the processor has.
    xcr0_all: Option<u64>,
    has_tsc_aux: bool,
    /// With SPEC_CTRL for guests: what the host needs of it.
    host_spec_ctrl: Option<u64>,
    /// The guest writes SPEC_CTRL without an exit.
    passes_spec_ctrl: bool,
    /// The guest's XCR0, resident or not.
    xcr0: u64,
    /// The rest is valid while not resident.
    cr2: u64,
    breakpoints: [u64; 4],
    dr6: u64,
    msrs: [u64; LIVE_MSRS.len()],
    /// Valid always where the processor has no TSC_AUX.
    tsc_aux: u64,
    /// Valid always where guests' writes exit.
    spec_ctrl: u64,
    resident: bool,
}

/// MSRs that hold the guest's values while it is resident.
const LIVE_MSRS: [SystemMsr; 5] =
    [SystemMsr::Star, SystemMsr::Lstar, SystemMsr::Cstar, SystemMsr::Sfmask, SystemMsr::KernelGsBase];

/// XCR0.AVX, with SSE.
const XCR0_AVX: u64 = 1 << 2 | 1 << 1;
/// DR6 after reset.
const DR6_RESET: u64 = 0xffff_0ff0;

// SAFETY: the frames belong to this value alone, wherever it goes.
unsafe impl Send for Switched {}

impl Switched {
    /// All registers as after reset.
    pub fn new(source: &Arc<dyn FrameSource>, capability: &Capability) -> Result<Switched, OutOfFrames> {
        let area = Block::new(source, (capability.vector.bytes as usize).div_ceil(FRAME))?;
        let image = NonNull::from(&RESET_IMAGE).cast();
        // SAFETY: the block is at least one frame, zeroed, ours, and longer than the image.
        unsafe { area.pointer().copy_from_nonoverlapping(image, RESET_IMAGE.len()) };
        Ok(Switched {
            area,
            xcr0_all: capability.has(Features::XSAVE).then_some(capability.vector.xcr0),
            has_tsc_aux: capability.has(Features::RDTSCP),
            host_spec_ctrl: (capability.speculation.guest.spec_ctrl != 0)
                .then_some(capability.speculation.host_spec_ctrl),
            passes_spec_ctrl: capability.speculation.passes_spec_ctrl(),
            xcr0: 1,
            cr2: 0,
            breakpoints: [0; 4],
            dr6: DR6_RESET,
            msrs: [0; LIVE_MSRS.len()],
            tsc_aux: 0,
            spec_ctrl: 0,
            resident: false,
        })
    }

    /// Puts the guest's registers into the processor.
    ///
    /// # Safety
    /// Ring 0 on a CPU that [`HostCpu::enable`] prepared, where no other vCPU is resident. The host keeps nothing in these
    /// registers and DR7 enables nothing.
    pub unsafe fn load(&mut self) {
        assert!(!self.resident, "a vCPU is loaded once");
        let area = self.area.pointer();
        match self.xcr0_all {
            Some(all) => {
                // SAFETY: CR4.OSXSAVE is set by `enable`, and the processor has these bits.
                unsafe { instr::set_xcr0(all) };
                // SAFETY: the area is ours, large enough for `all`, and was written by XSAVE or `new`.
                unsafe { instr::xrstor(area, all) };
                if self.xcr0 != all {
                    // SAFETY: the machine has checked the guest's value.
                    unsafe { instr::set_xcr0(self.xcr0) };
                }
            }
            // SAFETY: the area is ours and was written by FXSAVE or `new`.
            None => unsafe { instr::fxrstor(area, 0) },
        }
        // SAFETY: by the caller's promise about the host's use of CR2, that is none.
        unsafe { instr::set_cr2(self.cr2) };
        self.write_debug_registers();
        for (number, msr) in LIVE_MSRS.iter().enumerate() {
            // SAFETY: these MSRs exist with long mode; the values were the guest's, which took them.
            unsafe { instr::wrmsr(msr.number(), self.msrs[number]) };
        }
        if self.has_tsc_aux {
            // SAFETY: the MSR exists; bits 63:32 are never set in `tsc_aux`.
            unsafe { instr::wrmsr(SystemMsr::TscAux.number(), self.tsc_aux) };
        }
        self.write_spec_ctrl(self.spec_ctrl);
        self.resident = true;
    }

    /// Takes the guest's registers out of the processor.
    ///
    /// # Safety
    /// On the CPU where [`Switched::load`] was called.
    pub unsafe fn unload(&mut self) {
        assert!(self.resident, "a vCPU is unloaded where it was loaded");
        let area = self.area.pointer();
        match self.xcr0_all {
            Some(all) => {
                if self.xcr0 != all {
                    // SAFETY: as in `load`. Without it, state that the guest has switched off for now would be lost.
                    unsafe { instr::set_xcr0(all) };
                }
                // SAFETY: the area is ours and large enough for `all`.
                unsafe { instr::xsave(area, all) };
            }
            // SAFETY: the area is ours and large enough.
            None => unsafe { instr::fxsave(area, 0) },
        }
        self.cr2 = self.cr2();
        self.breakpoints = self.breakpoints();
        self.dr6 = self.dr6();
        for (number, msr) in LIVE_MSRS.iter().enumerate() {
            self.msrs[number] = self.live_msr(number, *msr);
        }
        self.tsc_aux = self.tsc_aux();
        self.spec_ctrl = self.spec_ctrl();
        self.write_spec_ctrl(0);
        self.resident = false;
    }

    fn write_debug_registers(&self) {
        let [dr0, dr1, dr2, dr3] = self.breakpoints;
        // SAFETY: DR7 enables nothing while the host runs: an exit sets it to 400h.
        unsafe { instr::set_dr0(dr0) };
        // SAFETY: as above.
        unsafe { instr::set_dr1(dr1) };
        // SAFETY: as above.
        unsafe { instr::set_dr2(dr2) };
        // SAFETY: as above.
        unsafe { instr::set_dr3(dr3) };
        // SAFETY: only the low 32 bits are ever set in `dr6`.
        unsafe { instr::set_dr6(self.dr6) };
    }

    /// The guest's XCR0.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Writes the guest's XCR0, which the machine has checked.
    pub fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
        if self.resident && self.xcr0_all.is_some() {
            // SAFETY: resident means ring 0 on a prepared CPU; the machine has checked the value against the processor.
            unsafe { instr::set_xcr0(value) };
        }
    }

    /// CR2.
    pub fn cr2(&self) -> u64 {
        if self.resident { instr::cr2() } else { self.cr2 }
    }

    /// Writes CR2.
    pub fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
        if self.resident {
            // SAFETY: resident means that CR2 is the guest's.
            unsafe { instr::set_cr2(value) };
        }
    }

    /// DR0 to DR3.
    pub fn breakpoints(&self) -> [u64; 4] {
        if self.resident { [instr::dr0(), instr::dr1(), instr::dr2(), instr::dr3()] } else { self.breakpoints }
    }

    /// DR6.
    pub fn dr6(&self) -> u64 {
        if self.resident { instr::dr6() } else { self.dr6 }
    }

    /// Writes DR0 to DR3 and DR6.
    pub fn set_debug(&mut self, breakpoints: [u64; 4], dr6: u64) {
        self.breakpoints = breakpoints;
        self.dr6 = dr6 & 0xffff_ffff;
        if self.resident {
            self.write_debug_registers();
        }
    }

    /// The value of one of the MSRs that live here; `None` for the others, which the VMCS has.
    pub fn msr(&self, msr: SystemMsr) -> Option<u64> {
        if msr == SystemMsr::TscAux {
            return Some(self.tsc_aux());
        }
        if msr == SystemMsr::SpecCtrl {
            return Some(self.spec_ctrl());
        }
        let number = LIVE_MSRS.iter().position(|live| *live == msr)?;
        Some(self.live_msr(number, msr))
    }

    /// Writes one of the MSRs that live here; false for the others.
    pub fn set_msr(&mut self, msr: SystemMsr, value: u64) -> bool {
        if msr == SystemMsr::TscAux {
            self.tsc_aux = value & 0xffff_ffff;
            if self.resident && self.has_tsc_aux {
                // SAFETY: resident means ring 0; the MSR exists and takes any 32 bits.
                unsafe { instr::wrmsr(msr.number(), self.tsc_aux) };
            }
            return true;
        }
        if msr == SystemMsr::SpecCtrl {
            self.spec_ctrl = value;
            if self.resident {
                self.write_spec_ctrl(value);
            }
            return true;
        }
        let Some(number) = LIVE_MSRS.iter().position(|live| *live == msr) else { return false };
        self.msrs[number] = value;
        if self.resident {
            // SAFETY: resident means ring 0; the machine has checked the value.
            unsafe { instr::wrmsr(msr.number(), value) };
        }
        true
    }

    fn live_msr(&self, number: usize, msr: SystemMsr) -> u64 {
        if self.resident {
            // SAFETY: resident means ring 0; these MSRs exist with long mode.
            unsafe { instr::rdmsr(msr.number()) }
        } else {
            self.msrs[number]
        }
    }

    fn tsc_aux(&self) -> u64 {
        if self.resident && self.has_tsc_aux {
            // SAFETY: resident means ring 0; the MSR exists.
            unsafe { instr::rdmsr(SystemMsr::TscAux.number()) }
        } else {
            self.tsc_aux
        }
    }

    /// SPEC_CTRL as the guest sees it.
    fn spec_ctrl(&self) -> u64 {
        if self.resident && self.passes_spec_ctrl {
            // SAFETY: resident means ring 0; the MSR exists. Where it passes, the host has none of its bits.
            unsafe { instr::rdmsr(SPEC_CTRL) }
        } else {
            self.spec_ctrl
        }
    }

    /// Writes the guest's `value` with what the host needs.
    fn write_spec_ctrl(&self, value: u64) {
        if let Some(host) = self.host_spec_ctrl {
            // SAFETY: called in ring 0; the MSR exists, and the host bears any value with its own bits.
            unsafe { instr::wrmsr(SPEC_CTRL, value | host) };
        }
    }

    /// A YMM register; the upper half is zero while the guest has AVX off.
    pub fn vector(&self, number: u8) -> [u8; 32] {
        assert!(self.resident, "vector registers are in the processor while their vCPU is resident");
        if self.has_avx() {
            // SAFETY: XCR0, which is the guest's, has AVX.
            return unsafe { instr::ymm(number) };
        }
        let mut value = [0; 32];
        value[..16].copy_from_slice(&instr::xmm(number));
        value
    }

    /// Writes a YMM register: the low half, and the upper one if `bytes` is more than 16 and the guest has AVX on.
    pub fn set_vector(&mut self, number: u8, value: [u8; 32], bytes: u8) {
        assert!(self.resident, "vector registers are in the processor while their vCPU is resident");
        if bytes > 16 && self.has_avx() {
            // SAFETY: XCR0, which is the guest's, has AVX; the register is the guest's.
            unsafe { instr::set_ymm(number, value) };
        } else {
            let mut low = [0; 16];
            low.copy_from_slice(&value[..16]);
            instr::set_xmm(number, low);
        }
    }

    fn has_avx(&self) -> bool {
        self.xcr0_all.is_some() && self.xcr0 & XCR0_AVX == XCR0_AVX
    }
}

/// Frames as extended page tables. Behind the root lie two frames more: one whose first word counts removals, and one that
/// stands for the local APIC's registers where the processor virtualizes accesses to them.
pub struct FrameTables {
    source: Arc<dyn FrameSource>,
    root: Hpa,
}

/// Frames of the root: the table, the counter's, the APIC-access page.
const ROOT_FRAMES: usize = 3;

/// The APIC-access page that belongs to a root. Its address counts, never its content.
pub const fn apic_access_page(root: Hpa) -> Hpa {
    Hpa(root.0 + 2 * FRAME as u64)
}

fn word(source: &Arc<dyn FrameSource>, table: Hpa, index: usize) -> NonNull<AtomicU64> {
    assert!(index < FRAME / 8, "a table has 512 entries");
    let entry = source.pointer(table).cast::<AtomicU64>();
    // SAFETY: a frame has 512 words, and the index was checked.
    unsafe { entry.add(index) }
}

impl FrameTables {
    /// With a root allocated; the memory, and the root's address.
    pub fn new(source: &Arc<dyn FrameSource>) -> Result<(FrameTables, Hpa), OutOfFrames> {
        let root = source.allocate(ROOT_FRAMES)?;
        Ok((FrameTables { source: source.clone(), root }, root))
    }

    fn entry(&self, table: Hpa, index: usize) -> &AtomicU64 {
        // SAFETY: the word is inside a frame that is ours while `self` lives; the processor changes it atomically.
        unsafe { word(&self.source, table, index).as_ref() }
    }
}

impl TableMemory for FrameTables {
    fn allocate(&self) -> Result<Hpa, OutOfFrames> {
        self.source.allocate(1)
    }

    fn free(&self, table: Hpa) {
        self.source.free(table, if table == self.root { ROOT_FRAMES } else { 1 });
    }

    fn read(&self, table: Hpa, index: usize) -> u64 {
        self.entry(table, index).load(Ordering::Relaxed)
    }

    fn write(&self, table: Hpa, index: usize, entry: u64) {
        self.entry(table, index).store(entry, Ordering::Release);
    }

    fn translations_removed(&self) {
        self.entry(Hpa(self.root.0 + FRAME as u64), 0).fetch_add(1, Ordering::SeqCst);
    }
}

/// A vCPU's view of its virtual machine's counter of removals.
pub struct Removals {
    count: NonNull<AtomicU64>,
}

// SAFETY: it points to an atomic in a frame, which any CPU may read.
unsafe impl Send for Removals {}

impl Removals {
    /// The counter behind `root`.
    ///
    /// # Safety
    /// `root` came from [`FrameTables::new`] over `source`, and its tables are freed only after the last use of this.
    pub unsafe fn of(root: Hpa, source: &Arc<dyn FrameSource>) -> Removals {
        Removals { count: word(source, Hpa(root.0 + FRAME as u64), 0) }
    }

    /// How often translations were removed.
    #[inline]
    pub fn count(&self) -> u64 {
        // SAFETY: by the promise of `of` the frame is still there.
        unsafe { self.count.as_ref() }.load(Ordering::Acquire)
    }
}

/// The guest's memory as its extended page tables map it, word by word.
pub struct GuestWords {
    source: Arc<dyn FrameSource>,
    pointer: u64,
}

impl GuestWords {
    /// Behind this EPT pointer.
    ///
    /// # Safety
    /// `pointer` is that of tables over `source` which are freed only after the last use of this, and what they map lies
    /// where [`FrameSource::pointer`] reaches it.
    pub unsafe fn of(pointer: u64, source: &Arc<dyn FrameSource>) -> GuestWords {
        GuestWords { source: source.clone(), pointer }
    }

    /// The aligned word at `gpa`, in one piece; `None` where nothing readable is mapped.
    pub fn load(&self, gpa: Gpa) -> Option<u64> {
        let read = |table: Hpa, index: usize| {
            // SAFETY: `walk` asks for tables that the root leads to; they are there by the promise of `of`.
            unsafe { word(&self.source, table, index).as_ref() }.load(Ordering::Acquire)
        };
        let at = paging::walk(self.pointer, gpa, read)?;
        let frame = Hpa(at.0 & !(FRAME as u64 - 1));
        let index = (at.0 as usize & (FRAME - 1)) / 8;
        // SAFETY: the frame is mapped for the guest and reachable by the promise of `of`; the guest changes it meanwhile,
        // as an atomic may be changed.
        Some(unsafe { word(&self.source, frame, index).as_ref() }.load(Ordering::Acquire))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::capability::tests::HASWELL;
    use crate::paging::extended_tables;
    use alloc::boxed::Box;
    use core::sync::atomic::AtomicUsize;
    use vcpu::{MemoryType, Permissions, SecondLevel};

    #[repr(C, align(4096))]
    struct Page([u8; FRAME]);

    /// Frames from the heap of the test, never reused; counts what is out.
    #[derive(Default)]
    pub(crate) struct HeapFrames {
        pub(crate) out: AtomicUsize,
    }

    impl FrameSource for HeapFrames {
        fn allocate(&self, count: usize) -> Result<Hpa, OutOfFrames> {
            self.out.fetch_add(count, Ordering::SeqCst);
            let pages: Box<[Page]> = (0..count).map(|_| Page([0; FRAME])).collect();
            Ok(Hpa(Box::leak(pages).as_mut_ptr().expose_provenance() as u64))
        }
        fn free(&self, first: Hpa, count: usize) {
            assert_eq!(first.0 % FRAME as u64, 0);
            self.out.fetch_sub(count, Ordering::SeqCst);
        }
        fn pointer(&self, frame: Hpa) -> NonNull<u8> {
            NonNull::new(core::ptr::with_exposed_provenance_mut(frame.0 as usize)).unwrap()
        }
        fn physical(&self, data: NonNull<u8>) -> Hpa {
            Hpa(data.as_ptr().expose_provenance() as u64)
        }
    }

    fn wide() -> Capability {
        Capability { physical_bits: 52, ..HASWELL.capability().unwrap() }
    }

    #[test]
    fn frames_go_back_when_their_owner_goes() {
        let heap = Arc::new(HeapFrames::default());
        let source: Arc<dyn FrameSource> = heap.clone();
        let mut bitmap = Frame::<MsrBitmap>::new(&source).unwrap();
        bitmap.fill(0xff);
        assert_eq!(bitmap.as_ptr().addr() as u64, bitmap.physical().0);
        let switched = Switched::new(&source, &wide()).unwrap();
        assert_eq!(heap.out.load(Ordering::SeqCst), 2);
        drop((bitmap, switched));
        assert_eq!(heap.out.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn the_vector_area_starts_with_the_values_of_reset() {
        let source: Arc<dyn FrameSource> = Arc::new(HeapFrames::default());
        let switched = Switched::new(&source, &wide()).unwrap();
        // SAFETY: the area is one frame at least.
        let bytes = unsafe { switched.area.pointer().cast::<[u8; 576]>().as_ref() };
        assert_eq!(bytes[..2], [0x7f, 0x03]);
        assert_eq!(bytes[24..28], [0x80, 0x1f, 0, 0]);
        assert!(bytes[512..].iter().all(|&byte| byte == 0), "an empty header: XRSTOR initialises");
    }

    #[test]
    fn registers_of_a_vcpu_that_is_not_resident_are_kept() {
        let source: Arc<dyn FrameSource> = Arc::new(HeapFrames::default());
        let mut switched = Switched::new(&source, &wide()).unwrap();
        for (number, msr) in SystemMsr::ALL.into_iter().enumerate() {
            let here = switched.set_msr(msr, number as u64 + 1);
            assert_eq!(switched.msr(msr), here.then_some(number as u64 + 1), "{msr:?}");
        }
        assert_eq!(switched.msr(SystemMsr::Pat), None, "the VMCS has it");
        assert_eq!(switched.dr6(), 0xffff_0ff0);
        switched.set_debug([1, 2, 3, 4], 5);
        switched.set_cr2(6);
        assert_eq!((switched.breakpoints(), switched.dr6(), switched.cr2()), ([1, 2, 3, 4], 5, 6));
    }

    #[test]
    fn a_vcpu_learns_of_removed_translations() {
        let heap = Arc::new(HeapFrames::default());
        let source: Arc<dyn FrameSource> = heap.clone();
        let (memory, root) = FrameTables::new(&source).unwrap();
        let mut ept = extended_tables(memory, root, &wide());
        // SAFETY: the tables live to the end of the test.
        let removals = unsafe { Removals::of(root, &source) };
        ept.map(Gpa(0), Hpa(0), 0x20_0000, Permissions::all(), MemoryType::WriteBack).unwrap();
        assert_eq!(removals.count(), 0);
        ept.unmap(Gpa(0x1000), 0x1000).unwrap();
        assert_eq!(removals.count(), 1);
        assert_eq!(ept.translate(Gpa(0x2000)), Some((Hpa(0x2000), Permissions::all())));
        ept.free();
        assert_eq!(heap.out.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn guest_words_are_read_through_the_tables() {
        let source: Arc<dyn FrameSource> = Arc::new(HeapFrames::default());
        let (memory, root) = FrameTables::new(&source).unwrap();
        let mut ept = extended_tables(memory, root, &wide());
        let ram = source.allocate(1).unwrap();
        // SAFETY: the frame was just allocated.
        unsafe { word(&source, ram, 4).as_ref() }.store(0x1234, Ordering::Relaxed);
        ept.map(Gpa(0x7000), ram, 0x1000, Permissions::all(), MemoryType::WriteBack).unwrap();
        // SAFETY: the tables and the frame live to the end of the test.
        let words = unsafe { GuestWords::of(ept.root(), &source) };
        assert_eq!(words.load(Gpa(0x7020)), Some(0x1234));
        assert_eq!(words.load(Gpa(0x8020)), None);
        assert_eq!(words.load(Gpa(u64::MAX - 7)), None);
    }
}
