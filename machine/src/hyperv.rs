//! The Hyper-V interface: minimum, frequency MSRs, reference TSC page, TSC-invariant control.
//!
//! Source: Microsoft "Hypervisor Top Level Functional Specification" 6.0b (TLFS), chapters 2 (discovery), 3 (hypercalls),
//! 12 (timers), and "Requirements for Implementing the Microsoft Hypervisor Interface". What is advertised is implemented;
//! what is not advertised raises #GP. The interface tells Linux and Windows the TSC frequency, so that neither calibrates
//! by thousands of port reads.
//!
//! Overlay pages are written into guest RAM at the address the guest names; they are constant while mapped, and the RAM
//! below is not kept (TLFS 5.2.1 lets the guest assume nothing about it once it is covered).

use alloc::vec::Vec;
use memory::{Gpa, GuestMemory, Width};
use vcpu::CpuidAnswer;

/// Synthetic MSRs, TLFS appendix C.
#[allow(missing_docs)]
pub mod msr {
    pub const GUEST_OS_ID: u32 = 0x4000_0000;
    pub const HYPERCALL: u32 = 0x4000_0001;
    pub const VP_INDEX: u32 = 0x4000_0002;
    pub const TIME_REF_COUNT: u32 = 0x4000_0020;
    pub const REFERENCE_TSC: u32 = 0x4000_0021;
    pub const TSC_FREQUENCY: u32 = 0x4000_0022;
    pub const APIC_FREQUENCY: u32 = 0x4000_0023;
    pub const VP_ASSIST_PAGE: u32 = 0x4000_0073;
    pub const CRASH_P0: u32 = 0x4000_0100;
    pub const CRASH_P4: u32 = 0x4000_0104;
    pub const CRASH_CTL: u32 = 0x4000_0105;
    pub const TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;
}

/// Rate of the reference counter: 100 ns units.
const REFERENCE_HZ: u64 = 10_000_000;

/// TLFS 2.4.4 "Hypervisor Feature Identification", leaf 4000_0003h EAX: partition reference counter, hypercall MSRs, VP
/// index MSR, reference TSC page, frequency MSRs.
const PRIVILEGES: u32 = 1 << 1 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11;
/// Leaf 4000_0003h EAX: TSC-invariant control MSR.
const ACCESS_TSC_INVARIANT: u32 = 1 << 15;
/// Leaf 4000_0003h EDX: frequency MSRs, guest crash MSRs.
const FEATURES: u32 = 1 << 8 | 1 << 10;
/// Leaf 4000_0004h EAX: relaxed timing is recommended.
const RECOMMENDATIONS: u32 = 1 << 5;
/// Leaf 4000_0004h EBX: never notify the hypervisor about spinning.
const NEVER_SPIN: u32 = u32::MAX;

/// Enable bit of HYPERCALL, REFERENCE_TSC and VP_ASSIST_PAGE.
const ENABLE: u64 = 1;
/// Bit 1 of HYPERCALL: no more writes until reset.
const LOCKED: u64 = 1 << 1;
/// The crash control bits that the guest may set: crash notify, with message.
const CRASH_NOTIFY: u64 = 1 << 63;

/// HV_STATUS_INVALID_HYPERCALL_CODE, TLFS appendix B.
pub const INVALID_HYPERCALL_CODE: u64 = 2;

/// The vendor string of leaf 4000_0000h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// "Microsoft Hv", the only one that Linux believes.
    Microsoft,
    /// "GearshiftHv ", for guests that only need "Hv#1".
    Gearshift,
}

/// What is fixed for the machine's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HypervConfig {
    /// Vendor string.
    pub signature: Signature,
    /// Guest TSC rate in hertz.
    pub tsc_hz: u64,
    /// Local APIC timer rate in hertz, before its divider.
    pub apic_hz: u64,
    /// The TSC runs at one rate always.
    pub invariant_tsc: bool,
    /// vCPUs in the machine.
    pub vcpus: u32,
}

/// The CPUID leaves, TLFS 2.4 "Hypervisor CPUID Leaves".
pub fn leaves(config: &HypervConfig) -> Vec<(u32, CpuidAnswer)> {
    let signature: &[u8; 12] = match config.signature {
        Signature::Microsoft => b"Microsoft Hv",
        Signature::Gearshift => b"GearshiftHv ",
    };
    let word = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&signature[at..at + 4]);
        u32::from_le_bytes(bytes)
    };
    let invariant = if config.invariant_tsc { ACCESS_TSC_INVARIANT } else { 0 };
    let answer = |eax, ebx, ecx, edx| CpuidAnswer { eax, ebx, ecx, edx };
    alloc::vec![
        (0x4000_0000, answer(0x4000_0006, word(0), word(4), word(8))),
        (0x4000_0001, answer(u32::from_le_bytes(*b"Hv#1"), 0, 0, 0)),
        (0x4000_0002, answer(0, 0, 0, 0)),
        (0x4000_0003, answer(PRIVILEGES | invariant, 0, 0, FEATURES)),
        (0x4000_0004, answer(RECOMMENDATIONS, NEVER_SPIN, 0, 0)),
        (0x4000_0005, answer(config.vcpus, config.vcpus, 0, 0)),
        (0x4000_0006, answer(0, 0, 0, 0)),
    ]
}

/// The access raises #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// State of the whole partition.
pub struct Partition {
    config: HypervConfig,
    guest_os_id: u64,
    hypercall: u64,
    reference_tsc: u64,
    tsc_invariant_control: u64,
    crash: [u64; 5],
    crashed: bool,
}

/// State of one virtual processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualProcessor {
    /// Its index, unique in the partition.
    pub index: u32,
    assist_page: u64,
}

impl VirtualProcessor {
    /// A virtual processor after reset.
    pub const fn new(index: u32) -> VirtualProcessor {
        VirtualProcessor { index, assist_page: 0 }
    }
}

/// Moments that an access may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The guest's TSC.
    pub tsc: u64,
}

impl Partition {
    /// A partition after reset.
    pub fn new(config: HypervConfig) -> Partition {
        Partition {
            config,
            guest_os_id: 0,
            hypercall: 0,
            reference_tsc: 0,
            tsc_invariant_control: 0,
            crash: [0; 5],
            crashed: false,
        }
    }

    /// Platform reset. Reference time runs on: it must be monotonic across a reset.
    pub fn reset(&mut self) {
        *self = Partition::new(self.config);
    }

    /// Whether the guest's VMCALL or VMMCALL is a hypercall now.
    pub fn hypercalls_enabled(&self) -> bool {
        self.hypercall & ENABLE != 0
    }

    /// Whether CPUID should show the invariant TSC because the guest asked for it.
    pub fn invariant_tsc_exposed(&self) -> bool {
        self.tsc_invariant_control & 1 != 0
    }

    /// The five crash parameters, once, after the guest reported a crash.
    pub fn take_crash(&mut self) -> Option<[u64; 5]> {
        core::mem::take(&mut self.crashed).then_some(self.crash)
    }

    /// Scale of the reference TSC page: TLFS 12.7.1, time = (tsc * scale >> 64) + offset.
    fn scale(&self) -> u64 {
        ((u128::from(REFERENCE_HZ) << 64) / u128::from(self.config.tsc_hz.max(REFERENCE_HZ + 1))) as u64
    }

    fn reference_time(&self, tsc: u64) -> u64 {
        ((u128::from(tsc) * u128::from(self.scale())) >> 64) as u64
    }

    /// RDMSR of 4000_0000h to 4000_01FFh.
    pub fn read(&self, msr: u32, processor: &VirtualProcessor, now: Moment) -> Result<u64, Refused> {
        Ok(match msr {
            msr::GUEST_OS_ID => self.guest_os_id,
            msr::HYPERCALL => self.hypercall,
            msr::VP_INDEX => processor.index.into(),
            msr::TIME_REF_COUNT => self.reference_time(now.tsc),
            msr::REFERENCE_TSC => self.reference_tsc,
            msr::TSC_FREQUENCY => self.config.tsc_hz,
            msr::APIC_FREQUENCY => self.config.apic_hz,
            msr::VP_ASSIST_PAGE => processor.assist_page,
            msr::CRASH_P0..=msr::CRASH_P4 => match self.crash.get((msr - msr::CRASH_P0) as usize) {
                Some(parameter) => *parameter,
                None => return Err(Refused),
            },
            msr::CRASH_CTL => CRASH_NOTIFY,
            msr::TSC_INVARIANT_CONTROL if self.config.invariant_tsc => self.tsc_invariant_control,
            _ => return Err(Refused),
        })
    }

    /// WRMSR of 4000_0000h to 4000_01FFh. `vendor_call` is the three bytes of the vendor's hypercall instruction.
    pub fn write<M: GuestMemory>(
        &mut self,
        msr: u32,
        value: u64,
        processor: &mut VirtualProcessor,
        ram: &M,
        vendor_call: [u8; 3],
    ) -> Result<(), Refused> {
        match msr {
            msr::GUEST_OS_ID => {
                self.guest_os_id = value;
                // TLFS 3.13: clearing the identity disables the hypercall page.
                if value == 0 {
                    self.hypercall &= !ENABLE;
                }
            }
            msr::HYPERCALL => {
                if self.hypercall & LOCKED != 0 {
                    return Ok(());
                }
                let enable = value & ENABLE != 0 && self.guest_os_id != 0;
                if enable {
                    fill_hypercall_page(ram, value, vendor_call)?;
                }
                self.hypercall = if enable { value } else { value & !ENABLE };
            }
            msr::REFERENCE_TSC => {
                if value & ENABLE != 0 {
                    self.fill_reference_page(ram, value)?;
                }
                self.reference_tsc = value;
            }
            msr::VP_ASSIST_PAGE => {
                if value & ENABLE != 0 {
                    ram.fill(overlay(value), 0, memory::PAGE_SIZE).map_err(|_| Refused)?;
                }
                processor.assist_page = value;
            }
            msr::CRASH_P0..=msr::CRASH_P4 => match self.crash.get_mut((msr - msr::CRASH_P0) as usize) {
                Some(parameter) => *parameter = value,
                None => return Err(Refused),
            },
            msr::CRASH_CTL => self.crashed |= value & CRASH_NOTIFY != 0,
            msr::TSC_INVARIANT_CONTROL if self.config.invariant_tsc && value & !1 == 0 => {
                self.tsc_invariant_control = value;
            }
            // VP_INDEX, TIME_REF_COUNT and the frequencies are read-only.
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// TLFS 12.7.2 "Partition Reference TSC Page": sequence, reserved, scale, offset.
    fn fill_reference_page<M: GuestMemory>(&self, ram: &M, value: u64) -> Result<(), Refused> {
        let page = overlay(value);
        ram.fill(page, 0, memory::PAGE_SIZE).map_err(|_| Refused)?;
        ram.store(page.wrapping_add(8), Width::Qword, self.scale()).map_err(|_| Refused)?;
        ram.store(page.wrapping_add(16), Width::Qword, 0).map_err(|_| Refused)?;
        // A sequence of 0 means "page not valid"; the TSC's rate never changes here, so 1 stays.
        ram.store(page, Width::Dword, 1).map_err(|_| Refused)
    }
}

/// The overlay page's address: bits 63:12 hold the guest page frame number.
fn overlay(value: u64) -> Gpa {
    Gpa(value).page()
}

/// The hypercall page: the vendor's instruction and RET at its start, INT3 behind.
fn fill_hypercall_page<M: GuestMemory>(ram: &M, value: u64, vendor_call: [u8; 3]) -> Result<(), Refused> {
    const RET: u8 = 0xc3;
    const INT3: u8 = 0xcc;
    let page = overlay(value);
    ram.fill(page, INT3, memory::PAGE_SIZE).map_err(|_| Refused)?;
    let [first, second, third] = vendor_call;
    ram.write(page, &[first, second, third, RET]).map_err(|_| Refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::SparseMemory;

    const CONFIG: HypervConfig = HypervConfig {
        signature: Signature::Microsoft,
        tsc_hz: 2_500_000_000,
        apic_hz: 1_000_000_000,
        invariant_tsc: true,
        vcpus: 1,
    };
    const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];
    const NOW: Moment = Moment { tsc: 25_000_000_000 };

    fn setup() -> (Partition, VirtualProcessor, SparseMemory) {
        (Partition::new(CONFIG), VirtualProcessor::new(0), SparseMemory::new(&[(0, 0x10000)]))
    }

    #[test]
    fn the_minimum_is_advertised_and_nothing_beyond() {
        let leaves = leaves(&CONFIG);
        assert_eq!(leaves[0].1.ebx.to_le_bytes(), *b"Micr");
        assert_eq!(leaves[1].1.eax, 0x3123_7648);
        let three = leaves[3].1;
        assert_eq!(three.eax & 0x60, 0x60, "hypercall and VP index MSRs");
        assert_eq!(three.ebx, 0);
        assert_eq!(three.eax & (1 << 2 | 1 << 3), 0, "no SynIC, no synthetic timers");
        assert_eq!(leaves.iter().filter(|(leaf, _)| *leaf == 0x4000_0005).count(), 1);
    }

    #[test]
    fn the_hypercall_page_needs_an_identity_and_holds_the_vendors_call() {
        let (mut partition, mut vp, ram) = setup();
        partition.write(msr::HYPERCALL, 0x3001, &mut vp, &ram, VMMCALL).unwrap();
        assert!(!partition.hypercalls_enabled());
        partition.write(msr::GUEST_OS_ID, 0x8100_0000, &mut vp, &ram, VMMCALL).unwrap();
        partition.write(msr::HYPERCALL, 0x3001, &mut vp, &ram, VMMCALL).unwrap();
        assert!(partition.hypercalls_enabled());
        assert_eq!(ram.load(Gpa(0x3000), Width::Dword), Ok(0xc3d9_010f));
        partition.write(msr::GUEST_OS_ID, 0, &mut vp, &ram, VMMCALL).unwrap();
        assert!(!partition.hypercalls_enabled());
    }

    #[test]
    fn a_page_outside_ram_is_refused_and_nothing_changes() {
        let (mut partition, mut vp, ram) = setup();
        partition.write(msr::GUEST_OS_ID, 1, &mut vp, &ram, VMMCALL).unwrap();
        assert_eq!(partition.write(msr::HYPERCALL, u64::MAX, &mut vp, &ram, VMMCALL), Err(Refused));
        assert_eq!(partition.read(msr::HYPERCALL, &vp, NOW), Ok(0));
    }

    #[test]
    fn the_reference_page_and_the_counter_agree() {
        let (mut partition, mut vp, ram) = setup();
        partition.write(msr::REFERENCE_TSC, 0x4001, &mut vp, &ram, VMMCALL).unwrap();
        assert_eq!(ram.load(Gpa(0x4000), Width::Dword), Ok(1));
        let scale = ram.load(Gpa(0x4008), Width::Qword).unwrap();
        let by_page = ((u128::from(NOW.tsc) * u128::from(scale)) >> 64) as u64;
        assert_eq!(partition.read(msr::TIME_REF_COUNT, &vp, NOW), Ok(by_page));
        assert!(by_page.abs_diff(100_000_000) <= 1, "10 s are 10^8 units: {by_page}");
    }

    #[test]
    fn read_only_and_unknown_registers_refuse() {
        let (mut partition, mut vp, ram) = setup();
        for register in
            [msr::VP_INDEX, msr::TIME_REF_COUNT, msr::TSC_FREQUENCY, msr::APIC_FREQUENCY, 0x4000_0080, 0x4000_00b0]
        {
            assert_eq!(partition.write(register, 0, &mut vp, &ram, VMMCALL), Err(Refused), "{register:#x}");
        }
        assert_eq!(partition.read(0x4000_0080, &vp, NOW), Err(Refused));
        assert_eq!(partition.read(msr::TSC_FREQUENCY, &vp, NOW), Ok(2_500_000_000));
    }

    #[test]
    fn a_crash_is_reported_once_with_its_parameters() {
        let (mut partition, mut vp, ram) = setup();
        for number in 0..5 {
            partition.write(msr::CRASH_P0 + number, u64::from(number) + 10, &mut vp, &ram, VMMCALL).unwrap();
        }
        assert_eq!(partition.take_crash(), None);
        partition.write(msr::CRASH_CTL, 1 << 63, &mut vp, &ram, VMMCALL).unwrap();
        assert_eq!(partition.take_crash(), Some([10, 11, 12, 13, 14]));
        assert_eq!(partition.take_crash(), None);
    }
}
