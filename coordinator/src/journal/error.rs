//! Why a journal cannot be made, opened, read or written, and what a program exits with then.

use std::{
    io,
    path::{Path, PathBuf},
};

use tropa_proto::message::MAX_BODY;

/// Why a journal cannot be made, opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another live process holds the job.
    #[error("job is held by another coordinator ({holder})")]
    Locked {
        /// What the holder wrote about itself.
        holder: String,
    },
    /// The input never arrived as a whole.
    #[error(
        "journal holds an incomplete input, because its coordinator ended while reading it; submit the job again"
    )]
    Incomplete,
    /// The file is damaged.
    #[error("journal is damaged: {0}")]
    Damaged(String),
    /// Another kind of file, or another version.
    #[error("not a journal of this version: {name} is {found}, not {want}")]
    NotAJournal {
        /// Which number of the header.
        name: &'static str,
        /// What the file says.
        found: i64,
        /// What this program writes.
        want: i64,
    },
    /// SQLite did not take a setting that the promise rests on.
    #[error("journal cannot be kept safely here: {name} reads back as {found:?}, not {want:?}")]
    Pragma {
        /// The pragma.
        name: &'static str,
        /// What it reads back as.
        found: String,
        /// What it must be.
        want: &'static str,
    },
    /// The directory lies on a network file system.
    #[error("journal cannot lie on a network file system ({name}); set XDG_STATE_HOME to a local directory")]
    Network {
        /// Its name.
        name: &'static str,
    },
    /// Too little room.
    #[error("disk.low: the journal may need {} MiB and {} MiB are free; make room where $XDG_STATE_HOME is, or point it at another disk", need.div_ceil(1 << 20), free >> 20)]
    NoSpace {
        /// Free bytes.
        free: u64,
        /// Bytes that the job may need.
        need: u64,
    },
    /// More chunks than an index can name.
    #[error("job has more chunks than {}", u32::MAX)]
    TooMany,
    /// A body that does not fit the wire.
    #[error("body of chunk {index} has {len} bytes, at most {MAX_BODY} fit")]
    TooLarge {
        /// The chunk.
        index: u32,
        /// How long its body is.
        len: usize,
    },
    /// An operation on a file failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// The operation.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An operation of the database failed.
    #[error("cannot {doing}")]
    Sql {
        /// The operation.
        doing: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl Error {
    /// The exit code of a program that ends with this error (`conventions.md` §3).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Locked { .. } => 75,
            Self::Incomplete | Self::TooMany | Self::TooLarge { .. } => 65,
            Self::Damaged(_)
            | Self::NotAJournal { .. }
            | Self::Pragma { .. }
            | Self::Network { .. }
            | Self::NoSpace { .. }
            | Self::Io { .. }
            | Self::Sql { .. } => 74,
        }
    }

    pub(crate) fn sql(doing: &'static str, source: rusqlite::Error) -> Self {
        Self::Sql { doing, source }
    }

    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }
}
