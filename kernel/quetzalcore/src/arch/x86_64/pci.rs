//! How a PC reaches its PCI bus.

use super::port::{read32, write32};
use crate::pci::{Config, Host};

/// Of configuration space, by ports.
const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

/// Where memory of devices can be put when firmware did not; QEMU has nothing there, on q35 and on microvm.
const WINDOW: core::ops::Range<usize> = 0xc000_0000..0xe000_0000;

/// QEMU's Q35 host bridge, and its register that tells where configuration space is in memory.
const Q35: u32 = 0x29c0_8086;
const Q35_ECAM: usize = 0x60;
/// Of microvm with `pcie=on`, whose bus has no ports, the host bridge and where configuration space is.
const MICROVM: u32 = 0x0008_1b36;
const MICROVM_ECAM: usize = 0xe000_0000;

pub fn host() -> Option<Host> {
    config().map(|config| Host { config, window: WINDOW })
}

fn config() -> Option<Config> {
    // The address register keeps what is written, if it is there.
    write32(ADDRESS, 1 << 31);
    if read32(ADDRESS) == 1 << 31 {
        let register = read_port(Q35_ECAM);
        let enabled = read_port(0) == Q35 && register & 1 == 1;
        return Some(if enabled { Config::Memory { base: register as usize & 0xf000_0000, buses: 256 } } else { Config::Ports { read: read_port, write: write_port } });
    }
    let config = Config::Memory { base: MICROVM_ECAM, buses: 1 };
    crate::memory::paging::map_device(MICROVM_ECAM, 4096);
    (unsafe { (MICROVM_ECAM as *const u32).read_volatile() } == MICROVM).then_some(config)
}

/// Of bus, device, function and register, as the ports number them.
fn read_port(address: usize) -> u32 {
    write32(ADDRESS, 1 << 31 | address as u32);
    read32(DATA)
}

fn write_port(address: usize, value: u32) {
    write32(ADDRESS, 1 << 31 | address as u32);
    write32(DATA, value);
}
