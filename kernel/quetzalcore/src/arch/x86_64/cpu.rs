//! What the processor says of itself.

use core::arch::x86_64::{CpuidResult, __cpuid, __cpuid_count};
use core::fmt::{self, Display};

/// Name, leaf, register (EAX 0 to EDX 3), bit.
const FEATURES: [(&str, u32, usize, u32); 24] = [
    ("fpu", 1, 3, 0),
    ("tsc", 1, 3, 4),
    ("msr", 1, 3, 5),
    ("pae", 1, 3, 6),
    ("apic", 1, 3, 9),
    ("pat", 1, 3, 16),
    ("fxsr", 1, 3, 24),
    ("sse", 1, 3, 25),
    ("sse2", 1, 3, 26),
    ("sse3", 1, 2, 0),
    ("ssse3", 1, 2, 9),
    ("sse4.1", 1, 2, 19),
    ("sse4.2", 1, 2, 20),
    ("x2apic", 1, 2, 21),
    ("aes", 1, 2, 25),
    ("avx", 1, 2, 28),
    ("rdrand", 1, 2, 30),
    ("hypervisor", 1, 2, 31),
    ("smep", 7, 1, 7),
    ("erms", 7, 1, 9),
    ("smap", 7, 1, 20),
    ("nx", 0x8000_0001, 3, 20),
    ("1gb-pages", 0x8000_0001, 3, 26),
    ("lm", 0x8000_0001, 3, 29),
];

/// Vendor, model and features, for the log.
#[inline(never)]
pub fn describe() {
    let basic = __cpuid(0);
    let vendor = words([basic.ebx, basic.edx, basic.ecx]);
    let id = __cpuid(1).eax;
    let family = (id >> 8 & 15) + if id >> 8 & 15 == 15 { id >> 20 & 255 } else { 0 };
    let model = (id >> 4 & 15) | (id >> 12 & 0xf0);
    let mut brand = [0u8; 48];
    if __cpuid(0x8000_0000).eax >= 0x8000_0004 {
        for leaf in 0..3 {
            let part = __cpuid(0x8000_0002 + leaf as u32);
            brand[leaf * 16..leaf * 16 + 16].copy_from_slice(&bytes([part.eax, part.ebx, part.ecx, part.edx]));
        }
    }
    info!("cpu: vendor {}, family {family} model {model} stepping {}", text(&vendor), id & 15);
    info!("cpu: {}", text(&brand));
    info!("cpu: features{}", Features);
}

struct Features;

impl Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (name, leaf, register, bit) in FEATURES {
            if __cpuid(leaf & 0x8000_0000).eax >= leaf && registers(__cpuid_count(leaf, 0))[register] >> bit & 1 == 1 {
                write!(f, " {name}")?;
            }
        }
        Ok(())
    }
}

fn registers(result: CpuidResult) -> [u32; 4] {
    [result.eax, result.ebx, result.ecx, result.edx]
}

fn bytes(registers: [u32; 4]) -> [u8; 16] {
    let mut all = [0; 16];
    for (part, register) in all.chunks_mut(4).zip(registers) {
        part.copy_from_slice(&register.to_le_bytes());
    }
    all
}

fn words(registers: [u32; 3]) -> [u8; 16] {
    bytes([registers[0], registers[1], registers[2], 0])
}

fn text(bytes: &[u8]) -> &str {
    core::str::from_utf8(bytes).unwrap_or("?").trim_matches(['\0', ' '])
}
