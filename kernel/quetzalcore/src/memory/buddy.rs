//! The buddy system (Knuth, The Art of Computer Programming, 2.5): blocks of 2^order units, split in halves when a smaller one is asked
//! for, merged with the other half when both are free. Pages and the heap are both made of it.
//!
//! What is free is linked through itself; what each block is, one byte for each unit tells, so that freeing what is not allocated is found.

use core::ptr::null_mut;

const ORDERS: usize = 32;
const FREE: u8 = 0x40;
const USED: u8 = 0x80;

struct Node {
    previous: *mut Node,
    next: *mut Node,
}

pub struct Buddy {
    /// Address of unit 0; blocks are aligned to their size from there.
    base: usize,
    /// A unit is 2^shift bytes, at least 16.
    shift: u32,
    /// Of each unit: `FREE` or `USED` with the order, at the first unit of a block; else 0.
    states: *mut u8,
    units: usize,
    lists: [*mut Node; ORDERS],
    free_units: usize,
}

impl Buddy {
    /// Without any memory until `add`. `states` has room for `units` bytes, all 0, and belongs to this from now on.
    pub const fn new(base: usize, shift: u32, states: *mut u8, units: usize) -> Buddy {
        Buddy { base, shift, states, units, lists: [null_mut(); ORDERS], free_units: 0 }
    }

    /// Bytes that nobody has.
    pub fn free_bytes(&self) -> usize {
        self.free_units << self.shift
    }

    /// Make the whole units between two addresses free; nobody else may use them.
    pub fn add(&mut self, start: usize, end: usize) {
        let mut unit = (start - self.base).div_ceil(1 << self.shift);
        let last = ((end - self.base) >> self.shift).min(self.units);
        while unit < last {
            let aligned = if unit == 0 { ORDERS as u32 - 1 } else { unit.trailing_zeros() };
            let order = aligned.min((last - unit).ilog2()).min(ORDERS as u32 - 1);
            self.insert(unit, order);
            self.free_units += 1 << order;
            unit += 1 << order;
        }
    }

    /// A block of 2^order units, aligned to its size; None if none is left.
    pub fn allocate(&mut self, order: u32) -> Option<usize> {
        let found = (order..ORDERS as u32).find(|&order| !self.lists[order as usize].is_null())?;
        let unit = (self.lists[found as usize] as usize - self.base) >> self.shift;
        self.remove(unit, found);
        for half in (order..found).rev() {
            self.insert(unit + (1 << half), half);
        }
        self.set(unit, USED | order as u8);
        self.free_units -= 1 << order;
        Some(self.base + (unit << self.shift))
    }

    /// Give back what `allocate` gave; returns its order. Panics for any other address.
    pub fn release(&mut self, address: usize) -> u32 {
        let mut unit = address.wrapping_sub(self.base) >> self.shift;
        let aligned = address.wrapping_sub(self.base) & ((1 << self.shift) - 1) == 0;
        let state = if aligned && unit < self.units { self.state(unit) } else { 0 };
        assert!(state & USED != 0, "{address:#x} is freed and was not allocated");
        let freed = (state & !USED) as u32;
        self.set(unit, 0);
        self.free_units += 1 << freed;
        let mut order = freed;
        loop {
            let other = unit ^ (1 << order);
            if order as usize == ORDERS - 1 || other >= self.units || self.state(other) != FREE | order as u8 {
                break;
            }
            self.remove(other, order);
            unit &= other;
            order += 1;
        }
        self.insert(unit, order);
        freed
    }

    fn state(&self, unit: usize) -> u8 {
        unsafe { self.states.add(unit).read() }
    }

    fn set(&mut self, unit: usize, state: u8) {
        unsafe { self.states.add(unit).write(state) };
    }

    fn node(&self, unit: usize) -> *mut Node {
        (self.base + (unit << self.shift)) as *mut Node
    }

    fn insert(&mut self, unit: usize, order: u32) {
        let node = self.node(unit);
        let first = self.lists[order as usize];
        unsafe { node.write(Node { previous: null_mut(), next: first }) };
        if !first.is_null() {
            unsafe { (*first).previous = node };
        }
        self.lists[order as usize] = node;
        self.set(unit, FREE | order as u8);
    }

    fn remove(&mut self, unit: usize, order: u32) {
        let Node { previous, next } = unsafe { self.node(unit).read() };
        if previous.is_null() {
            self.lists[order as usize] = next;
        } else {
            unsafe { (*previous).next = next };
        }
        if !next.is_null() {
            unsafe { (*next).previous = previous };
        }
        self.set(unit, 0);
    }
}
