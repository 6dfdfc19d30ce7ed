//! The Multiboot 2 information (specification 2.0, section 3.6): a list of tags.

use crate::boot::{BootInfo, keep_command_line};
use crate::memory::map::Map;

/// What the loader leaves in EAX.
pub const MAGIC: u32 = 0x36d7_6289;
const MOST_BYTES: u32 = 1 << 20;

const END: u32 = 0;
const COMMAND_LINE: u32 = 1;
const MEMORY_MAP: u32 = 6;

pub fn read(address: usize) -> Result<BootInfo, &'static str> {
    if address == 0 || address % 8 != 0 {
        return Err("the Multiboot 2 information is at no valid address");
    }
    let word = |offset: usize| unsafe { ((address + offset) as *const u32).read() };
    let total = word(0);
    if !(16..=MOST_BYTES).contains(&total) {
        return Err("the Multiboot 2 information has an impossible size");
    }
    let mut info = BootInfo { protocol: "Multiboot 2", command_line: "", memory: Map::new() };
    let mut offset = 8;
    while offset + 8 <= total as usize {
        let (tag, size) = (word(offset), word(offset + 4) as usize);
        if size < 8 || size > total as usize - offset {
            return Err("a Multiboot 2 tag has an impossible size");
        }
        match tag {
            END => break,
            COMMAND_LINE => info.command_line = unsafe { keep_command_line(address + offset + 8) }?,
            MEMORY_MAP => add_all(&mut info.memory, address + offset, size)?,
            _ => {}
        }
        offset += size.next_multiple_of(8);
    }
    if info.memory.regions().is_empty() {
        return Err("the Multiboot 2 information has no memory map");
    }
    Ok(info)
}

/// Entries of base, length, type and a reserved word, each as long as the tag says.
fn add_all(memory: &mut Map, tag: usize, size: usize) -> Result<(), &'static str> {
    let step = unsafe { ((tag + 8) as *const u32).read() } as usize;
    if step < 24 || step % 8 != 0 {
        return Err("the Multiboot 2 memory map has entries of an impossible size");
    }
    for offset in (16..size.saturating_sub(23)).step_by(step) {
        let entry = (tag + offset) as *const u64;
        let (start, length, kind) = unsafe { (entry.read(), entry.add(1).read(), entry.add(2).cast::<u32>().read()) };
        memory.add(start, length, super::pvh::kind(kind))?;
    }
    Ok(())
}
