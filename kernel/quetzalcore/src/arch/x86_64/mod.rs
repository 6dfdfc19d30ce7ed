//! PCs: QEMU's q35 and microvm, by PVH or Multiboot 2.

use core::arch::{asm, global_asm};
use core::ops::Range;

use crate::boot::BootInfo;
use crate::memory::paging::Rights;

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

unsafe extern "C" {
    static kernel_start: u8;
    static rodata_start: u8;
    static data_start: u8;
    static boot_stack_guard: u8;
    static boot_stack_top: u8;
    static kernel_end: u8;
}

/// Where the kernel itself is.
pub fn kernel_image() -> Range<usize> {
    &raw const kernel_start as usize..&raw const kernel_end as usize
}

/// Its parts; what is between two of them is not to be touched.
pub fn kernel_parts() -> [(Range<usize>, Rights); 4] {
    let at = |symbol: *const u8| symbol as usize;
    let guard = at(&raw const boot_stack_guard);
    [
        (at(&raw const kernel_start)..at(&raw const rodata_start), Rights::Execute),
        (at(&raw const rodata_start)..at(&raw const data_start), Rights::Read),
        (at(&raw const data_start)..guard, Rights::Write),
        (guard + 4096..at(&raw const kernel_end), Rights::Write),
    ]
}

/// `eax` and `ebx` as the loader left them.
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

/// An address that overflowing the stack reaches first.
pub fn stack_guard() -> usize {
    &raw const boot_stack_guard as usize
}

/// The return address of the stack frame at `frame`, and the caller's frame; None where no frame can be.
pub fn caller(frame: usize) -> Option<(usize, usize)> {
    let stack = &raw const boot_stack_guard as usize + 4096..&raw const boot_stack_top as usize - 8;
    if !stack.contains(&frame) || frame % 8 != 0 {
        return None;
    }
    let words = frame as *const usize;
    Some(unsafe { (words.add(1).read(), words.read()) })
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
