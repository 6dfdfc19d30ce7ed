//! The last words: where, why, and the return addresses on the stack.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch;
use crate::exit::{self, Outcome};

static PANICKING: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    arch::interrupts::disable();
    if PANICKING.swap(true, Ordering::Relaxed) {
        println!("panic: again, while panicking");
        arch::halt();
    }
    // PanicInfo's own words: panicked at src/file.rs:line:column: message
    error!("panic: {info}");
    backtrace(arch::frame_pointer());
    exit::exit(Outcome::Failure)
}

/// The return addresses of the frames from `frame` on: each frame begins with the frame pointer of its caller, then the return address.
pub fn backtrace(mut frame: usize) {
    println!("backtrace:");
    for _ in 0..32 {
        let Some((address, caller)) = arch::caller(frame) else { break };
        println!("  {address:#018x}");
        if caller <= frame {
            break;
        }
        frame = caller;
    }
    println!("end of backtrace");
}
