//! Ways to end, by PSCI (Arm DEN 0022): a call to whoever is above the kernel.

use core::arch::asm;

use crate::devicetree::DeviceTree;
use crate::exit::Outcome;

const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;

/// Returns if nobody listens.
pub fn off() {
    call(SYSTEM_OFF);
}

pub fn reset() -> ! {
    call(SYSTEM_RESET);
    super::halt()
}

/// There is no such device.
pub fn debug_exit(_: Outcome) {}

/// The way that the device tree names; without one, nobody is there to be called.
fn call(function: u32) {
    let node = DeviceTree::at(super::DEVICE_TREE).ok().and_then(|tree| tree.named("psci"));
    match node.and_then(|node| node.words("method").next()) {
        Some("hvc") => unsafe { asm!("hvc #0", inout("w0") function => _, clobber_abi("C")) },
        Some("smc") => unsafe { asm!("smc #0", inout("w0") function => _, clobber_abi("C")) },
        _ => {}
    }
}
