//! The bus: what was found answers, and has memory of its own.

use alloc::vec::Vec;

use super::{Ended, Test, check};
use crate::memory;
use crate::pci;

pub const TESTS: &[Test] = &[("functions", functions), ("memory", own_memory)];

fn functions() -> Ended {
    let found = pci::functions();
    if found.is_empty() {
        return Ended::Skip("this machine has no PCI bus");
    }
    check!(found.iter().any(|it| it.class >> 8 == 0x0600), "there is no host bridge");
    for it in &found {
        let id = it.read(0);
        check!(id == (it.id as u32) << 16 | it.vendor as u32, "{it} now says {id:08x}");
    }
    Ended::Pass
}

/// Devices do not share addresses with each other or with memory.
fn own_memory() -> Ended {
    let mut bars: Vec<pci::Bar> = pci::functions().iter().flat_map(|it| (0..6).filter_map(|number| it.bar(number))).collect();
    if bars.is_empty() {
        return Ended::Skip("no PCI device has memory");
    }
    bars.sort_by_key(|bar| bar.address);
    for bar in &bars {
        check!(bar.bytes.is_power_of_two() && bar.address % bar.bytes == 0, "{} bytes at {:#x} are not aligned", bar.bytes, bar.address);
    }
    for pair in bars.windows(2) {
        check!(pair[0].address + pair[0].bytes <= pair[1].address, "two devices are at {:#x}", pair[1].address);
    }
    let in_memory = |bar: &&pci::Bar| memory::is_usable(bar.address) || memory::is_usable(bar.address + bar.bytes - 1);
    let wrong = bars.iter().find(in_memory);
    check!(wrong.is_none(), "a device is where memory is: {:x?}", wrong.map(|bar| bar.address));
    Ended::Pass
}
