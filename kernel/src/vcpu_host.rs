//! What a vCPU's run loop gets of this host: guest time, the alarm that bounds its runs, and the wish to have the CPU back.

use crate::alarms::Slot;
use crate::{clock, console, percpu, scheduler};
use core::sync::atomic::Ordering;
use devices::{Clock, Nanos};
use machine::VcpuHost;

/// The clock of one VM: the host's, from when the VM was made.
#[derive(Clone, Copy, Debug)]
pub struct GuestClock {
    /// Host time at which guest time is 0, in nanoseconds.
    start: u64,
}

impl GuestClock {
    /// One that starts now.
    pub fn start() -> Self {
        Self { start: clock::now() }
    }

    /// Host time at a moment of guest time, in nanoseconds.
    pub fn host_time(&self, moment: Nanos) -> u64 {
        self.start.saturating_add(moment.0)
    }
}

impl Clock for GuestClock {
    fn now(&self) -> Nanos {
        Nanos(clock::now().saturating_sub(self.start))
    }
}

/// The host of one VM's vCPUs.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// The VM's time.
    pub clock: GuestClock,
}

impl VcpuHost for Host {
    fn now(&self) -> Nanos {
        self.clock.now()
    }

    fn set_alarm(&self, until: Option<Nanos>) -> Option<u64> {
        let deadline = until.map(|moment| self.clock.host_time(moment));
        scheduler::set_alarm(Slot::Guest, deadline);
        let slice_end = percpu::current().slice_end.load(Ordering::Relaxed);
        let limit = deadline.unwrap_or(u64::MAX).min(slice_end);
        (limit != u64::MAX).then(|| clock::tsc_at(limit))
    }

    fn should_yield(&self) -> bool {
        scheduler::slice_is_over() || console::has_input()
    }
}
