//! What the processor says of itself.

use core::arch::asm;
use core::fmt::{self, Display};

macro_rules! register {
    ($name:literal) => {{
        let value: u64;
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
        value
    }};
}

const PARTS: [(u64, &str); 8] = [
    (0xd03, "Cortex-A53"),
    (0xd07, "Cortex-A57"),
    (0xd08, "Cortex-A72"),
    (0xd05, "Cortex-A55"),
    (0xd0b, "Cortex-A76"),
    (0xd0c, "Neoverse N1"),
    (0xd40, "Neoverse V1"),
    (0x051, "QEMU max"),
];

/// Vendor, model and features, for the log.
#[inline(never)]
pub fn describe() {
    let id = register!("midr_el1");
    let vendor = match id >> 24 & 0xff {
        0x00 => "QEMU",
        0x41 => "Arm",
        0x46 => "Fujitsu",
        0x61 => "Apple",
        0xc0 => "Ampere",
        _ => "unknown",
    };
    let part = id >> 4 & 0xfff;
    let model = PARTS.iter().find(|(number, _)| *number == part).map_or("unknown", |(_, name)| name);
    info!("cpu: vendor {vendor}, part {part:#05x} variant {} revision {}", id >> 20 & 15, id & 15);
    info!("cpu: {model}");
    info!("cpu: features{}", Features);
}

struct Features;

impl Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (isar, pfr) = (register!("id_aa64isar0_el1"), register!("id_aa64pfr0_el1"));
        let fields = [
            ("fp", (pfr >> 16 & 15) != 15),
            ("asimd", (pfr >> 20 & 15) != 15),
            ("el2", pfr >> 8 & 15 != 0),
            ("el3", pfr >> 12 & 15 != 0),
            ("gic", pfr >> 24 & 15 != 0),
            ("sve", pfr >> 32 & 15 != 0),
            ("aes", isar >> 4 & 15 != 0),
            ("sha1", isar >> 8 & 15 != 0),
            ("sha2", isar >> 12 & 15 != 0),
            ("crc32", isar >> 16 & 15 != 0),
            ("atomics", isar >> 20 & 15 != 0),
            ("rndr", isar >> 60 & 15 != 0),
        ];
        fields.iter().filter(|(_, there)| *there).try_for_each(|(name, _)| write!(f, " {name}"))
    }
}
