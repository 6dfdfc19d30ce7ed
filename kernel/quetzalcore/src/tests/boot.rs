//! The clock, and what the processor does about wrong accesses.

use super::{Ended, Test, check};
use crate::arch::{self, interrupts, traps};
use crate::lock::Lock;

pub const TESTS: &[Test] = &[("clock", clock), ("wrong_accesses", wrong_accesses), ("locks", locks)];

fn clock() -> Ended {
    let start = arch::time::now_ns();
    let mut last = start;
    for _ in 0..1000 {
        let now = arch::time::now_ns();
        check!(now >= last, "the clock went back from {last} to {now} ns");
        last = now;
    }
    check!(last > start, "the clock stands at {start} ns");
    Ended::Pass
}

fn wrong_accesses() -> Ended {
    static CONSTANT: u32 = 42;
    let text = wrong_accesses as fn() -> Ended as usize;
    let constant = &raw const CONSTANT as usize;
    let variable = &mut 0u8 as *mut u8 as usize;
    check!(traps::can_read(text) && !traps::can_write(text), "code can be written, or not be read");
    check!(traps::can_read(constant) && !traps::can_write(constant), "a constant can be written, or not be read");
    check!(traps::can_read(variable) && traps::can_write(variable), "a variable cannot be used");
    check!(!traps::can_read(0) && !traps::can_write(0), "address 0 can be used");
    check!(!traps::can_read(arch::stack_guard()), "the guard of the stack can be read");
    Ended::Pass
}

fn locks() -> Ended {
    static NUMBER: Lock<u32> = Lock::new(0);
    let before = interrupts::enabled();
    {
        let mut number = NUMBER.lock();
        *number += 1;
        check!(!interrupts::enabled(), "interrupts are taken while a lock is held");
    }
    check!(interrupts::enabled() == before, "a lock does not leave interrupts as they were");
    check!(*NUMBER.lock() > 0, "a lock loses its value");
    Ended::Pass
}
