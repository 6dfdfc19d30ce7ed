//! QEMU's virt machine for 64-bit RISC-V, without firmware.

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

pub const NAME: &str = "riscv64";

/// Memory from here on is the kernel's to give.
pub const LOWEST: usize = 0;
/// There is no paging at entry: everything is in reach.
pub const MAPPED_AT_ENTRY: usize = usize::MAX;
/// Registers that are used without being asked for: those of the console and of the power switch.
pub const EARLY_DEVICES: [Range<usize>; 2] = [serial::UART..serial::UART + 0x1000, power::TEST..power::TEST + 0x1000];

unsafe extern "C" {
    /// Where the machine's reset code left it; noted by boot.s.
    static device_tree: usize;
}

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
    unsafe { asm!("mv {}, s0", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    frame
}

/// The return address and the caller's frame, of the frame that ends at `frame`.
///
/// # Safety
/// A frame is there.
pub unsafe fn unwind(frame: usize) -> (usize, usize) {
    let words = frame as *const usize;
    unsafe { (words.sub(1).read(), words.sub(2).read()) }
}

/// Executes exactly `count` instructions more than it does for a count of 0.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn boot_delay(count: u64) {
    // `count` single instructions at the end of a row of 63, entered where as many are left as the loop of 64 leaves over.
    unsafe {
        asm!(
            ".option push",
            ".option norvc",
            "la {place}, 3f",
            "andi {rest}, {count}, 63",
            "slli {rest}, {rest}, 2",
            "sub {place}, {place}, {rest}",
            "jr {place}",
            ".rept 63", "nop", ".endr",
            "3:",
            "andi {count}, {count}, -64",
            "beqz {count}, 5f",
            "4:",
            ".rept 62", "nop", ".endr",
            "addi {count}, {count}, -64",
            "bnez {count}, 4b",
            "5:",
            ".option pop",
            count = inout(reg) count => _, rest = out(reg) _, place = out(reg) _,
            options(nomem, nostack)
        );
    }
}
