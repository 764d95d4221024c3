//! The options of the two `RocksDB`s, and writes to them.

use std::thread;
use std::time::{Duration, Instant};

use raft::StoreError;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, ErrorKind, LogLevel, Options,
    WriteBatch, WriteOptions,
};

use crate::error::translate;
use crate::options::StorageOptions;

/// Returns the options that both databases have in common.
fn common(
    options: &StorageOptions,
    text: &str,
    write_buffer_bytes: usize,
) -> Result<Options, rocksdb::Error> {
    // Some options have no setter in the bindings; this is the public way to set them by name.
    let mut db = Options::default().get_options_from_string(text)?;
    db.set_write_buffer_size(write_buffer_bytes);
    db.set_max_write_buffer_number(3);
    db.set_max_open_files(options.max_open_files);
    db.set_max_background_jobs(2);
    db.set_bytes_per_sync(1 << 20);
    // Quiet: RocksDB's own text log is for its developers, small, and rotated.
    db.set_log_level(LogLevel::Warn);
    db.set_max_log_file_size(1 << 20);
    db.set_keep_log_file_num(2);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    // One thread writes: the machinery for many only costs.
    db.set_allow_concurrent_memtable_write(false);
    db.set_enable_write_thread_adaptive_yield(false);
    Ok(db)
}

fn tables(options: &StorageOptions, bloom: bool) -> BlockBasedOptions {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(&Cache::new_lru_cache(options.block_cache_bytes));
    // Otherwise the memory for indexes and filters has no bound.
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
    tables.set_block_size(16 << 10);
    if bloom {
        tables.set_bloom_filter(10.0, false);
    }
    tables
}

/// For `log/`.
///
/// Entries are written in order, rarely read, and soon dropped, most of them before their memtable is written
/// out, which then never happens to them. `RocksDB` stops at the first broken record of a write-ahead log: whether
/// that is a torn write or damage was found out before (see `wal`). So its files can be recycled, which makes
/// syncs faster.
pub(crate) fn log(options: &StorageOptions) -> Result<Options, rocksdb::Error> {
    let mut db = common(options, "", options.log_write_buffer_bytes)?;
    db.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    db.set_track_and_verify_wals_in_manifest(true);
    // More than there can ever be: then none is deleted while the log is open, and the oldest is always the
    // next to be overwritten, so that the numbers of the writes in the files have no gap.
    db.set_recycle_log_file_num(16);
    db.set_compression_type(DBCompressionType::None);
    let mut tables = tables(options, false);
    // Recently written entries are in raft's cache; what is read here is read once, by a follower behind.
    tables.set_block_cache(&Cache::new_lru_cache(
        (options.block_cache_bytes / 8).clamp(1 << 20, 8 << 20),
    ));
    db.set_block_based_table_factory(&tables);
    Ok(db)
}

/// For `state/<n>/`, and for each of its column families.
///
/// Without a write-ahead log the column families must be flushed together, or a crash would leave one newer
/// than another. Closing must not flush: then a crash and a close leave the same, and tests of one are tests
/// of the other. Range tombstones slow reads down while they are in memory, so their number is bounded.
pub(crate) fn state(options: &StorageOptions) -> Result<Options, rocksdb::Error> {
    let text = "avoid_flush_during_shutdown=true;memtable_max_range_deletions=128";
    let mut db = common(options, text, options.state_write_buffer_bytes)?;
    db.set_atomic_flush(true);
    db.set_db_write_buffer_size(options.state_write_buffer_bytes.saturating_mul(2));
    db.set_compression_type(DBCompressionType::Lz4);
    db.set_block_based_table_factory(&tables(options, true));
    Ok(db)
}

/// The time that a write waits for a flush before it takes a failed flush for the reason.
const STALL: Duration = Duration::from_millis(500);
/// The interval between attempts of a stalled write.
const STALL_POLL: Duration = Duration::from_millis(1);

/// Writes `batch`, and never waits inside `RocksDB`, which while its buffers are full and a full disk keeps
/// them from being flushed waits for ever: the caller would hang with it.
pub(crate) fn write(db: &DB, batch: WriteBatch, options: &WriteOptions) -> Result<(), StoreError> {
    // A write consumes its batch, but a write that is refused for a stall is retried, so keep the bytes.
    let data = batch.data().to_vec();
    let mut outcome = db.write_opt(batch, options);
    let start = Instant::now();
    loop {
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Incomplete => {
                if start.elapsed() >= STALL && failed_in_background(db)? {
                    return Err(StoreError::Full(
                        "writes wait for buffers that could not be written out".into(),
                    ));
                }
            }
            Err(error) => return Err(translate(&error)),
        }
        thread::sleep(STALL_POLL);
        outcome = db.write_opt(WriteBatch::from_data(&data), options);
    }
}

/// Returns true if a flush or a compaction failed since the database was opened.
fn failed_in_background(db: &DB) -> Result<bool, StoreError> {
    let errors = db.property_int_value("rocksdb.background-errors");
    Ok(errors.map_err(|error| translate(&error))?.unwrap_or(0) > 0)
}

/// Returns the write options of the log: synced.
pub(crate) fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options.set_no_slowdown(true);
    options
}

/// Returns the write options of the state: without a write-ahead log.
pub(crate) fn unlogged() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options.set_no_slowdown(true);
    options
}
