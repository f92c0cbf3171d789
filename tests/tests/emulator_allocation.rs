//! The emulator allocates when it is made and never after: an exit must not wait for the allocator, nor enlarge the host.

#![allow(unsafe_code)] // A global allocator that counts.

use machine::emulate::{Context, Emulator, Exiting, Outcome, PagingLimits};
use memory::{Gpa, GuestMemory, SparseMemory, Width};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use vcpu::{AccessKind, ArchState, Gpr, MemoryAccess, ScriptedVcpu, Segment, SegmentName, cr0};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every request goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc`, that is from the system.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CODE: u64 = 0x1000;
const DEVICE: u64 = 0xfee0_0000;

struct Guest {
    vcpu: ScriptedVcpu,
    ram: SparseMemory,
}

impl Context for Guest {
    type Cpu = ScriptedVcpu;
    type Memory = SparseMemory;

    fn cpu(&self) -> &ScriptedVcpu {
        &self.vcpu
    }
    fn cpu_mut(&mut self) -> &mut ScriptedVcpu {
        &mut self.vcpu
    }
    fn memory(&self) -> &SparseMemory {
        &self.ram
    }
    fn paging_limits(&self) -> PagingLimits {
        PagingLimits { physical_address_bits: 40, gigabyte_pages: true }
    }
    fn fetch_outside_ram(&self, _gpa: Gpa, _into: &mut [u8]) -> bool {
        false
    }
    fn device_read(&mut self, _gpa: Gpa, into: &mut [u8]) {
        into.fill(0x5a);
    }
    fn device_write(&mut self, _gpa: Gpa, _from: &[u8]) {}
    fn port_read(&mut self, _port: u16, _width: Width) -> u32 {
        0
    }
    fn port_write(&mut self, _port: u16, _width: Width, _value: u32) {}
    fn should_pause(&self) -> bool {
        false
    }
}

#[test]
fn decoding_and_executing_anything_allocates_nothing() {
    let mut state = ArchState::reset(0);
    state.segments[..6].fill(Segment::flat_data(16));
    state.segments[SegmentName::Cs as usize] = Segment::flat_code32(8);
    state.cr0 = cr0::PE;
    state.rip = CODE;
    state.gprs.set(Gpr::Rbx, DEVICE);
    let mut guest = Guest { vcpu: ScriptedVcpu::new(state, []), ram: SparseMemory::new(&[(0, 0x10000)]) };
    let mut emulator = Emulator::new();
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    let mut complete = 0;
    // Every two-byte opening with an operand at EBX, so that each is decoded for the first time.
    for opening in 0..=u16::MAX {
        let [first, second] = opening.to_le_bytes();
        guest.ram.write(Gpa(CODE), &[first, second, 0x03, 0, 0, 0, 0, 0, 0]).unwrap();
        guest.vcpu.state.gprs.set(Gpr::Rbx, DEVICE);
        let access = MemoryAccess {
            gpa: Gpa(DEVICE),
            kind: AccessKind::Write,
            in_page_walk: false,
            during_event_delivery: false,
            bytes: ([0; 15], 0),
        };
        complete += usize::from(matches!(emulator.access(&mut guest, &access), Outcome::Complete(_)));
        let _ = emulator.length(&mut guest, Exiting::ControlWrite);
    }
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst) - before, 0);
    assert!(complete > 1000, "only {complete} openings were executed");
}
