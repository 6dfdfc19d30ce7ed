//! Exceptions: every one is a panic, but for accesses that were expected to fail.

use core::arch::{asm, global_asm};

// Sixteen entries of 128 bytes. Only an access of can_read or can_write is gone back from, and those want no register kept but the way back.
global_asm!(
    ".section .text",
    ".balign 2048",
    "vectors:",
    ".set entry, 0",
    ".rept 16",
    ".balign 128",
    "mov x0, #entry",
    "b exception",
    ".set entry, entry + 1",
    ".endr",
    ".balign 128",
    "exception:",
    "mrs x1, esr_el1",
    "mrs x2, elr_el1",
    "mrs x3, far_el1",
    "mrs x4, sp_el0",
    "str x30, [sp, #-16]!",
    "bl trap",
    "ldr x30, [sp], #16",
    "msr elr_el1, x0",
    "eret",
    // Accesses that may fail: `trap` knows where they are, and goes on at try_failed.
    "can_read:",
    "try_read: ldrb w1, [x0]",
    "mov w0, #1",
    "ret",
    "can_write:",
    "ldrb w1, [x0]", // what may be read keeps its value
    "try_write: strb w1, [x0]",
    "mov w0, #1",
    "ret",
    "try_failed: mov w0, #0",
    "ret",
);

unsafe extern "C" {
    static vectors: u8;
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
    unsafe { asm!("msr vbar_el1, {}", "isb", in(reg) &raw const vectors, options(nostack)) };
}

/// Returns where to go on.
#[unsafe(no_mangle)]
extern "C" fn trap(entry: u64, syndrome: u64, place: u64, address: u64, stack: u64) -> u64 {
    if [&raw const try_read as u64, &raw const try_write as u64].contains(&place) {
        return &raw const try_failed as u64;
    }
    let name = match (entry & 3, syndrome >> 26) {
        (0, 0x00) => "unknown instruction",
        (0, 0x15) => "supervisor call",
        (0, 0x20 | 0x21) => "instruction abort",
        (0, 0x24 | 0x25) => "data abort",
        (0, 0x22 | 0x26) => "misaligned",
        (0, 0x3c) => "breakpoint",
        (0, _) => "exception",
        (1, _) => "interrupt that nobody waits for",
        (2, _) => "fast interrupt that nobody waits for",
        _ => "system error",
    };
    panic!("{name} (vector {entry}, syndrome {syndrome:#x}) at {place:#018x}, address {address:#018x}, stack {stack:#018x}");
}
