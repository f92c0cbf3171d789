//! The run loop of one vCPU. It knows no vendor.

use crate::processor::{Outcome, Processor};
use crate::stop::Stop;
use devices::PowerSink;
use memory::GuestMemory;
use vcpu::{Resume, Vcpu};

/// What a handler made of an exit.
pub(crate) type Handled = Result<Resume, Stop>;

impl<V: Vcpu, M: GuestMemory> Processor<V, M> {
    /// Runs the guest until there is something for the scheduler to do. The vCPU must be resident on this CPU.
    pub fn run(&mut self) -> Outcome {
        self.core.attention = true;
        self.core.armed = None;
        loop {
            if (self.core.attention || !self.core.mailbox.is_empty())
                && let Some(outcome) = self.attend()
            {
                return outcome;
            }
            match self.step() {
                Ok(resume) => self.vcpu.complete(resume),
                Err(stop) => return self.stop(stop),
            }
        }
    }

    /// Ends the machine: the other vCPUs come back too.
    fn stop(&mut self, stop: Stop) -> Outcome {
        self.core.machine.power.request(devices::PowerEvent::Off);
        Outcome::Stopped(stop)
    }
}
