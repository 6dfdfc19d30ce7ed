//! The kernel's address space: every address that is mapped is mapped onto itself, with the rights its contents need. Memory is mapped
//! from the start, devices when somebody asks for them; page 0 and the guard of the stack never are.
//!
//! All three architectures have tables of 512 entries in levels; what an entry looks like is `arch::mmu`'s.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::map::{Kind, Map};
use super::pages::{self, PAGE};
use crate::arch::{self, mmu};
use crate::lock::Lock;

/// What may be done with a page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    Execute,
    Read,
    Write,
    /// As `Write`, and each access reaches the device, in order.
    Device,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    NoMemory,
    AlreadyMapped,
    NotMapped,
}

const ENTRIES: usize = 512;

/// Bytes that an entry of a level maps; level 0 has pages.
const fn span(level: usize) -> usize {
    PAGE << (9 * level)
}

pub struct Space {
    root: *mut u64,
}

impl Space {
    pub fn new() -> Result<Space, Fault> {
        Ok(Space { root: new_table()? as *mut u64 })
    }

    /// Map whole pages, by the largest that fit. What was mapped before a failure stays mapped.
    pub fn map(&mut self, address: usize, physical: usize, bytes: usize, rights: Rights) -> Result<(), Fault> {
        let mut done = 0;
        while done < bytes {
            let fits = |level: &usize| (address + done) % span(*level) == 0 && (physical + done) % span(*level) == 0 && bytes - done >= span(*level);
            let mut level = (0..=mmu::LARGEST).rev().find(fits).unwrap_or(0);
            let mut entry = self.entry(address + done, level, true)?;
            if level > 0 && mmu::is_table(unsafe { entry.read() }, level) {
                // Smaller pages are here already, of a neighbour.
                level = 0;
                entry = self.entry(address + done, level, true)?;
            }
            if unsafe { entry.read() } != 0 {
                return Err(Fault::AlreadyMapped);
            }
            unsafe { entry.write(mmu::page(physical + done, level, rights)) };
            done += span(level);
        }
        mmu::flush();
        Ok(())
    }

    /// Forget pages that `map` mapped one by one.
    pub fn unmap(&mut self, address: usize, bytes: usize) -> Result<(), Fault> {
        for page in (address..address + bytes).step_by(PAGE) {
            let entry = self.entry(page, 0, false)?;
            if unsafe { entry.read() } == 0 {
                return Err(Fault::NotMapped);
            }
            unsafe { entry.write(0) };
        }
        mmu::flush();
        Ok(())
    }

    /// Where an address leads; None if nowhere.
    pub fn translate(&self, address: usize) -> Option<usize> {
        let mut table = self.root;
        for level in (0..mmu::LEVELS).rev() {
            let entry = unsafe { table.add(address / span(level) % ENTRIES).read() };
            if entry == 0 {
                return None;
            }
            if !mmu::is_table(entry, level) {
                return Some(mmu::target(entry) + address % span(level));
            }
            table = mmu::target(entry) as *mut u64;
        }
        None
    }

    /// The entry of an address at a level. Tables on the way are made if they may be; a larger page on the way is in the way.
    fn entry(&mut self, address: usize, level: usize, make: bool) -> Result<*mut u64, Fault> {
        let mut table = self.root;
        for above in (level + 1..mmu::LEVELS).rev() {
            let entry = unsafe { table.add(address / span(above) % ENTRIES) };
            match unsafe { entry.read() } {
                0 if make => unsafe { entry.write(mmu::table(new_table()?)) },
                0 => return Err(Fault::NotMapped),
                there if !mmu::is_table(there, above) => return Err(Fault::AlreadyMapped),
                _ => {}
            }
            table = mmu::target(unsafe { entry.read() }) as *mut u64;
        }
        Ok(unsafe { table.add(address / span(level) % ENTRIES) })
    }
}

/// Pages that are tables; they stay when what they map goes.
static TABLES: AtomicUsize = AtomicUsize::new(0);

/// Bytes in page tables.
pub fn tables() -> usize {
    TABLES.load(Ordering::Relaxed) * PAGE
}

fn new_table() -> Result<usize, Fault> {
    let table = pages::allocate_zeroed(0).ok_or(Fault::NoMemory)?;
    TABLES.fetch_add(1, Ordering::Relaxed);
    Ok(table)
}

static KERNEL: Lock<Option<Space>> = Lock::new(None);

/// Map the memory and change over to it.
pub fn init(map: &Map) -> Result<(), &'static str> {
    let space = kernel_space(map).map_err(|_| "the memory map overlaps itself, or there is too little memory for page tables")?;
    mmu::activate(space.root as usize);
    *KERNEL.lock() = Some(space);
    Ok(())
}

fn kernel_space(map: &Map) -> Result<Space, Fault> {
    let mut space = Space::new()?;
    let image = arch::kernel_image();
    for region in map.regions().iter().filter(|region| region.kind != Kind::Reserved) {
        let start = (region.start as usize).next_multiple_of(PAGE).max(PAGE);
        let end = region.end as usize / PAGE * PAGE;
        for (start, end) in [(start, end.min(image.start)), (start.max(image.end), end)] {
            if start < end {
                space.map(start, start, end - start, Rights::Write)?;
            }
        }
    }
    for (part, rights) in arch::kernel_parts() {
        space.map(part.start, part.start, part.len(), rights)?;
    }
    for part in arch::EARLY_DEVICES {
        space.map(part.start, part.start, part.len(), Rights::Device)?;
    }
    Ok(space)
}

/// The kernel's own address space; there must be no other use of it meanwhile.
pub fn kernel<T>(work: impl FnOnce(&mut Space) -> T) -> T {
    work(KERNEL.lock().as_mut().expect("paging is not on yet"))
}

/// A device's registers, mapped for good; asking twice is no fault. Panics without memory for the tables.
pub fn map_device(physical: usize, bytes: usize) -> *mut u8 {
    let start = physical / PAGE * PAGE;
    let end = (physical + bytes).next_multiple_of(PAGE);
    kernel(|space| {
        for page in (start..end).step_by(PAGE) {
            if space.translate(page).is_none() {
                space.map(page, page, PAGE, Rights::Device).expect("a device's registers cannot be mapped");
            }
        }
    });
    physical as *mut u8
}
