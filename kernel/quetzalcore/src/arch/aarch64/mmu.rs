//! Descriptors of the 4 KiB granule with 48 bits of address (Arm ARM, D8.3). boot.s has set the attributes: 0 is memory, 1 is devices.

use core::arch::asm;

use crate::memory::paging::Rights;

pub const LEVELS: usize = 4;
/// The highest level with pages of its own that is used: 2 MiB.
pub const LARGEST: usize = 1;

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 2;
const DEVICE: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const NO_EXECUTE: u64 = 3 << 53;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

pub fn page(physical: usize, level: usize, rights: Rights) -> u64 {
    let kind = match rights {
        Rights::Execute => READ_ONLY,
        Rights::Read => READ_ONLY | NO_EXECUTE,
        Rights::Write => NO_EXECUTE,
        Rights::Device => NO_EXECUTE | DEVICE,
    };
    physical as u64 | VALID | INNER_SHAREABLE | ACCESSED | kind | if level == 0 { TABLE_OR_PAGE } else { 0 }
}

pub fn table(physical: usize) -> u64 {
    physical as u64 | VALID | TABLE_OR_PAGE
}

pub fn is_table(entry: u64, level: usize) -> bool {
    level > 0 && entry & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE
}

pub fn target(entry: u64) -> usize {
    (entry & ADDRESS) as usize
}

pub fn activate(root: usize) {
    unsafe { asm!("dsb sy", "msr ttbr0_el1, {}", "isb", in(reg) root, options(nostack)) };
    flush();
}

/// Forget translations that were changed.
pub fn flush() {
    unsafe { asm!("dsb sy", "tlbi vmalle1", "dsb sy", "isb", options(nostack)) };
}
