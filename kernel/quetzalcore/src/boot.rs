//! What a loader tells, whatever its protocol.

use crate::memory::map::Map;

pub struct BootInfo {
    /// Name of the protocol, for the log.
    pub protocol: &'static str,
    pub command_line: &'static str,
    pub memory: Map,
}

/// A text that ends with a NUL, at a physical address; at most 4095 bytes of it. None if it is longer or not UTF-8.
///
/// # Safety
/// `address` is mapped, for 4096 bytes or up to the NUL, and what is there does not change.
pub unsafe fn text_at(address: usize) -> Option<&'static str> {
    if address == 0 {
        return Some("");
    }
    let start = address as *const u8;
    let length = (0..4096).find(|&n| unsafe { start.add(n).read() } == 0)?;
    core::str::from_utf8(unsafe { core::slice::from_raw_parts(start, length) }).ok()
}
