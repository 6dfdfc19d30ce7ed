//! The processor's I/O ports.

use core::arch::asm;

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        #[allow(dead_code)]
        pub fn $read(port: u16) -> $type {
            let value: $type;
            unsafe { asm!(concat!("in ", $register, ", dx"), out($register) value, in("dx") port, options(nomem, nostack, preserves_flags)) };
            value
        }

        #[allow(dead_code)]
        pub fn $write(port: u16, value: $type) {
            unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nomem, nostack, preserves_flags)) };
        }
    };
}

access!(read8, write8, u8, "al");
access!(read16, write16, u16, "ax");
access!(read32, write32, u32, "eax");
