//! Whether the processor listens, and to whom: message-signalled interrupts by the local APIC. The old interrupt controllers are silenced.

use core::arch::asm;

use super::port::write8;
use crate::lock::Lock;
use crate::memory::paging;
pub use crate::pci::Message;

const APIC: usize = 0xfee0_0000;
const ID: usize = 0x20;
const END_OF_INTERRUPT: usize = 0xb0;
const SPURIOUS: usize = 0xf0;
const TIMER: usize = 0x320;
const TIMER_COUNT: usize = 0x380;
const TIMER_DIVISOR: usize = 0x3e0;

/// Vectors below are the processor's own, those above the APIC's.
const FIRST: usize = 0x30;
const COUNT: usize = 0xe0 - FIRST;

type Handler = (fn(usize), usize);
static HANDLERS: Lock<[Option<Handler>; COUNT]> = Lock::new([None; COUNT]);

/// After paging.
#[inline(never)]
pub fn init() {
    write8(0x21, 0xff);
    write8(0xa1, 0xff);
    paging::map_device(APIC, 0x400);
    write(SPURIOUS, 0x1ff);
}

/// A message of their own for `handler`, which will be called with `argument`, interrupts off, and must not take a lock that others hold.
/// None if all are given.
pub fn allocate(handler: fn(usize), argument: usize) -> Option<Message> {
    let mut handlers = HANDLERS.lock();
    let free = handlers.iter().position(Option::is_none)?;
    handlers[free] = Some((handler, argument));
    let id = unsafe { ((APIC + ID) as *const u32).read_volatile() } >> 24;
    Some(Message { address: APIC as u64 | (id as u64) << 12, data: (FIRST + free) as u32 })
}

/// Called by the trap's entry.
pub fn dispatch(vector: usize) {
    if vector >= FIRST + COUNT {
        return; // the APIC's own spurious one: it wants no answer
    }
    let handler = vector.checked_sub(FIRST).and_then(|number| HANDLERS.lock()[number]);
    if let Some((handler, argument)) = handler {
        handler(argument);
    } else {
        warn!("interrupts: nobody waits for vector {vector}");
    }
    write(END_OF_INTERRUPT, 0);
}

fn write(register: usize, value: u32) {
    unsafe { ((APIC + register) as *mut u32).write_volatile(value) };
}

pub fn enable() {
    unsafe { asm!("sti", options(nomem, nostack)) };
}

pub fn enabled() -> bool {
    let flags: u64;
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(nomem)) };
    flags & 1 << 9 != 0
}

pub fn disable() {
    unsafe { asm!("cli", options(nomem, nostack)) };
}

/// Wait for an interrupt with the processor asleep; call with interrupts disabled, returns with them disabled, the handler having run.
/// Between `sti` and `hlt` no interrupt is taken: one that came since the caller last looked wakes it.
pub fn wait() {
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// As `wait`, and not much longer than this, by the APIC's timer. Its rate is taken for 1 GHz: who must know looks at the clock.
pub fn wait_at_most(nanoseconds: u64) {
    static ALARM: Lock<Option<Message>> = Lock::new(None);
    let mut alarm = ALARM.lock();
    if alarm.is_none() {
        *alarm = allocate(|_| {}, 0);
        if let Some(message) = *alarm {
            write(TIMER_DIVISOR, 0b1010); // by 128
            write(TIMER, message.data); // once
        }
    }
    drop(alarm);
    write(TIMER_COUNT, (nanoseconds / 128).clamp(1, u64::from(u32::MAX)) as u32);
    wait();
}

/// Take what is pending, without waiting; call with interrupts disabled.
pub fn poll() {
    unsafe { asm!("sti", "nop", "cli", options(nostack)) };
}
