//! Ways to misbehave, for the lab's own tests: `variant=panic` and so on, just before `ready`.

use crate::arch;

pub enum Variant {
    Panic,
    Hang,
    Flood,
    Reset,
    /// Executes so many more instructions, and is well otherwise.
    Slow(u64),
}

impl Variant {
    pub const ALLOWED: &str = "panic, hang, flood, reset, slow:N";

    pub fn parse(value: &str) -> Option<Variant> {
        Some(match value {
            "panic" => Variant::Panic,
            "hang" => Variant::Hang,
            "flood" => Variant::Flood,
            "reset" => Variant::Reset,
            _ => Variant::Slow(value.strip_prefix("slow:")?.parse().ok()?),
        })
    }
}

pub fn run(variant: Option<Variant>) {
    match variant {
        None => {}
        Some(Variant::Panic) => panic!("this variant panics"),
        Some(Variant::Hang) => arch::halt(),
        Some(Variant::Flood) => loop {
            println!("flood: all work and no play makes a console dull");
        },
        Some(Variant::Reset) => arch::power::reset(),
        Some(Variant::Slow(count)) => arch::boot_delay(count),
    }
}
