//! A value that one at a time may use. There is one processor: what a lock must keep away is an interrupt, and a mistake.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::interrupts;

pub struct Lock<T> {
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// Whoever has the value has it alone, so it may come from anywhere. T needs no Send: there is nowhere else to send it to.
unsafe impl<T> Sync for Lock<T> {}

impl<T> Lock<T> {
    pub const fn new(value: T) -> Lock<T> {
        Lock { held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// The value, with interrupts off until it is given back. Panics if it is held already: on one processor, waiting would be for ever.
    pub fn lock(&self) -> Guard<'_, T> {
        let listened = interrupts::enabled();
        interrupts::disable();
        assert!(!self.held.swap(true, Ordering::Acquire), "a lock is taken twice");
        Guard { lock: self, listened }
    }
}

pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
    listened: bool,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.lock.held.store(false, Ordering::Release);
        if self.listened {
            interrupts::enable();
        }
    }
}
