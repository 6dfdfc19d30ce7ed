//! The tree of extents that says where a file's blocks lie: lookup, insertion that grows the tree, and cutting off its end.
//!
//! The root is in the inode and holds 4 entries; every other node is a block. A leaf's entry is a run of blocks, an inner node's
//! entry names a node below. Entries are sorted, and the range of a node's keys lies inside that of its entry: with this checked
//! at every step no walk can visit a block twice, whatever the image says.

use super::Ext4;
use super::bytes::{put_u16, put_u32, u16_at, u32_at};
use super::crc32c::crc32c;
use super::error::{Error, Result};
use super::inode::{EXTENT_ROOT, Inode};
use crate::block::BlockDevice;
use alloc::vec;
use alloc::vec::Vec;

const MAGIC: u16 = 0xf30a;
const HEADER: usize = 12;
const ENTRY: usize = 12;
const ROOT_ENTRIES: usize = 4;
const MAX_DEPTH: u16 = 5;
/// The longest run that one entry can name; a larger count means "allocated, never written".
pub const MAX_RUN: u32 = 32768;
/// Past the last block that a file can have.
const END: u64 = 1 << 32;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The first block of the file that it is about.
    logical: u32,
    /// The first block on the disk of the run, or the node below.
    physical: u64,
    /// Blocks in the run; 0 in an inner node.
    count: u32,
    written: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Block(u64),
}

struct Node {
    place: Place,
    depth: u16,
    max: usize,
    entries: Vec<Entry>,
}

impl Node {
    fn is_full(&self) -> bool {
        self.entries.len() >= self.max
    }

    /// The last entry at or before this block of the file.
    fn covering(&self, logical: u32) -> Option<usize> {
        self.entries.partition_point(|entry| entry.logical <= logical).checked_sub(1)
    }

    /// The range of keys that belong below an entry.
    fn range(&self, index: usize, end: u64) -> (u32, u64) {
        (self.entries[index].logical, self.entries.get(index + 1).map_or(end, |next| next.logical.into()))
    }

    fn encode(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        put_u16(bytes, 0, MAGIC);
        put_u16(bytes, 2, self.entries.len() as u16);
        put_u16(bytes, 4, self.max as u16);
        put_u16(bytes, 6, self.depth);
        for (entry, bytes) in self.entries.iter().zip(bytes[HEADER..].chunks_exact_mut(ENTRY)) {
            put_u32(bytes, 0, entry.logical);
            if self.depth > 0 {
                put_u32(bytes, 4, entry.physical as u32);
                put_u16(bytes, 8, (entry.physical >> 32) as u16);
            } else {
                put_u16(bytes, 4, (entry.count + if entry.written { 0 } else { MAX_RUN }) as u16);
                put_u16(bytes, 6, (entry.physical >> 32) as u16);
                put_u32(bytes, 8, entry.physical as u32);
            }
        }
    }
}

/// What is at a block of a file, and for how many blocks.
#[derive(Debug, PartialEq, Eq)]
pub enum Mapping {
    Written { physical: u64, count: u32 },
    /// Allocated, reads as zeros.
    Unwritten { count: u32 },
    Hole { count: u32 },
}

impl Inode {
    pub(super) fn empty_extents(&mut self) {
        Node { place: Place::Root, depth: 0, max: ROOT_ENTRIES, entries: Vec::new() }.encode(&mut self.raw[EXTENT_ROOT]);
    }
}

impl<D: BlockDevice> Ext4<D> {
    fn node_capacity(&self) -> usize {
        (self.sb.block_size - HEADER) / ENTRY
    }

    /// Read a node of which the parent says that it is `depth` levels above the leaves and about the blocks of `range`.
    fn node(&mut self, inode: &Inode, place: Place, depth: Option<u16>, range: (u32, u64)) -> Result<Node> {
        let corrupt = |what| Err(Error::Corrupt(what, inode.number.into()));
        if !inode.has_extents() {
            return Err(Error::Unsupported("a file with the block map of ext2 and ext3"));
        }
        let (bytes, capacity) = match place {
            Place::Root => (inode.raw[EXTENT_ROOT].to_vec(), ROOT_ENTRIES),
            Place::Block(block) => (self.blocks.get(block)?, self.node_capacity()),
        };
        let (used, max, found) = (usize::from(u16_at(&bytes, 2)), usize::from(u16_at(&bytes, 4)), u16_at(&bytes, 6));
        if u16_at(&bytes, 0) != MAGIC || max == 0 || max > capacity || used > max || found > MAX_DEPTH || depth.is_some_and(|depth| depth != found) {
            return corrupt("header of an extent tree node");
        }
        if self.sb.checksums && place != Place::Root {
            let tail = HEADER + ENTRY * max;
            if tail + 4 > bytes.len() || crc32c(inode.seed(self.sb.seed), &bytes[..tail]) != u32_at(&bytes, tail) {
                return corrupt("checksum of an extent tree node");
            }
        }
        if used == 0 && (place != Place::Root || found > 0) {
            return corrupt("an empty extent tree node");
        }
        let mut entries = Vec::with_capacity(max);
        let mut free_from = u64::from(range.0);
        for bytes in bytes[HEADER..].chunks_exact(ENTRY).take(used) {
            let logical = u32_at(bytes, 0);
            let entry = if found > 0 {
                Entry { logical, physical: u64::from(u32_at(bytes, 4)) | u64::from(u16_at(bytes, 8)) << 32, count: 0, written: true }
            } else {
                let length = u32::from(u16_at(bytes, 4));
                let written = length <= MAX_RUN;
                let count = if written { length } else { length - MAX_RUN };
                Entry { logical, physical: u64::from(u16_at(bytes, 6)) << 32 | u64::from(u32_at(bytes, 8)), count, written }
            };
            // A node below takes one block of the disk and at least one of the file.
            let count = if found > 0 { 1 } else { entry.count };
            let end = u64::from(logical) + u64::from(count);
            if count == 0 || u64::from(logical) < free_from || end > range.1 {
                return corrupt("extents out of order");
            }
            self.check_run(entry.physical, count.into())?;
            free_from = end;
            entries.push(entry);
        }
        Ok(Node { place, depth: found, max, entries })
    }

    fn root(&mut self, inode: &Inode) -> Result<Node> {
        self.node(inode, Place::Root, None, (0, END))
    }

    /// The node below an entry of `parent`, whose own keys end at `end`.
    fn child(&mut self, inode: &Inode, parent: &Node, index: usize, end: u64) -> Result<Node> {
        self.node(inode, Place::Block(parent.entries[index].physical), Some(parent.depth - 1), parent.range(index, end))
    }

    fn store_node(&mut self, inode: &mut Inode, node: &Node) -> Result<()> {
        let Place::Block(block) = node.place else {
            node.encode(&mut inode.raw[EXTENT_ROOT]);
            return Ok(());
        };
        let mut bytes = vec![0; self.sb.block_size];
        node.encode(&mut bytes);
        if self.sb.checksums {
            let tail = HEADER + ENTRY * node.max;
            let sum = crc32c(inode.seed(self.sb.seed), &bytes[..tail]);
            put_u32(&mut bytes, tail, sum);
        }
        self.blocks.put(block, &bytes)
    }

    /// Where this block of the file lies.
    pub(super) fn map(&mut self, inode: &Inode, logical: u32) -> Result<Mapping> {
        let mut node = self.root(inode)?;
        let mut end = END;
        loop {
            let Some(index) = node.covering(logical) else {
                let next = node.entries.first().map_or(end, |entry| entry.logical.into());
                return Ok(Mapping::Hole { count: clamp(next - u64::from(logical)) });
            };
            if node.depth > 0 {
                let below = self.child(inode, &node, index, end)?;
                end = node.range(index, end).1;
                node = below;
                continue;
            }
            let entry = node.entries[index];
            let within = logical - entry.logical;
            if within >= entry.count {
                let next = node.range(index, end).1;
                return Ok(Mapping::Hole { count: clamp(next - u64::from(logical)) });
            }
            let count = entry.count - within;
            return Ok(if entry.written { Mapping::Written { physical: entry.physical + u64::from(within), count } } else { Mapping::Unwritten { count } });
        }
    }

    /// Put a run of written blocks where the file has a hole. The caller stores the inode, also after an error.
    pub(super) fn insert_extent(&mut self, inode: &mut Inode, logical: u32, physical: u64, count: u32) -> Result<()> {
        let new = Entry { logical, physical, count, written: true };
        if self.lengthen_extent(inode, new)? {
            return Ok(());
        }
        let mut node = self.root(inode)?;
        if node.is_full() {
            node = self.deepen(inode, node)?;
        }
        let mut end = END;
        let mut path: Vec<(Node, usize)> = Vec::new();
        while node.depth > 0 {
            let mut index = node.covering(logical).unwrap_or(0);
            let mut below = self.child(inode, &node, index, end)?;
            if below.is_full() {
                // Split on the way down: the node above has room for another entry, as it was split itself if it was full.
                let right = self.split(inode, &mut node, index, &mut below)?;
                if right.entries[0].logical <= logical {
                    (below, index) = (right, index + 1);
                }
            }
            end = node.range(index, end).1;
            path.push((node, index));
            node = below;
        }
        let at = node.covering(logical).map_or(0, |index| index + 1);
        node.entries.insert(at, new);
        self.store_node(inode, &node)?;
        // An inner entry's key is the first key below it.
        let mut first = node.entries[0].logical;
        while let Some((mut above, index)) = path.pop() {
            if above.entries[index].logical != first {
                above.entries[index].logical = first;
                self.store_node(inode, &above)?;
            }
            first = above.entries[0].logical;
        }
        Ok(())
    }

    /// Make the run before the new one longer, where the new one continues it on the disk.
    fn lengthen_extent(&mut self, inode: &mut Inode, new: Entry) -> Result<bool> {
        let mut node = self.root(inode)?;
        let mut end = END;
        loop {
            let Some(index) = node.covering(new.logical) else { return Ok(false) };
            if node.depth > 0 {
                let below = self.child(inode, &node, index, end)?;
                end = node.range(index, end).1;
                node = below;
                continue;
            }
            let last = &mut node.entries[index];
            let continues = u64::from(last.logical) + u64::from(last.count) == u64::from(new.logical) && last.physical + u64::from(last.count) == new.physical;
            if !continues || !last.written || last.count + new.count > MAX_RUN {
                return Ok(false);
            }
            last.count += new.count;
            self.store_node(inode, &node)?;
            return Ok(true);
        }
    }

    /// A block for a new node, near the inode's other blocks.
    fn allocate_node(&mut self, inode: &mut Inode, goal: u64) -> Result<Place> {
        let (block, _) = self.allocate_blocks(goal, 1)?;
        inode.add_blocks(1, self.sb.block_size)?;
        Ok(Place::Block(block))
    }

    /// Move a full root into a block, and make it the root's only entry.
    fn deepen(&mut self, inode: &mut Inode, root: Node) -> Result<Node> {
        if root.depth == MAX_DEPTH {
            return Err(Error::TooLarge);
        }
        let place = self.allocate_node(inode, root.entries[0].physical)?;
        let Place::Block(block) = place else { return Err(Error::NoSpace) };
        let entry = Entry { logical: root.entries[0].logical, physical: block, count: 0, written: true };
        let below = Node { place, depth: root.depth, max: self.node_capacity(), entries: root.entries };
        let root = Node { place: Place::Root, depth: below.depth + 1, max: ROOT_ENTRIES, entries: vec![entry] };
        self.store_node(inode, &below)?;
        self.store_node(inode, &root)?;
        Ok(root)
    }

    /// Move the upper part of a full node into a new one beside it, which is returned.
    fn split(&mut self, inode: &mut Inode, parent: &mut Node, index: usize, left: &mut Node) -> Result<Node> {
        let place = self.allocate_node(inode, parent.entries[index].physical)?;
        let Place::Block(block) = place else { return Err(Error::NoSpace) };
        // A file mostly grows at its end: the last node keeps all it has but one.
        let is_last = index + 1 == parent.entries.len();
        let at = if is_last { left.entries.len() - 1 } else { left.entries.len() / 2 };
        let right = Node { place, depth: left.depth, max: self.node_capacity(), entries: left.entries.split_off(at) };
        parent.entries.insert(index + 1, Entry { logical: right.entries[0].logical, physical: block, count: 0, written: true });
        self.store_node(inode, &right)?;
        self.store_node(inode, left)?;
        self.store_node(inode, parent)?;
        Ok(right)
    }

    /// Free every block of the file from `from` on. The caller stores the inode, also after an error.
    pub(super) fn cut_extents(&mut self, inode: &mut Inode, from: u32) -> Result<()> {
        let mut root = self.root(inode)?;
        self.cut(inode, &mut root, from, END)?;
        if root.entries.is_empty() {
            inode.empty_extents();
            return Ok(());
        }
        // What fits into the root belongs there.
        while root.depth > 0 && root.entries.len() == 1 {
            let below = self.child(inode, &root, 0, END)?;
            if below.entries.len() > ROOT_ENTRIES {
                break;
            }
            let block = root.entries[0].physical;
            root = Node { place: Place::Root, depth: below.depth, max: ROOT_ENTRIES, entries: below.entries };
            self.store_node(inode, &root)?;
            self.free_blocks(block, 1)?;
            inode.add_blocks(-1, self.sb.block_size)?;
        }
        Ok(())
    }

    fn cut(&mut self, inode: &mut Inode, node: &mut Node, from: u32, end: u64) -> Result<()> {
        while let Some(&last) = node.entries.last() {
            let keep = if node.depth > 0 {
                let index = node.entries.len() - 1;
                let mut below = self.child(inode, node, index, end)?;
                let end = node.range(index, end).1;
                self.cut(inode, &mut below, from, end)?;
                below.entries.len() as u32
            } else {
                from.saturating_sub(last.logical).min(last.count)
            };
            if node.depth == 0 && keep < last.count {
                self.free_blocks(last.physical + u64::from(keep), u64::from(last.count - keep))?;
                inode.add_blocks(-i64::from(last.count - keep), self.sb.block_size)?;
            } else if node.depth > 0 && keep == 0 {
                self.free_blocks(last.physical, 1)?;
                inode.add_blocks(-1, self.sb.block_size)?;
            }
            if keep > 0 {
                if node.depth == 0
                    && let Some(last) = node.entries.last_mut()
                {
                    last.count = keep;
                }
                break;
            }
            node.entries.pop();
        }
        if node.entries.is_empty() && node.place != Place::Root {
            return Ok(()); // the caller frees the block
        }
        self.store_node(inode, node)
    }
}

fn clamp(count: u64) -> u32 {
    count.min(u64::from(u32::MAX)) as u32
}
