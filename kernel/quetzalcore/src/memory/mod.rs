//! The machine's memory.

pub mod map;

use crate::boot::BootInfo;

/// Bytes below which the kernel does not try.
const LEAST: u64 = 8 << 20;

pub fn init(boot: &BootInfo) -> Result<(), &'static str> {
    for region in boot.memory.regions() {
        info!("memory: {:#014x}-{:#014x} {}", region.start, region.end, region.kind.name());
    }
    let usable = boot.memory.usable();
    info!("memory: {} MiB usable", usable >> 20);
    if usable < LEAST {
        return Err("less than 8 MiB are usable: too little to go on");
    }
    Ok(())
}
