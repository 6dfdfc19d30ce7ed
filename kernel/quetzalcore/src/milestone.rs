//! Points of the boot that a lab can see, each with its time since kernel entry.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::arch;

const MOST: usize = 8;
static COUNT: AtomicUsize = AtomicUsize::new(0);
static TIMES: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];

/// Says `milestone: name` on the console.
#[inline(never)]
pub fn reached(name: &'static str) {
    let now = arch::time::now_ns();
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    if number < MOST {
        TIMES[number].store(now, Ordering::Relaxed);
    }
    info!("milestone: {name} at {}.{:03} us", now / 1000, now % 1000);
}

/// How long the boot took between its milestones.
pub fn summary() {
    let count = COUNT.load(Ordering::Relaxed).min(MOST);
    let mut last = 0;
    for time in &TIMES[..count] {
        let now = time.load(Ordering::Relaxed);
        debug!("milestone: +{} us", (now - last) / 1000);
        last = now;
    }
}
