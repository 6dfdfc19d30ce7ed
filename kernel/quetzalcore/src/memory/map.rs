//! Which physical addresses are memory, as the loader tells it.

use super::pages::PAGE;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Usable,
    /// What firmware has left to be read: tables of ACPI, a device tree.
    Firmware,
    Reserved,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Usable => "usable",
            Kind::Firmware => "firmware",
            Kind::Reserved => "reserved",
        }
    }
}

/// `end` is the first address behind it.
#[derive(Clone, Copy)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    pub kind: Kind,
}

const MOST: usize = 128;

#[derive(Clone)]
pub struct Map {
    regions: [Region; MOST],
    count: usize,
}

impl Map {
    pub const fn new() -> Map {
        Map { regions: [Region { start: 0, end: 0, kind: Kind::Reserved }; MOST], count: 0 }
    }

    /// An entry of size 0 is left out.
    pub fn add(&mut self, start: u64, size: u64, kind: Kind) -> Result<(), &'static str> {
        let end = start.checked_add(size).ok_or("a region of the memory map ends beyond all addresses")?;
        if size == 0 {
            return Ok(());
        }
        let place = self.regions.get_mut(self.count).ok_or("the memory map has more than 128 regions")?;
        *place = Region { start, end, kind };
        self.count += 1;
        Ok(())
    }

    /// Take the pages that a part touches out of what is usable.
    #[cfg_attr(target_arch = "x86_64", allow(dead_code))] // there, firmware's map has it already
    pub fn reserve(&mut self, start: u64, size: u64) -> Result<(), &'static str> {
        let end = start.checked_add(size).and_then(|end| end.checked_next_multiple_of(PAGE as u64)).ok_or("a reservation ends beyond all addresses")?;
        let start = start / PAGE as u64 * PAGE as u64;
        for number in 0..self.count {
            let region = self.regions[number];
            if region.kind == Kind::Usable && region.start < end && start < region.end {
                if region.start < start {
                    self.regions[number].end = start;
                    self.add(end, region.end.saturating_sub(end), Kind::Usable)?;
                } else {
                    self.regions[number].start = end.min(region.end);
                }
            }
        }
        self.add(start, end - start, Kind::Firmware)
    }

    pub fn regions(&self) -> &[Region] {
        &self.regions[..self.count]
    }

    /// Bytes of usable memory.
    pub fn usable(&self) -> u64 {
        self.regions().iter().filter(|region| region.kind == Kind::Usable).map(|region| region.end - region.start).sum()
    }

    /// The first address behind all usable memory.
    pub fn usable_end(&self) -> u64 {
        self.regions().iter().filter(|region| region.kind == Kind::Usable).map(|region| region.end).max().unwrap_or(0)
    }
}
