//! The command line: `test=memory,pci log=debug variant=slow:1000 exit=halt`. Words with `=` that are not the kernel's (`console=ttyS0`) and words
//! without are others' business; a wrong value of the kernel's own is an error.

use crate::console::Level;
use crate::exit::Way;
use crate::variant::Variant;

pub struct Options {
    pub log: Level,
    pub exit: Way,
    pub variant: Option<Variant>,
    /// Names of self-tests, separated by commas; empty for none.
    pub tests: &'static str,
    /// Milliseconds that a command of a disk may take; 0: as long as it likes.
    pub disk_timeout: u64,
    /// MiB of the file that the test of ext4 writes and reads back, where the disk has room.
    pub file: u64,
    /// How many requests each benchmark of the disk makes.
    pub requests: u64,
}

/// Why a command line is refused.
pub struct Mistake {
    key: &'static str,
    value: &'static str,
    allowed: &'static str,
}

impl core::fmt::Display for Mistake {
    fn fmt(&self, f: &mut core::fmt::Formatter) -> core::fmt::Result {
        write!(f, "{}={} is not known; allowed: {}", self.key, self.value, self.allowed)
    }
}

#[inline(never)]
pub fn parse(line: &'static str) -> Result<Options, Mistake> {
    let mut options = Options { log: Level::Info, exit: Way::Off, variant: None, tests: "", disk_timeout: 5000, file: 16, requests: 2000 };
    for word in line.split_ascii_whitespace() {
        let Some((key, value)) = word.split_once('=') else { continue };
        let mistake = |allowed| Mistake { key, value, allowed };
        match key {
            "log" => options.log = named(&Level::NAMES, value).ok_or(mistake("debug, info, warn, error"))?,
            "exit" => options.exit = named(&Way::NAMES, value).ok_or(mistake("off, debug, reset, halt"))?,
            "variant" => options.variant = Some(Variant::parse(value).ok_or(mistake(Variant::ALLOWED))?),
            "test" => options.tests = value,
            "disk-timeout" => options.disk_timeout = number(value, 0..=600_000).ok_or(mistake("milliseconds, 1 to 600000; 0 for no limit"))?,
            "file" => options.file = number(value, 1..=1 << 20).ok_or(mistake("MiB, 1 to 1048576"))?,
            "requests" => options.requests = number(value, 1..=1 << 30).ok_or(mistake("1 to 1073741824"))?,
            _ => {}
        }
    }
    Ok(options)
}

fn named<T: Copy>(names: &[(&str, T)], value: &str) -> Option<T> {
    names.iter().find(|(name, _)| *name == value).map(|&(_, meaning)| meaning)
}

fn number(value: &str, allowed: core::ops::RangeInclusive<u64>) -> Option<u64> {
    value.parse().ok().filter(|number| allowed.contains(number))
}
