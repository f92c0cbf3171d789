//! What a guest's VMCB asks for, derived as data from the [`Capability`].
//!
//! Manual: AMD APM volume 2 (24593, revision 3.42), 15.9 "Instruction Intercepts", 15.10 "IOIO Intercepts", 15.11 "MSR
//! Intercepts", 15.12 "Exception Intercepts". Key types: [`Controls`], and the content of the MSR permission map.
//! Neighbours: `capability` says what is possible, `vmcb` has the fields, `region` the memory.
//!
//! What does not exit, and why that is safe:
//! * CR0, CR3, CR4 and DR0-7. Nested paging makes guest paging the guest's own affair. CR0.CD and NW are left as the guest
//!   writes them: with nested paging CD slows down that guest's own memory and nothing else. DR0-3 are switched with the
//!   vCPU, DR6 and DR7 by the processor. CR8 is V_TPR (`lib` intercepts its writes at times, on one kind of processor).
//! * RDTSC, RDTSCP: TSC offset, and TSC_AUX is switched with the vCPU.
//! * The MSRs that VMRUN, VMLOAD and VMSAVE switch. EFER exits: SVME has to stay set and hidden. PAT exits: a bad value must
//!   raise #GP.
//! * SPEC_CTRL, where guests have it: it is switched with the vCPU, by the processor or with it. Writes of PRED_CMD: a barrier
//!   slows down nobody but its CPU.
//! * SMI: system management mode belongs to the firmware, which runs it outside of the guest.
//!
//! #DB and #AC exit though the guest gets them right back: a guest can make their delivery raise them again for ever, and
//! only the exit lets a pending host interrupt in (CVE-2015-5307, CVE-2015-8104).

use crate::capability::{Capability, Features};
use crate::vmcb::{ControlArea, Intercept3, Intercept4, Intercept5, InterruptControl, NestedControl};
use vcpu::speculation::PRED_CMD;
use vcpu::{Exception, SystemMsr};

/// Runs of PAUSE that are let through before one exits; long enough for a lock that is held for a moment.
const PAUSE_COUNT: u16 = 3000;
/// TSC ticks after which a PAUSE begins a new run.
const PAUSE_THRESHOLD: u16 = 128;

/// Bytes of the MSR permission map, APM 2 15.11 "MSR Intercepts".
pub const MSR_MAP_BYTES: usize = 0x2000;
/// Bytes of the I/O permission map, APM 2 15.10.1 "I/O Permissions Map".
pub const IO_MAP_BYTES: usize = 0x3000;

/// FS.base and GS.base as MSRs; VMLOAD and VMSAVE switch them.
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;

/// The constant part of a guest's control area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Controls {
    /// One bit for each exception vector that exits.
    pub exceptions: u32,
    pub intercept_3: Intercept3,
    pub intercept_4: Intercept4,
    pub intercept_5: Intercept5,
    /// (count, threshold); zeroes without a pause filter.
    pub pause_filter: (u16, u16),
    pub interrupt_control: InterruptControl,
    pub nested_control: NestedControl,
}

impl Controls {
    /// What this processor is asked for.
    pub fn derive(capability: &Capability) -> Controls {
        let pause = capability.has(Features::PAUSE_FILTER);
        let threshold = pause && capability.has(Features::PAUSE_FILTER_THRESHOLD);
        Controls {
            exceptions: 1 << Exception::DB | 1 << Exception::AC | 1 << Exception::MC,
            intercept_3: Intercept3::new()
                .with_intr(true)
                .with_nmi(true)
                .with_init(true)
                .with_rdpmc(true)
                .with_cpuid(true)
                .with_rsm(true)
                .with_invd(true)
                .with_pause(pause)
                .with_hlt(true)
                .with_invlpga(true)
                .with_ioio(true)
                .with_msr(true)
                .with_task_switch(true)
                .with_ferr_freeze(true)
                .with_shutdown(true),
            intercept_4: Intercept4::new()
                .with_vmrun(true)
                .with_vmmcall(true)
                .with_vmload(true)
                .with_vmsave(true)
                .with_stgi(true)
                .with_clgi(true)
                .with_skinit(true)
                .with_wbinvd(true)
                .with_monitor(true)
                .with_mwait(true)
                .with_xsetbv(true)
                .with_rdpru(capability.has(Features::RDPRU)),
            intercept_5: Intercept5::new()
                .with_invlpgb(capability.has(Features::INVLPGB))
                .with_tlbsync(capability.has(Features::INVLPGB))
                .with_mcommit(capability.has(Features::MCOMMIT)),
            pause_filter: (if pause { PAUSE_COUNT } else { 0 }, if threshold { PAUSE_THRESHOLD } else { 0 }),
            interrupt_control: InterruptControl::new()
                .with_masking(true)
                .with_nmi_enable(capability.has(Features::VIRTUAL_NMI)),
            nested_control: NestedControl::new().with_nested_paging(true),
        }
    }

    /// Writes them into a control area.
    pub fn apply(&self, area: &mut ControlArea) {
        area.intercept_cr_reads = 0;
        area.intercept_cr_writes = 0;
        area.intercept_dr_reads = 0;
        area.intercept_dr_writes = 0;
        area.intercept_exceptions = self.exceptions;
        area.intercept_3 = self.intercept_3;
        area.intercept_4 = self.intercept_4;
        area.intercept_5 = self.intercept_5;
        (area.pause_filter_count, area.pause_filter_threshold) = self.pause_filter;
        area.interrupt_control = self.interrupt_control;
        area.nested_control = self.nested_control;
    }
}

/// Where the two bits of `msr` lie in the map: byte, and bit of the read intercept; the write intercept is the next bit.
/// `None` for MSRs that the map does not cover, which always exit.
fn msr_bits(msr: u32) -> Option<(usize, u32)> {
    let (region, index) = match msr {
        0..=0x1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (0x800, msr - 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, msr - 0xc001_0000),
        _ => return None,
    };
    Some((region + (index / 4) as usize, index % 4 * 2))
}

/// The MSRs that do not exit.
fn passed_through(capability: &Capability) -> impl Iterator<Item = u32> {
    let rdtscp = capability.has(Features::RDTSCP);
    let spec_ctrl = capability.speculation.passes_spec_ctrl();
    let switched = SystemMsr::ALL.into_iter().filter(move |msr| match msr {
        SystemMsr::Star
        | SystemMsr::Lstar
        | SystemMsr::Cstar
        | SystemMsr::Sfmask
        | SystemMsr::KernelGsBase
        | SystemMsr::SysenterCs
        | SystemMsr::SysenterEsp
        | SystemMsr::SysenterEip => true,
        SystemMsr::TscAux => rdtscp,
        SystemMsr::SpecCtrl => spec_ctrl,
        SystemMsr::Pat | SystemMsr::DebugCtl => false,
    });
    switched.map(SystemMsr::number).chain([FS_BASE, GS_BASE])
}

/// Fills the MSR permission map: everything exits but what is switched with the guest.
pub fn fill_msr_map(map: &mut [u8; MSR_MAP_BYTES], capability: &Capability) {
    map.fill(0xff);
    for (byte, bit) in passed_through(capability).filter_map(msr_bits) {
        map[byte] &= !(3 << bit);
    }
    if capability.speculation.guest.barrier
        && let Some((byte, bit)) = msr_bits(PRED_CMD)
    {
        // The register cannot be read.
        map[byte] &= !(2 << bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::tests::{matisse, qemu};
    use alloc::boxed::Box;

    fn exits(map: &[u8; MSR_MAP_BYTES], msr: u32) -> (bool, bool) {
        // As the processor looks it up: 2 bits an MSR, 2 KiB a range.
        let bit = match msr >> 16 {
            0 => msr as usize * 2,
            0xc000 => 0x800 * 8 + (msr & 0xffff) as usize * 2,
            _ => 0x1000 * 8 + (msr & 0xffff) as usize * 2,
        };
        let get = |bit: usize| map[bit / 8] >> (bit % 8) & 1 != 0;
        (get(bit), get(bit + 1))
    }

    #[test]
    fn only_switched_msrs_are_reached_without_an_exit() {
        let capability = Capability::detect(&qemu, || 0).unwrap();
        let mut map = Box::new([0; MSR_MAP_BYTES]);
        fill_msr_map(&mut map, &capability);
        let open = [
            0x174,
            0x175,
            0x176,
            0xc000_0081,
            0xc000_0082,
            0xc000_0083,
            0xc000_0084,
            0xc000_0100,
            0xc000_0101,
            0xc000_0102,
            0xc000_0103,
        ];
        for msr in (0..0x2000).chain(0xc000_0000..0xc000_2000).chain(0xc001_0000..0xc001_2000) {
            let expected = !open.contains(&msr);
            assert_eq!(exits(&map, msr), (expected, expected), "{msr:#x}");
        }
        assert!(map[0x1800..].iter().all(|&byte| byte == 0xff), "the reserved quarter stays closed");
    }

    #[test]
    fn speculation_control_passes_where_guests_have_it() {
        let mut map = Box::new([0u8; MSR_MAP_BYTES]);
        fill_msr_map(&mut map, &Capability::detect(&matisse, || 0).unwrap());
        assert_eq!(exits(&map, 0x48), (false, false));
        assert_eq!(exits(&map, 0x49), (true, false));
        fill_msr_map(&mut map, &Capability::detect(&qemu, || 0).unwrap());
        assert_eq!((exits(&map, 0x48), exits(&map, 0x49)), ((true, true), (true, true)));
    }

    #[test]
    fn tsc_aux_exits_where_it_is_not_switched() {
        let mut capability = Capability::detect(&qemu, || 0).unwrap();
        capability.features.remove(Features::RDTSCP);
        let mut map = Box::new([0; MSR_MAP_BYTES]);
        fill_msr_map(&mut map, &capability);
        assert_eq!(exits(&map, 0xc000_0103), (true, true));
    }

    #[test]
    fn nothing_is_asked_for_that_the_processor_does_not_have() {
        let plain = Controls::derive(&Capability::detect(&qemu, || 0).unwrap());
        assert!(!plain.intercept_3.pause() && !plain.intercept_4.rdpru());
        assert_eq!(plain.pause_filter, (0, 0));
        assert_eq!(plain.intercept_5.into_bits(), 0);
        let rich = Controls::derive(&Capability::detect(&matisse, || 0).unwrap());
        assert!(rich.intercept_3.pause() && rich.intercept_4.rdpru() && rich.intercept_5.mcommit());
        assert_eq!(rich.pause_filter, (3000, 128));
    }

    #[test]
    fn every_svm_instruction_and_host_event_exits() {
        let controls = Controls::derive(&Capability::detect(&qemu, || 0).unwrap());
        // VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT.
        assert_eq!(controls.intercept_4.into_bits() & 0x7f, 0x7f);
        // INTR, NMI, INIT; INVLPGA, IOIO, MSR, task switch; shutdown.
        assert_eq!(controls.intercept_3.into_bits() & 0xbc00_000b, 0xbc00_000b);
        assert_eq!(controls.exceptions, 1 << 1 | 1 << 17 | 1 << 18);
        assert!(controls.interrupt_control.masking());
    }
}
