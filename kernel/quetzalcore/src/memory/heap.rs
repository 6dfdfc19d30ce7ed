//! The heap behind `alloc`: small things by the buddy system in chunks of 64 KiB, each with its own tables in its first page; large ones
//! in pages of their own.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;

use super::buddy::Buddy;
use super::pages::{self, PAGE};
use crate::lock::Lock;

const CHUNK: usize = 64 << 10;
const UNIT_SHIFT: u32 = 5;
const UNITS: usize = CHUNK >> UNIT_SHIFT;
/// What is smaller lives in a chunk.
const LARGE: usize = PAGE;
const CLASSES: usize = 48;

#[repr(C)]
struct Chunk {
    next: *mut Chunk,
    buddy: Buddy,
    states: [u8; UNITS],
}

const _: () = assert!(size_of::<Chunk>() <= PAGE);

struct Heap {
    chunks: *mut Chunk,
    statistics: Statistics,
}

#[derive(Clone, Copy)]
pub struct Statistics {
    /// Allocations that live, by their size: 2^n bytes.
    pub live: [usize; CLASSES],
    /// Pages that it has of the page allocator.
    pub pages: usize,
}

impl Statistics {
    pub fn allocations(&self) -> usize {
        self.live.iter().sum()
    }

    pub fn bytes(&self) -> usize {
        self.live.iter().enumerate().map(|(class, count)| count << class).sum()
    }
}

struct Global;

#[global_allocator]
static GLOBAL: Global = Global;

static HEAP: Lock<Heap> = Lock::new(Heap { chunks: null_mut(), statistics: Statistics { live: [0; CLASSES], pages: 0 } });

pub fn statistics() -> Statistics {
    HEAP.lock().statistics
}

/// Bytes that a layout takes: a power of two, which is also its alignment.
fn size_of_block(layout: Layout) -> usize {
    layout.size().max(layout.align()).max(1 << UNIT_SHIFT).next_power_of_two()
}

unsafe impl GlobalAlloc for Global {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = size_of_block(layout);
        let mut heap = HEAP.lock();
        let block = if size >= LARGE { heap.take_pages(size) } else { heap.allocate(size) };
        if let Some(block) = block {
            heap.statistics.live[size.trailing_zeros() as usize] += 1;
            block as *mut u8
        } else {
            null_mut()
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let size = size_of_block(layout);
        let mut heap = HEAP.lock();
        heap.statistics.live[size.trailing_zeros() as usize] -= 1;
        if size >= LARGE { heap.give_pages(block as usize, size) } else { heap.release(block as usize) }
    }
}

impl Heap {
    fn take_pages(&mut self, size: usize) -> Option<usize> {
        let block = pages::allocate(pages::order_of(size))?;
        self.statistics.pages += size / PAGE;
        Some(block)
    }

    fn give_pages(&mut self, block: usize, size: usize) {
        pages::release(block);
        self.statistics.pages -= size / PAGE;
    }

    fn allocate(&mut self, size: usize) -> Option<usize> {
        let order = size.trailing_zeros() - UNIT_SHIFT;
        let mut chunk = self.chunks;
        while !chunk.is_null() {
            if let Some(block) = unsafe { (*chunk).buddy.allocate(order) } {
                return Some(block);
            }
            chunk = unsafe { (*chunk).next };
        }
        let base = self.take_pages(CHUNK)?;
        let chunk = base as *mut Chunk;
        unsafe {
            chunk.cast::<u8>().write_bytes(0, PAGE);
            (*chunk).next = self.chunks;
            (*chunk).buddy = Buddy::new(base, UNIT_SHIFT, &raw mut (*chunk).states as *mut u8, UNITS);
            (*chunk).buddy.add(base + PAGE, base + CHUNK);
            self.chunks = chunk;
            (*chunk).buddy.allocate(order)
        }
    }

    fn release(&mut self, block: usize) {
        let chunk = (block & !(CHUNK - 1)) as *mut Chunk;
        unsafe { (*chunk).buddy.release(block) };
        // The last chunk stays: a program that needs one thing at a time would else make it again each time.
        if unsafe { (*chunk).buddy.free_bytes() } == CHUNK - PAGE && !(self.chunks == chunk && unsafe { (*chunk).next.is_null() }) {
            let mut link = &raw mut self.chunks;
            unsafe {
                while *link != chunk {
                    link = &raw mut (**link).next;
                }
                *link = (*chunk).next;
            }
            self.give_pages(chunk as usize, CHUNK);
        }
    }
}
