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
//! | `interrupts::{enable, disable, wait}` | |
//! | `cpu::describe` | vendor, model, features, for the log |
//! | `mmu` | page tables |
//! | `power::{off, reset, debug_exit}` | each returns if the machine does not offer it |

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
