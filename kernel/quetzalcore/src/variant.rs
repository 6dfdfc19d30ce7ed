//! Ways to misbehave, for the lab's own tests: `variant=panic` and so on, just before `ready`.

use alloc::boxed::Box;
use core::mem::forget;

use crate::arch;
use crate::memory::pages;

pub enum Variant {
    Panic,
    Hang,
    Flood,
    Reset,
    /// Forgets memory.
    Leak,
    /// Executes so many more instructions, and is well otherwise.
    Slow(u64),
}

impl Variant {
    pub const ALLOWED: &str = "panic, hang, flood, reset, leak, slow:N";

    pub fn parse(value: &str) -> Option<Variant> {
        Some(match value {
            "panic" => Variant::Panic,
            "hang" => Variant::Hang,
            "flood" => Variant::Flood,
            "leak" => Variant::Leak,
            "reset" => Variant::Reset,
            _ => Variant::Slow(value.strip_prefix("slow:")?.parse().ok()?),
        })
    }
}

#[inline(never)]
pub fn run(variant: Option<Variant>) {
    match variant {
        None => {}
        Some(Variant::Panic) => panic!("this variant panics"),
        Some(Variant::Hang) => arch::halt(),
        Some(Variant::Flood) => loop {
            println!("flood: all work and no play makes a console dull");
        },
        Some(Variant::Reset) => arch::power::reset(),
        Some(Variant::Leak) => {
            (0..16).for_each(|_| forget(Box::new([0u8; 1000])));
            let _forgotten = pages::allocate(0);
        }
        Some(Variant::Slow(count)) => arch::boot_delay(count),
    }
}
