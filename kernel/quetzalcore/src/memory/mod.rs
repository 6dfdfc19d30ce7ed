//! The machine's memory: what there is (`map`), who has it (`pages`, `heap`), where it is seen (`paging`).

mod buddy;
pub mod heap;
pub mod leak;
pub mod map;
pub mod pages;
pub mod paging;

use crate::arch;
use crate::boot::BootInfo;
use crate::lock::Lock;

static MAP: Lock<map::Map> = Lock::new(map::Map::new());

/// Bytes below which the kernel does not try.
const LEAST: u64 = 8 << 20;

#[inline(never)]
pub fn init(boot: &BootInfo) -> Result<(), &'static str> {
    for region in boot.memory.regions() {
        info!("memory: {:#014x}-{:#014x} {}", region.start, region.end, region.kind.name());
    }
    let usable = boot.memory.usable();
    info!("memory: {} MiB usable", usable >> 20);
    if usable < LEAST {
        return Err("less than 8 MiB are usable: too little to go on");
    }
    // Until the real page tables are there, the architecture's entry code has mapped only so much.
    pages::init(&boot.memory, arch::MAPPED_AT_ENTRY)?;
    paging::init(&boot.memory)?;
    pages::extend(&boot.memory, arch::MAPPED_AT_ENTRY);
    *MAP.lock() = boot.memory.clone();
    report();
    Ok(())
}

/// Whether an address is one of the memory that the loader called usable.
pub fn is_usable(address: usize) -> bool {
    let map = MAP.lock();
    map.regions().iter().any(|region| region.kind == map::Kind::Usable && (region.start..region.end).contains(&(address as u64)))
}

/// The statistics, as a line of the log.
pub fn report() {
    let (pages, heap) = (pages::statistics(), heap::statistics());
    info!(
        "memory: {} KiB in pages, {} KiB used, {} KiB at most; heap: {} allocations, {} bytes in {} KiB",
        pages.total >> 10,
        pages.used() >> 10,
        pages.most_used >> 10,
        heap.allocations(),
        heap.bytes(),
        heap.pages * pages::PAGE >> 10
    );
}
