//! Everything that can go wrong, in words that say whose fault it is.

use crate::block::BlockError;
use core::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    Device(BlockError),
    /// There is no ext4 here at all.
    NotExt4,
    /// The image contradicts itself: what, and the number of the block, inode or group in which it was seen.
    Corrupt(&'static str, u64),
    /// A sound image that this driver does not know how to handle.
    Unsupported(&'static str),
    /// Bits of a feature word for which this driver has no name.
    UnknownFeatures(u32),
    NeedsRecovery,
    NotClean,
    ReadOnly,
    NotFound,
    Exists,
    NotADirectory,
    IsADirectory,
    NotEmpty,
    BadName,
    NoSpace,
    NoInodes,
    TooLarge,
}

pub type Result<T> = core::result::Result<T, Error>;

impl From<BlockError> for Error {
    fn from(error: BlockError) -> Self {
        Self::Device(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match *self {
            Self::Device(error) => return write!(f, "{error}"),
            Self::Corrupt(what, at) => return write!(f, "corrupt image: {what} ({at})"),
            Self::Unsupported(what) => return write!(f, "not supported: {what}"),
            Self::UnknownFeatures(bits) => return write!(f, "not supported: unknown feature bits {bits:#x}"),
            Self::NotExt4 => "no ext4 file system on this disk",
            Self::NeedsRecovery => "the journal needs recovery: run e2fsck on the image first",
            Self::NotClean => "the file system was not unmounted cleanly: run e2fsck on the image first",
            Self::ReadOnly => "the file system is mounted for reading only",
            Self::NotFound => "no such file or directory",
            Self::Exists => "the name exists already",
            Self::NotADirectory => "not a directory",
            Self::IsADirectory => "is a directory",
            Self::NotEmpty => "the directory is not empty",
            Self::BadName => "a name must have 1 to 255 bytes and cannot be . or ..",
            Self::NoSpace => "no space left on the disk",
            Self::NoInodes => "no inodes left in the file system",
            Self::TooLarge => "the file would be larger than the file system allows",
        };
        f.write_str(words)
    }
}
