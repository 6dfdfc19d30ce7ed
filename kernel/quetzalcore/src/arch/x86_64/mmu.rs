//! Page table entries of four levels (AMD64 manual, volume 2, 5.3).

use core::arch::asm;

use crate::memory::paging::Rights;

pub const LEVELS: usize = 4;
/// The highest level with pages of its own: 2 MiB.
pub const LARGEST: usize = 1;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const UNCACHED: u64 = 1 << 4 | 1 << 3;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

pub fn page(physical: usize, level: usize, rights: Rights) -> u64 {
    let kind = match rights {
        Rights::Execute => 0,
        Rights::Read => NO_EXECUTE,
        Rights::Write => NO_EXECUTE | WRITABLE,
        Rights::Device => NO_EXECUTE | WRITABLE | UNCACHED,
    };
    physical as u64 | PRESENT | kind | if level > 0 { LARGE } else { 0 }
}

pub fn table(physical: usize) -> u64 {
    physical as u64 | PRESENT | WRITABLE
}

pub fn is_table(entry: u64, level: usize) -> bool {
    level > 0 && entry & PRESENT != 0 && entry & LARGE == 0
}

pub fn target(entry: u64) -> usize {
    (entry & ADDRESS) as usize
}

pub fn activate(root: usize) {
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack)) };
}

/// Forget translations that were changed.
pub fn flush() {
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack)) };
}
