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

pub fn parse(line: &'static str) -> Result<Options, Mistake> {
    let mut options = Options { log: Level::Info, exit: Way::Off, variant: None, tests: "" };
    for word in line.split_ascii_whitespace() {
        let Some((key, value)) = word.split_once('=') else { continue };
        let mistake = |allowed| Mistake { key, value, allowed };
        match key {
            "log" => options.log = named(&Level::NAMES, value).ok_or(mistake("debug, info, warn, error"))?,
            "exit" => options.exit = named(&Way::NAMES, value).ok_or(mistake("off, debug, reset, halt"))?,
            "variant" => options.variant = Some(Variant::parse(value).ok_or(mistake(Variant::ALLOWED))?),
            "test" => options.tests = value,
            _ => {}
        }
    }
    Ok(options)
}

fn named<T: Copy>(names: &[(&str, T)], value: &str) -> Option<T> {
    names.iter().find(|(name, _)| *name == value).map(|&(_, meaning)| meaning)
}
