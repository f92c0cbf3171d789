//! All that other CPUs, devices and the host may do to a vCPU while it runs.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

bitflags::bitflags! {
    /// What was posted and not yet taken.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Post: u32 {
        /// The local APIC or the 8259 pair may have an interrupt.
        const INTERRUPT = 1 << 0;
        /// A non-maskable interrupt.
        const NMI = 1 << 1;
        /// INIT.
        const INIT = 1 << 2;
        /// Start-up IPI; the page is kept beside.
        const START_UP = 1 << 3;
        /// A device of this VM has something to do: deadlines, input.
        const DEVICES = 1 << 4;
        /// Stop running: reset, power-off, pause or stop was asked for; the machine knows which.
        const STOP = 1 << 5;
    }
}

/// How the host gets a vCPU to look at its mailbox: unblocks it, or kicks it out of guest mode.
pub trait Wake: Send + Sync {
    /// Callable from any host CPU, with or without locks of the VM held; may be called needlessly.
    fn wake(&self);
}

const PAGE_SHIFT: u32 = 24;

/// The vCPU's letter box. Everybody posts, the vCPU takes.
pub struct Mailbox {
    /// [`Post`] bits, and the start-up page in the top byte.
    bits: AtomicU32,
    wake: Arc<dyn Wake>,
}

impl Mailbox {
    /// An empty box; `wake` is called after each post that changed something.
    pub fn new(wake: Arc<dyn Wake>) -> Self {
        Self { bits: AtomicU32::new(0), wake }
    }

    /// Posts. Posting what is there already does nothing.
    pub fn post(&self, what: Post) {
        let before = self.bits.fetch_or(what.bits(), Ordering::SeqCst);
        if before & what.bits() != what.bits() {
            self.wake.wake();
        }
    }

    /// Posts a start-up IPI. While one is waiting, a second one is lost, as on hardware.
    pub fn post_start_up(&self, page: u8) {
        let posted = self.bits.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |bits| {
            (bits & Post::START_UP.bits() == 0)
                .then_some(bits & 0x00ff_ffff | Post::START_UP.bits() | u32::from(page) << PAGE_SHIFT)
        });
        if posted.is_ok() {
            self.wake.wake();
        }
    }

    /// Whether nothing is waiting. One load: this is asked before every entry.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bits.load(Ordering::Acquire) & Post::all().bits() == 0
    }

    /// Takes everything that is waiting, and the page of a start-up IPI if one is.
    #[inline]
    pub fn take(&self) -> (Post, u8) {
        let bits = self.bits.swap(0, Ordering::SeqCst);
        (Post::from_bits_truncate(bits), (bits >> PAGE_SHIFT) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_post_wakes_once_until_it_is_taken() {
        let count = Arc::new(Count::default());
        let mailbox = Mailbox::new(count.clone());
        assert!(mailbox.is_empty());
        mailbox.post(Post::INTERRUPT);
        mailbox.post(Post::INTERRUPT);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        mailbox.post(Post::NMI);
        assert_eq!(mailbox.take(), (Post::INTERRUPT | Post::NMI, 0));
        assert!(mailbox.is_empty());
        mailbox.post(Post::INTERRUPT);
        assert_eq!(count.0.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn the_first_start_up_wins_until_it_is_taken() {
        let mailbox = Mailbox::new(Arc::new(Count::default()));
        mailbox.post_start_up(0x9a);
        mailbox.post_start_up(0x11);
        assert_eq!(mailbox.take(), (Post::START_UP, 0x9a));
        mailbox.post_start_up(0x11);
        assert_eq!(mailbox.take(), (Post::START_UP, 0x11));
    }
}
