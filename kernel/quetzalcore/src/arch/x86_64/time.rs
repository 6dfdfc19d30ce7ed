//! Time by the processor's time stamp counter, whose rate is asked of the processor or measured once.

use core::arch::x86_64::{__cpuid, __cpuid_count, _rdtsc};
use core::sync::atomic::{AtomicU64, Ordering};

use super::port::{read8, write8};

unsafe extern "C" {
    /// The counter at kernel entry; written by boot.s.
    static entry_tsc: u64;
}

/// Nanoseconds a tick, in units of 2^-32.
static SCALE: AtomicU64 = AtomicU64::new(1 << 32);

#[inline(never)]
pub fn init() {
    let khz = told_khz().unwrap_or_else(measured_khz).max(1);
    SCALE.store(((1_000_000u128 << 32) / khz as u128) as u64, Ordering::Relaxed);
}

/// Since kernel entry.
pub fn now_ns() -> u64 {
    let ticks = unsafe { _rdtsc() - entry_tsc };
    ((ticks as u128 * SCALE.load(Ordering::Relaxed) as u128) >> 32) as u64
}

/// By leaf 0x15 (crystal and ratio), or a hypervisor's leaf 0x40000010.
fn told_khz() -> Option<u64> {
    let most = __cpuid(0).eax;
    if most >= 0x15 {
        let ratio = __cpuid_count(0x15, 0);
        if ratio.eax != 0 && ratio.ebx != 0 && ratio.ecx != 0 {
            return Some(ratio.ecx as u64 * ratio.ebx as u64 / ratio.eax as u64 / 1000);
        }
    }
    let hypervisor = __cpuid(1).ecx >> 31 == 1 && __cpuid(0x4000_0000).eax >= 0x4000_0010;
    hypervisor.then(|| __cpuid(0x4000_0010).eax as u64).filter(|&khz| khz != 0)
}

/// Against the 8254 timer's channel 0, which every PC has and microvm too, for a millisecond.
fn measured_khz() -> u64 {
    const PIT_HZ: u64 = 1_193_182;
    const COUNT: u64 = PIT_HZ / 1000;
    /// A machine without the timer never counts: then this is as good a guess as any.
    const GUESS_KHZ: u64 = 1_000_000;
    const PATIENCE: u64 = 1 << 27;

    write8(0x43, 0x30); // channel 0, both bytes, count down once
    write8(0x40, 0xff);
    write8(0x40, 0xff);
    let first = unsafe { _rdtsc() };
    let (start, mut count) = (counter(), 0);
    let mut now = first;
    while count < COUNT {
        count = start.wrapping_sub(counter()) as u64;
        now = unsafe { _rdtsc() };
        if now - first > PATIENCE {
            return GUESS_KHZ;
        }
        core::hint::spin_loop();
    }
    (now - first) * PIT_HZ / count / 1000
}

/// What channel 0 has left to count.
fn counter() -> u16 {
    write8(0x43, 0); // latch it
    let low = read8(0x40);
    u16::from_le_bytes([low, read8(0x40)])
}
