//! Pages, page tables, heap and the leak check.

use alloc::alloc::{Layout, alloc, dealloc};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;
use core::hint::black_box;

use super::{Ended, Test, check};
use crate::memory::leak::Mark;
use crate::memory::pages::{self, PAGE};
use crate::memory::paging::{self, Fault, Rights};
use crate::memory::heap;

pub const TESTS: &[Test] = &[
    ("pages", page_blocks),
    ("heap", heap_blocks),
    ("collections", collections),
    ("mapping", mapping),
    ("gigabyte", gigabyte),
    ("exhaust_and_recover", exhaust_and_recover),
    ("leak_detection", leak_detection),
];

/// Blocks of every order up to 4 MiB are aligned, do not overlap, and come back.
fn page_blocks() -> Ended {
    let before = pages::statistics().free;
    if before < 32 << 20 {
        return Ended::Skip("less than 32 MiB are free");
    }
    let mut blocks = [0; 11];
    for (order, block) in blocks.iter_mut().enumerate() {
        let address = pages::allocate_zeroed(order as u32).unwrap_or(0);
        check!(address != 0, "no block of order {order}");
        check!(address % (PAGE << order) == 0, "a block of order {order} is at {address:#x}");
        *block = address;
    }
    for (order, &block) in blocks.iter().enumerate() {
        let words = unsafe { core::slice::from_raw_parts_mut(block as *mut usize, (PAGE << order) / size_of::<usize>()) };
        check!(words.iter().step_by(64).all(|&word| word == 0), "a block of order {order} overlaps another, or is not zeroed");
        words.fill(block);
    }
    for (order, &block) in blocks.iter().enumerate() {
        let words = unsafe { core::slice::from_raw_parts(block as *const usize, (PAGE << order) / size_of::<usize>()) };
        check!(words.iter().step_by(64).all(|&word| word == block), "a block of order {order} was overwritten");
        pages::release(block);
    }
    let after = pages::statistics().free;
    check!(after == before, "{before} bytes were free, {after} are");
    Ended::Pass
}

/// Things of many sizes and alignments, freed in another order than they were made.
fn heap_blocks() -> Ended {
    let layouts = (0..200).filter_map(|n: usize| Layout::from_size_align(1 + n * n % 9000, 1 << (n % 13)).ok());
    let mut blocks: Vec<(*mut u8, Layout)> = Vec::new();
    for (number, layout) in layouts.enumerate() {
        let block = unsafe { alloc(layout) };
        check!(!block.is_null(), "no memory for {} bytes", layout.size());
        check!(block as usize % layout.align() == 0, "{} bytes at {block:?} are not aligned to {}", layout.size(), layout.align());
        unsafe { block.write_bytes(number as u8, layout.size()) };
        blocks.push((block, layout));
    }
    for start in [1, 0] {
        for number in (start..blocks.len()).step_by(2) {
            let (block, layout) = blocks[number];
            let bytes = unsafe { core::slice::from_raw_parts(block, layout.size()) };
            check!(bytes.iter().all(|&byte| byte == number as u8), "block {number} of {} bytes was overwritten", layout.size());
            unsafe { dealloc(block, layout) };
        }
    }
    Ended::Pass
}

/// What the standard collections make of it.
fn collections() -> Ended {
    let mut map = BTreeMap::new();
    for number in 0..1000u32 {
        map.insert(number.wrapping_mul(2_654_435_761), format!("number {number}"));
    }
    for number in 0..1000u32 {
        let found = map.remove(&number.wrapping_mul(2_654_435_761));
        check!(found.as_ref() == Some(&format!("number {number}")), "{number} is {found:?}");
    }
    check!(map.is_empty(), "{} too many", map.len());
    Ended::Pass
}

/// A page at an address of its own: seen there, not twice, and gone afterwards.
fn mapping() -> Ended {
    // Behind everything that a machine of today has, in the lower half of the smallest address space (Sv39).
    const PLACE: usize = 0x30_0000_0000;
    let Some(page) = pages::allocate_zeroed(0) else { return Ended::Fail };
    let (first, second) = paging::kernel(|space| (space.map(PLACE, page, PAGE, Rights::Write), space.map(PLACE, page, PAGE, Rights::Write)));
    check!(first.is_ok(), "a page cannot be mapped: {first:?}");
    check!(second == Err(Fault::AlreadyMapped), "a page is mapped twice: {second:?}");
    unsafe { ((PLACE + 8) as *mut u64).write_volatile(42) };
    let seen = unsafe { ((page + 8) as *const u64).read_volatile() };
    check!(seen == 42, "42 was written through a mapping, and {seen} is there");
    let target = paging::kernel(|space| space.translate(PLACE + 8));
    check!(target == Some(page + 8), "the mapping leads to {target:x?}");
    check!(paging::kernel(|space| space.unmap(PLACE, PAGE)).is_ok(), "the page cannot be unmapped");
    check!(!crate::arch::traps::can_read(PLACE), "the page can be read after it was unmapped");
    let again = paging::kernel(|space| space.unmap(PLACE, PAGE));
    check!(again == Err(Fault::NotMapped), "the page is unmapped twice: {again:?}");
    pages::release(page);
    Ended::Pass
}

/// 1 GiB in blocks of 2 MiB, every page of it written and read back.
fn gigabyte() -> Ended {
    const ORDER: u32 = 9;
    const COUNT: usize = (1 << 30) / (PAGE << ORDER);
    if pages::statistics().free < 1 << 30 {
        return Ended::Skip("less than 1 GiB is free");
    }
    let mut blocks: Vec<usize> = Vec::with_capacity(COUNT);
    while blocks.len() < COUNT
        && let Some(block) = pages::allocate(ORDER)
    {
        blocks.push(block);
    }
    let got = blocks.len();
    let words = || blocks.iter().flat_map(|&block| (block..block + (PAGE << ORDER)).step_by(PAGE));
    words().for_each(|page| unsafe { (page as *mut usize).write_volatile(!page) });
    let wrong = words().find(|&page| unsafe { (page as *const usize).read_volatile() } != !page);
    blocks.iter().for_each(|&block| pages::release(block));
    check!(got == COUNT, "only {} MiB could be had", got * (PAGE << ORDER) >> 20);
    check!(wrong.is_none(), "{wrong:x?} does not keep what is written there");
    Ended::Pass
}

/// All memory, to the last page; then a refusal, and everything back.
fn exhaust_and_recover() -> Ended {
    let before = pages::statistics();
    // What is taken is chained through its own first word: there is no other memory to note it in.
    let mut chain = 0;
    for order in (0..=18).rev() {
        while let Some(block) = pages::allocate(order) {
            unsafe { (block as *mut usize).write(chain) };
            chain = block;
        }
    }
    let left = pages::statistics().free;
    // Through black_box: the compiler may leave out an allocation that is used for nothing.
    let refused = black_box(unsafe { alloc(Layout::new::<[u8; 65536]>()) }).is_null();
    while chain != 0 {
        let block = chain;
        chain = unsafe { (block as *const usize).read() };
        pages::release(block);
    }
    let after = pages::statistics();
    check!(left == 0, "{left} bytes cannot be had");
    check!(refused, "the heap gives what is not there");
    check!(after.free == before.free, "{} bytes were free, {} are", before.free, after.free);
    check!(after.most_used == after.total, "the statistics do not say that all was used");
    check!(Vec::<u8>::new().try_reserve(1 << 20).is_ok(), "memory that was given back cannot be had again");
    Ended::Pass
}

/// The leak check sees what is forgotten, and only that.
fn leak_detection() -> Ended {
    let mark = Mark::now();
    let kept = Box::new([0u8; 100]);
    let lives = heap::statistics().allocations();
    let leaked = Box::into_raw(kept);
    let page = pages::allocate(0);
    let found = mark.leaks();
    drop(unsafe { Box::from_raw(leaked) });
    page.into_iter().for_each(pages::release);
    check!(lives > 0, "the heap counts nothing");
    check!(found == (1, 1), "{} allocations and {} pages are said to have leaked instead of 1 and 1", found.0, found.1);
    check!(mark.leaks() == (0, 0), "what was freed is said to have leaked");
    Ended::Pass
}
