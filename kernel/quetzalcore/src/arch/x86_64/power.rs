//! Ways to end a PC.

use core::arch::asm;

use super::port::{write8, write16, write32};
use crate::exit::Outcome;

/// QEMU's isa-debug-exit, where `-device isa-debug-exit,iobase=0xf4,iosize=4` puts it.
const DEBUG_EXIT: u16 = 0xf4;
/// PM1a control of the PCs that firmware of QEMU sets up (ICH9, PIIX4): sleep enable, type 0 (S5).
const PM1A_CONTROL: u16 = 0x604;
/// Sleep control of microvm's generic event device (ACPI, hardware-reduced): sleep enable, type 5.
const GED_SLEEP: usize = 0xfea0_0200;

/// Returns if the machine offers neither.
pub fn off() {
    write16(PM1A_CONTROL, 0x2000);
    unsafe { (GED_SLEEP as *mut u8).write_volatile(0x34) };
    let end = super::time::now_ns() + PATIENCE_NS;
    while super::time::now_ns() < end {
        core::hint::spin_loop();
    }
}

/// The power does not go in the same instant.
const PATIENCE_NS: u64 = 50_000_000;

pub fn reset() -> ! {
    write8(0x64, 0xfe); // the keyboard controller's line to the processor's reset
    // An exception that nothing handles, not even the handler of that: a triple fault.
    let nothing: [u16; 5] = [0; 5];
    unsafe { asm!("lidt [{}]", "int3", in(reg) &nothing, options(nostack)) };
    super::halt()
}

/// Returns if there is no such device.
pub fn debug_exit(outcome: Outcome) {
    write32(DEBUG_EXIT, if outcome == Outcome::Success { 0x10 } else { 0x11 });
}
