//! The kernel's guest RAM against a model: every access gives what the model gives, and nothing outside is touched.

#![allow(unsafe_code)] // Guest memory by pointer, as the kernel has it.

use crate::input::Input;
use kernel::guest_ram::{Extent, GuestRam, Owner};
use memory::{Gpa, GuestMemory, SparseMemory, Width};
use std::ptr::NonNull;

const PAGE: usize = 4096;
/// Host pages: guest RAM between fences, which must keep their bytes.
const PAGES: usize = 7;
/// Guest-physical and host page of each page of RAM: two that touch, and one at the end of the address space's lower half.
const MAPPED: [(u64, usize); 3] = [(0x1000, 1), (0x2000, 3), (0x7fff_ffff_f000, 5)];
const FENCE: u8 = 0xa5;

#[repr(C, align(4096))]
struct Host([[u8; PAGE]; PAGES]);

/// Plays accesses.
pub fn play(script: &[u8]) {
    let mut script = Input::new(script);
    let mut host = Box::new(Host([[FENCE; PAGE]; PAGES]));
    for (_, page) in MAPPED {
        host.0[page].fill(0);
    }
    let start: *mut u8 = (&raw mut *host).cast();
    let extents = MAPPED.map(|(gpa, page)| {
        let Some(at) = NonNull::new(start.wrapping_add(page * PAGE)) else { unreachable!("no memory is at 0") };
        // SAFETY: the page is in `host`, which outlives the guest RAM and is not used beside it meanwhile.
        unsafe { Extent::new(gpa, page as u64 * PAGE as u64, PAGE as u64, at) }
    });
    let model = SparseMemory::new(&MAPPED.map(|(gpa, _)| (gpa, PAGE as u64)));
    let ram = GuestRam::new(extents.to_vec(), Owner { clear: |_| (), free: |_| () });
    while !script.is_empty() {
        step(&ram, &model, &mut script);
    }
    for at in MAPPED.iter().flat_map(|(gpa, _)| (*gpa..gpa + PAGE as u64).step_by(8)) {
        assert_eq!(ram.load(Gpa(at), Width::Qword), model.load(Gpa(at), Width::Qword), "at {at:#x}");
    }
    drop(ram);
    for page in (0..PAGES).filter(|page| MAPPED.iter().all(|(_, mapped)| mapped != page)) {
        assert!(host.0[page].iter().all(|byte| *byte == FENCE), "host page {page} is not the guest's");
    }
}

/// Mostly short, for long ones take their time in the model.
fn length(script: &mut Input<'_>) -> usize {
    match script.u8() {
        short @ 0..250 => short.into(),
        _ => PAGE + usize::from(script.u8() & 63),
    }
}

fn step(ram: &GuestRam, model: &SparseMemory, script: &mut Input<'_>) {
    let operation = script.u8();
    let gpa = Gpa(match operation >> 6 {
        0 => 0x1000u64.wrapping_add(u64::from(script.u16())),
        1 => 0x2000u64.wrapping_add(script.u8().into()).wrapping_sub(script.u8().into()),
        2 => 0x8000_0000_0000u64.wrapping_add(script.u8().into()).wrapping_sub(script.u8().into()),
        _ => script.value(),
    });
    let width = script.width(Width::Qword);
    let mut buffer = [0x11; PAGE + 64];
    match operation & 7 {
        0 => {
            let length = length(script);
            let mut expected = buffer;
            let result = ram.read(gpa, &mut buffer[..length]);
            assert_eq!(result, model.read(gpa, &mut expected[..length]));
            assert!(result.is_err() || buffer == expected);
        }
        1 => {
            let length = length(script);
            buffer[..length].fill(script.u8());
            assert_eq!(ram.write(gpa, &buffer[..length]), model.write(gpa, &buffer[..length]));
        }
        2 => {
            let length = script.value();
            let value = script.u8();
            // How long a refused length was is told differently where it is longer than any slice.
            assert_eq!(ram.fill(gpa, value, length).is_ok(), model.fill(gpa, value, length).is_ok());
        }
        3 => assert_eq!(ram.load(gpa, width), model.load(gpa, width)),
        4 => {
            let value = script.value();
            assert_eq!(ram.store(gpa, width, value), model.store(gpa, width, value));
        }
        5 => {
            let (current, new) = (script.value(), script.value());
            assert_eq!(
                ram.compare_exchange(gpa, width, current, new),
                model.compare_exchange(gpa, width, current, new)
            );
        }
        _ => {
            let length = script.value();
            assert_eq!(ram.is_ram(gpa, length), model.is_ram(gpa, length));
        }
    }
}
