//! What all vCPUs of one virtual machine share: RAM, buses, devices, power and the Hyper-V partition.
//!
//! Key types: [`Machine`], [`MachineConfig`] and [`HostFacts`] (what it is made from), [`Services`] (the host's ends of its
//! wires). [`crate::pc`] builds it.

use crate::access::Retries;
use crate::control::ControlPolicy;
use crate::cpuid::{Allowed, CpuidTable, Topology};
use crate::emulate::{Emulator, PagingLimits};
use crate::hyperv::{self, Moment, Partition, Signature, VirtualProcessor};
use crate::msr::{MsrFile, Refused};
use crate::pc::Movable;
use crate::power::PowerLatch;
use crate::processor::{Activity, Core, Processor, VcpuHost};
use crate::recorder::Recorder;
use crate::tsc::{HostTsc, ProcessorTsc, TscLine};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use devices::lapic::{ApicBus, ApicFeatures, ApicWires, LocalApic, Role};
use devices::pci::PciBus;
use devices::pic::Pic;
use devices::rtc::WallTime;
use devices::{Accessed, Bus, ByteSink, ByteSource, Clock, EoiSink, Nanos, SharedDevice};
use memory::{Gpa, GuestMemory};
use spin::Mutex;
use vcpu::{CpuidAnswer, Mailbox, Post, Vcpu};

/// What the user chose for one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Bytes of RAM, a multiple of 2 MiB.
    pub memory: u64,
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// The Hyper-V interface, by its vendor string; `None` for none.
    pub hyperv: Option<Signature>,
    /// QEMU's debug-exit port, for test guests.
    pub debug_exit: bool,
    /// What the RTC shows when the machine starts.
    pub wall_time: WallTime,
}

/// What the host's hardware gives every machine.
#[derive(Clone, Copy)]
pub struct HostFacts<'a> {
    /// CPUID as the physical processor answers it.
    pub cpuid: &'a dyn Fn(u32, u32) -> CpuidAnswer,
    /// What the backend's controls allow.
    pub allowed: Allowed,
    /// Rate of the TSC in hertz.
    pub tsc_hz: u64,
}

/// The host's ends of a machine's wires.
#[derive(Clone)]
pub struct Services {
    /// Guest time.
    pub clock: Arc<dyn Clock>,
    /// The host's time-stamp counter.
    pub tsc: Arc<dyn HostTsc>,
    /// Where COM1 sends.
    pub console_output: Arc<dyn ByteSink>,
    /// Where COM1 receives from.
    pub console_input: Arc<dyn ByteSource>,
    /// Where port 402h sends.
    pub debug_output: Arc<dyn ByteSink>,
}

/// No device has to act by itself.
pub(crate) const NEVER: u64 = u64::MAX;

/// One virtual machine but for its vCPUs.
pub struct Machine<M: GuestMemory> {
    pub(crate) config: MachineConfig,
    pub(crate) ram: M,
    pub(crate) policy: ControlPolicy,
    pub(crate) paging_limits: PagingLimits,
    pub(crate) power: Arc<PowerLatch>,
    pub(crate) pic: Arc<Mutex<Pic>>,
    /// The level of the 8259 pair's INTR output.
    pub(crate) external: Arc<AtomicBool>,
    pub(crate) ports: Bus,
    pub(crate) memory: Bus,
    /// Every device, to be reset; those with deadlines first.
    pub(crate) devices: Vec<SharedDevice>,
    /// When the first of them has to act, in nanoseconds, as of the last look; [`NEVER`] if none has to.
    pub(crate) deadline: AtomicU64,
    /// That has changed since.
    pub(crate) deadline_changed: AtomicBool,
    /// The console UART among them.
    pub(crate) console: SharedDevice,
    pub(crate) partition: Option<Mutex<Partition>>,
    pub(crate) hyperv_config: Option<hyperv::HypervConfig>,
    pub(crate) apics: Arc<ApicBus>,
    pub(crate) eoi: Arc<dyn EoiSink>,
    pub(crate) mailboxes: Vec<Arc<Mailbox>>,
    pub(crate) services: Services,
    pub(crate) tsc: TscLine,
    pub(crate) pci: Arc<Mutex<PciBus>>,
    /// Set while [`Machine::move_windows`] has something to do.
    pub(crate) pci_changes: Arc<AtomicBool>,
    pub(crate) movable: Vec<Movable>,
}

impl<M: GuestMemory> Machine<M> {
    /// The machine's RAM.
    pub fn ram(&self) -> &M {
        &self.ram
    }

    /// What the user chose.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Reset and power-off requests.
    pub fn power(&self) -> &PowerLatch {
        &self.power
    }

    /// The mailbox of vCPU `number`.
    pub fn mailbox(&self, number: u32) -> Option<&Arc<Mailbox>> {
        self.mailboxes.get(number as usize)
    }

    /// The console's source has new bytes. Called by the bootstrap processor's task or any host task.
    pub fn console_has_input(&self) {
        self.console.expire(self.services.clock.now());
        self.note_deadline();
    }

    /// Platform reset of everything but the vCPUs. RAM keeps its contents, as on a PC.
    pub fn reset(&self) {
        for device in &self.devices {
            device.reset();
        }
        self.note_deadline();
        if let Some(partition) = &self.partition {
            partition.lock().reset();
        }
        self.tsc.reset();
        self.power.clear();
    }

    /// The parameters of a crash that the guest reported through the Hyper-V interface, once.
    pub fn take_crash(&self) -> Option<[u64; 5]> {
        self.partition.as_ref()?.lock().take_crash()
    }

    /// Makes the processor `number` out of a backend's vCPU; it has to be [`Processor::reset`] before it runs.
    ///
    /// # Panics
    /// There is no such number in this machine.
    pub fn processor<V: Vcpu>(
        self: &Arc<Self>,
        number: u32,
        vcpu: V,
        facts: &HostFacts<'_>,
        host: Arc<dyn VcpuHost>,
    ) -> Processor<V, M> {
        let port = self.apics.ports()[number as usize].clone();
        let cpuid = cpuid_table(facts, &self.config, number, self.hyperv_config.as_ref());
        let tsc = Arc::new(ProcessorTsc::new(self.services.tsc.clone()));
        let wires = ApicWires {
            bus: self.apics.clone(),
            eoi: self.eoi.clone(),
            clock: self.services.clock.clone(),
            tsc: tsc.clone(),
        };
        let features = ApicFeatures {
            x2apic: true,
            tsc_deadline: true,
            eoi_suppression: false,
            physical_bits: cpuid.physical_address_bits() as u8,
        };
        let role = if number == 0 { Role::Bootstrap } else { Role::Application };
        Processor {
            vcpu,
            core: Core {
                number,
                machine: self.clone(),
                mailbox: self.mailboxes[number as usize].clone(),
                apic: LocalApic::new(port, wires, features, role),
                msrs: MsrFile::new(cpuid.physical_address_bits()),
                cpuid,
                tsc_adjust: 0,
                tsc,
                virtual_processor: VirtualProcessor::new(number),
                recorder: Recorder::default(),
                emulator: Emulator::new(),
                retries: Retries::default(),
                activity: Activity::WaitForStartUp,
                host,
                nmis: 0,
                attention: true,
                armed: None,
            },
        }
    }

    // What processors ask for.

    #[inline]
    pub(crate) fn external_interrupt(&self) -> bool {
        self.external.load(Ordering::Acquire)
    }

    /// Lets the shared devices act on what is due at `now`; the next moment at which one has to.
    pub(crate) fn expire(&self, now: Nanos) -> Option<Nanos> {
        let changed =
            self.deadline_changed.load(Ordering::Relaxed) && self.deadline_changed.swap(false, Ordering::Acquire);
        if changed || self.deadline.load(Ordering::Relaxed) <= now.0 {
            let next = self.devices.iter().filter_map(|device| {
                if device.deadline()? <= now {
                    device.expire(now);
                }
                device.deadline()
            });
            self.deadline.store(next.min().map_or(NEVER, |at| at.0), Ordering::Relaxed);
        }
        match self.deadline.load(Ordering::Relaxed) {
            NEVER => None,
            nanos => Some(Nanos(nanos)),
        }
    }

    /// A device has another deadline since an access. Heeded by the next [`Machine::expire`].
    pub(crate) fn note_deadline(&self) {
        self.deadline_changed.store(true, Ordering::Release);
    }

    pub(crate) fn post_to_bootstrap(&self, what: Post) {
        if let Some(mailbox) = self.mailboxes.first() {
            mailbox.post(what);
        }
    }

    #[inline]
    pub(crate) fn read_port_bus(&self, port: u16, into: &mut [u8]) -> Accessed {
        self.ports.read(port.into(), into)
    }

    #[inline]
    pub(crate) fn write_port_bus(&self, port: u16, from: &[u8]) -> Accessed {
        let accessed = self.ports.write(port.into(), from);
        if self.pci_changes.load(Ordering::Relaxed) {
            self.move_windows();
        }
        accessed
    }

    #[inline]
    pub(crate) fn read_memory_bus(&self, gpa: Gpa, into: &mut [u8]) -> Accessed {
        self.memory.read(gpa.0, into)
    }

    #[inline]
    pub(crate) fn write_memory_bus(&self, gpa: Gpa, from: &[u8]) -> Accessed {
        let accessed = self.memory.write(gpa.0, from);
        if self.pci_changes.load(Ordering::Relaxed) {
            self.move_windows();
        }
        accessed
    }

    pub(crate) fn hypercalls_enabled(&self) -> bool {
        self.partition.as_ref().is_some_and(|partition| partition.lock().hypercalls_enabled())
    }

    pub(crate) fn hyperv_read(&self, msr: u32, processor: &VirtualProcessor, now: Moment) -> Result<u64, Refused> {
        let partition = self.partition.as_ref().ok_or(Refused)?;
        partition.lock().read(msr, processor, now).map_err(|_| Refused)
    }

    pub(crate) fn hyperv_write(
        &self,
        msr: u32,
        value: u64,
        processor: &mut VirtualProcessor,
        vendor_call: [u8; 3],
    ) -> Result<(), Refused> {
        let partition = self.partition.as_ref().ok_or(Refused)?;
        partition.lock().write(msr, value, processor, &self.ram, vendor_call).map_err(|_| Refused)
    }
}

/// The CPUID table of vCPU `number`.
pub(crate) fn cpuid_table(
    facts: &HostFacts<'_>,
    config: &MachineConfig,
    number: u32,
    hyperv_config: Option<&hyperv::HypervConfig>,
) -> CpuidTable {
    let leaves = hyperv_config.map(hyperv::leaves).unwrap_or_default();
    let topology = Topology { apic_id: number, vcpus: config.vcpus };
    CpuidTable::new(facts.cpuid, facts.allowed, topology, &leaves)
}
