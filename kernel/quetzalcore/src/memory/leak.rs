//! Finds what was allocated since a mark and not given back.

use super::heap::{self, Statistics};
use super::pages::{self, PAGE};

/// What lived at a moment.
pub struct Mark {
    heap: Statistics,
    /// Bytes of pages that are not the heap's.
    pages: usize,
}

impl Mark {
    pub fn now() -> Mark {
        let heap = heap::statistics();
        Mark { pages: pages::statistics().used() - heap.pages * PAGE, heap }
    }

    /// Whether nothing more lives than at the mark; else says, as errors, what does.
    pub fn check(&self) -> bool {
        let now = Mark::now();
        let mut clean = true;
        for (class, (before, after)) in self.heap.live.iter().zip(now.heap.live).enumerate() {
            if after > *before {
                error!("leak: {} allocations of {} bytes or a little less are not freed", after - before, 1usize << class);
                clean = false;
            }
        }
        if now.pages > self.pages {
            error!("leak: {} pages are not freed", (now.pages - self.pages) / PAGE);
            clean = false;
        }
        clean
    }
}
