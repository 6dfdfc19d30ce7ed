//! What differs between processors. Each architecture is one folder with the same names in it:
//!
//! | name | what |
//! | --- | --- |
//! | `NAME` | as in a target's file |
//! | `boot_info(first, second)` | what the loader told, from the registers it left |
//! | `halt()` | wait for ever |
//! | `frame_pointer()`, `unwind(frame)` | for backtraces |
//! | `boot_delay(count)` | so many instructions |
//! | `serial::{init, write}` | the console |
//! | `time::{init, now_ns}` | nanoseconds since kernel entry |
//! | `traps::{init, can_read, can_write}` | what the processor does about exceptions and interrupts |
//! | `interrupts::{init, allocate}` | messages of devices, and who handles them |
//! | `interrupts::{enable, enabled, disable, wait}` | whether the processor listens |
//! | `pci::host` | where the bus is, and memory for its devices |
//! | `cpu::describe` | vendor, model, features, for the log |
//! | `mmu` | what an entry of a page table looks like |
//! | `LOWEST`, `MAPPED_AT_ENTRY`, `EARLY_DEVICES` | see there |
//! | `power::{off, reset, debug_exit}` | each returns if the machine does not offer it |

use core::ops::Range;

use crate::memory::paging::Rights;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(target_arch = "riscv64")]
mod riscv64;
#[cfg(target_arch = "riscv64")]
pub use riscv64::*;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

unsafe extern "C" {
    // By linker.ld and boot.s.
    static kernel_start: u8;
    static rodata_start: u8;
    static data_start: u8;
    static boot_stack_guard: u8;
    static kernel_end: u8;
}

/// Where the kernel itself is.
pub fn kernel_image() -> Range<usize> {
    &raw const kernel_start as usize..&raw const kernel_end as usize
}

/// Its parts; what is between two of them, the guard of the stack, is not to be touched.
pub fn kernel_parts() -> [(Range<usize>, Rights); 4] {
    let at = |symbol: *const u8| symbol as usize;
    [
        (at(&raw const kernel_start)..at(&raw const rodata_start), Rights::Execute),
        (at(&raw const rodata_start)..at(&raw const data_start), Rights::Read),
        (at(&raw const data_start)..stack_guard(), Rights::Write),
        (stack_guard() + 4096..at(&raw const kernel_end), Rights::Write),
    ]
}

/// An address that overflowing the stack reaches first.
pub fn stack_guard() -> usize {
    &raw const boot_stack_guard as usize
}
