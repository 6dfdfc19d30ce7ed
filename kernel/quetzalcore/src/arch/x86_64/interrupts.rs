//! Whether the processor listens.

use core::arch::asm;

pub fn enable() {
    unsafe { asm!("sti", options(nomem, nostack)) };
}

pub fn disable() {
    unsafe { asm!("cli", options(nomem, nostack)) };
}

/// Wait for an interrupt with the processor asleep; call with interrupts disabled, returns with them disabled, the handler having run.
/// Between `sti` and `hlt` no interrupt is taken: one that came since the caller last looked wakes it.
pub fn wait() {
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}
