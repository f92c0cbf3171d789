//! What of the backend and its vCPUs can be tried without VMX.

use super::*;
use crate::capability::tests::{ARRANDALE, HASWELL};
use crate::region::tests::HeapFrames;

#[test]
fn the_backend_says_what_guests_can_execute() {
    let speculation = vcpu::GuestSpeculation::default();
    let haswell = Vmx::new(HASWELL.capability().unwrap(), ApicVirtualization::Off).unwrap();
    assert_eq!(haswell.guest_features(), GuestFeatures { rdtscp: true, invpcid: true, speculation });
    let arrandale = Vmx::new(ARRANDALE.capability().unwrap(), ApicVirtualization::Off).unwrap();
    assert_eq!(arrandale.guest_features(), GuestFeatures { rdtscp: true, invpcid: false, speculation });
    assert_eq!(Vmx::NAME, "VMX");
}

#[test]
fn the_apic_page_is_mapped_only_for_virtualized_accesses() {
    let frames: Arc<dyn FrameSource> = Arc::new(HeapFrames::default());
    for (apic, mapped) in [(ApicVirtualization::Off, false), (ApicVirtualization::WhereThere, true)] {
        let capability = Capability { physical_bits: 52, ..HASWELL.capability().unwrap() };
        let tables = Vmx::new(capability, apic).unwrap().second_level(&frames).unwrap();
        let page = apic_access_page(root_table(tables.root()));
        let expected = mapped.then_some((page, Permissions::READ | Permissions::WRITE));
        assert_eq!(tables.translate(Gpa(0xfee0_0000)), expected);
    }
}

#[test]
fn msrs_exit_but_for_those_that_are_switched() {
    let frames: Arc<dyn FrameSource> = Arc::new(HeapFrames::default());
    let bitmap = new_msr_bitmap(&frames, &HASWELL.capability().unwrap()).unwrap();
    let exits = |msr, access| {
        let bit = controls::msr_bit(msr, access).unwrap();
        bitmap[bit / 8] >> (bit % 8) & 1 != 0
    };
    for msr in [0x174, 0xc000_0082, 0xc000_0100, 0xc000_0103] {
        assert!(!exits(msr, MsrAccess::Read) && !exits(msr, MsrAccess::Write), "{msr:#x}");
    }
    for msr in [0x10, 0x1b, 0x48, 0x277, 0x1d9, 0x808, 0xc000_0080, 0xc000_0084 + 1] {
        assert!(exits(msr, MsrAccess::Read) && exits(msr, MsrAccess::Write), "{msr:#x}");
    }
    let through: u32 = bitmap.iter().map(|byte| byte.count_zeros()).sum();
    assert_eq!(through as usize, 2 * (STRAIGHT.len() + 1));
}

#[test]
fn a_waiting_interrupt_arms_the_window_or_the_threshold() {
    let waiting = |vector| Windows { interrupt: vector, ..Windows::default() };
    let armed = |vector, tpr, delivers| {
        let windows = waiting(vector).armed_for(tpr, delivers);
        (windows.interrupt_armed, windows.threshold)
    };
    assert_eq!(armed(None, 0xff, false), (false, 0));
    assert_eq!(armed(Some(0x31), 0, false), (true, 0));
    assert_eq!(armed(Some(0x31), 0x2f, false), (true, 0));
    assert_eq!(armed(Some(0x31), 0x30, false), (false, 3), "held until TPR falls below its class");
    assert_eq!(armed(Some(0x31), 0x80, false), (false, 3));
    assert_eq!(armed(Some(0x08), 0xf0, false), (true, 0), "from the 8259 pair: no class, not held");
    assert_eq!(armed(Some(0x31), 0x80, true), (true, 0), "the processor looks at TPR");
}

#[test]
fn the_highest_vector_of_a_register_page() {
    let page = RegisterPage::new();
    assert_eq!(highest_vector(&page, IRR), 0);
    page.store(IRR + 0x10, 1 << 1);
    assert_eq!(highest_vector(&page, IRR), 0x21);
    page.store(IRR + 0x70, 1 << 31);
    assert_eq!(highest_vector(&page, IRR), 0xff);
    assert_eq!(highest_vector(&page, ISR), 0);
}

#[test]
fn a_field_is_read_once_until_the_next_exit() {
    let cache = Cache::default();
    let reads = Cell::new(0);
    let get = || {
        cache.get(Known::RFLAGS, &cache.rflags, || {
            reads.set(reads.get() + 1);
            reads.get()
        })
    };
    assert_eq!((get(), get()), (1, 1));
    cache.put(Known::RFLAGS, &cache.rflags, 7);
    assert_eq!(get(), 7);
    cache.forget();
    assert_eq!(get(), 2);
}

#[test]
fn a_run_limit_becomes_timer_ticks_and_never_nothing() {
    assert_eq!(timer_ticks(1_000_000, 0, 0), 1_000_000);
    assert_eq!(timer_ticks(1_000_000, 0, 5), 31_250);
    assert_eq!(timer_ticks(u64::MAX, 0, 5), u32::MAX);
    assert_eq!(timer_ticks(100, 2_000, 0), LEAST_RUN as u32, "the limit has passed");
    assert_eq!(timer_ticks(100, 2_000, 31), 1, "a slow timer still lets the guest run");
}
