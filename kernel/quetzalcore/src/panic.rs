//! The last words: where, why, and the return addresses on the stack.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch;
use crate::exit::{self, Outcome};
use crate::memory::paging::Rights;

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

/// The return addresses of the frames from `frame` on, as long as they are where the kernel's variables and stacks are.
fn backtrace(mut frame: usize) {
    let parts = arch::kernel_parts();
    let is_ours = |address: usize| parts.iter().any(|(part, rights)| *rights == Rights::Write && part.contains(&address));
    println!("backtrace:");
    for _ in 0..32 {
        if frame % 8 != 0 || !is_ours(frame.wrapping_sub(16)) || !is_ours(frame + 15) {
            break;
        }
        let (address, caller) = unsafe { arch::unwind(frame) };
        println!("  {address:#018x}");
        frame = caller;
    }
    println!("end of backtrace");
}
