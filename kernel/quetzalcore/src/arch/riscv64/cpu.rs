//! What the processor says of itself, and the device tree of it.

use crate::devicetree::DeviceTree;

unsafe extern "C" {
    /// mvendorid, marchid, mimpid, misa; read by boot.s while it could.
    static machine_ids: [u64; 4];
}

/// Vendor, model and features, for the log.
#[inline(never)]
pub fn describe() {
    let [vendor, architecture, implementation, isa] = unsafe { machine_ids };
    let tree = DeviceTree::at(unsafe { super::device_tree }).ok();
    let node = tree.and_then(|tree| tree.nodes().find(|node| node.words("device_type").any(|kind| kind == "cpu")));
    let word = |name| node.and_then(|node| node.words(name).next()).unwrap_or("unknown");
    let named = if vendor == 0 { "not commercial" } else { "commercial" };
    info!("cpu: vendor {vendor:#x} ({named}), architecture {architecture:#x}, implementation {implementation:#x}");
    info!("cpu: {}, {}", word("compatible"), word("mmu-type"));
    info!("cpu: features {} (misa {isa:#x})", word("riscv,isa"));
}
