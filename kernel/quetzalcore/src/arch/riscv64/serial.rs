//! A 16550 in memory, polled.

pub const UART: usize = 0x1000_0000;
const FIFO: usize = 16;

pub fn init() {
    write_register(1, 0); // no interrupts
    write_register(3, 3); // 8 bits, no parity, 1 stop bit
    write_register(2, 0xc7); // FIFOs on and empty
}

/// A whole FIFO for each look at the line's status.
pub fn write(bytes: &[u8]) {
    for some in bytes.chunks(FIFO) {
        while unsafe { ((UART + 5) as *const u8).read_volatile() } & 0x20 == 0 {
            core::hint::spin_loop();
        }
        for &byte in some {
            write_register(0, byte);
        }
    }
}

fn write_register(register: usize, value: u8) {
    unsafe { ((UART + register) as *mut u8).write_volatile(value) };
}
