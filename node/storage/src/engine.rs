//! The options of the two `RocksDB`s, and the function that writes to them.

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
fn common_options(
    options: &StorageOptions,
    text: &str,
    write_buffer_bytes: usize,
) -> Result<Options, rocksdb::Error> {
    // `text` sets options that have no setter in the Rust bindings.
    let mut db = Options::default().get_options_from_string(text)?;
    db.set_write_buffer_size(write_buffer_bytes);
    db.set_max_write_buffer_number(3);
    db.set_max_open_files(options.max_open_files);
    db.set_max_background_jobs(2);
    db.set_bytes_per_sync(1 << 20);
    // RocksDB writes a text log for its developers. Keep it small and rotate it.
    db.set_log_level(LogLevel::Warn);
    db.set_max_log_file_size(1 << 20);
    db.set_keep_log_file_num(2);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    // One thread writes, so the support for concurrent writers would only cost time.
    db.set_allow_concurrent_memtable_write(false);
    db.set_enable_write_thread_adaptive_yield(false);
    Ok(db)
}

fn table_options(options: &StorageOptions, bloom: bool) -> BlockBasedOptions {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(&Cache::new_lru_cache(options.block_cache_bytes));
    // Without this, the memory for indexes and filters has no bound.
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
    tables.set_block_size(16 << 10);
    if bloom {
        tables.set_bloom_filter(10.0, false);
    }
    tables
}

/// Returns the options of `log/`.
///
/// Entries are written in order, rarely read, and soon dropped, most of them while they are still in a memtable.
/// `RocksDB` stops at the first broken record of a write-ahead log; [`crate::wal`] has told before if that record is torn
/// or damaged. So `RocksDB` may recycle the files, which makes syncs faster.
pub(crate) fn log_options(options: &StorageOptions) -> Result<Options, rocksdb::Error> {
    let mut db = common_options(options, "", options.log_write_buffer_bytes)?;
    db.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    db.set_track_and_verify_wals_in_manifest(true);
    // There are never as many files as this. So none is deleted while the log is open, and the oldest is always
    // overwritten next, which leaves no gap in the numbers of the writes in the files.
    db.set_recycle_log_file_num(16);
    db.set_compression_type(DBCompressionType::None);
    let mut tables = table_options(options, false);
    // Recent entries are in raft's cache. Older ones are read once, for a follower that lags.
    tables.set_block_cache(&Cache::new_lru_cache(
        (options.block_cache_bytes / 8).clamp(1 << 20, 8 << 20),
    ));
    db.set_block_based_table_factory(&tables);
    Ok(db)
}

/// Returns the options of `state/<n>/` and of each of its column families.
///
/// Without a write-ahead log the column families must be flushed together, or a crash would leave one newer
/// than another. Closing does not flush, so a close leaves the same content as a crash, and a test of one tests
/// the other too. Range tombstones slow reads down while they are in memory, so their number is bounded.
pub(crate) fn state_options(options: &StorageOptions) -> Result<Options, rocksdb::Error> {
    let text = "avoid_flush_during_shutdown=true;memtable_max_range_deletions=128";
    let mut db = common_options(options, text, options.state_write_buffer_bytes)?;
    db.set_atomic_flush(true);
    // The record of all files that were ever made and deleted begins anew at this size. It has no other bound in practice.
    db.set_max_manifest_file_size(256 << 10);
    db.set_db_write_buffer_size(options.state_write_buffer_bytes.saturating_mul(2));
    db.set_compression_type(DBCompressionType::Lz4);
    db.set_block_based_table_factory(&table_options(options, true));
    Ok(db)
}

/// The time for which a stalled write waits for a flush. After it, a failed flush counts as the cause of the stall.
const STALL: Duration = Duration::from_millis(500);
/// The interval between attempts of a stalled write.
const STALL_POLL: Duration = Duration::from_millis(1);

/// Writes `batch`, and never waits inside `RocksDB`: if its buffers are full and a full disk prevents their flush,
/// `RocksDB` waits for ever, and the caller would hang with it.
pub(crate) fn write(db: &DB, batch: WriteBatch, options: &WriteOptions) -> Result<(), StoreError> {
    // A write consumes its batch, but a write that was refused because of a stall is retried, so keep the bytes.
    let data = batch.data().to_vec();
    let mut outcome = db.write_opt(batch, options);
    let start = Instant::now();
    loop {
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Incomplete => {
                if start.elapsed() >= STALL && failed_in_background(db)? {
                    return Err(StoreError::Full(
                        "RocksDB's write buffers are full and can't be flushed".into(),
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

/// Returns the write options of the log, with a sync after each write.
pub(crate) fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options.set_no_slowdown(true);
    options
}

/// Returns the write options of the state, without a write-ahead log.
pub(crate) fn unlogged() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options.set_no_slowdown(true);
    options
}
