//! What a disk can do, whatever carries it: an NVMe namespace in the kernel, a file in the tests that run on the host.

use core::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// The request does not lie on the disk, or is not whole sectors.
    OutOfRange { first: u64, bytes: usize, sectors: u64 },
    /// No answer came in time.
    TimedOut { milliseconds: u64 },
    /// The device answered with an error; the code is the device's own (NVMe: status code type in bits 8-10, status code in bits 0-7).
    Refused { status: u16 },
    /// The controller reports that it failed as a whole, or is gone from the bus.
    Failed,
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OutOfRange { first, bytes, sectors } => {
                write!(f, "{bytes} bytes at sector {first} are not whole sectors of a disk of {sectors}")
            }
            Self::TimedOut { milliseconds } => write!(f, "the disk did not answer within {milliseconds} ms"),
            Self::Refused { status } => write!(f, "the disk refused with status {status:#05x} ({})", meaning(status)),
            Self::Failed => write!(f, "the disk's controller failed or is gone"),
        }
    }
}

/// The commonest of NVMe's (base specification 1.4, figures 126 to 130).
fn meaning(status: u16) -> &'static str {
    match status {
        0x02 => "invalid field in the command",
        0x04 => "error while moving the data",
        0x06 => "internal error",
        0x0b => "no such namespace",
        0x80 => "beyond the end of the disk",
        0x81 => "the disk is full",
        0x82 => "the namespace is not ready",
        0x280 => "write fault",
        0x281 => "unrecovered read error",
        0x286 => "access denied",
        0x182 => "write to a read-only range",
        0x20 => "the namespace is write protected",
        _ => "see the NVMe specification",
    }
}

pub trait BlockDevice {
    /// Bytes in a sector: the unit of addresses, a power of two.
    fn sector_size(&self) -> usize;
    fn sectors(&self) -> u64;
    /// Fill the buffer, whole sectors, from the sector `first` on.
    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), BlockError>;
    fn write(&mut self, first: u64, data: &[u8]) -> Result<(), BlockError>;
    /// Return once everything written is on the medium.
    fn flush(&mut self) -> Result<(), BlockError>;

    /// Refuse a request that is not whole sectors of this disk. Every device asks this first.
    fn check(&self, first: u64, bytes: usize) -> Result<(), BlockError> {
        let size = self.sector_size();
        let end = first.checked_add((bytes / size) as u64);
        match end {
            Some(end) if bytes % size == 0 && end <= self.sectors() => Ok(()),
            _ => Err(BlockError::OutOfRange { first, bytes, sectors: self.sectors() }),
        }
    }
}

impl<T: BlockDevice + ?Sized> BlockDevice for &mut T {
    fn sector_size(&self) -> usize {
        (**self).sector_size()
    }
    fn sectors(&self) -> u64 {
        (**self).sectors()
    }
    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        (**self).read(first, buffer)
    }
    fn write(&mut self, first: u64, data: &[u8]) -> Result<(), BlockError> {
        (**self).write(first, data)
    }
    fn flush(&mut self) -> Result<(), BlockError> {
        (**self).flush()
    }
}
