//! A PL011, polled (Arm DDI 0183).

pub const PL011: usize = 0x0900_0000;
const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const LINE_CONTROL: usize = 0x2c;
const CONTROL: usize = 0x30;
const TRANSMIT_EMPTY: u32 = 1 << 7;
const FIFO: usize = 16;

pub fn init() {
    write_register(CONTROL, 0);
    write_register(LINE_CONTROL, 0x70); // 8 bits, FIFOs
    write_register(CONTROL, 0x301); // on, to send and to receive
}

/// A whole FIFO for each look at the line's status.
pub fn write(bytes: &[u8]) {
    for some in bytes.chunks(FIFO) {
        while unsafe { ((PL011 + FLAGS) as *const u32).read_volatile() } & TRANSMIT_EMPTY == 0 {
            core::hint::spin_loop();
        }
        for &byte in some {
            write_register(DATA, byte as u32);
        }
    }
}

fn write_register(register: usize, value: u32) {
    unsafe { ((PL011 + register) as *mut u32).write_volatile(value) };
}
