//! Physical pages: who has which. A page's physical address is also the one it is used by.

use core::ops::Range;

use super::buddy::Buddy;
use super::map::{Kind, Map};
use crate::arch;
use crate::lock::Lock;

pub const PAGE: usize = 4096;
const SHIFT: u32 = PAGE.trailing_zeros();

struct Pages {
    buddy: Buddy,
    total: usize,
    most_used: usize,
}

static PAGES: Lock<Pages> = Lock::new(Pages { buddy: Buddy::new(0, SHIFT, core::ptr::null_mut(), 0), total: 0, most_used: 0 });

/// In bytes.
#[derive(Clone, Copy)]
pub struct Statistics {
    pub total: usize,
    pub free: usize,
    /// The most that was in use at a time.
    pub most_used: usize,
}

impl Statistics {
    pub fn used(self) -> usize {
        self.total - self.free
    }
}

/// Take over the usable memory below `limit`, except for the kernel's own and what the architecture keeps.
pub fn init(map: &Map, limit: usize) -> Result<(), &'static str> {
    // One byte for each page of all the memory, at the first place behind the kernel that has room.
    let units = map.usable_end() as usize / PAGE;
    let kernel = arch::kernel_image();
    let states = usable(map, 0..limit)
        .map(|region| region.start.max(kernel.end).next_multiple_of(PAGE)..region.end)
        .find(|room| room.start < room.end && room.len() > units)
        .ok_or("no memory behind the kernel has room for the allocator's own tables")?
        .start;
    unsafe { (states as *mut u8).write_bytes(0, units) };
    let taken = kernel.start..states + units;

    let mut pages = PAGES.lock();
    pages.buddy = Buddy::new(0, SHIFT, states as *mut u8, units);
    for part in [arch::LOWEST..taken.start, taken.end..limit] {
        for region in usable(map, part) {
            pages.buddy.add(region.start, region.end);
        }
    }
    pages.total = pages.buddy.free_bytes();
    Ok(())
}

/// Take over the usable memory from `limit` on, too, once it is mapped.
pub fn extend(map: &Map, limit: usize) {
    let mut pages = PAGES.lock();
    let before = pages.buddy.free_bytes();
    for region in usable(map, limit..usize::MAX) {
        pages.buddy.add(region.start, region.end);
    }
    pages.total += pages.buddy.free_bytes() - before;
}

/// What is usable inside a range.
fn usable(map: &Map, range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    map.regions()
        .iter()
        .filter(|region| region.kind == Kind::Usable)
        .map(move |region| (region.start as usize).max(range.start)..(region.end as usize).min(range.end))
        .filter(|region| region.start < region.end)
}

/// 2^order pages, aligned to their size, with whatever was in them; None if none are left.
pub fn allocate(order: u32) -> Option<usize> {
    let mut pages = PAGES.lock();
    let block = pages.buddy.allocate(order);
    pages.most_used = pages.most_used.max(pages.total - pages.buddy.free_bytes());
    block
}

/// As `allocate`, filled with zeros.
pub fn allocate_zeroed(order: u32) -> Option<usize> {
    let block = allocate(order)?;
    unsafe { (block as *mut u8).write_bytes(0, PAGE << order) };
    Some(block)
}

/// Give back what `allocate` gave.
pub fn release(block: usize) {
    PAGES.lock().buddy.release(block);
}

/// The smallest order that has room for so many bytes.
pub fn order_of(bytes: usize) -> u32 {
    bytes.div_ceil(PAGE).next_power_of_two().trailing_zeros()
}

pub fn statistics() -> Statistics {
    let pages = PAGES.lock();
    Statistics { total: pages.total, free: pages.buddy.free_bytes(), most_used: pages.most_used }
}
