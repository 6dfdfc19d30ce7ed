//! Page table entries of Sv39 (RISC-V Privileged Architecture, 4.4).

use core::arch::asm;

use crate::memory::paging::Rights;

pub const LEVELS: usize = 3;
/// The highest level with pages of its own that is used: 2 MiB.
pub const LARGEST: usize = 1;

const VALID: u64 = 1;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const EXECUTE: u64 = 1 << 3;
const ACCESSED_AND_DIRTY: u64 = 3 << 6;
const SV39: usize = 8 << 60;

/// Whether accesses are a device's, the machine itself knows by their addresses.
pub fn page(physical: usize, _: usize, rights: Rights) -> u64 {
    let kind = match rights {
        Rights::Execute => READ | EXECUTE,
        Rights::Read => READ,
        Rights::Write | Rights::Device => READ | WRITE,
    };
    (physical as u64 >> 2) | VALID | ACCESSED_AND_DIRTY | kind
}

pub fn table(physical: usize) -> u64 {
    (physical as u64 >> 2) | VALID
}

pub fn is_table(entry: u64, level: usize) -> bool {
    level > 0 && entry & (VALID | READ | WRITE | EXECUTE) == VALID
}

pub fn target(entry: u64) -> usize {
    (entry as usize >> 10 << 12) & ((1 << 56) - 1)
}

pub fn activate(root: usize) {
    unsafe { asm!("csrw satp, {}", in(reg) SV39 | root >> 12, options(nostack)) };
    flush();
}

/// Forget translations that were changed.
pub fn flush() {
    unsafe { asm!("sfence.vma", options(nostack)) };
}
