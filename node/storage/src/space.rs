//! The free space of the disk, and the reserves that writes must leave.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use raft::StoreError;

use crate::directory::Directory;
use crate::error::OpenError;
use crate::options::StorageOptions;

const MAX_LOW_BYTES: u64 = 512 << 20;
/// `RocksDB`'s smallest write buffer.
const MIN_WRITE_BUFFER_BYTES: usize = 64 << 10;

/// The free and total space of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can still be written.
    pub free_bytes: u64,
    /// Bytes of the whole file system.
    pub total_bytes: u64,
    /// Bytes that are kept free: with less, the disk is nearly full.
    pub reserve_bytes: u64,
    /// True if the disk is nearly full: then the server refuses writes that don't free space.
    pub low: bool,
}

/// The disk usage of the stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of the log's files.
    pub log_bytes: u64,
    /// Bytes of the state's files.
    pub state_bytes: u64,
}

/// A handle that measures the disk under a data directory. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Disk {
    directory: Arc<Directory>,
    low_bytes: u64,
}

/// The store that wants to write. The state has the smaller reserve, because the log must be refused first.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Writer {
    /// The log: refused first, so that the state can still apply committed entries.
    Log,
    /// The state.
    State,
}

impl Disk {
    pub(crate) fn new(
        directory: Arc<Directory>,
        options: &StorageOptions,
    ) -> Result<Self, OpenError> {
        let mut disk = Self {
            directory,
            low_bytes: 0,
        };
        let space = disk
            .space()
            .map_err(|error| disk.directory.failed("measure the disk", error))?;
        disk.low_bytes = options
            .low_space_bytes
            .unwrap_or_else(|| (space.total_bytes / 10).min(MAX_LOW_BYTES));
        Ok(disk)
    }

    /// Returns the options with buffers reduced to fit the hard reserve: the content of a full buffer must still fit the
    /// disk when space is short.
    pub(crate) fn fit_buffers(&self, options: &StorageOptions) -> StorageOptions {
        let max = usize::try_from(self.hard_bytes() / 4).unwrap_or(usize::MAX);
        let fit = |wanted: usize| wanted.min(max).max(MIN_WRITE_BUFFER_BYTES);
        StorageOptions {
            log_write_buffer_bytes: fit(options.log_write_buffer_bytes),
            state_write_buffer_bytes: fit(options.state_write_buffer_bytes),
            ..options.clone()
        }
    }

    /// Measures the disk, by one system call.
    pub fn space(&self) -> Result<Space, StoreError> {
        let found = rustix::fs::fstatvfs(self.directory.file())
            .map_err(|error| StoreError::Io(format!("can't measure the disk: {error}")))?;
        let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
        Ok(Space {
            free_bytes,
            total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
            reserve_bytes: self.low_bytes,
            low: free_bytes < self.low_bytes,
        })
    }

    /// Measures the stores. Reads the sizes of a few dozen files.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            log_bytes: tree_bytes(&self.directory.log_dir()),
            state_bytes: tree_bytes(&self.directory.state_dir()),
        }
    }

    /// Returns the hard reserve, below which the stores refuse their own writes.
    fn hard_bytes(&self) -> u64 {
        self.low_bytes / 4
    }

    /// Refuses a write of about `bytes` that would leave less than the writer's reserve.
    pub(crate) fn check(&self, writer: Writer, bytes: usize) -> Result<(), StoreError> {
        let reserve = match writer {
            Writer::Log => self.hard_bytes(),
            Writer::State => self.hard_bytes() / 2,
        };
        let needed = reserve.saturating_add(bytes as u64);
        let free = self.space()?.free_bytes;
        if free < needed {
            return Err(StoreError::Full(format!(
                "{free} bytes are free, {needed} are needed: {bytes} to write and {reserve} in reserve"
            )));
        }
        Ok(())
    }
}

/// Returns the bytes of all files under `dir`. A file that vanishes meanwhile counts nothing.
fn tree_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => tree_bytes(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}
