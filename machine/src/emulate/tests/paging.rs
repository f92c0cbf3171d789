//! Walks: every paging mode, rights, error codes, accessed and dirty flags. Expectations are from SDM 3A chapter 5.

use super::*;
use vcpu::rflags;

const PRESENT: u32 = 1;
const WRITE: u32 = 2;
const USER: u32 = 4;
const RESERVED: u32 = 8;
const FETCH: u32 = 16;
const NX: u64 = 1 << 63;
/// The entry of [`DATA`] in the tables with 8-byte entries.
const ENTRY: u64 = SMALL_PAGES + (DATA >> 12) * 8;

fn read(bench: &Bench, linear: u64) -> Result<Gpa, Stop> {
    translate(bench, linear, AccessKind::Read, Privilege::of(bench.vcpu.cpl()))
}

fn write(bench: &Bench, linear: u64) -> Result<Gpa, Stop> {
    translate(bench, linear, AccessKind::Write, Privilege::of(bench.vcpu.cpl()))
}

fn fetch(bench: &Bench, linear: u64) -> Result<Gpa, Stop> {
    translate(bench, linear, AccessKind::Fetch, Privilege::of(bench.vcpu.cpl()))
}

fn fault(code: u32, linear: u64) -> Result<Gpa, Stop> {
    Err(Stop::Fault(Exception::page_fault(code, linear)))
}

#[test]
fn without_paging_linear_is_physical() {
    let bench = Bench::flat32();
    assert_eq!(read(&bench, 0x1234_5678), Ok(Gpa(0x1234_5678)));
}

#[test]
fn narrow_tables_translate_small_and_large_pages() {
    let mut bench = Bench::paged32();
    bench.poke32(TABLES + 0x1000 + 5 * 4, 0x7000 | 0x67);
    assert_eq!(read(&bench, 0x5123), Ok(Gpa(0x7123)));
    assert_eq!(read(&bench, DEVICE + 0x20), Ok(Gpa(DEVICE + 0x20)));
    assert_eq!(read(&bench, 0x4000_0000), fault(0, 0x4000_0000));
    assert_eq!(write(&bench, 0x4000_0000), fault(WRITE, 0x4000_0000));
    // PSE-36: bits 20:13 of a large entry are address bits 39:32.
    bench.poke32(TABLES + 0x400, 0x0080_0000 | 0x12 << 13 | LARGE_LEAF);
    assert_eq!(read(&bench, 0x4000_0004), Ok(Gpa(0x12_0080_0004)));
    bench.limits.physical_address_bits = 36;
    assert_eq!(read(&bench, 0x4000_0004), fault(PRESENT | RESERVED, 0x4000_0004));
    bench.poke32(TABLES + 0x400, 1 << 21 | LARGE_LEAF);
    assert_eq!(read(&bench, 0x4000_0004), fault(PRESENT | RESERVED, 0x4000_0004));
    bench.vcpu.state.cr4 &= !cr4::PSE;
    assert_ne!(read(&bench, 0x4000_0004), fault(PRESENT | RESERVED, 0x4000_0004), "without PSE the flag is ignored");
}

#[test]
fn pae_tables_translate_and_check_reserved_bits() {
    let mut bench = Bench::pae();
    assert_eq!(read(&bench, 0x5123), Ok(Gpa(0x5123)));
    assert_eq!(write(&bench, DEVICE + 0x20), Ok(Gpa(DEVICE + 0x20)));
    assert_eq!(read(&bench, 0xc000_0000), fault(0, 0xc000_0000));
    bench.poke64(TABLES + 0x8000 + 5 * 8, 0x5000 | NX | 0x67);
    assert_eq!(fetch(&bench, 0x5000), fault(PRESENT | FETCH, 0x5000));
    assert_eq!(read(&bench, 0x5000), Ok(Gpa(0x5000)));
    bench.vcpu.state.efer = 0;
    assert_eq!(read(&bench, 0x5000), fault(PRESENT | RESERVED, 0x5000), "NX is reserved without EFER.NXE");
    bench.poke64(TABLES + 0x8000 + 6 * 8, 0x6000 | 1 << 52 | 0x67);
    assert_eq!(read(&bench, 0x6000), fault(PRESENT | RESERVED, 0x6000), "bits 62:52 are reserved in PAE");
    bench.poke64(TABLES + 0x20, (TABLES + 0x1000) | 1 | 1 << 6);
    assert_eq!(read(&bench, 0x7000), fault(PRESENT | RESERVED, 0x7000), "a directory pointer has no dirty flag");
}

#[test]
fn four_levels_fault_where_an_entry_is_missing_or_has_reserved_bits() {
    let mut bench = Bench::long_small();
    assert_eq!(read(&bench, DATA + 8), Ok(Gpa(DATA + 8)));
    assert_eq!(read(&bench, 3 << 30 | 0x1234), Ok(Gpa(3 << 30 | 0x1234)), "a 1 GiB page");
    for (at, good) in [
        (TABLES, (TABLES + 0x1000) | ALL_RIGHTS),
        (TABLES + 0x1000, (TABLES + 0x2000) | ALL_RIGHTS),
        (TABLES + 0x2000, SMALL_PAGES | ALL_RIGHTS),
        (ENTRY, DATA | 0x67),
    ] {
        bench.poke64(at, good & !1);
        assert_eq!(read(&bench, DATA), fault(0, DATA), "entry at {at:#x} not present");
        bench.poke64(at, good | 1 << 45);
        assert_eq!(read(&bench, DATA), fault(PRESENT | RESERVED, DATA), "entry at {at:#x} past MAXPHYADDR");
        bench.poke64(at, good | 0x7ff << 52);
        assert_eq!(read(&bench, DATA), Ok(Gpa(DATA)), "bits 62:52 are ignored");
        bench.poke64(at, good);
    }
    bench.poke64(TABLES, (TABLES + 0x1000) | ALL_RIGHTS | 0x80);
    assert_eq!(read(&bench, DATA), fault(PRESENT | RESERVED, DATA), "no 512 GiB pages");
    bench.poke64(TABLES, (TABLES + 0x1000) | ALL_RIGHTS);
    bench.poke64(TABLES + 0x2000, 0x2000 | LARGE_LEAF);
    assert_eq!(read(&bench, DATA), fault(PRESENT | RESERVED, DATA), "a misplaced 2 MiB page");
    bench.limits.gigabyte_pages = false;
    assert_eq!(read(&bench, 3 << 30), fault(PRESENT | RESERVED, 3 << 30));
}

#[test]
fn five_levels_walk_one_more_table() {
    let mut bench = Bench::long_small();
    bench.vcpu.state.cr4 |= cr4::LA57;
    bench.vcpu.state.cr3 = TABLES + 0x5000;
    bench.poke64(TABLES + 0x5000 + 8, (TABLES) | ALL_RIGHTS);
    let linear = 1 << 48 | DATA;
    assert_eq!(read(&bench, linear), Ok(Gpa(DATA)));
    assert_eq!(read(&bench, DATA), fault(0, DATA));
    bench.set(Gpr::Rbx, 1 << 48 | DEVICE);
    bench.vcpu.state.rip = 1 << 48 | CODE;
    bench.poke(CODE, &[0x8b, 0x03]);
    assert_eq!(bench.run(), complete(2));
    bench.vcpu.state.cr4 &= !cr4::LA57;
    bench.vcpu.state.cr3 = TABLES;
    bench.vcpu.state.rip = CODE;
    assert_eq!(bench.run(), GP, "not canonical with 48 bits");
}

#[test]
fn rights_of_user_and_supervisor() {
    const SUPERVISOR_PAGE: u64 = DATA | 0x63;
    const READ_ONLY: u64 = DATA | 0x65;
    let mut bench = Bench::long_small();
    let mut user = Bench::long_small().user();
    for bench in [&mut bench, &mut user] {
        bench.poke64(ENTRY, SUPERVISOR_PAGE);
    }
    assert_eq!(write(&bench, DATA), Ok(Gpa(DATA)));
    assert_eq!(read(&user, DATA), fault(PRESENT | USER, DATA));
    assert_eq!(write(&user, DATA), fault(PRESENT | USER | WRITE, DATA));
    assert_eq!(fetch(&user, DATA), fault(PRESENT | USER | FETCH, DATA));
    for bench in [&mut bench, &mut user] {
        bench.poke64(ENTRY, READ_ONLY);
    }
    assert_eq!(write(&bench, DATA), fault(PRESENT | WRITE, DATA));
    assert_eq!(write(&user, DATA), fault(PRESENT | USER | WRITE, DATA));
    bench.vcpu.state.cr0 &= !cr0::WP;
    user.vcpu.state.cr0 &= !cr0::WP;
    assert_eq!(write(&bench, DATA), Ok(Gpa(DATA)), "without WP the supervisor writes everywhere");
    assert_eq!(write(&user, DATA), fault(PRESENT | USER | WRITE, DATA));
    // One level without U is enough.
    user.poke64(ENTRY, DATA | 0x67).poke64(TABLES + 0x2000, SMALL_PAGES | 0x23);
    assert_eq!(read(&user, DATA), fault(PRESENT | USER, DATA));
}

#[test]
fn smep_and_smap_keep_the_supervisor_off_user_pages() {
    let mut bench = Bench::long_small();
    bench.vcpu.state.cr4 |= cr4::SMEP;
    assert_eq!(fetch(&bench, DATA), fault(PRESENT | FETCH, DATA));
    assert_eq!(read(&bench, DATA), Ok(Gpa(DATA)));
    bench.vcpu.state.cr4 |= cr4::SMAP;
    assert_eq!(read(&bench, DATA), fault(PRESENT, DATA));
    assert_eq!(write(&bench, DATA), fault(PRESENT | WRITE, DATA));
    bench.vcpu.state.rflags |= rflags::AC;
    assert_eq!(read(&bench, DATA), Ok(Gpa(DATA)));
    let implicit = translate(&bench, DATA, AccessKind::Read, Privilege::Implicit);
    assert_eq!(implicit, fault(PRESENT, DATA), "AC does not count for the processor's own accesses");
}

#[test]
fn a_fetch_is_named_in_the_error_code_only_with_nx_or_smep() {
    let mut bench = Bench::long_small();
    bench.poke64(ENTRY, 0);
    assert_eq!(fetch(&bench, DATA), fault(FETCH, DATA));
    bench.vcpu.state.efer &= !efer::NXE;
    assert_eq!(fetch(&bench, DATA), fault(0, DATA));
    bench.vcpu.state.cr4 |= cr4::SMEP;
    assert_eq!(fetch(&bench, DATA), fault(FETCH, DATA));
}

#[test]
fn accessed_and_dirty_flags_are_set_by_success_alone() {
    const ACCESSED: u64 = 0x20;
    const DIRTY: u64 = 0x40;
    let mut bench = Bench::long_small();
    let entries = [TABLES, TABLES + 0x1000, TABLES + 0x2000, ENTRY];
    for at in entries {
        let value = bench.peek(at) & !(ACCESSED | DIRTY);
        bench.poke64(at, value);
    }
    let flags = |bench: &Bench| entries.map(|at| bench.peek(at) & (ACCESSED | DIRTY));
    bench.poke64(ENTRY, DATA | 5);
    assert_eq!(write(&bench, DATA), fault(PRESENT | WRITE, DATA));
    assert_eq!(flags(&bench), [0; 4]);
    bench.poke64(ENTRY, DATA | 7);
    assert_eq!(read(&bench, DATA), Ok(Gpa(DATA)));
    assert_eq!(flags(&bench), [ACCESSED; 4]);
    assert_eq!(write(&bench, DATA), Ok(Gpa(DATA)));
    assert_eq!(flags(&bench), [ACCESSED, ACCESSED, ACCESSED, ACCESSED | DIRTY]);
    let mut narrow = Bench::paged32();
    narrow.poke32(TABLES, (TABLES + 0x1000) | 7).poke32(TABLES + 0x1000 + 4 * 4, DATA | 7);
    assert_eq!(write(&narrow, DATA), Ok(Gpa(DATA)));
    assert_eq!(narrow.peek(TABLES) & 0x60, ACCESSED);
    assert_eq!(narrow.peek(TABLES + 0x1000 + 4 * 4) & 0x60, ACCESSED | DIRTY);
}

#[test]
fn tables_outside_ram_are_refused() {
    let mut bench = Bench::long_small();
    bench.poke64(TABLES + 0x2000, DEVICE | ALL_RIGHTS);
    assert_eq!(read(&bench, DATA), Err(Stop::Refused(Reason::PageTable(Gpa(DEVICE + (DATA >> 12) * 8)))));
    assert!(bench.reads.is_empty());
}

#[test]
fn pages_with_protection_keys_are_refused_and_key_zero_is_not() {
    let mut bench = Bench::long_small();
    bench.vcpu.state.cr4 |= cr4::PKE;
    assert_eq!(read(&bench, DATA), Ok(Gpa(DATA)));
    bench.poke64(ENTRY, DATA | 0x67 | 3 << 59);
    assert_eq!(read(&bench, DATA), Err(Stop::Refused(Reason::ProtectionKey)));
}
