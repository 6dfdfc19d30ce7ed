//! Exceptions: every one is a panic, but for accesses that were expected to fail.

use core::arch::{asm, global_asm};

// Only an access of can_read or can_write is gone back from, and those want no register kept but the way back.
global_asm!(
    ".section .text",
    ".balign 4",
    "exception:",
    "csrrw sp, sscratch, sp",
    "csrr a0, scause",
    "csrr a1, sepc",
    "csrr a2, stval",
    "csrr a3, sscratch",
    "addi sp, sp, -16",
    "sd ra, 0(sp)",
    "call trap",
    "ld ra, 0(sp)",
    "addi sp, sp, 16",
    "csrw sepc, a0",
    "csrrw sp, sscratch, sp",
    "sret",
    // Accesses that may fail: `trap` knows where they are, and goes on at try_failed.
    "can_read:",
    "try_read: lbu a1, 0(a0)",
    "li a0, 1",
    "ret",
    "can_write:",
    "lbu a1, 0(a0)", // what may be read keeps its value
    "try_write: sb a1, 0(a0)",
    "li a0, 1",
    "ret",
    "try_failed: li a0, 0",
    "ret",
);

unsafe extern "C" {
    static exception: u8;
    #[link_name = "can_read"]
    fn read_succeeds(address: usize) -> bool;
    #[link_name = "can_write"]
    fn write_succeeds(address: usize) -> bool;
    static try_read: u8;
    static try_write: u8;
    static try_failed: u8;
}

/// Whether the byte at an address can be read.
pub fn can_read(address: usize) -> bool {
    unsafe { read_succeeds(address) }
}

/// Whether the byte at an address can be written, if it can be read.
pub fn can_write(address: usize) -> bool {
    can_read(address) && unsafe { write_succeeds(address) }
}

pub fn init() {
    unsafe { asm!("csrw stvec, {}", in(reg) &raw const exception, options(nostack)) };
}

const NAMES: [&str; 16] = [
    "misaligned instruction", "instruction access fault", "illegal instruction", "breakpoint", "misaligned load", "load access fault",
    "misaligned store", "store access fault", "call from user mode", "call from supervisor mode", "", "", "instruction page fault",
    "load page fault", "", "store page fault",
];

/// Returns where to go on.
#[unsafe(no_mangle)]
extern "C" fn trap(cause: u64, place: u64, address: u64, stack: u64) -> u64 {
    if [&raw const try_read as u64, &raw const try_write as u64].contains(&place) {
        return &raw const try_failed as u64;
    }
    let name = if cause >> 63 == 1 { "interrupt that nobody waits for" } else { NAMES.get(cause as usize).copied().unwrap_or("exception") };
    panic!("{name} (cause {cause:#x}) at {place:#018x}, address {address:#018x}, stack {stack:#018x}");
}
