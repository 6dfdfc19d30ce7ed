//! How the virt machine reaches its PCI bus: as its device tree says.

use crate::pci::Host;

pub fn host() -> Option<Host> {
    crate::devicetree::pci(super::DEVICE_TREE)
}
