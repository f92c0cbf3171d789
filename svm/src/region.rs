//! The memory that the processor reads and writes by itself, and the registers that are switched with a vCPU.
//!
//! Manual: AMD APM volume 2 (24593, revision 3.42), 15.4 "Enabling SVM", 15.30.4 "VM_HSAVE_PA MSR (C001_0117h)", 11.5.1
//! "Saving Media and x87 Execution Unit State". Key types: [`Frame`] (a typed page run), [`HostCpu`] (what one host CPU needs
//! to run guests), [`Switched`] (vector, debug and TSC_AUX registers), [`FrameTables`] (memory for `paging`) and
//! [`Removals`] (how a vCPU learns that translations went). Neighbours: `lib` owns these, `instr` has the instructions.
//!
//! This file may be unsafe because it turns frames into typed memory and moves whole register files.
#![allow(unsafe_code)]

use crate::asid::AsidPool;
use crate::capability::{Capability, Features};
use crate::controls::{IO_MAP_BYTES, MSR_MAP_BYTES};
use crate::instr;
use crate::vmcb::Vmcb;
use alloc::string::String;
use alloc::sync::Arc;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;
use vcpu::speculation::{IBPB, PRED_CMD, SPEC_CTRL};
use vcpu::tables::TableMemory;
use vcpu::vector_area::RESET_IMAGE;
use vcpu::{CreateError, Defences, FrameSource, Hpa, LastResident, OutOfFrames, cr0, cr4, efer};

const FRAME: usize = 4096;

const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;
const EFER: u32 = 0xc000_0080;
const TSC_AUX: u32 = 0xc000_0103;
/// VM_CR.SVMDIS.
const SVMDIS: u64 = 1 << 4;

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
/// Zeroes are a valid value, any other bytes that the processor writes are too, and the alignment is at most 4096.
pub unsafe trait FrameContent {}

// SAFETY: integers and bitfields over integers only; aligned to 4096.
unsafe impl FrameContent for Vmcb {}
// SAFETY: bytes.
unsafe impl FrameContent for [u8; MSR_MAP_BYTES] {}
// SAFETY: bytes.
unsafe impl FrameContent for [u8; IO_MAP_BYTES] {}

/// A `T` alone in its own frames, at a known physical address.
pub struct Frame<T: FrameContent> {
    content: NonNull<T>,
    block: Block,
}

// SAFETY: the frames belong to this value alone, wherever it goes.
unsafe impl<T: FrameContent + Send> Send for Frame<T> {}

impl<T: FrameContent> Frame<T> {
    /// A zeroed one.
    pub fn new(source: &Arc<dyn FrameSource>) -> Result<Self, OutOfFrames> {
        let block = Block::new(source, size_of::<T>().div_ceil(FRAME))?;
        Ok(Self { content: block.pointer().cast(), block })
    }

    /// Where the processor finds it.
    #[inline]
    pub fn physical(&self) -> Hpa {
        self.block.first
    }

    /// Where the host finds it.
    #[inline]
    pub fn pointer(&mut self) -> *mut T {
        self.content.as_ptr()
    }
}

impl<T: FrameContent> Deref for Frame<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the frames are ours while `self` lives, zeroed at first and valid for T whatever was written since. The
        // processor writes only inside `entry::enter`, which has `self` mutably.
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

/// What one host CPU needs to run guests.
pub struct HostCpu {
    /// Where VMRUN saves the host; it also tells CPUs apart.
    save_area: Block,
    /// Where VMSAVE puts the host's FS, GS, TR, LDTR and system-call MSRs.
    host: Block,
    /// ASIDs of this CPU.
    pub asids: Mutex<AsidPool>,
    last: LastResident,
    /// Another vCPU's coming needs a barrier.
    barrier: bool,
}

impl HostCpu {
    /// Switches SVM on for the CPU that calls.
    ///
    /// # Errors
    /// No frames, or the CPU does not take it.
    ///
    /// # Safety
    /// Ring 0 on a CPU that `capability` describes, where nobody else uses SVM.
    pub unsafe fn enable(capability: &Capability, frames: &Arc<dyn FrameSource>) -> Result<HostCpu, CreateError> {
        // SAFETY: ring 0.
        let cr4_value = unsafe { instr::read_cr4() };
        if cr4_value & cr4::LA57 != 0 {
            return Err(CreateError(String::from(
                "the host runs with five-level paging, which nested paging would inherit; switch it off in the boot loader",
            )));
        }
        if capability.clear_svmdis {
            // SAFETY: SVM exists, so VM_CR does.
            let vm_cr = unsafe { instr::rdmsr(VM_CR) };
            // SAFETY: SVMDIS is not locked.
            unsafe { instr::wrmsr(VM_CR, vm_cr & !SVMDIS) };
        }
        let save_area = Block::new(frames, 1)?;
        let host = Block::new(frames, 1)?;
        let defences = capability.speculation.defences;
        let automatic = if defences.contains(Defences::AUTOMATIC_IBRS) { efer::AIBRSE } else { 0 };
        // SAFETY: EFER exists in long mode.
        let before = unsafe { instr::rdmsr(EFER) };
        // SAFETY: SVM is there and not disabled; NX is in every processor with SVM.
        unsafe { instr::wrmsr(EFER, before | efer::SVME | efer::NXE | automatic) };
        // SAFETY: as above.
        if unsafe { instr::rdmsr(EFER) } & efer::SVME == 0 {
            return Err(CreateError(String::from(
                "this CPU does not let AMD-V (SVM) be switched on; enable \"SVM mode\" in the firmware set-up",
            )));
        }
        // SAFETY: SVM exists, and the frame is ours.
        unsafe { instr::wrmsr(VM_HSAVE_PA, save_area.first.0) };
        // SAFETY: ring 0.
        let cr0_value = unsafe { instr::read_cr0() };
        // SAFETY: only makes vector instructions work, which `Switched` needs.
        unsafe { instr::write_cr0(cr0_value & !(cr0::EM | cr0::TS) | cr0::MP) };
        let mut wanted = cr4_value | cr4::OSFXSR | cr4::OSXMMEXCPT;
        if capability.has(Features::XSAVE) {
            wanted |= cr4::OSXSAVE;
        }
        // SAFETY: likewise, and the processor has what is switched on.
        unsafe { instr::write_cr4(wanted) };
        Ok(HostCpu {
            save_area,
            host,
            asids: Mutex::new(AsidPool::new(capability.asids)),
            last: LastResident::new(),
            barrier: defences.contains(Defences::PREDICTOR_BARRIER),
        })
    }

    /// Whether the caller runs on this CPU.
    ///
    /// # Safety
    /// Ring 0 on a CPU with SVM.
    pub unsafe fn is_current(&self) -> bool {
        // SAFETY: by the caller's promise the MSR exists.
        unsafe { instr::rdmsr(VM_HSAVE_PA) == self.save_area.first.0 }
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

    /// Remembers the host's FS, GS, TR, LDTR and system-call MSRs for the way back from guests.
    ///
    /// # Safety
    /// On this CPU, enabled.
    pub unsafe fn save_host(&self) {
        // SAFETY: the frame is ours, and SVM is on.
        unsafe { instr::vmsave(self.host.first) };
    }

    /// The page that [`HostCpu::save_host`] wrote.
    #[inline]
    pub fn host_physical(&self) -> u64 {
        self.host.first.0
    }
}

/// The registers that stay in the processor while a vCPU is resident: vector registers with XCR0, DR0 to DR3, TSC_AUX, and
/// SPEC_CTRL where guests have it and the VMCB does not hold it. The host uses none of them.
pub struct Switched {
    area: Block,
    /// With XSAVE: all bits of XCR0 that the processor has.
    xcr0_all: Option<u64>,
    has_tsc_aux: bool,
    has_spec_ctrl: bool,
    /// The guest's XCR0, resident or not.
    xcr0: u64,
    /// Valid while not resident.
    breakpoints: [u64; 4],
    /// Valid while not resident, and always where the processor has no TSC_AUX.
    tsc_aux: u64,
    /// Likewise for SPEC_CTRL.
    spec_ctrl: u64,
    resident: bool,
}

/// XCR0.AVX.
const XCR0_AVX: u64 = 1 << 2;

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
            has_spec_ctrl: capability.speculation.guest.spec_ctrl != 0
                && !capability.has(Features::SPEC_CTRL_VIRTUALIZATION),
            xcr0: 1,
            breakpoints: [0; 4],
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
        let area = self.area.pointer().as_ptr();
        match self.xcr0_all {
            Some(all) => {
                // SAFETY: CR4.OSXSAVE is set by `enable`, and the processor has these bits.
                unsafe { instr::xsetbv(all) };
                // SAFETY: the area is ours, large enough for `all`, and was written by XSAVE or `new`.
                unsafe { instr::xrstor(area) };
                if self.xcr0 != all {
                    // SAFETY: the machine has checked the guest's value.
                    unsafe { instr::xsetbv(self.xcr0) };
                }
            }
            // SAFETY: the area is ours and was written by FXSAVE or `new`.
            None => unsafe { instr::fxrstor(area) },
        }
        // SAFETY: by the caller's promise about DR7.
        unsafe { instr::write_breakpoints(self.breakpoints) };
        if self.has_tsc_aux {
            // SAFETY: the MSR exists; bits 63:32 are never set in `tsc_aux`.
            unsafe { instr::wrmsr(TSC_AUX, self.tsc_aux) };
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
        let area = self.area.pointer().as_ptr();
        match self.xcr0_all {
            Some(all) => {
                if self.xcr0 != all {
                    // SAFETY: as in `load`. Without it, state that the guest has switched off for now would be lost.
                    unsafe { instr::xsetbv(all) };
                }
                // SAFETY: the area is ours and large enough for `all`.
                unsafe { instr::xsave(area) };
            }
            // SAFETY: the area is ours and large enough.
            None => unsafe { instr::fxsave(area) },
        }
        // SAFETY: ring 0; DR7.GD is clear, for #VMEXIT clears DR7.
        self.breakpoints = unsafe { instr::read_breakpoints() };
        self.tsc_aux = self.tsc_aux();
        self.spec_ctrl = self.spec_ctrl();
        self.write_spec_ctrl(0);
        self.resident = false;
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
            unsafe { instr::xsetbv(value) };
        }
    }

    /// DR0 to DR3.
    pub fn breakpoints(&self) -> [u64; 4] {
        if self.resident {
            // SAFETY: resident means ring 0; #VMEXIT has cleared DR7.
            unsafe { instr::read_breakpoints() }
        } else {
            self.breakpoints
        }
    }

    /// Writes DR0 to DR3.
    pub fn set_breakpoints(&mut self, values: [u64; 4]) {
        self.breakpoints = values;
        if self.resident {
            // SAFETY: resident means ring 0; #VMEXIT has cleared DR7.
            unsafe { instr::write_breakpoints(values) };
        }
    }

    /// TSC_AUX.
    pub fn tsc_aux(&self) -> u64 {
        if self.resident && self.has_tsc_aux {
            // SAFETY: resident means ring 0; the MSR exists.
            unsafe { instr::rdmsr(TSC_AUX) }
        } else {
            self.tsc_aux
        }
    }

    /// Writes TSC_AUX, whose upper half does not exist.
    pub fn set_tsc_aux(&mut self, value: u64) {
        self.tsc_aux = value & 0xffff_ffff;
        if self.resident && self.has_tsc_aux {
            // SAFETY: resident means ring 0; the MSR exists and takes any 32 bits.
            unsafe { instr::wrmsr(TSC_AUX, self.tsc_aux) };
        }
    }

    /// The guest's SPEC_CTRL, where the VMCB does not hold it.
    pub fn spec_ctrl(&self) -> u64 {
        if self.resident && self.has_spec_ctrl {
            // SAFETY: resident means ring 0; the MSR exists.
            unsafe { instr::rdmsr(SPEC_CTRL) }
        } else {
            self.spec_ctrl
        }
    }

    /// Writes it; the machine has checked the value.
    pub fn set_spec_ctrl(&mut self, value: u64) {
        self.spec_ctrl = value;
        if self.resident {
            self.write_spec_ctrl(value);
        }
    }

    fn write_spec_ctrl(&self, value: u64) {
        if self.has_spec_ctrl {
            // SAFETY: called in ring 0; the MSR exists, and the host bears any value of it.
            unsafe { instr::wrmsr(SPEC_CTRL, value) };
        }
    }

    /// A YMM register; the upper half is zero while the guest has AVX off.
    pub fn vector(&self, number: u8) -> [u8; 32] {
        assert!(self.resident, "vector registers are in the processor while their vCPU is resident");
        let mut value = [0; 32];
        let (low, high) = value.split_at_mut(16);
        // SAFETY: `enable` made SSE instructions work.
        low.copy_from_slice(&unsafe { instr::read_xmm(number) });
        if self.has_avx() {
            // SAFETY: XCR0, which is the guest's, has AVX.
            high.copy_from_slice(&unsafe { instr::read_ymm_high(number) });
        }
        value
    }

    /// Writes a YMM register: the low half, and the upper one if `bytes` is more than 16 and the guest has AVX on.
    pub fn set_vector(&mut self, number: u8, value: [u8; 32], bytes: u8) {
        assert!(self.resident, "vector registers are in the processor while their vCPU is resident");
        let (mut low, mut high) = ([0; 16], [0; 16]);
        low.copy_from_slice(&value[..16]);
        high.copy_from_slice(&value[16..]);
        // SAFETY: `enable` made SSE instructions work; the register is the guest's.
        unsafe { instr::write_xmm(number, low) };
        if bytes > 16 && self.has_avx() {
            // SAFETY: XCR0, which is the guest's, has AVX; the register is the guest's.
            unsafe { instr::write_ymm_high(number, high) };
        }
    }

    fn has_avx(&self) -> bool {
        self.xcr0_all.is_some() && self.xcr0 & XCR0_AVX != 0
    }
}

/// Frames as nested page tables. The root has a second frame behind it, whose first word counts removals.
pub struct FrameTables {
    source: Arc<dyn FrameSource>,
    root: Hpa,
}

/// Frames of the root: the table, and the counter's.
const ROOT_FRAMES: usize = 2;

impl FrameTables {
    /// With a root allocated; the memory, and the root's address.
    pub fn new(source: &Arc<dyn FrameSource>) -> Result<(FrameTables, Hpa), OutOfFrames> {
        let root = source.allocate(ROOT_FRAMES)?;
        Ok((FrameTables { source: source.clone(), root }, root))
    }

    fn entry(&self, table: Hpa, index: usize) -> &AtomicU64 {
        assert!(index < FRAME / 8, "a table has 512 entries");
        let entry = self.source.pointer(table).cast::<AtomicU64>();
        // SAFETY: `table` is an allocated frame of 512 words, and the index was checked.
        let entry = unsafe { entry.add(index) };
        // SAFETY: the word is inside a frame that is ours while `self` lives; the processor changes it atomically.
        unsafe { entry.as_ref() }
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
        Removals { count: source.pointer(Hpa(root.0 + FRAME as u64)).cast() }
    }

    /// How often translations were removed.
    #[inline]
    pub fn count(&self) -> u64 {
        // SAFETY: by the promise of `of` the frame is still there.
        unsafe { self.count.as_ref() }.load(Ordering::Acquire)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::capability::tests::qemu;
    use crate::paging::nested_tables;
    use alloc::boxed::Box;
    use core::sync::atomic::AtomicUsize;
    use memory::Gpa;
    use vcpu::memory;
    use vcpu::{MemoryType, Permissions, SecondLevel};

    /// A host CPU that nobody has enabled, for what needs only its ASIDs.
    pub(crate) fn host_cpu(source: &Arc<dyn FrameSource>, asids: u32) -> HostCpu {
        HostCpu {
            save_area: Block::new(source, 1).unwrap(),
            host: Block::new(source, 1).unwrap(),
            asids: Mutex::new(AsidPool::new(asids)),
            last: LastResident::new(),
            barrier: false,
        }
    }

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

    #[test]
    fn frames_go_back_when_their_owner_goes() {
        let heap = Arc::new(HeapFrames::default());
        let source: Arc<dyn FrameSource> = heap.clone();
        let mut map = Frame::<[u8; IO_MAP_BYTES]>::new(&source).unwrap();
        assert_eq!(heap.out.load(Ordering::SeqCst), 3);
        map.fill(0xff);
        assert_eq!(map.pointer().addr() as u64, map.physical().0);
        let capability = Capability::detect(&qemu, || 0).unwrap();
        let switched = Switched::new(&source, &capability).unwrap();
        assert_eq!(heap.out.load(Ordering::SeqCst), 4);
        drop((map, switched));
        assert_eq!(heap.out.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn the_vector_area_starts_with_the_values_of_reset() {
        let source: Arc<dyn FrameSource> = Arc::new(HeapFrames::default());
        let capability = Capability::detect(&qemu, || 0).unwrap();
        let switched = Switched::new(&source, &capability).unwrap();
        // SAFETY: the area is one frame at least.
        let bytes = unsafe { switched.area.pointer().cast::<[u8; 576]>().as_ref() };
        assert_eq!(bytes[..2], [0x7f, 0x03]);
        assert_eq!(bytes[24..28], [0x80, 0x1f, 0, 0]);
        assert!(bytes[512..].iter().all(|&byte| byte == 0), "an empty header: XRSTOR initialises");
    }

    #[test]
    fn a_vcpu_learns_of_removed_translations() {
        let heap = Arc::new(HeapFrames::default());
        let source: Arc<dyn FrameSource> = heap.clone();
        let (memory, root) = FrameTables::new(&source).unwrap();
        let mut npt = nested_tables(memory, root, true, 40);
        // SAFETY: the tables live to the end of the test.
        let removals = unsafe { Removals::of(root, &source) };
        npt.map(Gpa(0), Hpa(0), 0x20_0000, Permissions::all(), MemoryType::WriteBack).unwrap();
        assert_eq!(removals.count(), 0);
        npt.unmap(Gpa(0x1000), 0x1000).unwrap();
        assert_eq!(removals.count(), 1);
        assert_eq!(npt.translate(Gpa(0x2000)), Some((Hpa(0x2000), Permissions::all())));
        npt.free();
        assert_eq!(heap.out.load(Ordering::SeqCst), 0);
    }
}
