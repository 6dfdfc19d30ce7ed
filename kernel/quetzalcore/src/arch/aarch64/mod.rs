//! QEMU's virt machine for 64-bit Arm.

use core::arch::{asm, global_asm};
use core::ops::Range;

use crate::boot::BootInfo;
use crate::devicetree;

pub mod cpu;
pub mod interrupts;
pub mod mmu;
pub mod pci;
pub mod power;
pub mod serial;
pub mod time;
pub mod traps;

global_asm!(include_str!("boot.s"));

pub const NAME: &str = "aarch64";

/// Memory from here on is the kernel's to give.
pub const LOWEST: usize = 0;
/// boot.s maps the first 512 GiB.
pub const MAPPED_AT_ENTRY: usize = 512 << 30;
/// Registers that are used without being asked for: those of the console.
pub const EARLY_DEVICES: [Range<usize>; 1] = [serial::PL011..serial::PL011 + 0x1000];

/// Where QEMU puts the device tree: at the start of memory.
const DEVICE_TREE: usize = 0x4000_0000;

#[inline(never)]
pub fn boot_info(address: usize, _: usize) -> Result<BootInfo, &'static str> {
    devicetree::boot_info(address)
}

pub fn halt() -> ! {
    loop {
        unsafe { asm!("wfi", options(nomem, nostack)) };
    }
}

#[inline(always)]
pub fn frame_pointer() -> usize {
    let frame;
    unsafe { asm!("mov {}, x29", out(reg) frame, options(nomem, nostack, preserves_flags)) };
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
    // `count` single instructions at the end of a row of 63, entered where as many are left as the loop of 64 leaves over.
    unsafe {
        asm!(
            "adr {place}, 3f",
            "and {rest}, {count}, #63",
            "sub {place}, {place}, {rest}, lsl #2",
            "br {place}",
            ".rept 63", "nop", ".endr",
            "3:",
            "ands {count}, {count}, #-64",
            "b.eq 5f",
            "4:",
            ".rept 62", "nop", ".endr",
            "subs {count}, {count}, #64",
            "b.ne 4b",
            "5:",
            count = inout(reg) count => _, rest = out(reg) _, place = out(reg) _,
            options(nomem, nostack)
        );
    }
}
