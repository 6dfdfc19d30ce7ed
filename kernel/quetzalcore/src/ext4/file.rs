//! The contents of files. Data goes between the caller's buffer and the disk in runs as long as the extents allow.

use super::Ext4;
use super::error::{Error, Result};
use super::extent::{MAX_RUN, Mapping};
use super::inode::{Inode, Kind};
use crate::block::BlockDevice;
use alloc::vec;

/// A block of a file has a 32-bit number.
const MAX_BLOCKS: u64 = u32::MAX as u64;

impl<D: BlockDevice> Ext4<D> {
    /// Where the blocks of an inode's group begin: a good place for the first of its own.
    pub(super) fn home(&self, number: u32) -> u64 {
        self.sb.group_start((number - 1) / self.sb.inodes_per_group)
    }

    fn max_size(&self) -> u64 {
        if self.sb.allows_large_files() { MAX_BLOCKS * self.sb.block_size as u64 } else { i32::MAX as u64 }
    }

    /// Fill the buffer from this byte of the file on. Returns how much there was: less than asked for at the end of the file only.
    pub fn read(&mut self, number: u32, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let inode = self.inode(number)?;
        if inode.kind() != Kind::File {
            return Err(if inode.kind() == Kind::Directory { Error::IsADirectory } else { Error::Unsupported("reading what is not a file") });
        }
        let length = inode.size().min(self.max_size()).saturating_sub(offset).min(buffer.len() as u64) as usize;
        let block_size = self.sb.block_size;
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let (logical, within) = ((at / block_size as u64) as u32, (at % block_size as u64) as usize);
            let (physical, count) = match self.map(&inode, logical)? {
                Mapping::Written { physical, count } => (Some(physical), count),
                Mapping::Unwritten { count } | Mapping::Hole { count } => (None, count),
            };
            let bytes = (u64::from(count) * block_size as u64 - within as u64).min((length - done) as u64) as usize;
            let part = &mut buffer[done..done + bytes];
            match physical {
                Some(physical) => self.read_span(physical, within, part)?,
                None => part.fill(0),
            }
            done += bytes;
        }
        Ok(length)
    }

    /// Write all the data from this byte of the file on; the file grows as needed. After an error the file holds a beginning of it.
    pub fn write(&mut self, number: u32, offset: u64, data: &[u8]) -> Result<()> {
        self.changing(|this| {
            let mut inode = this.inode(number)?;
            if inode.kind() != Kind::File {
                return Err(if inode.kind() == Kind::Directory { Error::IsADirectory } else { Error::Unsupported("writing what is not a file") });
            }
            this.check_changeable(&inode)?;
            if offset.checked_add(data.len() as u64).is_none_or(|end| end > this.max_size()) {
                return Err(Error::TooLarge);
            }
            let written = this.write_runs(&mut inode, offset, data);
            inode.touch(this.now);
            this.store_inode(&mut inode)?;
            written
        })
    }

    fn write_runs(&mut self, inode: &mut Inode, offset: u64, data: &[u8]) -> Result<()> {
        let block_size = self.sb.block_size;
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (logical, within) = ((at / block_size as u64) as u32, (at % block_size as u64) as usize);
            let wanted = (within + data.len() - done).div_ceil(block_size).min(MAX_RUN as usize) as u32;
            let mapping = self.map(inode, logical)?;
            let (physical, count, new) = match mapping {
                Mapping::Written { physical, count } => (physical, count.min(wanted), false),
                Mapping::Unwritten { .. } => return Err(Error::Unsupported("writing into preallocated blocks")),
                Mapping::Hole { count } => {
                    let goal = self.goal(inode, logical)?;
                    let (physical, count) = self.allocate_blocks(goal, count.min(wanted))?;
                    (physical, count, true)
                }
            };
            let bytes = (count as usize * block_size - within).min(data.len() - done);
            let mut written = self.write_span(physical, within, &data[done..done + bytes], new);
            if new {
                // Only what was written becomes part of the file.
                written = written.and_then(|()| self.insert_extent(inode, logical, physical, count));
                if let Err(error) = written {
                    self.free_blocks(physical, count.into())?;
                    return Err(error);
                }
                inode.add_blocks(count.into(), block_size)?;
            }
            written?;
            done += bytes;
            inode.set_size(inode.size().max(offset + done as u64));
        }
        Ok(())
    }

    /// After the block before it, so that one extent can hold both.
    fn goal(&mut self, inode: &Inode, logical: u32) -> Result<u64> {
        if let Some(before) = logical.checked_sub(1)
            && let Mapping::Written { physical, .. } = self.map(inode, before)?
        {
            return Ok(physical + 1);
        }
        Ok(self.home(inode.number))
    }

    /// Read bytes that lie `within` a run of blocks that begins at `physical`.
    fn read_span(&mut self, physical: u64, within: usize, buffer: &mut [u8]) -> Result<()> {
        let size = self.sb.block_size;
        let mut edge = vec![0; if within != 0 || buffer.len() % size != 0 { size } else { 0 }];
        let head = if within == 0 { 0 } else { buffer.len().min(size - within) };
        if head > 0 {
            self.blocks.read_data(physical, &mut edge)?;
            buffer[..head].copy_from_slice(&edge[within..within + head]);
        }
        let first = physical + u64::from(head > 0);
        let rest = &mut buffer[head..];
        let whole = rest.len() / size * size;
        if whole > 0 {
            self.blocks.read_data(first, &mut rest[..whole])?;
        }
        if whole < rest.len() {
            self.blocks.read_data(first + (whole / size) as u64, &mut edge)?;
            let tail = rest.len() - whole;
            rest[whole..].copy_from_slice(&edge[..tail]);
        }
        Ok(())
    }

    /// Write bytes `within` a run of blocks. What they leave of a block stays, or becomes zero where the block is new.
    fn write_span(&mut self, physical: u64, within: usize, data: &[u8], new: bool) -> Result<()> {
        let size = self.sb.block_size;
        let head = if within == 0 { 0 } else { data.len().min(size - within) };
        if head > 0 {
            self.patch_block(physical, within, &data[..head], new)?;
        }
        let first = physical + u64::from(head > 0);
        let rest = &data[head..];
        let whole = rest.len() / size * size;
        if whole > 0 {
            self.blocks.write_data(first, &rest[..whole])?;
        }
        if whole < rest.len() {
            self.patch_block(first + (whole / size) as u64, 0, &rest[whole..], new)?;
        }
        Ok(())
    }

    fn patch_block(&mut self, block: u64, within: usize, data: &[u8], new: bool) -> Result<()> {
        let mut bytes = vec![0; self.sb.block_size];
        if !new {
            self.blocks.read_data(block, &mut bytes)?;
        }
        bytes[within..within + data.len()].copy_from_slice(data);
        self.blocks.write_data(block, &bytes)
    }

    /// Make the file this many bytes long: cut off what is beyond, or let it end in a hole.
    pub fn truncate(&mut self, number: u32, size: u64) -> Result<()> {
        self.changing(|this| {
            let mut inode = this.inode(number)?;
            if inode.kind() != Kind::File {
                return Err(Error::IsADirectory);
            }
            this.check_changeable(&inode)?;
            if size > this.max_size() {
                return Err(Error::TooLarge);
            }
            let block_size = this.sb.block_size as u64;
            let within = (size % block_size) as usize;
            let shorter = size < inode.size();
            if shorter && within != 0 {
                // What lies beyond the end must read as zeros if the file grows again.
                if let Mapping::Written { physical, .. } = this.map(&inode, (size / block_size) as u32)? {
                    let zeros = vec![0; this.sb.block_size - within];
                    this.patch_block(physical, within, &zeros, false)?;
                }
            }
            let cut = if shorter { this.cut_extents(&mut inode, size.div_ceil(block_size) as u32) } else { Ok(()) };
            if cut.is_ok() {
                inode.set_size(size);
            }
            inode.touch(this.now);
            this.store_inode(&mut inode)?;
            cut
        })
    }
}
