//! Finds what was allocated since a mark and not given back.

use super::heap::{self, Statistics};
use super::pages::{self, PAGE};
use super::paging;

/// What lived at a moment.
pub struct Mark {
    heap: Statistics,
    /// Bytes of pages that are neither the heap's nor page tables.
    pages: usize,
}

impl Mark {
    pub fn now() -> Mark {
        let heap = heap::statistics();
        Mark { pages: pages::statistics().used() - heap.pages * PAGE - paging::tables(), heap }
    }

    /// How many allocations and pages live that did not at the mark.
    pub fn leaks(&self) -> (usize, usize) {
        let now = Mark::now();
        let more = self.heap.live.iter().zip(now.heap.live).map(|(&before, after)| after.saturating_sub(before)).sum();
        (more, now.pages.saturating_sub(self.pages) / PAGE)
    }

    /// Whether nothing more lives than at the mark; else says, as errors, what does.
    pub fn check(&self) -> bool {
        let now = Mark::now();
        for (class, (&before, after)) in self.heap.live.iter().zip(now.heap.live).enumerate() {
            if after > before {
                error!("leak: {} allocations of up to {} bytes are not freed", after - before, 1usize << class);
            }
        }
        let (allocations, pages) = self.leaks();
        if pages > 0 {
            error!("leak: {pages} pages are not freed");
        }
        (allocations, pages) == (0, 0)
    }
}
