//! Reset and power-off: devices ask, the vCPUs stop, the machine's owner carries it out.

use alloc::sync::Arc;
use alloc::vec::Vec;
use devices::{PowerEvent, PowerSink};
use spin::{Mutex, Once};
use vcpu::{Mailbox, Post};

/// Holds the first power event since it was last taken, and stops all vCPUs when one comes.
#[derive(Default)]
pub struct PowerLatch {
    event: Mutex<Option<PowerEvent>>,
    mailboxes: Once<Vec<Arc<Mailbox>>>,
}

impl PowerLatch {
    /// Says whom to stop; once, while the machine is made.
    pub fn attach(&self, mailboxes: Vec<Arc<Mailbox>>) {
        self.mailboxes.call_once(|| mailboxes);
    }

    /// The event that stopped the machine, if one did; it stays until [`PowerLatch::clear`].
    pub fn event(&self) -> Option<PowerEvent> {
        *self.event.lock()
    }

    /// Forgets the event: it has been carried out.
    pub fn clear(&self) {
        *self.event.lock() = None;
    }
}

impl PowerSink for PowerLatch {
    fn request(&self, event: PowerEvent) {
        self.event.lock().get_or_insert(event);
        for mailbox in self.mailboxes.get().into_iter().flatten() {
            mailbox.post(Post::STOP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vcpu::Wake;

    struct Silent;
    impl Wake for Silent {
        fn wake(&self) {}
    }

    #[test]
    fn the_first_event_counts_and_stops_every_vcpu() {
        let latch = PowerLatch::default();
        let mailboxes: Vec<_> = (0..2).map(|_| Arc::new(Mailbox::new(Arc::new(Silent)))).collect();
        latch.attach(mailboxes.clone());
        latch.request(PowerEvent::Off);
        latch.request(PowerEvent::Reset);
        assert_eq!(latch.event(), Some(PowerEvent::Off));
        assert!(mailboxes.iter().all(|mailbox| mailbox.take().0 == Post::STOP));
        latch.clear();
        assert_eq!(latch.event(), None);
    }
}
