//! Which physical addresses are memory, as the loader tells it.

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Usable,
    /// Tables of the firmware.
    Acpi,
    Reserved,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Usable => "usable",
            Kind::Acpi => "ACPI",
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
