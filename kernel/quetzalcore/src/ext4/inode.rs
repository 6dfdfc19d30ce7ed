//! Inodes: what a file is, and where its extents begin.

use super::Ext4;
use super::bytes::{put_u16, put_u32, u16_at, u32_at};
use super::crc32c::crc32c;
use super::error::{Error, Result};
use crate::block::BlockDevice;
use alloc::vec;
use alloc::vec::Vec;

pub const ROOT: u32 = 2;

const FLAG_IMMUTABLE: u32 = 0x10;
const FLAG_APPEND_ONLY: u32 = 0x20;
const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_INDEXED: u32 = 0x1000;
const FLAG_HUGE: u32 = 0x4_0000;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_VERITY: u32 = 0x10_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;

/// Where an inode keeps the root of its extent tree.
pub const EXTENT_ROOT: core::ops::Range<usize> = 0x28..0x64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    /// A device, a pipe or a socket.
    Other,
}

impl Kind {
    /// The byte for it in a directory entry.
    pub fn entry_type(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Directory => 2,
            Self::Symlink => 7,
            Self::Other => 0,
        }
    }
}

pub struct Inode {
    pub number: u32,
    pub(super) raw: Vec<u8>,
}

impl Inode {
    pub fn kind(&self) -> Kind {
        match u16_at(&self.raw, 0) >> 12 {
            8 => Kind::File,
            4 => Kind::Directory,
            10 => Kind::Symlink,
            _ => Kind::Other,
        }
    }

    pub fn size(&self) -> u64 {
        u64::from(u32_at(&self.raw, 0x4)) | u64::from(u32_at(&self.raw, 0x6c)) << 32
    }

    pub(super) fn set_size(&mut self, size: u64) {
        put_u32(&mut self.raw, 0x4, size as u32);
        put_u32(&mut self.raw, 0x6c, (size >> 32) as u32);
    }

    pub fn links(&self) -> u16 {
        u16_at(&self.raw, 0x1a)
    }

    pub(super) fn set_links(&mut self, links: u16) {
        put_u16(&mut self.raw, 0x1a, links);
    }

    fn flags(&self) -> u32 {
        u32_at(&self.raw, 0x20)
    }

    pub fn is_indexed(&self) -> bool {
        self.flags() & FLAG_INDEXED != 0
    }

    pub(super) fn clear_indexed(&mut self) {
        let flags = self.flags() & !FLAG_INDEXED;
        put_u32(&mut self.raw, 0x20, flags);
    }

    pub fn has_extents(&self) -> bool {
        self.flags() & FLAG_EXTENTS != 0
    }

    pub(super) fn has_attribute_block(&self) -> bool {
        u32_at(&self.raw, 0x68) != 0 || u16_at(&self.raw, 0x76) != 0
    }

    /// Count blocks of the file system that the file now takes, or (negative) no longer takes.
    pub(super) fn add_blocks(&mut self, blocks: i64, block_size: usize) -> Result<()> {
        let unit = if self.flags() & FLAG_HUGE != 0 { 1 } else { (block_size / 512) as i64 };
        let held = i64::from(u32_at(&self.raw, 0x1c)) | i64::from(u16_at(&self.raw, 0x74)) << 32;
        let now = held + blocks * unit;
        if now < 0 || now >> 48 != 0 {
            return Err(Error::Corrupt("number of blocks of an inode", self.number.into()));
        }
        put_u32(&mut self.raw, 0x1c, now as u32);
        put_u16(&mut self.raw, 0x74, (now >> 32) as u16);
        Ok(())
    }

    /// Note a change of the contents at this time (seconds of the Unix epoch).
    pub(super) fn touch(&mut self, now: u32) {
        put_u32(&mut self.raw, 0x0c, now);
        put_u32(&mut self.raw, 0x10, now);
        // The finer and later bits of the two times.
        if self.extra_size() >= 12 {
            put_u32(&mut self.raw, 0x84, 0);
            put_u32(&mut self.raw, 0x88, 0);
        }
    }

    pub(super) fn set_deleted(&mut self, now: u32) {
        put_u32(&mut self.raw, 0x14, now);
    }

    fn extra_size(&self) -> usize {
        if self.raw.len() > 128 { usize::from(u16_at(&self.raw, 0x80)) } else { 0 }
    }

    /// The seed of every checksum of what belongs to this inode alone.
    pub(super) fn seed(&self, seed: u32) -> u32 {
        crc32c(crc32c(seed, &self.number.to_le_bytes()), &self.raw[0x64..0x68])
    }

    fn has_high_sum(&self) -> bool {
        self.extra_size() >= 4
    }

    fn checksum(&self, seed: u32) -> u32 {
        let mut sum = crc32c(self.seed(seed), &self.raw[..0x7c]);
        sum = crc32c(crc32c(sum, &[0, 0]), &self.raw[0x7e..128]);
        if self.raw.len() == 128 {
            return sum & 0xffff;
        }
        if !self.has_high_sum() {
            return crc32c(sum, &self.raw[128..]) & 0xffff;
        }
        sum = crc32c(crc32c(sum, &self.raw[128..0x82]), &[0, 0]);
        crc32c(sum, &self.raw[0x84..])
    }

    fn stored_checksum(&self) -> u32 {
        let high = if self.has_high_sum() { u32::from(u16_at(&self.raw, 0x82)) << 16 } else { 0 };
        u32::from(u16_at(&self.raw, 0x7c)) | high
    }
}

impl<D: BlockDevice> Ext4<D> {
    fn inode_place(&self, number: u32) -> Result<(u64, usize)> {
        if number == 0 || number > self.sb.inodes {
            return Err(Error::Corrupt("an inode number beyond the file system", number.into()));
        }
        let group = (number - 1) / self.sb.inodes_per_group;
        if self.groups.has_no_inodes(group) {
            return Err(Error::Corrupt("an inode in a group that has none", number.into()));
        }
        let byte = u64::from((number - 1) % self.sb.inodes_per_group) * self.sb.inode_size as u64;
        let block_size = self.sb.block_size as u64;
        Ok((self.groups.inode_table(group) + byte / block_size, (byte % block_size) as usize))
    }

    /// The inode of this number, which must be in use and of a form that this driver knows.
    pub fn inode(&mut self, number: u32) -> Result<Inode> {
        let (block, offset) = self.inode_place(number)?;
        let raw = self.blocks.get_part(block, offset, self.sb.inode_size)?;
        let inode = Inode { number, raw };
        if inode.extra_size() > self.sb.inode_size - 128 || inode.extra_size() % 4 != 0 {
            return Err(Error::Corrupt("extra size of an inode", number.into()));
        }
        if self.sb.checksums && inode.checksum(self.sb.seed) != inode.stored_checksum() {
            return Err(Error::Corrupt("checksum of an inode", number.into()));
        }
        if inode.links() == 0 || u16_at(&inode.raw, 0) == 0 {
            return Err(Error::Corrupt("a name for an inode that is not in use", number.into()));
        }
        for (flag, name) in [(FLAG_ENCRYPTED, "an encrypted file"), (FLAG_VERITY, "a file with verity"), (FLAG_INLINE_DATA, "inline data")] {
            if inode.flags() & flag != 0 {
                return Err(Error::Unsupported(name));
            }
        }
        if inode.kind() == Kind::Directory && (inode.size() > self.sb.blocks * self.sb.block_size as u64 || inode.size() % self.sb.block_size as u64 != 0) {
            return Err(Error::Corrupt("size of a directory", number.into()));
        }
        Ok(inode)
    }

    pub(super) fn store_inode(&mut self, inode: &mut Inode) -> Result<()> {
        let (block, offset) = self.inode_place(inode.number)?;
        if self.sb.checksums {
            let sum = inode.checksum(self.sb.seed);
            put_u16(&mut inode.raw, 0x7c, sum as u16);
            if inode.has_high_sum() {
                put_u16(&mut inode.raw, 0x82, (sum >> 16) as u16);
            }
        }
        self.blocks.put_part(block, offset, &inode.raw)
    }

    /// Refuse to change what its owner has locked.
    pub(super) fn check_changeable(&self, inode: &Inode) -> Result<()> {
        if inode.flags() & (FLAG_IMMUTABLE | FLAG_APPEND_ONLY) != 0 {
            return Err(Error::Unsupported("changing an immutable or append-only file"));
        }
        Ok(())
    }

    /// A new inode with an empty extent tree, not yet stored.
    pub(super) fn new_inode(&mut self, parent: u32, kind: Kind) -> Result<Inode> {
        let directory = kind == Kind::Directory;
        let number = self.allocate_inode(parent, directory)?;
        let mut raw = vec![0; self.sb.inode_size];
        put_u16(&mut raw, 0, if directory { 0o040_755 } else { 0o100_644 });
        put_u32(&mut raw, 0x08, self.now);
        put_u32(&mut raw, 0x20, FLAG_EXTENTS);
        self.generation = self.generation.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        put_u32(&mut raw, 0x64, self.generation);
        if raw.len() > 128 {
            put_u16(&mut raw, 0x80, self.sb.wanted_extra_inode_size() as u16);
            put_u32(&mut raw, 0x90, self.now); // time of creation
        }
        let mut inode = Inode { number, raw };
        inode.touch(self.now);
        inode.set_links(if directory { 2 } else { 1 });
        inode.empty_extents();
        Ok(inode)
    }
}
