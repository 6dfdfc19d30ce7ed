//! The file system's blocks on the disk. Metadata goes through a write-back cache; file data goes straight past it.

use super::error::{Error, Result};
use crate::block::BlockDevice;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

/// Blocks kept. A full cache is written back and emptied: simple, and rare beside the data that flows past it.
const CAPACITY: usize = 1024;

struct Cached {
    data: Box<[u8]>,
    dirty: bool,
}

pub struct Blocks<D> {
    device: D,
    size: usize,
    count: u64,
    cached: BTreeMap<u64, Cached>,
}

impl<D: BlockDevice> Blocks<D> {
    /// `count` blocks of `size` bytes; the caller has checked that the disk holds them.
    pub fn new(device: D, size: usize, count: u64) -> Result<Self> {
        if size % device.sector_size() != 0 {
            return Err(Error::Unsupported("blocks smaller than the disk's sectors"));
        }
        Ok(Self { device, size, count, cached: BTreeMap::new() })
    }

    pub fn size(&self) -> usize {
        self.size
    }

    fn sector(&self, block: u64, count: usize) -> Result<u64> {
        match block.checked_add(count as u64) {
            Some(end) if end <= self.count => Ok(block * (self.size / self.device.sector_size()) as u64),
            _ => Err(Error::Corrupt("a block number beyond the file system", block)),
        }
    }

    fn load(&mut self, block: u64, fill: bool) -> Result<&mut Cached> {
        if !self.cached.contains_key(&block) {
            let sector = self.sector(block, 1)?;
            if self.cached.len() >= CAPACITY {
                self.write_back()?;
                self.cached.clear();
            }
            let mut data = vec![0; self.size].into_boxed_slice();
            if fill {
                self.device.read(sector, &mut data)?;
            }
            self.cached.insert(block, Cached { data, dirty: false });
        }
        self.cached.get_mut(&block).ok_or(Error::Corrupt("a block vanished from the cache", block))
    }

    /// A copy of a block of metadata.
    pub fn get(&mut self, block: u64) -> Result<Vec<u8>> {
        Ok(self.load(block, true)?.data.to_vec())
    }

    /// Part of a block of metadata, copied.
    pub fn get_part(&mut self, block: u64, offset: usize, length: usize) -> Result<Vec<u8>> {
        Ok(self.load(block, true)?.data[offset..offset + length].to_vec())
    }

    /// Replace a whole block of metadata.
    pub fn put(&mut self, block: u64, data: &[u8]) -> Result<()> {
        let cached = self.load(block, false)?;
        cached.data.copy_from_slice(data);
        cached.dirty = true;
        Ok(())
    }

    pub fn put_part(&mut self, block: u64, offset: usize, data: &[u8]) -> Result<()> {
        let cached = self.load(block, true)?;
        cached.data[offset..offset + data.len()].copy_from_slice(data);
        cached.dirty = true;
        Ok(())
    }

    /// These blocks were freed: what the cache knows of them must never reach the disk, where they may soon hold file data.
    pub fn forget(&mut self, first: u64, count: u64) {
        while let Some((&block, _)) = self.cached.range(first..first.saturating_add(count)).next() {
            self.cached.remove(&block);
        }
    }

    pub fn read_data(&mut self, first: u64, buffer: &mut [u8]) -> Result<()> {
        let sector = self.sector(first, buffer.len() / self.size)?;
        Ok(self.device.read(sector, buffer)?)
    }

    pub fn write_data(&mut self, first: u64, data: &[u8]) -> Result<()> {
        let sector = self.sector(first, data.len() / self.size)?;
        Ok(self.device.write(sector, data)?)
    }

    fn write_back(&mut self) -> Result<()> {
        let per_block = (self.size / self.device.sector_size()) as u64;
        for (&block, cached) in self.cached.iter_mut().filter(|(_, cached)| cached.dirty) {
            self.device.write(block * per_block, &cached.data)?;
            cached.dirty = false;
        }
        Ok(())
    }

    /// Write back all that changed, and have the disk put it on its medium.
    pub fn sync(&mut self) -> Result<()> {
        self.write_back()?;
        Ok(self.device.flush()?)
    }

    pub fn into_device(self) -> D {
        self.device
    }
}
