//! PCs: QEMU's q35 and microvm, by PVH or Multiboot 2.

use core::arch::{asm, global_asm};
use core::ops::Range;

use crate::boot::BootInfo;

pub mod cpu;
pub mod interrupts;
pub mod mmu;
mod multiboot2;
pub mod pci;
mod port;
pub mod power;
mod pvh;
mod runtime;
pub mod serial;
pub mod time;
pub mod traps;

global_asm!(include_str!("boot.s"), options(att_syntax));

pub const NAME: &str = "x86_64";

/// Memory from here on is the kernel's to give; below, firmware and the start of other processors have theirs.
pub const LOWEST: usize = 1 << 20;
/// boot.s maps the first 4 GiB.
pub const MAPPED_AT_ENTRY: usize = 4 << 30;
/// Registers that are used without being asked for: the sleep control of microvm.
pub const EARLY_DEVICES: [Range<usize>; 1] = [0xfea0_0000..0xfea0_1000];

/// `eax` and `ebx` as the loader left them.
#[inline(never)]
pub fn boot_info(eax: usize, ebx: usize) -> Result<BootInfo, &'static str> {
    if eax as u32 == multiboot2::MAGIC { multiboot2::read(ebx) } else { pvh::read(ebx) }
}

pub fn halt() -> ! {
    loop {
        // With interrupts as they are: a debugger or an NMI may wake it.
        unsafe { asm!("hlt", options(nomem, nostack)) };
    }
}

#[inline(always)]
pub fn frame_pointer() -> usize {
    let frame;
    unsafe { asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    frame
}

/// The return address and the caller's frame, of the frame that begins at `frame`.
///
/// # Safety
/// A frame is there.
pub unsafe fn unwind(frame: usize) -> (usize, usize) {
    let words = frame as *const usize;
    unsafe { (words.add(1).read(), words.read()) }
}

/// Executes exactly `count` instructions more than it does for a count of 0.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn boot_delay(count: u64) {
    // `count` single instructions at the end of a row of 64, entered where as many are left as the loop of 64 leaves over.
    unsafe {
        asm!(
            "lea {place}, [rip + 3f]",
            "mov {rest:e}, {count:e}",
            "and {rest}, 63",
            "sub {place}, {rest}",
            "jmp {place}",
            ".rept 63", "nop", ".endr",
            "3:",
            "and {count}, -64",
            "jz 5f",
            "4:",
            ".rept 62", "nop", ".endr",
            "sub {count}, 64",
            "jnz 4b",
            "5:",
            count = inout(reg) count => _, rest = out(reg) _, place = out(reg) _,
            options(nomem, nostack)
        );
    }
}
