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
    unsafe { asm!("msr daifclr, #2", options(nomem, nostack)) };
}

pub fn enabled() -> bool {
    let masks: u64;
    unsafe { asm!("mrs {}, daif", out(reg) masks, options(nomem, nostack)) };
    masks & 1 << 7 == 0
}

pub fn disable() {
    unsafe { asm!("msr daifset, #2", options(nomem, nostack)) };
}
