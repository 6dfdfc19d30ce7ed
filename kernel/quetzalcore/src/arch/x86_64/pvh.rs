//! The PVH protocol's start_info (Xen's public/arch-x86/hvm/start_info.h, version 1).

use crate::boot::{BootInfo, keep_command_line};
use crate::memory::map::{Kind, Map};

const MAGIC: u32 = 0x336e_c578;
const MOST_ENTRIES: u32 = 128;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    _flags: u32,
    _modules: u32,
    _module_list: u64,
    command_line: u64,
    _rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
}

#[repr(C)]
struct Entry {
    address: u64,
    size: u64,
    kind: u32,
    _reserved: u32,
}

/// Only the first 4 GiB are mapped when this is read.
const REACH: u64 = 1 << 32;

pub fn read(address: usize) -> Result<BootInfo, &'static str> {
    if address == 0 || address % 4 != 0 {
        return Err("start_info is at no valid address");
    }
    let info = unsafe { &*(address as *const StartInfo) };
    if info.magic != MAGIC {
        return Err("start_info has a wrong magic number; this kernel is entered by PVH or Multiboot 2");
    }
    if info.version < 1 {
        return Err("start_info is of version 0, which has no memory map");
    }
    if info.memory_map == 0 || info.memory_map_entries == 0 || info.memory_map_entries > MOST_ENTRIES {
        return Err("start_info has no memory map, or one of more than 128 entries");
    }
    if info.memory_map >= REACH || info.command_line >= REACH {
        return Err("start_info points beyond 4 GiB");
    }
    let mut memory = Map::new();
    for number in 0..info.memory_map_entries as usize {
        let entry = unsafe { (info.memory_map as *const Entry).add(number).read_unaligned() };
        memory.add(entry.address, entry.size, kind(entry.kind))?;
    }
    let command_line = unsafe { keep_command_line(info.command_line as usize) }?;
    Ok(BootInfo { protocol: "PVH", command_line, memory })
}

/// Of the types that the PC's firmware interface numbers (E820).
pub fn kind(number: u32) -> Kind {
    match number {
        1 => Kind::Usable,
        3 => Kind::Firmware,
        _ => Kind::Reserved,
    }
}
