//! What differs between processors. Each architecture is one folder with the same names in it:
//!
//! | name | what |
//! | --- | --- |
//! | `NAME` | as in a target's file |
//! | `boot_info(first, second)` | what the loader told, from the registers it left |
//! | `halt()` | wait for ever |
//! | `frame_pointer()`, `caller(frame)` | for backtraces |
//! | `serial::{init, write}` | the console |
//! | `time::{init, now_ns}` | nanoseconds since kernel entry |
//! | `traps::init` | what the processor does about exceptions and interrupts |
//! | `interrupts::{init, allocate}` | messages of devices, and who handles them |
//! | `interrupts::{enable, enabled, disable, wait}` | whether the processor listens |
//! | `pci::{config, WINDOW}` | where the bus is, and memory for its devices |
//! | `cpu::describe` | vendor, model, features, for the log |
//! | `mmu` | what an entry of a page table looks like |
//! | `kernel_image()`, `kernel_parts()` | where the kernel is, and the rights of its parts |
//! | `LOWEST`, `MAPPED_AT_ENTRY`, `EARLY_DEVICES` | see there |
//! | `power::{off, reset, debug_exit}` | each returns if the machine does not offer it |

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
