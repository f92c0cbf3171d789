//! The guest's page tables as a report shows them: which mode, and the way from a linear address to its end.
//!
//! Key types: [`Mode`], [`Walk`]. It looks and sets nothing: no rights are checked and no accessed flag is written, unlike
//! in [`crate::emulate`]. It works on an [`ArchState`], so that the vCPU need not be resident. Manual: SDM 3A chapter 5
//! "Paging".

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use memory::{Gpa, GuestMemory, Width};
use vcpu::{ArchState, CodeSize, SegmentName, cr0, cr4, efer};

/// How linear addresses become guest-physical ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PG is clear: they are the same.
    None,
    /// 32-bit paging.
    Legacy,
    /// PAE paging.
    Pae,
    /// 4-level paging.
    FourLevels,
    /// 5-level paging.
    FiveLevels,
}

impl Mode {
    /// What `state` uses.
    pub const fn of(state: &ArchState) -> Mode {
        if state.cr0 & cr0::PG == 0 {
            Mode::None
        } else if state.efer & efer::LMA != 0 {
            if state.cr4 & cr4::LA57 != 0 { Mode::FiveLevels } else { Mode::FourLevels }
        } else if state.cr4 & cr4::PAE != 0 {
            Mode::Pae
        } else {
            Mode::Legacy
        }
    }

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::None => "none",
            Mode::Legacy => "32-bit",
            Mode::Pae => "PAE",
            Mode::FourLevels => "4-level",
            Mode::FiveLevels => "5-level",
        }
    }
}

/// What an entry of each level is called, from the page table up.
const LEVELS: [&str; 5] = ["PTE", "PDE", "PDPTE", "PML4E", "PML5E"];

mod entry {
    pub const PRESENT: u64 = 1 << 0;
    pub const LARGE: u64 = 1 << 7;
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Flags by the letters of their names in the manual.
    pub const LETTERS: [(u64, char); 8] = [
        (1 << 0, 'P'),
        (1 << 1, 'W'),
        (1 << 2, 'U'),
        (1 << 5, 'A'),
        (1 << 6, 'D'),
        (1 << 7, 'S'),
        (1 << 8, 'G'),
        (1 << 63, 'X'),
    ];
}

/// One entry on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the manual calls an entry of this level.
    pub level: &'static str,
    /// Its guest-physical address.
    pub at: u64,
    /// Its value.
    pub value: u64,
}

impl Step {
    /// The flags that are set: present, writable, user, accessed, dirty, page size, global, execute-disable (X).
    pub fn flags(&self) -> String {
        entry::LETTERS.iter().filter(|(bit, _)| self.value & bit != 0).map(|(_, letter)| *letter).collect()
    }
}

/// Where the way ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At this guest-physical address, which is RAM.
    Ram(u64),
    /// At this guest-physical address, where there is no RAM.
    Device(u64),
    /// At an entry that is not present.
    NotPresent,
    /// At a table that is not in RAM.
    TableOutsideRam,
    /// The address is not canonical.
    NotCanonical,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Ram(gpa) => write!(f, "guest-physical {gpa:#x}, RAM"),
            End::Device(gpa) => write!(f, "guest-physical {gpa:#x}, no RAM"),
            End::NotPresent => f.write_str("not present"),
            End::TableOutsideRam => f.write_str("the table is not in RAM"),
            End::NotCanonical => f.write_str("not canonical"),
        }
    }
}

/// The way of one linear address through the page tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// What the address is.
    pub what: &'static str,
    /// The address.
    pub linear: u64,
    /// Entries from the root on.
    pub steps: Vec<Step>,
    /// Where they lead.
    pub end: End,
}

impl Walk {
    /// Follows `linear`, which is `what`.
    pub fn new<M: GuestMemory>(state: &ArchState, memory: &M, what: &'static str, linear: u64) -> Walk {
        let mut steps = Vec::new();
        let end = match Mode::of(state) {
            Mode::None => at(memory, linear & 0xffff_ffff),
            Mode::Legacy => narrow(state, memory, linear, &mut steps),
            Mode::Pae => wide(memory, state.cr3 & 0xffff_ffe0, 3, linear & 0xffff_ffff, &mut steps),
            Mode::FourLevels if !is_canonical(linear, 48) => End::NotCanonical,
            Mode::FourLevels => wide(memory, state.cr3 & entry::ADDRESS, 4, linear, &mut steps),
            Mode::FiveLevels if !is_canonical(linear, 57) => End::NotCanonical,
            Mode::FiveLevels => wide(memory, state.cr3 & entry::ADDRESS, 5, linear, &mut steps),
        };
        Walk { what, linear, steps, end }
    }

    /// The ways that explain most stops: of the instruction, the stack, the last page fault's address and the interrupt
    /// descriptor table.
    pub fn of_interest<M: GuestMemory>(state: &ArchState, memory: &M) -> Vec<Walk> {
        let stack = linear(state, SegmentName::Ss, state.gprs.get(vcpu::Gpr::Rsp));
        [
            ("rip", linear(state, SegmentName::Cs, state.rip)),
            ("rsp", stack),
            ("cr2", state.cr2),
            ("idt", state.idtr.base),
        ]
        .map(|(what, address)| Walk::new(state, memory, what, address))
        .into()
    }
}

/// How instructions decode in `state`.
pub fn code_size(state: &ArchState) -> CodeSize {
    CodeSize::of(state.efer, state.segment(SegmentName::Cs).attributes)
}

/// The linear address of `offset` in a segment.
pub fn linear(state: &ArchState, segment: SegmentName, offset: u64) -> u64 {
    match code_size(state) {
        CodeSize::Bits64 => offset,
        CodeSize::Bits32 | CodeSize::Bits16 => state.segment(segment).base.wrapping_add(offset) & 0xffff_ffff,
    }
}

/// Up to 15 bytes at RIP, as far as they can be read; none where they cannot be.
pub fn instruction<M: GuestMemory>(state: &ArchState, memory: &M) -> Vec<u8> {
    const LONGEST: u64 = 15;
    let start = linear(state, SegmentName::Cs, state.rip);
    let mut bytes = Vec::new();
    for offset in 0..LONGEST {
        let End::Ram(gpa) = Walk::new(state, memory, "rip", start.wrapping_add(offset)).end else { break };
        let mut byte = [0];
        if memory.read(Gpa(gpa), &mut byte).is_err() {
            break;
        }
        bytes.extend(byte);
    }
    bytes
}

const fn is_canonical(linear: u64, bits: u32) -> bool {
    let unused = 64 - bits;
    ((linear << unused) as i64 >> unused) as u64 == linear
}

fn at<M: GuestMemory>(memory: &M, gpa: u64) -> End {
    if memory.is_ram(Gpa(gpa), 1) { End::Ram(gpa) } else { End::Device(gpa) }
}

/// Entries of 8 bytes.
fn wide<M: GuestMemory>(memory: &M, root: u64, levels: usize, linear: u64, steps: &mut Vec<Step>) -> End {
    let mut table = root;
    for (depth, level) in LEVELS.into_iter().take(levels).enumerate().rev() {
        let shift = 12 + 9 * depth as u32;
        let place = table | (linear >> shift & 0x1ff) << 3;
        let Ok(value) = memory.load(Gpa(place), Width::Qword) else { return End::TableOutsideRam };
        steps.push(Step { level, at: place, value });
        if value & entry::PRESENT == 0 {
            return End::NotPresent;
        }
        let may_be_large = depth == 1 || depth == 2 && levels > 3;
        if depth == 0 || may_be_large && value & entry::LARGE != 0 {
            let offset = (1u64 << shift) - 1;
            return at(memory, value & entry::ADDRESS & !offset | linear & offset);
        }
        table = value & entry::ADDRESS;
    }
    End::NotPresent
}

/// Entries of 4 bytes.
fn narrow<M: GuestMemory>(state: &ArchState, memory: &M, linear: u64, steps: &mut Vec<Step>) -> End {
    let place = state.cr3 & 0xffff_f000 | linear >> 20 & 0xffc;
    let Ok(directory) = memory.load(Gpa(place), Width::Dword) else { return End::TableOutsideRam };
    steps.push(Step { level: LEVELS[1], at: place, value: directory });
    if directory & entry::PRESENT == 0 {
        return End::NotPresent;
    }
    if directory & entry::LARGE != 0 && state.cr4 & cr4::PSE != 0 {
        // Bits 20:13 hold bits 39:32 of the address.
        return at(memory, (directory >> 13 & 0xff) << 32 | directory & 0xffc0_0000 | linear & 0x3f_ffff);
    }
    let place = directory & 0xffff_f000 | linear >> 10 & 0xffc;
    let Ok(page) = memory.load(Gpa(place), Width::Dword) else { return End::TableOutsideRam };
    steps.push(Step { level: LEVELS[0], at: place, value: page });
    if page & entry::PRESENT == 0 {
        return End::NotPresent;
    }
    at(memory, page & 0xffff_f000 | linear & 0xfff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::SparseMemory;
    use vcpu::Segment;

    const ROOT: u64 = 0x1000;

    /// A processor in 64-bit mode over 64 KiB of RAM: page 5 maps to page 6 by a PTE, the second gigabyte by a PDPTE.
    fn long() -> (ArchState, SparseMemory) {
        let mut state = ArchState::reset(0);
        (state.cr0, state.cr3, state.cr4) = (cr0::PE | cr0::PG, ROOT, cr4::PAE);
        state.efer = efer::LME | efer::LMA;
        state.segments[SegmentName::Cs as usize] = Segment::flat_code64(8);
        let memory = SparseMemory::new(&[(0, 0x1_0000)]);
        for (at, value) in [(0x1000, 0x2003), (0x2000, 0x3003), (0x2008, 0x8083), (0x3000, 0x4003), (0x4028, 0x6021)] {
            memory.store(Gpa(at), Width::Qword, value).unwrap();
        }
        (state, memory)
    }

    #[test]
    fn four_levels_show_each_entry_and_where_they_lead() {
        let (state, memory) = long();
        let walk = Walk::new(&state, &memory, "rip", 0x5abc);
        assert_eq!(walk.end, End::Ram(0x6abc));
        let steps: Vec<_> = walk.steps.iter().map(|step| (step.level, step.at, step.flags())).collect();
        let flags = |letters: &str| String::from(letters);
        assert_eq!(
            steps,
            [
                ("PML4E", 0x1000, flags("PW")),
                ("PDPTE", 0x2000, flags("PW")),
                ("PDE", 0x3000, flags("PW")),
                ("PTE", 0x4028, flags("PA"))
            ]
        );
        assert_eq!(Walk::new(&state, &memory, "rip", 0x4000).end, End::NotPresent);
        assert_eq!(Walk::new(&state, &memory, "rip", 1 << 47).end, End::NotCanonical);
        assert_eq!(Walk::new(&state, &memory, "rip", 0x4000_1234).end, End::Ram(0x1234), "a page of 1 GiB");
        assert_eq!(Walk::new(&state, &memory, "rip", 0x4001_0000).end, End::Device(0x1_0000));
    }

    #[test]
    fn a_table_outside_ram_is_named() {
        let (mut state, memory) = long();
        state.cr3 = 0xfee0_0000;
        let walk = Walk::new(&state, &memory, "rip", 0);
        assert_eq!((walk.end, walk.steps.len()), (End::TableOutsideRam, 0));
    }

    #[test]
    fn legacy_modes_have_their_own_entries() {
        let (mut state, memory) = long();
        (state.cr0, state.cr4, state.efer) = (cr0::PE | cr0::PG, cr4::PAE, 0);
        state.cr3 = 0x2000;
        assert_eq!(Mode::of(&state), Mode::Pae);
        let walk = Walk::new(&state, &memory, "rip", 0x5001);
        assert_eq!((walk.steps.len(), walk.end), (3, End::Ram(0x6001)));
        (state.cr4, state.cr3) = (cr4::PSE, ROOT);
        assert_eq!(Mode::of(&state), Mode::Legacy);
        memory.store(Gpa(ROOT + 4), Width::Dword, 0x0040_2083).unwrap();
        assert_eq!(Walk::new(&state, &memory, "rip", 0x40_0010).end, End::Device(0x1_0040_0010), "PSE-36");
        memory.store(Gpa(0x2000 + 4 * 4), Width::Dword, 0x7001).unwrap();
        assert_eq!(Walk::new(&state, &memory, "rip", 0x4123).end, End::Ram(0x7123));
        state.cr0 = cr0::PE;
        assert_eq!(Mode::of(&state), Mode::None);
        assert_eq!(Walk::new(&state, &memory, "rip", 0x1_0000_4123).end, End::Ram(0x4123));
    }

    #[test]
    fn instruction_bytes_end_where_they_cannot_be_read() {
        let (mut state, memory) = long();
        memory.write(Gpa(0x6ffd), &[0x0f, 0x01, 0xd9]).unwrap();
        state.rip = 0x5ffd;
        assert_eq!(instruction(&state, &memory), [0x0f, 0x01, 0xd9]);
        state.rip = 0x4000;
        assert!(instruction(&state, &memory).is_empty());
        state.segments[SegmentName::Cs as usize] = Segment::real_mode(0x600);
        (state.cr0, state.efer, state.rip) = (0, 0, 0xffd);
        assert_eq!(instruction(&state, &memory)[..3], [0x0f, 0x01, 0xd9]);
    }
}
