//! What a vCPU looks at between two entries when something may be pending: its mailbox, timers, INIT and start-up IPIs,
//! NMIs and interrupts, and whether the host wants its CPU back.
//!
//! Manuals: SDM 3A 7.8 "Interrupt 2 and NMI", 9.4 "Multiple-Processor (MP) Initialization", 11.8 "Handling Interrupts".

use crate::processor::{Activity, Outcome, Processor};
use devices::Nanos;
use memory::GuestMemory;
use vcpu::{Event, InterruptDelivery, Post, Vcpu, Window};

/// An interrupt that the guest should get next.
#[derive(Clone, Copy)]
enum Pending {
    /// From the local APIC.
    Fixed(u8),
    /// From the 8259 pair, which tells the vector when it is acknowledged.
    External,
}

/// The priority of an interrupt from the 8259 pair is above what CR8 can mask.
const EXTERNAL_PRIORITY: u8 = 0xff;

impl<V: Vcpu, M: GuestMemory> Processor<V, M> {
    /// Deals with everything that is pending. `Some` if the vCPU must not enter the guest now.
    pub(crate) fn attend(&mut self) -> Option<Outcome> {
        let (posts, page) = self.core.mailbox.take();
        // What an interrupt needs is a look at the interrupt controllers alone: whatever moves a deadline wants attention, and
        // the host takes its CPU back by an exit, which does too.
        if !core::mem::take(&mut self.core.attention) && posts == Post::INTERRUPT {
            self.deliver_interrupt();
            return None;
        }
        if posts.contains(Post::STOP)
            && let Some(event) = self.core.machine.power.event()
        {
            return Some(Outcome::Power(event));
        }
        if posts.contains(Post::DEVICES) {
            self.core.machine.console_has_input();
        }
        let until = self.expire();
        if posts.contains(Post::INIT) {
            self.init();
        }
        if posts.contains(Post::START_UP) && self.core.activity == Activity::WaitForStartUp {
            self.start_up(page);
        }
        if posts.contains(Post::NMI) {
            self.core.nmis = (self.core.nmis + 1).min(2);
        }
        if self.core.activity == Activity::WaitForStartUp {
            return Some(Outcome::Blocked { until });
        }
        self.deliver_nmi();
        self.deliver_interrupt();
        if self.core.activity == Activity::Halted {
            return Some(Outcome::Blocked { until });
        }
        if self.core.armed != Some(until) {
            self.core.armed = Some(until);
            let limit = self.core.host.set_alarm(until);
            self.vcpu.set_run_limit(limit);
        }
        if self.core.host.should_yield() {
            return Some(Outcome::Preempted);
        }
        None
    }

    /// Lets what is due act, and says when the next thing will be. Shared devices are the bootstrap processor's work.
    fn expire(&mut self) -> Option<Nanos> {
        let now = self.core.host.now();
        if self.core.apic.deadline().is_some_and(|at| at <= now) {
            self.core.apic.expire(now);
        }
        let own = self.core.apic.deadline();
        if self.core.number != 0 {
            return own;
        }
        let shared = self.core.machine.expire(now);
        match (own, shared) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    fn init(&mut self) {
        let signature = self.core.cpuid.signature();
        let state = self.vcpu.state().after_init(signature);
        self.vcpu.set_state(&state);
        self.vcpu.request_interrupt_window(None);
        self.vcpu.request_nmi_window(false);
        self.core.apic.init();
        self.core.nmis = 0;
        self.core.activity = if self.core.number == 0 { Activity::Running } else { Activity::WaitForStartUp };
    }

    fn start_up(&mut self, page: u8) {
        let mut state = self.vcpu.state();
        state.start_at(page);
        self.vcpu.set_state(&state);
        self.core.activity = Activity::Running;
    }

    fn deliver_nmi(&mut self) {
        if self.core.nmis == 0 {
            return;
        }
        match self.vcpu.nmi_window() {
            Window::Open => {
                self.vcpu.inject(Event::Nmi);
                self.core.nmis -= 1;
                self.core.activity = Activity::Running;
                self.vcpu.request_nmi_window(self.core.nmis > 0);
            }
            Window::Closed => self.vcpu.request_nmi_window(true),
        }
    }

    fn deliver_interrupt(&mut self) {
        if self.vcpu.interrupt_delivery() == InterruptDelivery::Hardware {
            self.vcpu.evaluate_pending();
            if self.core.apic.highest_pending().is_some() && self.vcpu.interrupt_window() == Window::Open {
                self.core.activity = Activity::Running;
            }
        }
        let Some(pending) = self.pending() else {
            let held = self.held();
            self.vcpu.request_interrupt_window(held);
            return;
        };
        if self.vcpu.interrupt_window() == Window::Closed {
            self.vcpu.request_interrupt_window(Some(pending.priority()));
            return;
        }
        let vector = match pending {
            Pending::Fixed(vector) => {
                self.core.apic.acknowledge(vector);
                vector
            }
            Pending::External => {
                self.core.apic.ext_int_acknowledged();
                self.core.machine.pic.lock().acknowledge()
            }
        };
        self.vcpu.inject(Event::Interrupt(vector));
        self.core.activity = Activity::Running;
        let next = self.pending().map(Pending::priority).or_else(|| self.held());
        self.vcpu.request_interrupt_window(next);
    }

    /// The vector that waits for the guest to lower CR8.
    fn held(&self) -> Option<u8> {
        match self.vcpu.interrupt_delivery() {
            InterruptDelivery::Software => self.core.apic.held_by_task_priority(),
            InterruptDelivery::Hardware => None,
        }
    }

    /// What software has to inject next. Fixed interrupts are the processor's own work under hardware delivery.
    fn pending(&self) -> Option<Pending> {
        let core = &self.core;
        if core.number == 0 && core.machine.external_interrupt() && core.apic.accepts_ext_int() {
            return Some(Pending::External);
        }
        match self.vcpu.interrupt_delivery() {
            InterruptDelivery::Software => core.apic.highest_pending().map(Pending::Fixed),
            InterruptDelivery::Hardware => None,
        }
    }
}

impl Pending {
    fn priority(self) -> u8 {
        match self {
            Pending::Fixed(vector) => vector,
            Pending::External => EXTERNAL_PRIORITY,
        }
    }
}
