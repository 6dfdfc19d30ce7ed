//! What a loader tells, whatever its protocol.

use crate::memory::map::Map;

pub struct BootInfo {
    /// Name of the protocol, for the log.
    pub protocol: &'static str,
    pub command_line: &'static str,
    pub memory: Map,
}

const MOST_TEXT: usize = 4096;

/// Copy the command line, which ends with a NUL, away from where the loader left it: that memory will be somebody's. It is refused if it
/// has more than 4095 bytes or is not UTF-8. Address 0: there is none.
///
/// # Safety
/// `address` is mapped, for 4096 bytes or up to the NUL. Called once.
pub unsafe fn keep_command_line(address: usize) -> Result<&'static str, &'static str> {
    static mut KEPT: [u8; MOST_TEXT] = [0; MOST_TEXT];
    let mut length = 0;
    while address != 0 && length < MOST_TEXT {
        let byte = unsafe { (address as *const u8).add(length).read() };
        if byte == 0 {
            break;
        }
        unsafe { KEPT[length] = byte };
        length += 1;
    }
    if length == MOST_TEXT {
        return Err("the command line has more than 4095 bytes");
    }
    core::str::from_utf8(unsafe { core::slice::from_raw_parts(&raw const KEPT as *const u8, length) }).map_err(|_| "the command line is not UTF-8")
}
