//! One exit as the emulator sees it: the vCPU, the machine's memory and its devices.

use crate::Machine;
use crate::emulate::{Context, PagingLimits};
use devices::Accessed;
use devices::lapic::LocalApic;
use memory::{Gpa, GuestMemory, Width};
use vcpu::{Mailbox, Post, Vcpu};

/// Lends the emulator what an instruction can reach.
pub(crate) struct ExitContext<'a, V, M: GuestMemory> {
    pub vcpu: &'a mut V,
    pub machine: &'a Machine<M>,
    pub apic: &'a mut LocalApic,
    pub mailbox: &'a Mailbox,
    /// The vCPU has to attend before the next entry.
    pub attention: &'a mut bool,
    /// Its number; the bootstrap processor keeps the devices' alarms.
    pub number: u32,
}

impl<V: Vcpu, M: GuestMemory> ExitContext<'_, V, M> {
    /// What follows from an access to a device.
    #[inline]
    fn accessed(&mut self, accessed: Accessed) {
        if accessed == Accessed::DeadlineChanged {
            self.machine.note_deadline();
            if self.number == 0 {
                *self.attention = true;
            } else {
                self.machine.post_to_bootstrap(Post::DEVICES);
            }
        }
    }

    /// The register of the local APIC at `gpa`, if this vCPU's page is there.
    #[inline]
    fn apic_register(&self, gpa: Gpa) -> Option<usize> {
        (self.apic.mmio_base()? == gpa.page().0).then_some(gpa.page_offset() as usize)
    }
}

impl<V: Vcpu, M: GuestMemory> Context for ExitContext<'_, V, M> {
    type Cpu = V;
    type Memory = M;

    #[inline]
    fn cpu(&self) -> &V {
        self.vcpu
    }

    #[inline]
    fn cpu_mut(&mut self) -> &mut V {
        self.vcpu
    }

    #[inline]
    fn memory(&self) -> &M {
        &self.machine.ram
    }

    #[inline]
    fn paging_limits(&self) -> PagingLimits {
        self.machine.paging_limits
    }

    fn fetch_outside_ram(&self, _gpa: Gpa, _into: &mut [u8]) -> bool {
        false
    }

    #[inline]
    fn device_read(&mut self, gpa: Gpa, into: &mut [u8]) {
        if let Some(register) = self.apic_register(gpa) {
            self.apic.read(register, into);
        } else {
            let accessed = self.machine.read_memory_bus(gpa, into);
            self.accessed(accessed);
        }
    }

    #[inline]
    fn device_write(&mut self, gpa: Gpa, from: &[u8]) {
        if let Some(register) = self.apic_register(gpa) {
            // What becomes deliverable is posted to the mailbox; only the timer's alarm is ours to notice.
            let before = self.apic.deadline();
            self.apic.write(register, from);
            *self.attention |= self.apic.deadline() != before;
        } else {
            let accessed = self.machine.write_memory_bus(gpa, from);
            self.accessed(accessed);
        }
    }

    #[inline(always)]
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        let mut data = [0; 4];
        // A width is 1, 2 or 4 here, so the slice is always there.
        let accessed = match data.get_mut(..width.bytes()) {
            Some(bytes) => self.machine.read_port_bus(port, bytes),
            None => Accessed::Unclaimed,
        };
        self.accessed(accessed);
        u32::from_le_bytes(data)
    }

    #[inline(always)]
    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        let data = value.to_le_bytes();
        let accessed = match data.get(..width.bytes()) {
            Some(bytes) => self.machine.write_port_bus(port, bytes),
            None => Accessed::Unclaimed,
        };
        self.accessed(accessed);
    }

    fn should_pause(&self) -> bool {
        *self.attention || !self.mailbox.is_empty()
    }
}
