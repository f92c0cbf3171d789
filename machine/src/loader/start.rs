//! The processor states that the boot protocols start a kernel in, and the tables that go with them.
//!
//! Manuals: Intel SDM (December 2024, 325462-086) volume 3A; Linux `Documentation/arch/x86/boot.rst`; Xen
//! `docs/misc/pvh.pandoc`; Multiboot 0.6.96, 3.2 "Machine state".

use super::LoadError;
use super::bytes::Record;
use super::placement::{FOUR_GIB, GDT, PAGE_TABLES};
use memory::{Gpa, GuestMemory, PAGE_SIZE};
use vcpu::{ArchState, DescriptorTable, Gpr, Segment, SegmentAttributes, SegmentName, cr0, cr4, efer};

/// `__BOOT_CS` of Linux; the other protocols leave the selector open.
const CODE: u16 = 0x10;
/// `__BOOT_DS` of Linux.
const DATA: u16 = 0x18;
/// A task state segment of the smallest size, which nothing switches to.
const TASK: u16 = 0x20;
const TASK_LIMIT: u32 = 0x67;

/// The descriptors behind the selectors, SDM 3A 3.4.5 "Segment Descriptors": flat code and data with G set, accessed.
const CODE32_DESCRIPTOR: u64 = 0x00cf_9b00_0000_ffff;
const CODE64_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
const TASK_DESCRIPTOR: u64 = 0x0000_8b00_0000_0067;

/// Page-table bits, SDM 3A 4.5 "4-Level Paging and 5-Level Paging".
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
const ENTRIES: u64 = 512;

fn flat(code: Segment, code_descriptor: u64, memory: &impl GuestMemory) -> Result<ArchState, LoadError> {
    let mut gdt = Record::default();
    gdt.qword(0).qword(0).qword(code_descriptor).qword(DATA_DESCRIPTOR).qword(TASK_DESCRIPTOR).qword(0);
    memory.write(Gpa(GDT), &gdt.0)?;
    let mut state = ArchState::reset(0);
    state.gdtr = DescriptorTable { base: GDT, limit: gdt.0.len() as u16 - 1 };
    state.idtr = DescriptorTable { base: 0, limit: 0 };
    for name in [SegmentName::Es, SegmentName::Ss, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs] {
        state.segments[name as usize] = Segment::flat_data(DATA);
    }
    state.segments[SegmentName::Cs as usize] = code;
    state.segments[SegmentName::Tr as usize] =
        Segment { selector: TASK, attributes: SegmentAttributes::from_bits(0x8b), limit: TASK_LIMIT, base: 0 };
    state.cr0 = cr0::PE | cr0::ET;
    Ok(state)
}

/// 32-bit protected mode with flat segments, paging and interrupts off, at `entry`.
pub(super) fn flat32(entry: u32, memory: &impl GuestMemory) -> Result<ArchState, LoadError> {
    let mut state = flat(Segment::flat_code32(CODE), CODE32_DESCRIPTOR, memory)?;
    state.rip = entry.into();
    Ok(state)
}

/// 64-bit mode with the first 4 GiB mapped to themselves and interrupts off, at `entry`.
pub(super) fn long64(entry: u64, memory: &impl GuestMemory) -> Result<ArchState, LoadError> {
    let mut state = flat(Segment::flat_code64(CODE), CODE64_DESCRIPTOR, memory)?;
    let level3 = PAGE_TABLES + PAGE_SIZE;
    let level2 = level3 + PAGE_SIZE;
    let mut tables = Record::zeroed(2 * PAGE_SIZE as usize);
    tables.put(0, &(level3 | PRESENT_WRITABLE).to_le_bytes());
    for gib in 0..FOUR_GIB / (ENTRIES * LARGE_PAGE_SIZE) {
        let entry = (level2 + gib * PAGE_SIZE) | PRESENT_WRITABLE;
        tables.put((PAGE_SIZE + gib * 8) as usize, &entry.to_le_bytes());
    }
    for page in 0..FOUR_GIB / LARGE_PAGE_SIZE {
        tables.qword((page * LARGE_PAGE_SIZE) | LARGE_PAGE | PRESENT_WRITABLE);
    }
    memory.write(Gpa(PAGE_TABLES), &tables.0)?;
    state.rip = entry;
    state.cr3 = PAGE_TABLES;
    state.cr4 = cr4::PAE;
    state.efer = efer::LME | efer::LMA;
    state.cr0 |= cr0::PG;
    Ok(state)
}

/// `state` with a general-purpose register set.
pub(super) fn with(mut state: ArchState, register: Gpr, value: u64) -> ArchState {
    state.gprs.set(register, value);
    state
}

#[cfg(test)]
mod tests {
    use super::super::tests::{MIB, qword_at, ram};
    use super::*;
    use vcpu::{CodeSize, rflags};

    /// Walks the guest's tables as the processor does.
    fn translate(memory: &memory::SparseMemory, cr3: u64, linear: u64) -> Option<u64> {
        let mut table = cr3;
        for level in [39, 30] {
            let entry = qword_at(memory, table + (linear >> level & 511) * 8);
            if entry & 1 == 0 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        let leaf = qword_at(memory, table + (linear >> 21 & 511) * 8);
        (leaf & 0x83 == 0x83).then_some((leaf & 0x000f_ffff_ffe0_0000) + (linear & 0x1f_ffff))
    }

    #[test]
    fn the_64_bit_state_maps_4_gib_to_itself() {
        let memory = ram(MIB);
        let state = long64(0x100_0200, &memory).unwrap();
        for linear in [0, 0x9_0000, 0x3fff_ffff, 0x4000_0000, 0xfee0_0020, 0xffff_ffff] {
            assert_eq!(translate(&memory, state.cr3, linear), Some(linear));
        }
        assert_eq!(translate(&memory, state.cr3, 1 << 32), None);
        assert_eq!(CodeSize::of(state.efer, state.segment(SegmentName::Cs).attributes), CodeSize::Bits64);
        assert_eq!((state.rip, state.cr0 & 0x8000_0001, state.cr4), (0x100_0200, 0x8000_0001, 0x20));
    }

    #[test]
    fn the_hidden_parts_agree_with_the_descriptors_in_memory() {
        let memory = ram(MIB);
        let check = |state: ArchState| {
            for name in [SegmentName::Cs, SegmentName::Ds, SegmentName::Tr] {
                let segment = state.segment(name);
                assert!(u64::from(segment.selector) + 7 <= u64::from(state.gdtr.limit));
                let descriptor = qword_at(&memory, state.gdtr.base + u64::from(segment.selector));
                assert_eq!((descriptor >> 40 & 0xf0ff) as u32, segment.attributes.into_bits(), "{name:?}");
            }
            assert_eq!(state.rflags & rflags::IF, 0);
            assert_eq!(state.segment(SegmentName::Ss).limit, u32::MAX);
        };
        check(flat32(0x10_0000, &memory).unwrap());
        check(long64(0x10_0000, &memory).unwrap());
    }
}
