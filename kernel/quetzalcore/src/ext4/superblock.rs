//! The superblock: what the file system is, and whether this driver may touch it.

use super::bytes::{put_u16, put_u32, u16_at, u32_at};
use super::crc32c::crc32c;
use super::error::{Error, Result};

pub const OFFSET: u64 = 1024;
pub const SIZE: usize = 1024;

const MAGIC: u16 = 0xef53;
const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;

const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_FLEX_BG: u32 = 0x200;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const RO_SPARSE_SUPER: u32 = 0x1;
const RO_LARGE_FILE: u32 = 0x2;
const RO_HUGE_FILE: u32 = 0x8;
const RO_DIR_NLINK: u32 = 0x20;
const RO_EXTRA_ISIZE: u32 = 0x40;
const RO_METADATA_CSUM: u32 = 0x400;

/// Features that change the format in a way this driver does not know: such a file system is not even read.
const INCOMPAT_REFUSED: [(u32, &str); 10] = [
    (0x1, "compression"),
    (0x8, "journal_dev: this is a journal, not a file system"),
    (0x10, "meta_bg"),
    (0x100, "mmp"),
    (0x400, "ea_inode"),
    (0x1000, "dirdata"),
    (0x4000, "large_dir"),
    (0x8000, "inline_data"),
    (0x10000, "encrypt"),
    (0x20000, "casefold"),
];
/// Features that only a writer has to know.
const RO_REFUSED: [(u32, &str); 8] = [
    (0x10, "uninit_bg without metadata_csum: writing"),
    (0x100, "quota: writing"),
    (0x200, "bigalloc: writing"),
    (0x800, "replica: writing"),
    (0x1000, "read-only: writing"),
    (0x2000, "project: writing"),
    (0x8000, "verity: writing"),
    (0x10000, "orphan_present: writing, run e2fsck first"),
];

pub struct Superblock {
    raw: [u8; SIZE],
    pub block_size: usize,
    pub blocks: u64,
    pub inodes: u32,
    pub first_data_block: u32,
    pub blocks_per_group: u32,
    pub inodes_per_group: u32,
    pub groups: u32,
    pub inode_size: usize,
    pub descriptor_size: usize,
    pub first_free_inode: u32,
    pub checksums: bool,
    /// Where every checksum but the superblock's own begins.
    pub seed: u32,
}

impl Superblock {
    /// Check all that later code relies on. `disk_bytes` is the size of the disk below.
    pub fn parse(raw: [u8; SIZE], disk_bytes: u64, write: bool) -> Result<Self> {
        if u16_at(&raw, 0x38) != MAGIC {
            return Err(Error::NotExt4);
        }
        let incompat = u32_at(&raw, 0x60);
        let ro_compat = u32_at(&raw, 0x64);
        let checksums = ro_compat & RO_METADATA_CSUM != 0;
        if checksums {
            if raw[0x175] != 1 {
                return Err(Error::Unsupported("a checksum that is not crc32c"));
            }
            if crc32c(!0, &raw[..0x3fc]) != u32_at(&raw, 0x3fc) {
                return Err(Error::Corrupt("checksum of the superblock", 0));
            }
        }
        if u32_at(&raw, 0x4c) != 1 {
            return Err(Error::Unsupported("a file system of revision 0"));
        }
        check_features(incompat, ro_compat, write)?;
        let state = u16_at(&raw, 0x3a);
        if state & STATE_ERRORS != 0 || state & STATE_CLEAN == 0 || u32_at(&raw, 0xe8) != 0 {
            return Err(Error::NotClean);
        }

        let wide = incompat & INCOMPAT_64BIT != 0;
        let log_block_size = u32_at(&raw, 0x18);
        if log_block_size > 2 {
            return Err(Error::Unsupported("blocks of more than 4096 bytes"));
        }
        let block_size = 1024usize << log_block_size;
        let blocks = u64::from(u32_at(&raw, 0x4)) | if wide { u64::from(u32_at(&raw, 0x150)) << 32 } else { 0 };
        let this = Self {
            block_size,
            blocks,
            inodes: u32_at(&raw, 0x0),
            first_data_block: u32_at(&raw, 0x14),
            blocks_per_group: u32_at(&raw, 0x20),
            inodes_per_group: u32_at(&raw, 0x28),
            groups: 0,
            inode_size: usize::from(u16_at(&raw, 0x58)),
            descriptor_size: if wide { usize::from(u16_at(&raw, 0xfe)) } else { 32 },
            first_free_inode: u32_at(&raw, 0x54),
            checksums,
            seed: if incompat & INCOMPAT_CSUM_SEED != 0 { u32_at(&raw, 0x270) } else { crc32c(!0, &raw[0x68..0x78]) },
            raw,
        };
        this.check_geometry(disk_bytes)
    }

    fn check_geometry(mut self, disk_bytes: u64) -> Result<Self> {
        let corrupt = |what| Err(Error::Corrupt(what, 0));
        let bits = 8 * self.block_size as u32;
        if self.blocks.checked_mul(self.block_size as u64).is_none_or(|bytes| bytes > disk_bytes) {
            return corrupt("the file system is larger than its disk");
        }
        if self.first_data_block != u32::from(self.block_size == 1024) || self.blocks <= u64::from(self.first_data_block) {
            return corrupt("number of the first block");
        }
        if self.blocks_per_group < 256 || self.blocks_per_group > bits || self.blocks_per_group % 8 != 0 {
            return corrupt("blocks in a group");
        }
        if !self.inode_size.is_power_of_two() || self.inode_size < 128 || self.inode_size > self.block_size {
            return corrupt("size of an inode");
        }
        let inodes_in_block = (self.block_size / self.inode_size) as u32;
        if self.inodes_per_group == 0 || self.inodes_per_group > bits || self.inodes_per_group % inodes_in_block != 0 || self.inodes_per_group % 8 != 0 {
            return corrupt("inodes in a group");
        }
        if !matches!(self.descriptor_size, 32 | 64) {
            return corrupt("size of a group descriptor");
        }
        let groups = (self.blocks - u64::from(self.first_data_block)).div_ceil(u64::from(self.blocks_per_group));
        if groups * u64::from(self.inodes_per_group) != u64::from(self.inodes) {
            return corrupt("number of inodes");
        }
        self.groups = groups as u32; // as many as inodes at most, which is a u32
        if self.first_free_inode < 11 || self.first_free_inode > self.inodes_per_group {
            return corrupt("number of the first free inode");
        }
        if self.descriptor_blocks() + u64::from(self.reserved_descriptor_blocks()) + 1 >= u64::from(self.blocks_per_group) {
            return corrupt("size of the group descriptor table");
        }
        Ok(self)
    }

    pub fn descriptor_blocks(&self) -> u64 {
        (u64::from(self.groups) * self.descriptor_size as u64).div_ceil(self.block_size as u64)
    }

    pub fn reserved_descriptor_blocks(&self) -> u16 {
        u16_at(&self.raw, 0xce)
    }

    /// Does this group begin with a superblock, or a copy of it?
    pub fn group_has_superblock(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if u32_at(&self.raw, 0x5c) & COMPAT_SPARSE_SUPER2 != 0 {
            return group == u32_at(&self.raw, 0x24c) || group == u32_at(&self.raw, 0x250);
        }
        let power_of = |base: u32| {
            let mut power = u64::from(base);
            while power < u64::from(group) {
                power *= u64::from(base);
            }
            power == u64::from(group)
        };
        self.ro_compat() & RO_SPARSE_SUPER == 0 || group == 1 || power_of(3) || power_of(5) || power_of(7)
    }

    fn ro_compat(&self) -> u32 {
        u32_at(&self.raw, 0x64)
    }

    pub fn allows_large_files(&self) -> bool {
        self.ro_compat() & RO_LARGE_FILE != 0
    }

    pub fn allows_many_subdirectories(&self) -> bool {
        self.ro_compat() & RO_DIR_NLINK != 0
    }

    /// Bytes of the second half of an inode that a new inode uses.
    pub fn wanted_extra_inode_size(&self) -> usize {
        usize::from(u16_at(&self.raw, 0x15e)).clamp(if self.inode_size > 128 { 32 } else { 0 }, self.inode_size - 128) & !3
    }

    pub fn last_write_time(&self) -> u32 {
        u32_at(&self.raw, 0x30)
    }

    pub fn free_blocks(&self) -> u64 {
        u64::from(u32_at(&self.raw, 0xc)) | u64::from(u32_at(&self.raw, 0x158)) << 32
    }

    pub fn set_free_blocks(&mut self, count: u64) {
        put_u32(&mut self.raw, 0xc, count as u32);
        put_u32(&mut self.raw, 0x158, (count >> 32) as u32);
    }

    pub fn free_inodes(&self) -> u32 {
        u32_at(&self.raw, 0x10)
    }

    pub fn set_free_inodes(&mut self, count: u32) {
        put_u32(&mut self.raw, 0x10, count);
    }

    pub fn set_clean(&mut self, clean: bool) {
        put_u16(&mut self.raw, 0x3a, if clean { STATE_CLEAN } else { 0 });
    }

    /// Something in the image was found wrong: e2fsck shall look at all of it.
    pub fn set_damaged(&mut self) {
        put_u16(&mut self.raw, 0x3a, STATE_ERRORS);
    }

    /// The bytes to be written, with their checksum.
    pub fn sealed(&mut self, now: u32) -> &[u8; SIZE] {
        put_u32(&mut self.raw, 0x30, now);
        if self.checksums {
            let sum = crc32c(!0, &self.raw[..0x3fc]);
            put_u32(&mut self.raw, 0x3fc, sum);
        }
        &self.raw
    }
}

fn check_features(incompat: u32, ro_compat: u32, write: bool) -> Result<()> {
    if incompat & INCOMPAT_RECOVER != 0 {
        return Err(Error::NeedsRecovery);
    }
    for (bit, name) in INCOMPAT_REFUSED {
        if incompat & bit != 0 {
            return Err(Error::Unsupported(name));
        }
    }
    let known = INCOMPAT_FILETYPE | INCOMPAT_EXTENTS | INCOMPAT_64BIT | INCOMPAT_FLEX_BG | INCOMPAT_CSUM_SEED;
    if incompat & !known != 0 {
        return Err(Error::UnknownFeatures(incompat & !known));
    }
    if incompat & INCOMPAT_EXTENTS == 0 {
        return Err(Error::Unsupported("ext2 or ext3: a file system without the feature extent"));
    }
    if incompat & INCOMPAT_FILETYPE == 0 {
        return Err(Error::Unsupported("a file system without the feature filetype"));
    }
    if !write {
        return Ok(());
    }
    for (bit, name) in RO_REFUSED {
        if ro_compat & bit != 0 {
            return Err(Error::Unsupported(name));
        }
    }
    let known = RO_SPARSE_SUPER | RO_LARGE_FILE | RO_HUGE_FILE | RO_DIR_NLINK | RO_EXTRA_ISIZE | RO_METADATA_CSUM;
    if ro_compat & !known != 0 {
        return Err(Error::UnknownFeatures(ro_compat & !known));
    }
    Ok(())
}
