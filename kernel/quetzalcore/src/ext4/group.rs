//! Block groups: descriptors, bitmaps, and the allocation of blocks and inodes out of them.

use super::Ext4;
use super::bytes::{put_u16, u16_at, u32_at};
use super::crc32c::crc32c;
use super::error::{Error, Result};
use super::superblock::Superblock;
use crate::block::BlockDevice;
use alloc::vec;
use alloc::vec::Vec;

const INODES_UNINITIALISED: u16 = 1;
const BLOCKS_UNINITIALISED: u16 = 2;

/// A 16-bit count of a descriptor: the offsets of its low and its high half (the latter only in descriptors of 64 bytes).
type Field = (usize, usize);
const FREE_BLOCKS: Field = (0x0c, 0x2c);
const FREE_INODES: Field = (0x0e, 0x2e);
const USED_DIRECTORIES: Field = (0x10, 0x30);
const UNUSED_INODES: Field = (0x1c, 0x32);
const BLOCK_BITMAP_SUM: Field = (0x18, 0x38);
const INODE_BITMAP_SUM: Field = (0x1a, 0x3a);

/// The descriptors of all groups, as they are on the disk.
pub struct Groups {
    raw: Vec<u8>,
    size: usize,
    /// Where metadata lies: sorted, disjoint (first, past the last). Nothing else may be there, whatever a corrupt image says.
    metadata: Vec<(u64, u64)>,
}

impl Groups {
    pub fn parse(raw: Vec<u8>, sb: &Superblock) -> Result<Self> {
        let mut this = Self { raw, size: sb.descriptor_size, metadata: Vec::new() };
        let table_blocks = u64::from(sb.inodes_per_group) * sb.inode_size as u64 / sb.block_size as u64;
        let valid = u64::from(sb.first_data_block)..sb.blocks;
        let mut ranges = Vec::new();
        for group in 0..sb.groups {
            if sb.checksums && this.checksum(sb, group) != u16_at(this.descriptor(group), 0x1e) {
                return Err(Error::Corrupt("checksum of a group descriptor", group.into()));
            }
            let start = sb.group_start(group);
            if sb.group_has_superblock(group) {
                let blocks = 1 + sb.descriptor_blocks() + u64::from(sb.reserved_descriptor_blocks());
                ranges.push((start, sb.blocks.min(start + blocks)));
            }
            for (block, count) in [(this.block_bitmap(group), 1), (this.inode_bitmap(group), 1), (this.inode_table(group), table_blocks)] {
                let end = block.saturating_add(count);
                if !valid.contains(&block) || end > sb.blocks {
                    return Err(Error::Corrupt("a group's bitmap or inode table lies outside the file system", group.into()));
                }
                ranges.push((block, end));
            }
        }
        ranges.sort_unstable();
        for (first, end) in ranges {
            match this.metadata.last_mut() {
                Some(last) if first <= last.1 => last.1 = last.1.max(end),
                _ => this.metadata.push((first, end)),
            }
        }
        Ok(this)
    }

    fn descriptor(&self, group: u32) -> &[u8] {
        let at = group as usize * self.size;
        &self.raw[at..at + self.size]
    }

    fn descriptor_mut(&mut self, group: u32) -> &mut [u8] {
        let at = group as usize * self.size;
        &mut self.raw[at..at + self.size]
    }

    fn checksum(&self, sb: &Superblock, group: u32) -> u16 {
        let descriptor = self.descriptor(group);
        let sum = crc32c(crc32c(sb.seed, &group.to_le_bytes()), &descriptor[..0x1e]);
        crc32c(crc32c(sum, &[0, 0]), &descriptor[0x20..]) as u16
    }

    fn block_number(&self, group: u32, low: usize) -> u64 {
        let descriptor = self.descriptor(group);
        u64::from(u32_at(descriptor, low)) | if self.size == 64 { u64::from(u32_at(descriptor, low + 0x20)) << 32 } else { 0 }
    }

    fn block_bitmap(&self, group: u32) -> u64 {
        self.block_number(group, 0)
    }

    fn inode_bitmap(&self, group: u32) -> u64 {
        self.block_number(group, 4)
    }

    pub fn inode_table(&self, group: u32) -> u64 {
        self.block_number(group, 8)
    }

    fn field(&self, group: u32, (low, high): Field) -> u32 {
        let descriptor = self.descriptor(group);
        u32::from(u16_at(descriptor, low)) | if self.size == 64 { u32::from(u16_at(descriptor, high)) << 16 } else { 0 }
    }

    fn set_field(&mut self, group: u32, (low, high): Field, value: u32) {
        let wide = self.size == 64;
        let descriptor = self.descriptor_mut(group);
        put_u16(descriptor, low, value as u16);
        if wide {
            put_u16(descriptor, high, (value >> 16) as u16);
        }
    }

    fn flags(&self, group: u32) -> u16 {
        u16_at(self.descriptor(group), 0x12)
    }

    fn clear_flag(&mut self, group: u32, flag: u16) {
        let flags = self.flags(group) & !flag;
        put_u16(self.descriptor_mut(group), 0x12, flags);
    }

    pub fn has_no_inodes(&self, group: u32) -> bool {
        self.flags(group) & INODES_UNINITIALISED != 0
    }

    /// Does any of these blocks hold the file system's own metadata?
    pub fn is_metadata(&self, first: u64, count: u64) -> bool {
        let after = self.metadata.partition_point(|range| range.1 <= first);
        self.metadata.get(after).is_some_and(|range| range.0 < first.saturating_add(count))
    }
}

impl Superblock {
    pub fn group_start(&self, group: u32) -> u64 {
        u64::from(self.first_data_block) + u64::from(group) * u64::from(self.blocks_per_group)
    }

    fn blocks_in_group(&self, group: u32) -> u32 {
        (self.blocks - self.group_start(group)).min(u64::from(self.blocks_per_group)) as u32
    }

    fn group_of_block(&self, block: u64) -> u32 {
        ((block - u64::from(self.first_data_block)) / u64::from(self.blocks_per_group)) as u32
    }
}

fn bit(bitmap: &[u8], index: u32) -> bool {
    bitmap[index as usize / 8] & 1 << (index % 8) != 0
}

fn flip(bitmap: &mut [u8], index: u32) {
    bitmap[index as usize / 8] ^= 1 << (index % 8);
}

/// The first clear bit in `from..end`.
fn first_clear(bitmap: &[u8], from: u32, end: u32) -> Option<u32> {
    let mut index = from;
    while index < end {
        if index % 8 == 0 && bitmap[index as usize / 8] == 0xff {
            index += 8;
        } else if bit(bitmap, index) {
            index += 1;
        } else {
            return Some(index);
        }
    }
    None
}

impl<D: BlockDevice> Ext4<D> {
    /// Check a block run that the image names: inside the file system, and not on top of its metadata.
    pub(super) fn check_run(&self, first: u64, count: u64) -> Result<()> {
        let inside = first >= u64::from(self.sb.first_data_block) && first.checked_add(count).is_some_and(|end| end <= self.sb.blocks);
        if !inside {
            return Err(Error::Corrupt("a block number beyond the file system", first));
        }
        if self.groups.is_metadata(first, count) {
            return Err(Error::Corrupt("a file's block lies in the file system's own tables", first));
        }
        Ok(())
    }

    fn load_bitmap(&mut self, group: u32, block: u64, bits: u32, sum: Field, what: &'static str) -> Result<Vec<u8>> {
        let bitmap = self.blocks.get(block)?;
        if self.sb.checksums {
            let mask = if self.sb.descriptor_size == 64 { !0 } else { 0xffff };
            if crc32c(self.sb.seed, &bitmap[..bits as usize / 8]) & mask != self.groups.field(group, sum) {
                return Err(Error::Corrupt(what, group.into()));
            }
        }
        Ok(bitmap)
    }

    fn store_bitmap(&mut self, group: u32, block: u64, bits: u32, sum: Field, bitmap: &[u8]) -> Result<()> {
        if self.sb.checksums {
            self.groups.set_field(group, sum, crc32c(self.sb.seed, &bitmap[..bits as usize / 8]));
        }
        self.blocks.put(block, bitmap)?;
        self.store_descriptor(group)
    }

    fn store_descriptor(&mut self, group: u32) -> Result<()> {
        if self.sb.checksums {
            let sum = self.groups.checksum(&self.sb, group);
            put_u16(self.groups.descriptor_mut(group), 0x1e, sum);
        }
        let at = group as usize * self.sb.descriptor_size;
        let block = u64::from(self.sb.first_data_block) + 1 + (at / self.sb.block_size) as u64;
        self.blocks.put_part(block, at % self.sb.block_size, self.groups.descriptor(group))
    }

    fn load_block_bitmap(&mut self, group: u32) -> Result<Vec<u8>> {
        if self.groups.flags(group) & BLOCKS_UNINITIALISED == 0 {
            let block = self.groups.block_bitmap(group);
            return self.load_bitmap(group, block, self.sb.blocks_per_group, BLOCK_BITMAP_SUM, "checksum of a block bitmap");
        }
        // Never written: only metadata is in use, and the bits of blocks that do not exist.
        let mut bitmap = vec![0; self.sb.block_size];
        let (start, end) = (self.sb.group_start(group), self.sb.blocks_in_group(group));
        for index in 0..8 * self.sb.block_size as u32 {
            if index >= end || self.groups.is_metadata(start + u64::from(index), 1) {
                flip(&mut bitmap, index);
            }
        }
        Ok(bitmap)
    }

    fn store_block_bitmap(&mut self, group: u32, bitmap: &[u8]) -> Result<()> {
        self.groups.clear_flag(group, BLOCKS_UNINITIALISED);
        let block = self.groups.block_bitmap(group);
        self.store_bitmap(group, block, self.sb.blocks_per_group, BLOCK_BITMAP_SUM, bitmap)
    }

    /// Take up to `wanted` contiguous free blocks, as near after `goal` as they come. At least one, or `NoSpace`.
    pub(super) fn allocate_blocks(&mut self, goal: u64, wanted: u32) -> Result<(u64, u32)> {
        let goal = if goal >= u64::from(self.sb.first_data_block) && goal < self.sb.blocks { goal } else { u64::from(self.sb.first_data_block) };
        let home = self.sb.group_of_block(goal);
        // The home group twice: from the goal on, and after all others from its beginning.
        for step in 0..=self.sb.groups {
            let group = ((u64::from(home) + u64::from(step)) % u64::from(self.sb.groups)) as u32;
            let free = self.groups.field(group, FREE_BLOCKS);
            if free == 0 {
                continue;
            }
            let start = self.sb.group_start(group);
            let from = if step == 0 { (goal - start) as u32 } else { 0 };
            let end = self.sb.blocks_in_group(group);
            let mut bitmap = self.load_block_bitmap(group)?;
            let Some(first) = first_clear(&bitmap, from, end) else { continue };
            let most = end.min(first.saturating_add(wanted.min(free)));
            let mut next = first;
            while next < most && !bit(&bitmap, next) {
                flip(&mut bitmap, next);
                next += 1;
            }
            let (block, count) = (start + u64::from(first), next - first);
            if self.groups.is_metadata(block, count.into()) {
                return Err(Error::Corrupt("a block bitmap shows metadata as free", group.into()));
            }
            let total = self.sb.free_blocks().checked_sub(count.into()).ok_or(Error::Corrupt("number of free blocks", 0))?;
            self.sb.set_free_blocks(total);
            self.groups.set_field(group, FREE_BLOCKS, free - count);
            self.store_block_bitmap(group, &bitmap)?;
            return Ok((block, count));
        }
        Err(Error::NoSpace)
    }

    pub(super) fn free_blocks(&mut self, first: u64, count: u64) -> Result<()> {
        self.check_run(first, count)?;
        self.blocks.forget(first, count);
        let (mut block, end) = (first, first + count);
        while block < end {
            let group = self.sb.group_of_block(block);
            let start = self.sb.group_start(group);
            let stop = end.min(start + u64::from(self.sb.blocks_per_group));
            let mut bitmap = self.load_block_bitmap(group)?;
            for index in (block - start) as u32..(stop - start) as u32 {
                if !bit(&bitmap, index) {
                    return Err(Error::Corrupt("a block in use is marked as free", start + u64::from(index)));
                }
                flip(&mut bitmap, index);
            }
            let freed = stop - block;
            let free = self.groups.field(group, FREE_BLOCKS).saturating_add(freed as u32);
            if free > self.sb.blocks_in_group(group) {
                return Err(Error::Corrupt("number of free blocks of a group", group.into()));
            }
            self.groups.set_field(group, FREE_BLOCKS, free);
            self.sb.set_free_blocks(self.sb.free_blocks().saturating_add(freed));
            self.store_block_bitmap(group, &bitmap)?;
            block = stop;
        }
        Ok(())
    }

    fn load_inode_bitmap(&mut self, group: u32) -> Result<Vec<u8>> {
        if !self.groups.has_no_inodes(group) {
            let block = self.groups.inode_bitmap(group);
            return self.load_bitmap(group, block, self.sb.inodes_per_group, INODE_BITMAP_SUM, "checksum of an inode bitmap");
        }
        let mut bitmap = vec![0; self.sb.block_size];
        bitmap[self.sb.inodes_per_group as usize / 8..].fill(0xff);
        Ok(bitmap)
    }

    fn store_inode_bitmap(&mut self, group: u32, bitmap: &[u8]) -> Result<()> {
        self.groups.clear_flag(group, INODES_UNINITIALISED);
        let block = self.groups.inode_bitmap(group);
        self.store_bitmap(group, block, self.sb.inodes_per_group, INODE_BITMAP_SUM, bitmap)
    }

    /// Take an inode number, in the group of the directory that will hold it or the next with one free.
    pub(super) fn allocate_inode(&mut self, parent: u32, directory: bool) -> Result<u32> {
        let home = (parent - 1) / self.sb.inodes_per_group;
        for step in 0..self.sb.groups {
            let group = ((u64::from(home) + u64::from(step)) % u64::from(self.sb.groups)) as u32;
            let free = self.groups.field(group, FREE_INODES);
            if free == 0 {
                continue;
            }
            let mut bitmap = self.load_inode_bitmap(group)?;
            let reserved = if group == 0 { self.sb.first_free_inode - 1 } else { 0 };
            let Some(index) = first_clear(&bitmap, reserved, self.sb.inodes_per_group) else { continue };
            flip(&mut bitmap, index);
            let total = self.sb.free_inodes().checked_sub(1).ok_or(Error::Corrupt("number of free inodes", 0))?;
            self.sb.set_free_inodes(total);
            self.groups.set_field(group, FREE_INODES, free - 1);
            if directory {
                let used = self.groups.field(group, USED_DIRECTORIES).saturating_add(1);
                self.groups.set_field(group, USED_DIRECTORIES, used);
            }
            if self.sb.checksums {
                // Inodes past this one were never used: their part of the table may hold anything.
                let unused = self.groups.field(group, UNUSED_INODES).min(self.sb.inodes_per_group - index - 1);
                self.groups.set_field(group, UNUSED_INODES, unused);
            }
            self.store_inode_bitmap(group, &bitmap)?;
            return Ok(group * self.sb.inodes_per_group + index + 1);
        }
        Err(Error::NoInodes)
    }

    pub(super) fn free_inode(&mut self, number: u32, directory: bool) -> Result<()> {
        let (group, index) = ((number - 1) / self.sb.inodes_per_group, (number - 1) % self.sb.inodes_per_group);
        let mut bitmap = self.load_inode_bitmap(group)?;
        if !bit(&bitmap, index) {
            return Err(Error::Corrupt("an inode in use is marked as free", number.into()));
        }
        flip(&mut bitmap, index);
        let free = self.groups.field(group, FREE_INODES).saturating_add(1);
        if free > self.sb.inodes_per_group {
            return Err(Error::Corrupt("number of free inodes of a group", group.into()));
        }
        self.groups.set_field(group, FREE_INODES, free);
        if directory {
            let used = self.groups.field(group, USED_DIRECTORIES).saturating_sub(1);
            self.groups.set_field(group, USED_DIRECTORIES, used);
        }
        self.sb.set_free_inodes(self.sb.free_inodes().saturating_add(1));
        self.store_inode_bitmap(group, &bitmap)
    }
}
