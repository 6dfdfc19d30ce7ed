//! Time by the generic timer's virtual counter, whose rate the processor knows.

use core::arch::asm;

unsafe extern "C" {
    /// The counter at kernel entry; written by boot.s.
    static entry_ticks: u64;
}

pub fn init() {}

/// Since kernel entry.
pub fn now_ns() -> u64 {
    let (ticks, hertz): (u64, u64);
    unsafe { asm!("isb", "mrs {}, cntvct_el0", "mrs {}, cntfrq_el0", out(reg) ticks, out(reg) hertz, options(nostack)) };
    ((ticks - unsafe { entry_ticks }) as u128 * 1_000_000_000 / hertz.max(1) as u128) as u64
}
