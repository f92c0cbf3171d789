//! A guest for the emulator and the whole PC: RAM with page tables in it, and processor states in every mode.

use crate::input::Input;
use memory::{Gpa, GuestMemory, NotRam, SparseMemory, Width};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vcpu::{
    ArchState, Gpr, ScriptedVcpu, Segment, SegmentAttributes, SegmentName, Vcpu, Window, cr0, cr4, efer, rflags,
};

/// Bytes of RAM, from 0.
pub const TOP: u64 = 2 << 20;
/// Where code is put and RIP mostly is.
pub const CODE: u64 = 0x1000;
const PAGE: u64 = 4096;
/// PML4, page-directory-pointer table, directory and table of 4-level paging.
const LONG: u64 = 0x1_0000;
/// Directory and table of 32-bit paging.
const LEGACY: u64 = 0x1_4000;
/// Page-directory-pointer table of PAE paging, and the directory of its last quarter.
const PAE: u64 = 0x1_6000;
/// Where the page tables end.
const TABLES_END: u64 = 0x1_8000;
/// Present, writable, user, accessed; dirty.
const USUAL: u64 = 0x27;
const DIRTY: u64 = 0x40;
const LARGE: u64 = 0x80;

/// RAM that goes back to its template cheaply: it knows which pages were written.
pub struct Ram {
    memory: SparseMemory,
    template: Vec<u8>,
    dirty: [AtomicU64; (TOP / PAGE / 64) as usize],
}

impl Ram {
    fn new() -> Ram {
        let mut template = vec![0; TOP as usize];
        let mut put = |at: u64, value: u64, bytes: usize| {
            template[at as usize..][..bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        };
        for (index, value) in [(0, LONG + 0x1000 + USUAL), (1, LONG + 0x1000 + USUAL), (511, LONG + 0x1000 + USUAL)] {
            put(LONG + index * 8, value, 8);
        }
        put(LONG + 0x1000, LONG + 0x2000 + USUAL, 8);
        for gigabyte in 1..4 {
            put(LONG + 0x1000 + gigabyte * 8, (gigabyte << 30) + USUAL + DIRTY + LARGE, 8);
        }
        put(LONG + 0x2000, LONG + 0x3000 + USUAL, 8);
        put(LONG + 0x2008, 0x20_0000 + USUAL + LARGE, 8);
        for page in 0..512 {
            put(LONG + 0x3000 + page * 8, page * PAGE + USUAL, 8);
        }
        for four_mib in 0..1024 {
            put(LEGACY + four_mib * 4, (four_mib << 22) + USUAL + DIRTY + LARGE, 4);
            put(LEGACY + 0x1000 + four_mib * 4, four_mib * PAGE + USUAL, 4);
        }
        put(LEGACY, LEGACY + 0x1000 + USUAL, 4);
        for quarter in [0, 1, 2] {
            put(PAE + quarter * 8, LONG + 0x2000 + 1, 8);
        }
        put(PAE + 24, PAE + 0x1000 + 1, 8);
        for two_mib in 0..512 {
            put(PAE + 0x1000 + two_mib * 8, 0xc000_0000 + (two_mib << 21) + USUAL + DIRTY + LARGE, 8);
        }
        let memory = SparseMemory::new(&[(0, TOP)]);
        assert_eq!(memory.write(Gpa(0), &template), Ok(()));
        Ram { memory, template, dirty: [const { AtomicU64::new(0) }; (TOP / PAGE / 64) as usize] }
    }

    /// The RAM of this process.
    pub fn shared() -> SharedRam {
        thread_local! {
            static RAM: Arc<Ram> = Arc::new(Ram::new());
        }
        RAM.with(|ram| SharedRam(ram.clone()))
    }

    fn touch(&self, gpa: Gpa, bytes: u64) {
        let last = gpa.0.saturating_add(bytes.saturating_sub(1)).min(TOP - 1);
        for page in gpa.0 / PAGE..=last / PAGE {
            if let Some(word) = self.dirty.get((page / 64) as usize) {
                word.fetch_or(1 << (page % 64), Ordering::Relaxed);
            }
        }
    }
}

/// The RAM as a machine owns it.
#[derive(Clone)]
pub struct SharedRam(Arc<Ram>);

impl SharedRam {
    /// Undoes all writes.
    pub fn restore(&self) {
        for (word, bits) in self.0.dirty.iter().enumerate() {
            let mut bits = bits.swap(0, Ordering::Relaxed);
            while bits != 0 {
                let at = (word as u64 * 64 + u64::from(bits.trailing_zeros())) * PAGE;
                let page = &self.0.template[at as usize..][..PAGE as usize];
                for (offset, word) in page.chunks_exact(8).enumerate() {
                    let value = u64::from_le_bytes(word.try_into().unwrap_or_default());
                    assert_eq!(self.0.memory.store(Gpa(at + offset as u64 * 8), Width::Qword, value), Ok(()));
                }
                bits &= bits - 1;
            }
        }
    }
}

impl GuestMemory for SharedRam {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), NotRam> {
        self.0.memory.read(gpa, into)
    }
    fn write(&self, gpa: Gpa, from: &[u8]) -> Result<(), NotRam> {
        self.0.memory.write(gpa, from)?;
        self.0.touch(gpa, from.len() as u64);
        Ok(())
    }
    fn load(&self, gpa: Gpa, width: Width) -> Result<u64, NotRam> {
        self.0.memory.load(gpa, width)
    }
    fn store(&self, gpa: Gpa, width: Width, value: u64) -> Result<(), NotRam> {
        self.0.touch(gpa, 8);
        self.0.memory.store(gpa, width, value)
    }
    fn compare_exchange(&self, gpa: Gpa, width: Width, current: u64, new: u64) -> Result<Result<u64, u64>, NotRam> {
        self.0.touch(gpa, 8);
        self.0.memory.compare_exchange(gpa, width, current, new)
    }
    fn is_ram(&self, gpa: Gpa, len: u64) -> bool {
        self.0.memory.is_ram(gpa, len)
    }
}

/// Puts up to 255 bytes of the script into RAM.
pub fn write_ram(script: &mut Input<'_>, ram: &SharedRam) {
    let at = Gpa(match script.u8() & 3 {
        0 => CODE,
        1 => CODE + u64::from(script.u16()),
        2 => LONG + u64::from(script.u16()) % (TABLES_END - LONG),
        _ => u64::from(script.u32()) % (TOP + PAGE),
    });
    // What runs over the end is refused, and that is all.
    let _ = ram.write(at, script.slice(255));
}

/// A processor in one of the modes, with registers near things of interest.
pub fn state(script: &mut Input<'_>) -> ArchState {
    let mode = script.u8();
    let mut state = ArchState::reset(0x0080_0f12);
    state.rip = CODE;
    state.rflags = rflags::FIXED;
    let mut code = Segment::real_mode(0);
    let mut data = Segment::real_mode(0);
    if mode & 7 != 0 {
        state.cr0 = cr0::PE | cr0::ET | cr0::NE;
        code = Segment::flat_code32(8);
        data = Segment::flat_data(16);
    }
    match mode & 7 {
        0 | 1 => {}
        2 => {
            code.attributes = SegmentAttributes::from_bits(0x809b);
            data.attributes = SegmentAttributes::from_bits(0x8093);
        }
        3 => (state.cr0, state.cr3, state.cr4) = (state.cr0 | cr0::PG, LEGACY, cr4::PSE),
        4 => (state.cr0, state.cr3, state.cr4) = (state.cr0 | cr0::PG, PAE, cr4::PAE),
        5..=7 => {
            (state.cr0, state.cr3, state.cr4) = (state.cr0 | cr0::PG, LONG, cr4::PAE | cr4::OSFXSR | cr4::OSXSAVE);
            (state.efer, state.xcr0) = (efer::LME | efer::LMA | efer::NXE | efer::SCE, 7);
            if mode & 7 != 5 {
                code = Segment::flat_code64(8);
            }
        }
        _ => unreachable!("three bits"),
    }
    if mode & 8 != 0 {
        code.attributes.set_dpl(3);
        data.attributes.set_dpl(3);
    }
    if mode & 16 != 0 {
        state.cr0 |= cr0::WP | cr0::AM;
        state.cr4 |= cr4::SMEP | cr4::SMAP;
    }
    state.segments[..6].fill(data);
    state.segments[SegmentName::Cs as usize] = code;
    if mode & 32 != 0 {
        mutate(script, &mut state);
    }
    if mode & 64 != 0 {
        state.rip = script.value();
    }
    for register in Gpr::ALL {
        state.gprs.set(register, address(script));
    }
    state
}

/// Changes anything in a state: what a guest can do between two exits, and more.
fn mutate(script: &mut Input<'_>, state: &mut ArchState) {
    for _ in 0..script.below(4) {
        let value = script.value();
        match script.u8() % 12 {
            0 => state.cr0 ^= value & 0xffff_ffff,
            1 => state.cr3 = value,
            2 => state.cr4 ^= value & 0xffff_ffff,
            3 => state.efer ^= value & 0xffff,
            4 => state.rflags ^= value & 0x003f_ffff,
            5 => state.xcr0 = value,
            6 => state.gdtr.base = value,
            7 => state.segments[script.below(8)].base = value,
            8 => state.segments[script.below(8)].limit = value as u32,
            9 => {
                let segment = &mut state.segments[script.below(8)];
                segment.attributes =
                    SegmentAttributes::from_bits(segment.attributes.into_bits() ^ value as u32 & 0x1_f0ff);
            }
            10 => state.dr7 = value,
            _ => state.cr2 = value,
        }
    }
}

/// Places in the guest-physical address space where devices are, or that are edges of RAM and of the space itself.
pub const PLACES: [u64; 12] = [
    0xfee0_0000,
    0xfec0_0000,
    0xfed0_0000,
    0xb000_0000,
    0xfed1_c000,
    TOP,
    0xa_0000,
    1 << 32,
    0xffff_f000,
    1 << 40,
    0x000f_ffff_ffff_f000,
    u64::MAX - 4095,
];

/// An address: in RAM, at a device, at an edge, or any value.
pub fn address(script: &mut Input<'_>) -> u64 {
    let form = script.u8();
    match form & 7 {
        0 => script.u8().into(),
        1 => CODE + u64::from(script.u16()),
        2..=4 => PLACES[usize::from(form >> 3) % PLACES.len()].wrapping_add(script.u16() as u64 & 0xfff),
        5 => PLACES[usize::from(form >> 3) % PLACES.len()].wrapping_sub(script.u8().into()),
        _ => script.value(),
    }
}

/// A vCPU that has room for what a script makes it remember.
pub fn vcpu(state: ArchState) -> ScriptedVcpu {
    let mut vcpu = ScriptedVcpu::new(state, []);
    vcpu.exits.reserve(8);
    vcpu.resumes.reserve(8);
    vcpu.injected.reserve(8);
    vcpu
}

/// Forgets what the vCPU remembers, without giving its room back.
pub fn forget(vcpu: &mut ScriptedVcpu, script: &mut Input<'_>) {
    vcpu.exits.clear();
    vcpu.resumes.clear();
    vcpu.injected.clear();
    let windows = script.u8();
    vcpu.interrupts = if windows & 1 != 0 { Window::Closed } else { Window::Open };
    vcpu.nmis = if windows & 2 != 0 { Window::Closed } else { Window::Open };
    if vcpu.rflags() & rflags::IF == 0 && windows & 4 != 0 {
        vcpu.interrupts = Window::Closed;
    }
}
