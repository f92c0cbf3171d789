//! One vCPU with what belongs to it alone: local APIC, MSRs, CPUID table, flight recorder, activity.
//!
//! Key types: [`Processor`] and [`Core`] (all of it but the vCPU, so that a handler can hold both), [`Outcome`] (why the
//! run loop came back), [`VcpuHost`] (what it needs of the host). The loop itself is in [`crate::run`], the handlers are
//! in [`crate::dispatch`], what is pending is delivered in [`crate::attend`].

use crate::Machine;
use crate::access::Retries;
use crate::cpuid::{CpuidTable, Dynamic};
use crate::emulate::Emulator;
use crate::hyperv::VirtualProcessor;
use crate::msr::MsrFile;
use crate::recorder::Recorder;
use crate::stop::Stop;
use crate::tsc::ProcessorTsc;
use alloc::sync::Arc;
use devices::lapic::{ApicMode, LocalApic};
use devices::{Nanos, PowerEvent};
use memory::GuestMemory;
use vcpu::{ArchState, Mailbox, Post, Vcpu};

/// What a vCPU's run loop needs of the host that runs it.
pub trait VcpuHost: Send + Sync {
    /// Guest time now.
    fn now(&self) -> Nanos;
    /// The vCPU wants to leave guest mode, or to be run again, at or soon after `until`. Replaces the last wish. Returns
    /// the host TSC by which the next run must end, for processors that can bound a run by themselves: the wish or the end
    /// of the time slice, whichever is earlier.
    fn set_alarm(&self, until: Option<Nanos>) -> Option<u64>;
    /// Another task of this host CPU should run now.
    fn should_yield(&self) -> bool;
}

/// Why a run came back to the scheduler.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing to run until the mailbox gets something or, if given, this moment comes.
    Blocked {
        /// The vCPU's own next deadline.
        until: Option<Nanos>,
    },
    /// The host wants its CPU back; the vCPU could go on.
    Preempted,
    /// The guest asked for this; every vCPU of the machine comes back with it.
    Power(PowerEvent),
    /// The machine cannot go on; every other vCPU of it has been told to stop.
    Stopped(Stop),
}

/// What a processor does when it is not stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Executes instructions.
    Running,
    /// After HLT, until an interrupt, NMI or INIT.
    Halted,
    /// After INIT, until a start-up IPI. A software state: the hardware never waits for SIPI.
    WaitForStartUp,
}

/// Everything of one vCPU but the [`Vcpu`] itself.
pub struct Core<M: GuestMemory> {
    /// Its number, from 0; 0 is the bootstrap processor.
    pub number: u32,
    /// What all vCPUs share.
    pub machine: Arc<Machine<M>>,
    /// What others post.
    pub mailbox: Arc<Mailbox>,
    /// Its local APIC.
    pub apic: LocalApic,
    /// What CPUID says.
    pub cpuid: CpuidTable,
    /// MSRs that only hold values.
    pub msrs: MsrFile,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// Its counter, as its local APIC knows it.
    pub(crate) tsc: Arc<ProcessorTsc>,
    /// Hyper-V state.
    pub virtual_processor: VirtualProcessor,
    /// Counts and last exits.
    pub recorder: Recorder,
    /// Decoded instructions.
    pub emulator: Emulator,
    /// The instruction that gets nowhere.
    pub(crate) retries: Retries,
    pub(crate) activity: Activity,
    pub(crate) host: Arc<dyn VcpuHost>,
    /// NMIs that wait, at most two: one latched while one is handled.
    pub(crate) nmis: u8,
    /// [`crate::attend`] has to look before the next entry.
    pub(crate) attention: bool,
    /// What the host was last asked for; `None` if that has to be asked anew.
    pub(crate) armed: Option<Option<Nanos>>,
}

impl<M: GuestMemory> Core<M> {
    /// The guest state that CPUID's answers depend on.
    #[inline]
    pub(crate) fn dynamic<V: Vcpu>(&self, vcpu: &V) -> Dynamic {
        Dynamic { cr4: vcpu.cr4(), xcr0: vcpu.xcr0(), apic_enabled: self.apic.port().mode() != ApicMode::Disabled }
    }
}

/// A vCPU that can be run.
pub struct Processor<V: Vcpu, M: GuestMemory> {
    /// The backend's vCPU.
    pub vcpu: V,
    /// The rest.
    pub core: Core<M>,
}

impl<V: Vcpu, M: GuestMemory> Processor<V, M> {
    /// Puts the processor in the state that a platform reset leaves, and starts it in `state` if it is the bootstrap
    /// processor; the others wait for their start-up IPI.
    pub fn reset(&mut self, state: Option<&ArchState>) {
        let reset = ArchState::reset(self.core.cpuid.signature());
        self.vcpu.set_state(state.unwrap_or(&reset));
        self.core.apic.reset();
        self.set_tsc_adjust(0);
        let core = &mut self.core;
        if state.is_some() {
            core.apic.set_virtual_wire();
        }
        core.msrs = MsrFile::new(core.cpuid.physical_address_bits());
        core.msrs.set_as_firmware_does(crate::layout::LOW_RAM_LIMIT);
        core.virtual_processor = VirtualProcessor::new(core.number);
        core.activity = if core.number == 0 { Activity::Running } else { Activity::WaitForStartUp };
        core.nmis = 0;
        core.attention = true;
        core.armed = None;
        let _ = core.mailbox.take();
        if core.machine.power.event().is_some() {
            // A stop that was asked for since the machine's reset was in the mailbox.
            core.mailbox.post(Post::STOP);
        }
        self.vcpu.request_interrupt_window(None);
        self.vcpu.request_nmi_window(false);
        self.vcpu.set_x2apic(false);
    }
}
