//! A 16550 at the port of COM1, polled.

use super::port::{read8, write8};

const COM1: u16 = 0x3f8;
const FIFO: usize = 16;

pub fn init() {
    write8(COM1 + 1, 0); // no interrupts
    write8(COM1 + 3, 0x80); // the divisor: 115200 baud
    write8(COM1, 1);
    write8(COM1 + 1, 0);
    write8(COM1 + 3, 3); // 8 bits, no parity, 1 stop bit
    write8(COM1 + 2, 0xc7); // FIFOs on and empty
    write8(COM1 + 4, 3); // DTR, RTS
}

/// A whole FIFO for each look at the line's status: looking costs as much as sending.
pub fn write(bytes: &[u8]) {
    for some in bytes.chunks(FIFO) {
        while read8(COM1 + 5) & 0x20 == 0 {
            core::hint::spin_loop();
        }
        for &byte in some {
            write8(COM1, byte);
        }
    }
}
