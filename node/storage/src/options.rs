//! Options of the storage.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Receives the duration of each synced write of the log, for a histogram.
#[derive(Clone)]
pub struct SyncObserver(Arc<dyn Fn(Duration) + Send + Sync>);

impl SyncObserver {
    /// Wraps `observer`. The thread that writes the log calls it, so it should only count.
    pub fn new(observer: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        Self(Arc::new(observer))
    }

    pub(crate) fn observe(&self, duration: Duration) {
        (self.0)(duration);
    }
}

impl fmt::Debug for SyncObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SyncObserver")
    }
}

/// Settings of a node's storage. None is part of the format on the disk, so all may change between starts.
#[derive(Clone, Debug)]
pub struct StorageOptions {
    /// Memory for log entries that are not in a table file yet, in bytes. It is used twice while a file is being written.
    /// Reduced on small disks.
    pub log_write_buffer_bytes: usize,
    /// The same for each table of the state. All tables together use at most twice this.
    pub state_write_buffer_bytes: usize,
    /// Memory for cached blocks of both databases, in bytes.
    pub block_cache_bytes: usize,
    /// The most files that each database keeps open.
    pub max_open_files: i32,
    /// Below this many free bytes the disk counts as nearly full. `None` means a tenth of the disk, at most
    /// 512 MiB. A quarter of this is the hard reserve, below which even Raft's own writes are refused.
    pub low_space_bytes: Option<u64>,
    /// The time for which cleared ranges of the state are collected before a compaction reclaims their space.
    pub reclaim_after: Duration,
    /// Called after each synced write.
    pub on_sync: Option<SyncObserver>,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self {
            log_write_buffer_bytes: 32 << 20,
            state_write_buffer_bytes: 32 << 20,
            block_cache_bytes: 64 << 20,
            max_open_files: 512,
            low_space_bytes: None,
            reclaim_after: Duration::from_secs(2),
            on_sync: None,
        }
    }
}
