//! What the kernel says: lines with a time stamp and a level, on the first serial port.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};

use crate::arch;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    pub const NAMES: [(&'static str, Level); 4] =
        [("debug", Level::Debug), ("info", Level::Info), ("warn", Level::Warn), ("error", Level::Error)];

    fn word(self) -> &'static str {
        match self {
            Level::Debug => "DEBUG",
            Level::Info => "INFO ",
            Level::Warn => "WARN ",
            Level::Error => "ERROR",
        }
    }
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// From here on, lines below `level` are not said.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (number, line) in text.split('\n').enumerate() {
            if number > 0 {
                arch::serial::write(b"\r\n");
            }
            arch::serial::write(line.as_bytes());
        }
        Ok(())
    }
}

/// Without a stamp: the banner and KTAP.
pub fn print(what: fmt::Arguments) {
    let _ = Port.write_fmt(what);
}

/// One line of the log, `[    0.001234] INFO  what`. Seconds since kernel entry.
pub fn log(level: Level, what: fmt::Arguments) {
    if level as u8 >= LEVEL.load(Ordering::Relaxed) {
        let us = arch::time::now_ns() / 1000;
        print(format_args!("[{:5}.{:06}] {} {what}\n", us / 1_000_000, us % 1_000_000, level.word()));
    }
}

macro_rules! println {
    ($($what:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($what)*))) };
}
macro_rules! debug {
    ($($what:tt)*) => { $crate::console::log($crate::console::Level::Debug, format_args!($($what)*)) };
}
macro_rules! info {
    ($($what:tt)*) => { $crate::console::log($crate::console::Level::Info, format_args!($($what)*)) };
}
macro_rules! warn {
    ($($what:tt)*) => { $crate::console::log($crate::console::Level::Warn, format_args!($($what)*)) };
}
macro_rules! error {
    ($($what:tt)*) => { $crate::console::log($crate::console::Level::Error, format_args!($($what)*)) };
}
