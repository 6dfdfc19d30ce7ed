//! Whether the processor listens. No device here interrupts yet.

use core::arch::asm;

pub use crate::pci::Message;

pub fn init() {}

/// None: there is no driver of an interrupt controller.
#[allow(dead_code)]
pub fn allocate(_: fn(usize), _: usize) -> Option<Message> {
    None
}

pub fn enable() {
    unsafe { asm!("csrsi sstatus, 2", options(nomem, nostack)) };
}

pub fn enabled() -> bool {
    let status: u64;
    unsafe { asm!("csrr {}, sstatus", out(reg) status, options(nomem, nostack)) };
    status & 2 != 0
}

pub fn disable() {
    unsafe { asm!("csrci sstatus, 2", options(nomem, nostack)) };
}
