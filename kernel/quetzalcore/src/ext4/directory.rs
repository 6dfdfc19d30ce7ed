//! Directories: blocks of variable-length entries, read and written as a list.
//!
//! An indexed directory reads as a list too: its index hides in blocks that look like one empty entry. Adding a name would break
//! the index, so the directory is first turned into a plain one; `e2fsck -D` can index it again.

use super::Ext4;
use super::bytes::{put_u16, put_u32, u16_at, u32_at};
use super::crc32c::crc32c;
use super::error::{Error, Result};
use super::extent::Mapping;
use super::inode::{Inode, Kind};
use crate::block::BlockDevice;
use alloc::vec;
use alloc::vec::Vec;

const HEADER: usize = 8;
/// A last entry that only carries the block's checksum.
const TAIL: usize = 12;
const TAIL_TYPE: u8 = 0xde;
pub const MAX_NAME: usize = 255;
/// More subdirectories than this are not counted any more.
const MAX_LINKS: u16 = 65_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub inode: u32,
    pub name: Vec<u8>,
}

/// An entry as it lies in its block.
struct Slot {
    offset: usize,
    length: usize,
    inode: u32,
    name_length: usize,
}

impl Slot {
    /// Bytes that the entry itself needs; what is beyond is free.
    fn used(&self) -> usize {
        if self.inode == 0 { 0 } else { needed(self.name_length) }
    }

    fn name<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        &block[self.offset + HEADER..self.offset + HEADER + self.name_length]
    }
}

fn needed(name_length: usize) -> usize {
    (HEADER + name_length).next_multiple_of(4)
}

fn put_entry(block: &mut [u8], offset: usize, length: usize, inode: u32, name: &[u8], kind: u8) {
    put_u32(block, offset, inode);
    put_u16(block, offset + 4, length as u16);
    block[offset + 6] = name.len() as u8;
    block[offset + 7] = kind;
    block[offset + HEADER..offset + HEADER + name.len()].copy_from_slice(name);
}

impl<D: BlockDevice> Ext4<D> {
    fn directory_blocks(&self, directory: &Inode) -> u32 {
        (directory.size() / self.sb.block_size as u64) as u32
    }

    fn directory_place(&mut self, directory: &Inode, logical: u32) -> Result<u64> {
        match self.map(directory, logical)? {
            Mapping::Written { physical, .. } => Ok(physical),
            _ => Err(Error::Corrupt("a directory with a hole", directory.number.into())),
        }
    }

    fn is_index(&self, directory: &Inode, logical: u32, block: &[u8]) -> bool {
        directory.is_indexed() && (logical == 0 || u32_at(block, 0) == 0 && usize::from(u16_at(block, 4)) == block.len())
    }

    fn directory_sum(&self, directory: &Inode, block: &[u8]) -> u32 {
        crc32c(directory.seed(self.sb.seed), &block[..block.len() - TAIL])
    }

    fn directory_block(&mut self, directory: &Inode, logical: u32) -> Result<Vec<u8>> {
        let place = self.directory_place(directory, logical)?;
        let block = self.blocks.get(place)?;
        if self.sb.checksums && !self.is_index(directory, logical, &block) {
            let tail = block.len() - TAIL;
            let is_tail = u32_at(&block, tail) == 0 && u16_at(&block, tail + 4) == TAIL as u16 && block[tail + 7] == TAIL_TYPE;
            if !is_tail || self.directory_sum(directory, &block) != u32_at(&block, tail + 8) {
                return Err(Error::Corrupt("checksum of a directory block", directory.number.into()));
            }
        }
        Ok(block)
    }

    fn store_directory_block(&mut self, directory: &Inode, logical: u32, mut block: Vec<u8>) -> Result<()> {
        if self.sb.checksums && !self.is_index(directory, logical, &block) {
            let tail = block.len() - TAIL;
            block[tail..].fill(0);
            put_u16(&mut block, tail + 4, TAIL as u16);
            block[tail + 7] = TAIL_TYPE;
            let sum = self.directory_sum(directory, &block);
            put_u32(&mut block, tail + 8, sum);
        }
        let place = self.directory_place(directory, logical)?;
        self.blocks.put(place, &block)
    }

    /// Where entries of a plain block end.
    fn entries_end(&self) -> usize {
        self.sb.block_size - if self.sb.checksums { TAIL } else { 0 }
    }

    fn slots(&self, directory: &Inode, block: &[u8]) -> Result<Vec<Slot>> {
        let mut slots = Vec::new();
        let mut offset = 0;
        while offset < block.len() {
            let corrupt = Err(Error::Corrupt("an entry of a directory", directory.number.into()));
            if block.len() - offset < HEADER {
                return corrupt;
            }
            let length = usize::from(u16_at(block, offset + 4));
            let slot = Slot { offset, length, inode: u32_at(block, offset), name_length: usize::from(block[offset + 6]) };
            if length < needed(1) || length % 4 != 0 || length > block.len() - offset || needed(slot.name_length) > length {
                return corrupt;
            }
            if slot.inode > self.sb.inodes || slot.inode != 0 && slot.name_length == 0 {
                return corrupt;
            }
            offset += length;
            slots.push(slot);
        }
        Ok(slots)
    }

    /// All entries, `.` and `..` too.
    pub(super) fn entries(&mut self, directory: &Inode) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for logical in 0..self.directory_blocks(directory) {
            let block = self.directory_block(directory, logical)?;
            let slots = self.slots(directory, &block)?;
            entries.extend(slots.iter().filter(|slot| slot.inode != 0).map(|slot| Entry { inode: slot.inode, name: slot.name(&block).to_vec() }));
        }
        Ok(entries)
    }

    pub(super) fn find(&mut self, directory: &Inode, name: &[u8]) -> Result<Option<u32>> {
        for logical in 0..self.directory_blocks(directory) {
            let block = self.directory_block(directory, logical)?;
            let slots = self.slots(directory, &block)?;
            if let Some(slot) = slots.iter().find(|slot| slot.inode != 0 && slot.name(&block) == name) {
                return Ok(Some(slot.inode));
            }
        }
        Ok(None)
    }

    /// Add a name that is not there yet. The caller stores the directory's inode, also after an error.
    pub(super) fn add_entry(&mut self, directory: &mut Inode, name: &[u8], inode: u32, kind: Kind) -> Result<()> {
        if directory.is_indexed() {
            self.make_plain(directory)?;
        }
        let need = needed(name.len());
        for logical in 0..self.directory_blocks(directory) {
            let mut block = self.directory_block(directory, logical)?;
            let end = self.entries_end();
            let slots = self.slots(directory, &block)?;
            let Some(slot) = slots.iter().find(|slot| slot.offset + slot.length <= end && slot.length - slot.used() >= need) else { continue };
            let used = slot.used();
            if used > 0 {
                put_u16(&mut block, slot.offset + 4, used as u16);
            }
            put_entry(&mut block, slot.offset + used, slot.length - used, inode, name, kind.entry_type());
            return self.store_directory_block(directory, logical, block);
        }
        let mut block = vec![0; self.sb.block_size];
        put_entry(&mut block, 0, self.entries_end(), inode, name, kind.entry_type());
        self.append_directory_block(directory, block)
    }

    fn append_directory_block(&mut self, directory: &mut Inode, block: Vec<u8>) -> Result<()> {
        let logical = self.directory_blocks(directory);
        let goal = match logical.checked_sub(1) {
            Some(last) => self.directory_place(directory, last)? + 1,
            None => self.home(directory.number),
        };
        let (physical, _) = self.allocate_blocks(goal, 1)?;
        if let Err(error) = self.insert_extent(directory, logical, physical, 1) {
            self.free_blocks(physical, 1)?;
            return Err(error);
        }
        directory.add_blocks(1, self.sb.block_size)?;
        directory.set_size(directory.size() + self.sb.block_size as u64);
        self.store_directory_block(directory, logical, block)
    }

    /// Take a name out; its space goes to the entry before it.
    pub(super) fn remove_entry(&mut self, directory: &Inode, name: &[u8]) -> Result<()> {
        for logical in 0..self.directory_blocks(directory) {
            let mut block = self.directory_block(directory, logical)?;
            let slots = self.slots(directory, &block)?;
            let Some(index) = slots.iter().position(|slot| slot.inode != 0 && slot.name(&block) == name) else { continue };
            let slot = &slots[index];
            match index.checked_sub(1).map(|before| &slots[before]) {
                Some(before) => put_u16(&mut block, before.offset + 4, (before.length + slot.length) as u16),
                None => put_u32(&mut block, slot.offset, 0),
            }
            return self.store_directory_block(directory, logical, block);
        }
        Err(Error::NotFound)
    }

    /// Give a new directory its first block.
    pub(super) fn start_directory(&mut self, directory: &mut Inode, parent: u32) -> Result<()> {
        let mut block = vec![0; self.sb.block_size];
        put_entry(&mut block, 0, needed(1), directory.number, b".", Kind::Directory.entry_type());
        put_entry(&mut block, needed(1), self.entries_end() - needed(1), parent, b"..", Kind::Directory.entry_type());
        self.append_directory_block(directory, block)
    }

    /// Turn an indexed directory into a plain one: the blocks of the index become empty ones.
    fn make_plain(&mut self, directory: &mut Inode) -> Result<()> {
        let mut index_blocks = Vec::new();
        for logical in 0..self.directory_blocks(directory) {
            let mut block = self.directory_block(directory, logical)?;
            if !self.is_index(directory, logical, &block) {
                continue;
            }
            let kept = if logical == 0 {
                let slots = self.slots(directory, &block)?;
                let [dot, dots, ..] = slots.as_slice() else {
                    return Err(Error::Corrupt("first block of an indexed directory", directory.number.into()));
                };
                if dot.offset + dot.length != needed(1) || dots.offset != needed(1) || dots.name_length != 2 {
                    return Err(Error::Corrupt("first block of an indexed directory", directory.number.into()));
                }
                needed(1)
            } else {
                0
            };
            let header = if kept > 0 { needed(2) } else { HEADER };
            block[kept + header..].fill(0);
            put_u16(&mut block, kept + 4, (self.entries_end() - kept) as u16);
            index_blocks.push((logical, block));
        }
        directory.clear_indexed();
        for (logical, block) in index_blocks {
            self.store_directory_block(directory, logical, block)?;
        }
        Ok(())
    }

    /// Count a subdirectory more or less in the link count of its parent.
    pub(super) fn count_subdirectory(&self, parent: &mut Inode, added: bool) -> Result<()> {
        let links = parent.links();
        let now = match (added, links) {
            (_, 1) => 1, // "many"
            (true, MAX_LINKS..) if self.sb.allows_many_subdirectories() => 1,
            (true, MAX_LINKS..) => return Err(Error::TooLarge),
            (true, _) => links + 1,
            (false, _) => links.saturating_sub(1).max(2),
        };
        parent.set_links(now);
        Ok(())
    }
}
