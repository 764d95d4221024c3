//! The Raft log on `RocksDB`.
//!
//! [`crate::log_codec`] owns the keys and values.
//!
//! # Invariants
//!
//! - The stored entries are exactly `(base, last]`, contiguous. If `compacting` is set, the entries from there up to the
//!   base are stored too, until the next write drops them.
//! - Each write is one batch, ends with its number, and is synced before `FLOOR` is set to that number. There are no
//!   unsynced writes, so a write that begins after another proves that the other was durable (see [`crate::wal`]).

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use raft::{
    Entry, EntryId, Index, LogBatch, LogReader, LogState, LogStore, SnapshotMeta, StoreError,
};
use replica::memory::{check_append, check_compact};
use rocksdb::properties::MIN_LOG_NUMBER_TO_KEEP;
use rocksdb::{DB, Direction, IteratorMode, ReadOptions, WriteBatch, WriteOptions};

use crate::directory::Directory;
use crate::error::{Latch, LogDamage, OpenError, VerifyError, translate, translate_opening};
use crate::floor::Floor;
use crate::log_codec::{
    BASE, FORMAT, HARD_STATE, INSTALLING, NUMBER, VERSION, damaged, decode_base, decode_entry,
    decode_hard_state, decode_id, encode_base, encode_entry, encode_hard_state, encode_id,
    entry_key,
};
use crate::options::StorageOptions;
use crate::space::{Disk, Writer};
use crate::{directory, engine, wal};

/// An upper bound of a batch's bytes on the disk besides its entries: the record's header, hard state, number.
const BATCH_BYTES: usize = 1_024;
/// At most this many entries are dropped one by one, because a range tombstone slows every later read a little.
const POINT_DELETES: u64 = 64;

/// A durable log. The crate's documentation says what survives which failure.
pub struct RocksLog {
    /// `None` only after reopening failed. Then every write tries to reopen it.
    db: Option<DB>,
    directory: Arc<Directory>,
    disk: Disk,
    options: StorageOptions,
    write_options: WriteOptions,
    floor: Floor,
    latch: Latch,
    /// True after a failed write, for example on a full disk: `RocksDB` refuses writes until it is reopened.
    reopen: bool,
    content: LogState,
    /// The number of the last synced write.
    number: u64,
    /// The first entry that is compacted but still on the disk. The next write drops the entries from it up to the base; so
    /// compaction needs no write of its own, which would cost a sync or break the invariant.
    compacting: Option<Index>,
}

/// Makes the log of a new data directory.
pub(crate) fn create(directory: &Directory, options: &StorageOptions) -> Result<(), OpenError> {
    let make = || {
        let mut engine = engine::log_options(options)?;
        engine.create_if_missing(true);
        engine.set_error_if_exists(true);
        let db = DB::open(&engine, directory.log_dir())?;
        db.put_opt(VERSION, [FORMAT], &engine::synced())
    };
    make().map_err(|error: rocksdb::Error| directory.failed("make the log", translate(&error)))?;
    directory::sync_dir(directory.path()).map_err(|error| directory.failed("make the log", error))
}

impl RocksLog {
    /// Opens the log and reads all of it.
    pub(crate) fn open(
        directory: Arc<Directory>,
        disk: Disk,
        options: &StorageOptions,
    ) -> Result<Self, OpenError> {
        let mut floor = Floor::open(&directory)?;
        let failed = |error| directory.log_failed(error);
        let db = open_db(&directory, options, floor.flushed()).map_err(failed)?;
        let (number, content) = verify(&db).map_err(|error| match error {
            VerifyError::Version(found) => {
                Directory::other_version(directory.log_dir(), found, FORMAT)
            }
            VerifyError::Store(error) => failed(error),
        })?;
        if number < floor.acknowledged() {
            return Err(directory.log_damaged(LogDamage::AcknowledgedWritesLost {
                acknowledged: floor.acknowledged(),
                last: number,
            }));
        }
        floor.set_flushed(number).map_err(failed)?;
        Ok(Self {
            db: Some(db),
            directory,
            disk,
            options: options.clone(),
            write_options: engine::synced(),
            floor,
            latch: Latch::default(),
            reopen: false,
            content,
            number,
            compacting: None,
        })
    }

    fn db(&self) -> Result<&DB, StoreError> {
        self.latch.check()?;
        // The disk is full: reopening failed. Any other error is latched.
        self.db.as_ref().ok_or_else(|| {
            StoreError::Full("the log can't be reopened until the disk has space".into())
        })
    }

    fn fail(&self, error: &rocksdb::Error) -> StoreError {
        self.latch.keep(translate(error))
    }

    /// Reopens the database after a failed write, if the disk has space now.
    ///
    /// A failed write may turn out to be present and whole: the record was written, and a later step failed. That is
    /// equivalent to a crash of the node during the write, which Raft tolerates. This store only has to read its content anew.
    fn recover(&mut self) -> Result<(), StoreError> {
        if !self.reopen && self.db.is_some() {
            return Ok(());
        }
        self.disk
            .check(Writer::Log, self.options.log_write_buffer_bytes)?;
        self.db = None;
        let db = open_db(&self.directory, &self.options, self.floor.flushed())
            .map_err(|error| self.latch.keep(error))?;
        let (number, content) = verify(&db).map_err(|error| match error {
            VerifyError::Store(error) => self.latch.keep(error),
            VerifyError::Version(_) => self.latch.keep(damaged(
                "the log's format version changed while it was reopened",
            )),
        })?;
        if number < self.number {
            return Err(self.latch.keep(StoreError::Damaged(format!(
                "the log lost writes {} to {} while it was reopened",
                number + 1,
                self.number
            ))));
        }
        self.floor
            .set_flushed(number)
            .map_err(|error| self.latch.keep(error))?;
        self.number = number;
        self.content = content;
        self.compacting = None;
        self.reopen = false;
        self.db = Some(db);
        Ok(())
    }

    /// Adds the pending compaction and the number to `batch`, then writes and syncs it.
    fn commit(&mut self, mut batch: WriteBatch, bytes: usize) -> Result<(), StoreError> {
        self.disk.check(Writer::Log, 2 * bytes + BATCH_BYTES)?;
        if let Some(first) = self.compacting {
            let end = self.content.base.last.index.next();
            batch.delete_range(entry_key(first), entry_key(end));
            batch.put(BASE, encode_base(&self.content.base));
        }
        let number = self.number + 1;
        batch.put(NUMBER, number.to_le_bytes());
        let start = Instant::now();
        if let Err(error) = engine::write(self.db()?, batch, &self.write_options) {
            self.reopen = true;
            return Err(self.latch.keep(error));
        }
        if let Some(observer) = &self.options.on_sync {
            observer.observe(start.elapsed());
        }
        self.number = number;
        self.compacting = None;
        match self.floor.acknowledge(number) {
            // The write itself is durable, so a floor that lags must not fail it.
            Ok(()) | Err(StoreError::Full(_)) => Ok(()),
            Err(error) => Err(self.latch.keep(error)),
        }
    }

    /// Runs a write, and repeats it once if `RocksDB` failed it because of an earlier error that is over. For example, a flush in
    /// the background failed while the disk was full, which `RocksDB` reports to the next write only.
    fn retrying(
        &mut self,
        write: impl Fn(&mut Self) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.latch.check()?;
        self.recover()?;
        match write(self) {
            Err(StoreError::Full(_)) if self.reopen => {
                self.recover()?;
                write(self)
            }
            outcome => outcome,
        }
    }

    fn append(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        let (base, last) = match &batch.reset {
            Some(meta) => (meta.last.index, meta.last.index),
            None => (self.content.base.last.index, self.content.last_index),
        };
        check_append(base, last, &batch.entries)?;
        let mut out = WriteBatch::default();
        let mut bytes = 0;
        if let Some(hard_state) = batch.hard_state {
            out.put(HARD_STATE, encode_hard_state(hard_state));
        }
        if let Some(meta) = &batch.reset {
            out.delete_range(entry_key(Index(0)), entry_key(Index(u64::MAX)));
            out.put(BASE, encode_base(meta));
            out.delete(INSTALLING);
        } else if let Some(first) = batch.entries.first() {
            self.truncate(&mut out, first.id.index, batch.entries.len() as u64);
        }
        for entry in &batch.entries {
            let value = encode_entry(entry);
            bytes += value.len() + 32;
            out.put(entry_key(entry.id.index), value);
        }
        if batch.reset.is_some() {
            // The reset drops everything. An earlier compaction would overwrite the new base with an old one.
            self.compacting = None;
        }
        self.commit(out, bytes)?;
        if let Some(hard_state) = batch.hard_state {
            self.content.hard_state = hard_state;
        }
        if let Some(meta) = &batch.reset {
            self.content.base = meta.clone();
            self.content.last_index = meta.last.index;
            self.content.installing = None;
        }
        if let Some(entry) = batch.entries.last() {
            self.content.last_index = entry.id.index;
        }
        Ok(())
    }

    /// Drops the entries after the `count` entries from `first` on, which the batch itself overwrites.
    fn truncate(&self, batch: &mut WriteBatch, first: Index, count: u64) {
        let start = Index(first.0.saturating_add(count));
        let end = self.content.last_index.next();
        if start >= end {
            return;
        }
        if end.since(start) <= POINT_DELETES {
            for index in start.0..end.0 {
                batch.delete(entry_key(Index(index)));
            }
        } else {
            batch.delete_range(entry_key(start), entry_key(end));
        }
    }
}

impl LogReader for RocksLog {
    fn entries(
        &self,
        range: RangeInclusive<Index>,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let db = self.db()?;
        let (start, end) = (*range.start(), *range.end());
        let missing = |index: Index| {
            // Not latched: the caller asked for an entry that was compacted or never stored.
            StoreError::Damaged(format!("log entry {index} is missing"))
        };
        if start > end {
            return Ok(Vec::new());
        }
        if start <= self.content.base.last.index {
            return Err(missing(start));
        }
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(entry_key(end.next()));
        options.set_verify_checksums(true);
        options.fill_cache(false);
        let from = entry_key(start);
        let mut found: Vec<Entry> = Vec::new();
        let (mut bytes, mut due) = (0, start);
        for pair in db.iterator_opt(IteratorMode::From(&from, Direction::Forward), options) {
            let (key, value) = pair.map_err(|error| self.fail(&error))?;
            let entry = decode_entry(&key, value).map_err(|error| self.latch.keep(error))?;
            if entry.id.index != due {
                return Err(missing(due));
            }
            bytes += entry.size();
            if !found.is_empty() && bytes > max_bytes {
                return Ok(found);
            }
            found.push(entry);
            due = due.next();
        }
        if due <= end {
            return Err(missing(due));
        }
        Ok(found)
    }
}

impl LogStore for RocksLog {
    fn load(&mut self) -> Result<LogState, StoreError> {
        self.latch.check()?;
        Ok(self.content.clone())
    }

    fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        self.retrying(|log| log.append(batch))
    }

    fn compact(&mut self, base: &SnapshotMeta) -> Result<(), StoreError> {
        let old = self.content.base.last.index;
        if base.last.index <= old {
            return self.latch.check();
        }
        let key = entry_key(base.last.index);
        let stored = match self.db()?.get(key).map_err(|error| self.fail(&error))? {
            Some(value) => {
                let entry = decode_entry(&key, value.into());
                Some(entry.map_err(|error| self.latch.keep(error))?.id)
            }
            None => None,
        };
        check_compact(base.last, stored)?;
        self.compacting = self.compacting.or(Some(old.next()));
        self.content.base = base.clone();
        Ok(())
    }

    fn begin_install(&mut self, last: EntryId) -> Result<(), StoreError> {
        self.retrying(|log| {
            let mut batch = WriteBatch::default();
            batch.put(INSTALLING, encode_id(last));
            log.commit(batch, 0)
        })?;
        self.content.installing = Some(last);
        Ok(())
    }
}

fn open_db(
    directory: &Directory,
    options: &StorageOptions,
    settled: u64,
) -> Result<DB, StoreError> {
    let dir = directory.log_dir();
    check_files(&dir, options, settled)?;
    let open = || DB::open(&engine::log_options(options)?, dir);
    open().map_err(|error| translate_opening(&error))
}

/// Checks the write-ahead logs. If a file looks damaged, only those count that have writes which are not in table files:
/// `RocksDB` may have been about to reuse one of the others.
fn check_files(dir: &Path, options: &StorageOptions, settled: u64) -> Result<(), StoreError> {
    match wal::check(dir, settled, 0) {
        Err(damage @ StoreError::Damaged(_)) => match least_file(dir, options) {
            Ok(least) => wal::check(dir, settled, least),
            Err(StoreError::Damaged(_)) => Err(damage),
            Err(error) => Err(error),
        },
        checked => checked,
    }
}

/// Returns the number of the first write-ahead log that is still needed, as the manifest says, which `RocksDB` syncs before it
/// reuses a file. Opens the database read-only, so that damage stays as it is.
fn least_file(dir: &Path, options: &StorageOptions) -> Result<u64, StoreError> {
    let read = || {
        let db = DB::open_for_read_only(&engine::log_options(options)?, dir, false)?;
        db.property_int_value(MIN_LOG_NUMBER_TO_KEEP)
    };
    let least = read().map_err(|error| translate_opening(&error))?;
    Ok(least.unwrap_or(0))
}

/// Reads and checks everything in the log. Returns the number of the last write, and the content.
fn verify(db: &DB) -> Result<(u64, LogState), VerifyError> {
    let get = |key: &[u8]| {
        let value = db.get(key).map_err(|error| translate(&error))?;
        Ok::<_, StoreError>(value.map(Bytes::from))
    };
    match get(VERSION)?.as_deref() {
        Some([FORMAT]) => {}
        Some([found]) => return Err(VerifyError::Version(*found)),
        _ => return Err(damaged("its format version is missing").into()),
    }
    let number = match get(NUMBER)?.as_deref() {
        None => 0,
        Some(value) => value
            .try_into()
            .map(u64::from_le_bytes)
            .map_err(|_| damaged("the number of its writes does not have 8 bytes"))?,
    };
    let mut content = LogState::default();
    if let Some(value) = get(HARD_STATE)? {
        content.hard_state = decode_hard_state(&value)?;
    }
    if let Some(value) = get(BASE)? {
        content.base = decode_base(&value)?;
    }
    if let Some(value) = get(INSTALLING)? {
        content.installing = Some(decode_id(&value)?);
    }
    content.last_index = content.base.last.index;
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options.fill_cache(false);
    options.set_iterate_upper_bound(b"f");
    for pair in db.iterator_opt(IteratorMode::From(b"e", Direction::Forward), options) {
        let (key, value) = pair.map_err(|error| translate(&error))?;
        let entry = decode_entry(&key, value)?;
        let due = content.last_index.next();
        if entry.id.index != due {
            let text = format!("entry {due} is missing, {} follows", entry.id.index);
            return Err(damaged(&text).into());
        }
        content.last_index = due;
    }
    Ok((number, content))
}
