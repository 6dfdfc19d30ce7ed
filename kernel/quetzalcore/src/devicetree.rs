//! The flattened device tree (Devicetree Specification 0.4, chapter 5): what firmware tells about a machine that cannot be asked.
//! Every offset in it is checked: a broken tree has no nodes, and does no harm.

use crate::boot::{self, BootInfo};
use crate::memory::map::{Kind, Map};

const MAGIC: u32 = 0xd00d_feed;
const LARGEST: usize = 1 << 20;

const BEGIN: u32 = 1;
const END: u32 = 2;
const PROPERTY: u32 = 3;
const NOTHING: u32 = 4;

#[derive(Clone, Copy)]
pub struct DeviceTree {
    structure: &'static [u8],
    strings: &'static [u8],
}

/// A node: where its properties begin.
#[derive(Clone, Copy)]
pub struct Node {
    tree: DeviceTree,
    at: usize,
    pub name: &'static str,
}

enum Item {
    Begin(&'static str),
    Property(&'static str, &'static [u8]),
    End,
}

impl DeviceTree {
    /// The tree at an address, which is mapped for as long as the tree says it is, and stays as it is.
    pub fn at(address: usize) -> Result<DeviceTree, &'static str> {
        if address == 0 || address % 8 != 0 {
            return Err("the device tree is at no valid address");
        }
        let header = unsafe { core::slice::from_raw_parts(address as *const u8, 40) };
        if word(header, 0) != Some(MAGIC) {
            return Err("the device tree has a wrong magic number");
        }
        let size = word(header, 4).unwrap_or(0) as usize;
        if !(40..=LARGEST).contains(&size) {
            return Err("the device tree has an impossible size");
        }
        let all: &'static [u8] = unsafe { core::slice::from_raw_parts(address as *const u8, size) };
        let part = |start: usize, length: usize| {
            let start = word(all, start)? as usize;
            all.get(start..start.checked_add(word(all, length)? as usize)?)
        };
        match (part(8, 36), part(12, 32)) {
            (Some(structure), Some(strings)) => Ok(DeviceTree { structure, strings }),
            _ => Err("the device tree ends before its parts"),
        }
    }

    /// Bytes of the whole tree at an address that `at` took.
    pub fn size(address: usize) -> usize {
        u32::from_be(unsafe { (address as *const u32).add(1).read() }) as usize
    }

    /// All nodes, parents before their children.
    pub fn nodes(self) -> impl Iterator<Item = Node> {
        let mut next = 0;
        core::iter::from_fn(move || {
            loop {
                let (item, after) = self.item(next)?;
                next = after;
                if let Item::Begin(name) = item {
                    return Some(Node { tree: self, at: next, name });
                }
            }
        })
    }

    /// The first node whose `compatible` names something.
    pub fn compatible(self, wanted: &str) -> Option<Node> {
        self.nodes().find(|node| node.words("compatible").any(|word| word == wanted))
    }

    pub fn named(self, name: &str) -> Option<Node> {
        self.nodes().find(|node| node.name == name)
    }

    fn item(self, mut at: usize) -> Option<(Item, usize)> {
        loop {
            let token = word(self.structure, at)?;
            at += 4;
            match token {
                BEGIN => {
                    let name = text(self.structure.get(at..)?)?;
                    return Some((Item::Begin(name), (at + name.len() + 1).next_multiple_of(4)));
                }
                PROPERTY => {
                    let length = word(self.structure, at)? as usize;
                    let name = text(self.strings.get(word(self.structure, at + 4)? as usize..)?)?;
                    let value = self.structure.get(at + 8..(at + 8).checked_add(length)?)?;
                    return Some((Item::Property(name, value), (at + 8 + length).next_multiple_of(4)));
                }
                END => return Some((Item::End, at)),
                NOTHING => {}
                _ => return None,
            }
        }
    }
}

impl Node {
    pub fn property(self, wanted: &str) -> Option<&'static [u8]> {
        let mut at = self.at;
        while let (Item::Property(name, value), after) = self.tree.item(at)? {
            if name == wanted {
                return Some(value);
            }
            at = after;
        }
        None
    }

    /// A property that is a list of texts.
    pub fn words(self, name: &str) -> impl Iterator<Item = &'static str> {
        let value = self.property(name).unwrap_or(&[]);
        value.split(|&byte| byte == 0).filter_map(|word| core::str::from_utf8(word).ok()).filter(|word| !word.is_empty())
    }

    /// The number that is cell `index` of a property.
    pub fn cell(self, name: &str, index: usize) -> Option<u32> {
        word(self.property(name)?, 4 * index)
    }

    /// Two cells as one number.
    pub fn wide(self, name: &str, index: usize) -> Option<u64> {
        Some((self.cell(name, index)? as u64) << 32 | self.cell(name, index + 1)? as u64)
    }

    /// Where its registers are: address and bytes of part `index`. The machines here have two cells for each.
    pub fn registers(self, index: usize) -> Option<(usize, usize)> {
        Some((self.wide("reg", 4 * index)? as usize, self.wide("reg", 4 * index + 2)? as usize))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Up to the NUL.
fn text(bytes: &[u8]) -> Option<&str> {
    core::str::from_utf8(bytes.split(|&byte| byte == 0).next()?).ok()
}

/// Memory and command line, from the tree at an address.
pub fn boot_info(address: usize) -> Result<BootInfo, &'static str> {
    let tree = DeviceTree::at(address)?;
    let mut memory = Map::new();
    for node in tree.nodes().filter(|node| node.words("device_type").any(|kind| kind == "memory")) {
        for (start, size) in (0..).map_while(|part| node.registers(part)) {
            memory.add(start as u64, size as u64, Kind::Usable)?;
        }
    }
    if memory.regions().is_empty() {
        return Err("the device tree has no memory");
    }
    memory.reserve(address as u64, DeviceTree::size(address) as u64)?;
    let words = tree.named("chosen").and_then(|chosen| chosen.property("bootargs")).map_or(0, |bytes| bytes.as_ptr() as usize);
    let command_line = unsafe { boot::keep_command_line(words) }?;
    Ok(BootInfo { protocol: "device tree", command_line, memory })
}

/// The bus that a tree describes.
pub fn pci(address: usize) -> Option<crate::pci::Host> {
    const MEMORY_32: u32 = 2 << 24;
    let node = DeviceTree::at(address).ok()?.compatible("pci-host-ecam-generic")?;
    let (base, bytes) = node.registers(0)?;
    // Each range: three cells of PCI address, the first with its kind; two of our address; two of size.
    let range = (0..8).map(|number| 7 * number).find(|&at| node.cell("ranges", at).is_some_and(|kind| kind & 0x0300_0000 == MEMORY_32))?;
    let start = node.wide("ranges", range + 3)? as usize;
    let window = start..start + node.wide("ranges", range + 5)? as usize;
    Some(crate::pci::Host { config: crate::pci::Config::Memory { base, buses: bytes >> 20 }, window })
}
