//! A spin lock that no interrupt handler can deadlock on.
//!
//! Key type: [`Lock`]. Host code runs with interrupts off but for idle and the window after an interrupt exit; the lock
//! does not rely on that and keeps them off while it is held. NMI, machine-check and panic code uses only
//! [`Lock::try_lock`].

use core::ops::{Deref, DerefMut};

/// Shared data of several CPUs.
pub struct Lock<T: ?Sized> {
    mutex: spin::Mutex<T>,
}

/// The right to the data, until dropped.
pub struct Guard<'a, T: ?Sized> {
    // Dropped in this order: the lock is free before interrupts come back.
    data: spin::MutexGuard<'a, T>,
    _interrupts: Interrupts,
}

impl<T> Lock<T> {
    /// Unlocked, with `data`.
    pub const fn new(data: T) -> Self {
        Self { mutex: spin::Mutex::new(data) }
    }
}

impl<T: ?Sized> Lock<T> {
    /// Waits for the data.
    pub fn lock(&self) -> Guard<'_, T> {
        let interrupts = Interrupts::hold();
        Guard { data: self.mutex.lock(), _interrupts: interrupts }
    }

    /// The data, if nobody has it.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let interrupts = Interrupts::hold();
        Some(Guard { data: self.mutex.try_lock()?, _interrupts: interrupts })
    }
}

impl<T: ?Sized> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T: ?Sized> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.data
    }
}

/// Interrupts held off; back as they were when dropped.
struct Interrupts {
    #[cfg(target_os = "none")]
    were_on: bool,
}

impl Interrupts {
    #[cfg(target_os = "none")]
    fn hold() -> Self {
        let were_on = x86_64::instructions::interrupts::are_enabled();
        if were_on {
            x86_64::instructions::interrupts::disable();
        }
        Self { were_on }
    }

    /// A test on the host has no interrupts.
    #[cfg(not(target_os = "none"))]
    fn hold() -> Self {
        Self {}
    }
}

#[cfg(target_os = "none")]
impl Drop for Interrupts {
    fn drop(&mut self) {
        if self.were_on {
            x86_64::instructions::interrupts::enable();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_at_a_time() {
        let lock = Lock::new(5);
        let mut guard = lock.lock();
        *guard += 1;
        assert!(lock.try_lock().is_none());
        drop(guard);
        assert_eq!(lock.try_lock().map(|guard| *guard), Some(6));
    }
}
