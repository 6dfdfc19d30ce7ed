//! Time by the counter `time`, whose rate the device tree tells.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::devicetree::DeviceTree;

unsafe extern "C" {
    /// The counter at kernel entry; written by boot.s.
    static entry_ticks: u64;
}

/// Of QEMU's virt machine, for a device tree that does not tell.
const USUAL: u32 = 10_000_000;
static HERTZ: AtomicU64 = AtomicU64::new(USUAL as u64);

#[inline(never)]
pub fn init() {
    let tree = DeviceTree::at(unsafe { super::device_tree }).ok();
    let told = tree.and_then(|tree| tree.named("cpus")).and_then(|node| node.cell("timebase-frequency", 0));
    HERTZ.store(told.unwrap_or(USUAL).max(1) as u64, Ordering::Relaxed);
}

/// Since kernel entry.
pub fn now_ns() -> u64 {
    let ticks: u64;
    unsafe { asm!("rdtime {}", out(reg) ticks, options(nomem, nostack)) };
    ((ticks - unsafe { entry_ticks }) as u128 * 1_000_000_000 / HERTZ.load(Ordering::Relaxed) as u128) as u64
}
