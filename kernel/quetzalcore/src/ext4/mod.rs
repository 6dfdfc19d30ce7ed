//! ext4: read and write file systems as mke2fs makes them.
//!
//! Writing goes without the journal. The superblock is marked as in use by the first change and as clean by `unmount`, so a crash
//! in between is seen by e2fsck, which then checks everything; and this driver itself refuses an image that is not clean or whose
//! journal holds changes. The code trusts nothing it reads: it runs on the host as well, where images with flipped bytes are tried.

mod bytes;
mod cache;
mod crc32c;
mod directory;
mod error;
mod extent;
mod file;
mod group;
mod inode;
mod superblock;

pub use directory::Entry;
pub use error::{Error, Result};
pub use inode::{Inode, Kind, ROOT};

use crate::block::BlockDevice;
use alloc::vec;
use alloc::vec::Vec;
use cache::Blocks;
use group::Groups;
use superblock::Superblock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    ReadWrite,
}

pub struct Ext4<D> {
    blocks: Blocks<D>,
    sb: Superblock,
    groups: Groups,
    access: Access,
    /// The time given to changes, seconds of the Unix epoch.
    now: u32,
    generation: u32,
    changed: bool,
    damaged: bool,
}

impl<D: BlockDevice> Ext4<D> {
    /// `now`: seconds of the Unix epoch, 0 where there is no clock. Never earlier than the last write, which e2fsck would find odd.
    pub fn mount(mut device: D, access: Access, now: u32) -> Result<Self> {
        let sector_size = device.sector_size();
        let disk_bytes = device.sectors().saturating_mul(sector_size as u64);
        let span = (superblock::OFFSET as usize + superblock::SIZE).next_multiple_of(sector_size);
        if disk_bytes < span as u64 {
            return Err(Error::NotExt4);
        }
        let mut head = vec![0; span];
        device.read(0, &mut head)?;
        let mut raw = [0; superblock::SIZE];
        raw.copy_from_slice(&head[superblock::OFFSET as usize..][..superblock::SIZE]);
        let sb = Superblock::parse(raw, disk_bytes, access == Access::ReadWrite)?;

        let mut blocks = Blocks::new(device, sb.block_size, sb.blocks)?;
        let mut descriptors = vec![0; sb.descriptor_blocks() as usize * sb.block_size];
        blocks.read_data(u64::from(sb.first_data_block) + 1, &mut descriptors)?;
        let groups = Groups::parse(descriptors, &sb)?;
        let now = now.max(sb.last_write_time()).max(sb.inodes); // a time below the number of inodes reads as a link in the orphan list
        let mut this = Self { blocks, sb, groups, access, now, generation: now, changed: false, damaged: false };
        if this.inode(ROOT)?.kind() != Kind::Directory {
            return Err(Error::Corrupt("the root is not a directory", ROOT.into()));
        }
        Ok(this)
    }

    pub fn block_size(&self) -> usize {
        self.sb.block_size
    }

    /// Where the first run of a file's blocks lies: the block on the disk, and how many.
    pub fn first_run(&mut self, number: u32) -> Result<(u64, u32)> {
        let inode = self.inode(number)?;
        match self.map(&inode, 0)? {
            extent::Mapping::Written { physical, count } => Ok((physical, count)),
            _ => Err(Error::NotFound),
        }
    }

    pub fn free_bytes(&self) -> u64 {
        self.sb.free_blocks().saturating_mul(self.sb.block_size as u64)
    }

    /// Run a change. What an image that contradicts itself, or a disk that failed, leaves behind is marked for e2fsck.
    fn changing<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.access == Access::Read {
            return Err(Error::ReadOnly);
        }
        if !self.changed {
            self.sb.set_clean(false);
            self.store_superblock()?;
            self.blocks.sync()?;
            self.changed = true;
        }
        let result = change(self);
        if matches!(result, Err(Error::Corrupt(..) | Error::Device(_))) {
            self.damaged = true;
        }
        result
    }

    fn store_superblock(&mut self) -> Result<()> {
        let size = self.blocks.size() as u64;
        let raw = self.sb.sealed(self.now);
        self.blocks.put_part(superblock::OFFSET / size, (superblock::OFFSET % size) as usize, raw)
    }

    /// Put every change on the disk.
    pub fn sync(&mut self) -> Result<()> {
        if self.changed {
            self.store_superblock()?;
        }
        self.blocks.sync()
    }

    /// Put every change on the disk, mark the file system as clean, and give the disk back.
    pub fn unmount(mut self) -> Result<D> {
        if self.changed {
            self.sync()?;
            if self.damaged {
                self.sb.set_damaged();
            } else {
                self.sb.set_clean(true);
            }
            self.store_superblock()?;
            self.blocks.sync()?;
        }
        Ok(self.blocks.into_device())
    }

    fn walk<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) -> Result<Inode> {
        let mut inode = self.inode(ROOT)?;
        for part in parts {
            if inode.kind() != Kind::Directory {
                return Err(Error::NotADirectory);
            }
            let number = self.find(&inode, part)?.ok_or(Error::NotFound)?;
            inode = self.inode(number)?;
        }
        Ok(inode)
    }

    /// The inode at a path. Symbolic links are not followed.
    pub fn lookup(&mut self, path: &str) -> Result<Inode> {
        self.walk(parts(path))
    }

    /// The directory that holds (or will hold) a path, and the last part of it.
    fn parent<'a>(&mut self, path: &'a str) -> Result<(Inode, &'a [u8])> {
        let all: Vec<&[u8]> = parts(path).collect();
        let (name, above) = all.split_last().ok_or(Error::BadName)?;
        if name.len() > directory::MAX_NAME || *name == b"." || *name == b".." {
            return Err(Error::BadName);
        }
        let parent = self.walk(above.iter().copied())?;
        if parent.kind() != Kind::Directory {
            return Err(Error::NotADirectory);
        }
        Ok((parent, name))
    }

    /// The entries of a directory, without `.` and `..`.
    pub fn list(&mut self, path: &str) -> Result<Vec<Entry>> {
        let directory = self.lookup(path)?;
        if directory.kind() != Kind::Directory {
            return Err(Error::NotADirectory);
        }
        let mut entries = self.entries(&directory)?;
        entries.retain(|entry| entry.name != b"." && entry.name != b"..");
        Ok(entries)
    }

    /// Make an empty file; returns its inode's number.
    pub fn create(&mut self, path: &str) -> Result<u32> {
        self.make(path, Kind::File)
    }

    pub fn make_directory(&mut self, path: &str) -> Result<u32> {
        self.make(path, Kind::Directory)
    }

    fn make(&mut self, path: &str, kind: Kind) -> Result<u32> {
        self.changing(|this| {
            let (mut parent, name) = this.parent(path)?;
            if this.find(&parent, name)?.is_some() {
                return Err(Error::Exists);
            }
            this.check_changeable(&parent)?;
            let mut inode = this.new_inode(parent.number, kind)?;
            let made = this.link(&mut parent, &mut inode, name, kind);
            parent.touch(this.now);
            this.store_inode(&mut parent)?;
            if let Err(error) = made {
                this.discard(&mut inode)?;
                return Err(error);
            }
            Ok(inode.number)
        })
    }

    fn link(&mut self, parent: &mut Inode, inode: &mut Inode, name: &[u8], kind: Kind) -> Result<()> {
        if kind == Kind::File {
            self.store_inode(inode)?;
            return self.add_entry(parent, name, inode.number, kind);
        }
        self.start_directory(inode, parent.number)?;
        self.store_inode(inode)?;
        self.count_subdirectory(parent, true)?;
        let added = self.add_entry(parent, name, inode.number, kind);
        if added.is_err() {
            self.count_subdirectory(parent, false)?;
        }
        added
    }

    /// Free an inode that no name leads to any more, with all its blocks.
    fn discard(&mut self, inode: &mut Inode) -> Result<()> {
        if inode.has_extents() {
            self.cut_extents(inode, 0)?;
        }
        inode.set_size(0);
        inode.set_links(0);
        inode.set_deleted(self.now);
        self.store_inode(inode)?;
        self.free_inode(inode.number, inode.kind() == Kind::Directory)
    }

    /// Remove a name of a file; with its last name the file goes.
    pub fn remove(&mut self, path: &str) -> Result<()> {
        self.changing(|this| {
            let (parent, name) = this.parent(path)?;
            let number = this.find(&parent, name)?.ok_or(Error::NotFound)?;
            let mut inode = this.inode(number)?;
            if inode.kind() == Kind::Directory {
                return Err(Error::IsADirectory);
            }
            this.unlink(parent, name, &mut inode)?;
            if inode.links() > 1 {
                inode.set_links(inode.links() - 1);
                return this.store_inode(&mut inode);
            }
            this.discard(&mut inode)
        })
    }

    pub fn remove_directory(&mut self, path: &str) -> Result<()> {
        self.changing(|this| {
            let (mut parent, name) = this.parent(path)?;
            let number = this.find(&parent, name)?.ok_or(Error::NotFound)?;
            let mut inode = this.inode(number)?;
            if inode.kind() != Kind::Directory {
                return Err(Error::NotADirectory);
            }
            if number == parent.number || this.entries(&inode)?.iter().any(|entry| entry.name != b"." && entry.name != b"..") {
                return Err(Error::NotEmpty);
            }
            this.count_subdirectory(&mut parent, false)?;
            this.unlink(parent, name, &mut inode)?;
            this.discard(&mut inode)
        })
    }

    fn unlink(&mut self, mut parent: Inode, name: &[u8], inode: &mut Inode) -> Result<()> {
        self.check_changeable(&parent)?;
        self.check_changeable(inode)?;
        if inode.number < self.sb.first_free_inode {
            return Err(Error::Corrupt("a name for an inode of the file system itself", inode.number.into()));
        }
        if inode.has_attribute_block() {
            return Err(Error::Unsupported("removing a file with a block of extended attributes"));
        }
        if inode.links() == 1 && inode.size() > 0 && inode.kind() == Kind::File && !inode.has_extents() {
            return Err(Error::Unsupported("a file with the block map of ext2 and ext3"));
        }
        self.remove_entry(&parent, name)?;
        parent.touch(self.now);
        self.store_inode(&mut parent)
    }
}

fn parts(path: &str) -> impl Iterator<Item = &[u8]> {
    path.as_bytes().split(|&byte| byte == b'/').filter(|part| !part.is_empty())
}
