//! The end of the kernel's life, and what it leaves as a status.

use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::arch;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure,
}

/// How to end.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Way {
    /// Power-off, by what the machine offers; where it offers none, the debug device, then a halt.
    Off,
    /// An emulator's debug device, which has a status: success 0x10, failure 0x11 (QEMU's isa-debug-exit makes 33 and 35 of them).
    Debug,
    Reset,
    /// Wait for interrupts, for ever.
    Halt,
}

impl Way {
    pub const NAMES: [(&'static str, Way); 4] = [("off", Way::Off), ("debug", Way::Debug), ("reset", Way::Reset), ("halt", Way::Halt)];
}

static WAY: AtomicU8 = AtomicU8::new(Way::Off as u8);

pub fn configure(way: Way) {
    WAY.store(way as u8, Ordering::Relaxed);
}

/// End, as the command line asked for.
pub fn exit(outcome: Outcome) -> ! {
    let way = WAY.load(Ordering::Relaxed);
    if way == Way::Halt as u8 {
        info!("exit: halted");
        arch::halt();
    }
    if way == Way::Reset as u8 {
        info!("exit: reset");
        arch::power::reset();
    }
    if way == Way::Debug as u8 {
        info!("exit: debug device");
        arch::power::debug_exit(outcome);
    }
    info!("exit: power off");
    arch::power::off();
    arch::power::debug_exit(outcome);
    error!("exit: this machine offers no power-off; halted");
    arch::halt()
}

/// The machine, or what it was told, is nothing to go on with.
pub fn refuse(why: fmt::Arguments) -> ! {
    error!("{why}");
    exit(Outcome::Failure)
}
