//! The Raft log on `RocksDB`.
//!
//! # Keys
//!
//! | key | value |
//! |---|---|
//! | `e` + index (8 bytes, big-endian) | CRC-32 (4 bytes), term (8 bytes), both little-endian; payload |
//! | `mb` | the base: what was compacted |
//! | `mh` | the hard state |
//! | `mi` | the mark of an installation |
//! | `mn` | how many synced writes there were |
//! | `mv` | the version of this format |
//!
//! An entry's checksum covers its index as well, so that an entry in another's place is noticed.
//!
//! # Invariants
//!
//! - The stored entries are exactly `(base, last]`, contiguous; `compacting` extends them downwards by what
//!   the next write will drop.
//! - Each write is one batch, ends with its number, and is synced before `FLOOR` is raised to that number.
//!   There are no unsynced writes, so one that begins after another proves that one durable (see `wal`).

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use raft::{
    Entry, EntryId, HardState, Index, LogBatch, LogReader, LogState, LogStore, Membership, Payload,
    SnapshotMeta, StoreError, Term,
};
use replica::memory::{check_append, check_compact};
use rocksdb::{DB, Direction, IteratorMode, ReadOptions, WriteBatch, WriteOptions};
use types::{NodeId, Reader, Writer as Record};

use crate::directory::Directory;
use crate::error::{Latch, OpenError, translate};
use crate::floor::Floor;
use crate::options::StorageOptions;
use crate::space::{Disk, Writer};
use crate::{directory, engine, wal};

const BASE: &[u8] = b"mb";
const HARD_STATE: &[u8] = b"mh";
const INSTALLING: &[u8] = b"mi";
const NUMBER: &[u8] = b"mn";
const VERSION: &[u8] = b"mv";
const FORMAT: u8 = 1;
/// Checksum and term.
const ENTRY_HEADER_BYTES: usize = 12;
/// A generous bound of a batch's bytes on the disk beyond its entries: the record's header, hard state, number.
const BATCH_BYTES: usize = 1_024;
/// Fewer entries than this are dropped one by one: a range tombstone costs every later read a little.
const POINT_DELETES: u64 = 64;

/// A durable log. See the module's text for its layout and the crate's for its promises.
pub struct RocksLog {
    /// `None` only after reopening failed; then every call tries again.
    db: Option<DB>,
    directory: Arc<Directory>,
    disk: Disk,
    options: StorageOptions,
    write_options: WriteOptions,
    floor: Floor,
    latch: Latch,
    /// A write failed for lack of space: `RocksDB` refuses writes until it is opened again.
    reopen: bool,
    held: LogState,
    /// The number of the last synced write.
    number: u64,
    /// The first entry that is on the disk and already compacted: the next write drops it and what
    /// follows, up to the base. A write of its own would be an unsynced one.
    compacting: Option<Index>,
}

/// Makes the log of a new data directory.
pub(crate) fn create(directory: &Directory, options: &StorageOptions) -> Result<(), OpenError> {
    let make = || {
        let mut engine = engine::log(options)?;
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
        let as_damage = |error: StoreError| match error {
            StoreError::Full(_) => directory.failed("open the log", error),
            StoreError::Io(what) | StoreError::Damaged(what) => directory.log_damaged(what),
        };
        let db = open_db(&directory, options, floor.settled()).map_err(as_damage)?;
        let (number, held) = verify(&db).map_err(|error| match error {
            VerifyError::Version(found) => OpenError::Version {
                dir: directory.log_dir(),
                found: found.to_string(),
                known: FORMAT.into(),
            },
            VerifyError::Store(error) => as_damage(error),
        })?;
        if number < floor.get() {
            return Err(directory.log_damaged(format!(
                "{} writes were acknowledged, and it ends after write {number}",
                floor.get()
            )));
        }
        floor.settle(number).map_err(as_damage)?;
        Ok(Self {
            db: Some(db),
            directory,
            disk,
            options: options.clone(),
            write_options: engine::synced(),
            floor,
            latch: Latch::default(),
            reopen: false,
            held,
            number,
            compacting: None,
        })
    }

    fn db(&self) -> Result<&DB, StoreError> {
        self.latch.check()?;
        // Reopening failed for lack of space; anything else was latched.
        self.db
            .as_ref()
            .ok_or_else(|| StoreError::Full("the log waits for space to be opened again".into()))
    }

    fn fail(&self, error: &rocksdb::Error) -> StoreError {
        self.latch.keep(translate(error))
    }

    /// Opens the database again after the disk was full, if there is space now.
    ///
    /// A failed write may turn out to be present and whole: the record was written, and a later step failed. That is
    /// equivalent to a crash of the node during the write, which Raft tolerates; only this store's own view must follow.
    fn recover(&mut self) -> Result<(), StoreError> {
        if !self.reopen && self.db.is_some() {
            return Ok(());
        }
        self.disk
            .check(Writer::Log, self.options.log_write_buffer_bytes)?;
        self.db = None;
        let db = open_db(&self.directory, &self.options, self.floor.settled())
            .map_err(|error| self.latch.keep(error))?;
        let (number, held) = verify(&db).map_err(|error| match error {
            VerifyError::Store(error) => self.latch.keep(error),
            VerifyError::Version(_) => self
                .latch
                .keep(StoreError::Damaged("the log changed its version".into())),
        })?;
        if number < self.number {
            return Err(self.latch.keep(StoreError::Damaged(format!(
                "the log lost writes {} to {} while it was opened again",
                number + 1,
                self.number
            ))));
        }
        self.floor
            .settle(number)
            .map_err(|error| self.latch.keep(error))?;
        self.number = number;
        self.held = held;
        self.compacting = None;
        self.reopen = false;
        self.db = Some(db);
        Ok(())
    }

    /// Writes and syncs `batch`, adding its number and what is to be compacted.
    fn commit(&mut self, mut batch: WriteBatch, bytes: usize) -> Result<(), StoreError> {
        self.disk.check(Writer::Log, 2 * bytes + BATCH_BYTES)?;
        if let Some(first) = self.compacting {
            let end = self.held.base.last.index.next();
            batch.delete_range(entry_key(first), entry_key(end));
            batch.put(BASE, encode_base(&self.held.base));
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
        match self.floor.raise(number) {
            // The write itself is durable: a floor that lags must not undo it.
            Ok(()) | Err(StoreError::Full(_)) => Ok(()),
            Err(error) => Err(self.latch.keep(error)),
        }
    }

    /// Does a write, and once more if it found the database in an error of before that is over: a flush in
    /// the background may have failed while the disk was full, which only the next write is told.
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
            None => (self.held.base.last.index, self.held.last_index),
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
            // The reset drops all; a compaction of before would put an old base over the new one.
            self.compacting = None;
        }
        self.commit(out, bytes)?;
        if let Some(hard_state) = batch.hard_state {
            self.held.hard_state = hard_state;
        }
        if let Some(meta) = &batch.reset {
            self.held.base = meta.clone();
            self.held.last_index = meta.last.index;
            self.held.installing = None;
        }
        if let Some(entry) = batch.entries.last() {
            self.held.last_index = entry.id.index;
        }
        Ok(())
    }

    /// Adds what drops the entries from `first` on that the batch does not overwrite.
    fn truncate(&self, batch: &mut WriteBatch, first: Index, kept: u64) {
        let start = Index(first.0.saturating_add(kept));
        let end = self.held.last_index.next();
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
            // Not latched: the disk does hold all that it should.
            StoreError::Damaged(format!("log entry {index} is missing"))
        };
        if start > end {
            return Ok(Vec::new());
        }
        if start <= self.held.base.last.index {
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
        Ok(self.held.clone())
    }

    fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        self.retrying(|log| log.append(batch))
    }

    fn compact(&mut self, base: &SnapshotMeta) -> Result<(), StoreError> {
        let old = self.held.base.last.index;
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
        self.held.base = base.clone();
        Ok(())
    }

    fn begin_install(&mut self, last: EntryId) -> Result<(), StoreError> {
        self.retrying(|log| {
            let mut batch = WriteBatch::default();
            batch.put(INSTALLING, encode_id(last));
            log.commit(batch, 0)
        })?;
        self.held.installing = Some(last);
        Ok(())
    }
}

fn open_db(
    directory: &Directory,
    options: &StorageOptions,
    settled: u64,
) -> Result<DB, StoreError> {
    let dir = directory.log_dir();
    wal::check(&dir, settled)?;
    let open = || DB::open(&engine::log(options)?, dir);
    open().map_err(|error| translate(&error))
}

enum VerifyError {
    Version(u8),
    Store(StoreError),
}

impl From<StoreError> for VerifyError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Reads all that the log holds and checks it: the number of the last write, and the content.
fn verify(db: &DB) -> Result<(u64, LogState), VerifyError> {
    let get = |key: &[u8]| {
        let value = db.get(key).map_err(|error| translate(&error))?;
        Ok::<_, StoreError>(value.map(Bytes::from))
    };
    match get(VERSION)?.as_deref() {
        Some([FORMAT]) => {}
        Some([found]) => return Err(VerifyError::Version(*found)),
        _ => return Err(damaged("its version is missing").into()),
    }
    let number = match get(NUMBER)?.as_deref() {
        None => 0,
        Some(value) => value
            .try_into()
            .map(u64::from_le_bytes)
            .map_err(|_| damaged("the number of its writes is not a number"))?,
    };
    let mut held = LogState::default();
    if let Some(value) = get(HARD_STATE)? {
        held.hard_state = decode_hard_state(&value)?;
    }
    if let Some(value) = get(BASE)? {
        held.base = decode_base(&value)?;
    }
    if let Some(value) = get(INSTALLING)? {
        held.installing = Some(decode_id(&value)?);
    }
    held.last_index = held.base.last.index;
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options.fill_cache(false);
    options.set_iterate_upper_bound(b"f");
    for pair in db.iterator_opt(IteratorMode::From(b"e", Direction::Forward), options) {
        let (key, value) = pair.map_err(|error| translate(&error))?;
        let entry = decode_entry(&key, value)?;
        let due = held.last_index.next();
        if entry.id.index != due {
            let text = format!("entry {due} is missing, {} follows", entry.id.index);
            return Err(damaged(&text).into());
        }
        held.last_index = due;
    }
    Ok((number, held))
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(what.to_owned())
}

fn entry_key(index: Index) -> [u8; 9] {
    let mut key = [b'e'; 9];
    let (_, number) = key.split_at_mut(1);
    number.copy_from_slice(&index.0.to_be_bytes());
    key
}

fn checksum(key: &[u8], rest: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(rest);
    hasher.finalize().to_le_bytes()
}

fn encode_entry(entry: &Entry) -> Vec<u8> {
    let payload = entry.payload.encode();
    let mut value = Vec::with_capacity(ENTRY_HEADER_BYTES + payload.len());
    value.extend_from_slice(&[0; 4]);
    value.extend_from_slice(&entry.id.term.0.to_le_bytes());
    value.extend_from_slice(&payload);
    let (sum, rest) = value.split_at_mut(4);
    sum.copy_from_slice(&checksum(&entry_key(entry.id.index), rest));
    value
}

fn decode_entry(key: &[u8], value: Box<[u8]>) -> Result<Entry, StoreError> {
    let index = match key {
        [b'e', number @ ..] => number.try_into().map(u64::from_be_bytes).ok(),
        _ => None,
    };
    let index = Index(index.ok_or_else(|| damaged("a log entry has a strange key"))?);
    let bad = |what: &str| damaged(&format!("log entry {index}: {what}"));
    let (sum, rest) = value
        .split_first_chunk::<4>()
        .ok_or_else(|| bad("it is cut"))?;
    if checksum(key, rest) != *sum {
        return Err(bad("its checksum does not match"));
    }
    let (term, _) = rest
        .split_first_chunk::<8>()
        .ok_or_else(|| bad("it is cut"))?;
    let term = Term(u64::from_le_bytes(*term));
    let payload = Payload::decode(Bytes::from(value).slice(ENTRY_HEADER_BYTES..))
        .map_err(|error| bad(&error.to_string()))?;
    Ok(Entry::new(term, index, payload))
}

/// Appends a checksum, as every record of the `m` keys has one.
fn sealed(record: Record) -> Vec<u8> {
    let mut value = record.finish().to_vec();
    value.extend_from_slice(&crc32fast::hash(&value).to_le_bytes());
    value
}

fn unsealed(value: &Bytes, what: &str) -> Result<Reader, StoreError> {
    let bad = || damaged(&format!("the {what} in the log is damaged"));
    let (content, sum) = value.split_last_chunk::<4>().ok_or_else(bad)?;
    if crc32fast::hash(content).to_le_bytes() != *sum {
        return Err(bad());
    }
    Ok(Reader::new(value.slice(..content.len())))
}

fn encode_id(id: EntryId) -> Vec<u8> {
    let mut out = Record::with_capacity(32);
    out.number(id.term.0).number(id.index.0);
    sealed(out)
}

fn read_id(input: &mut Reader) -> Result<EntryId, types::DecodeError> {
    let term = Term(input.number("term")?);
    Ok(EntryId::new(term, Index(input.number("index")?)))
}

fn decode_id(value: &Bytes) -> Result<EntryId, StoreError> {
    let mut input = unsealed(value, "install mark")?;
    read_id(&mut input)
        .and_then(|id| input.finish().map(|()| id))
        .map_err(|error| damaged(&format!("the install mark in the log: {error}")))
}

fn encode_hard_state(hard_state: HardState) -> Vec<u8> {
    let mut out = Record::with_capacity(32);
    out.number(hard_state.term.0);
    match hard_state.vote {
        Some(node) => out.byte(1).number(node.0),
        None => out.byte(0),
    };
    sealed(out)
}

fn decode_hard_state(value: &Bytes) -> Result<HardState, StoreError> {
    let mut input = unsealed(value, "hard state")?;
    let read = |input: &mut Reader| {
        let term = Term(input.number("term")?);
        let vote = match input.byte("vote")? {
            0 => None,
            _ => Some(NodeId(input.number("vote")?)),
        };
        Ok(HardState { term, vote })
    };
    read(&mut input)
        .and_then(|hard_state| input.finish().map(|()| hard_state))
        .map_err(|error: types::DecodeError| damaged(&format!("the hard state: {error}")))
}

fn encode_base(base: &SnapshotMeta) -> Vec<u8> {
    let mut out = Record::with_capacity(128);
    out.number(base.last.term.0).number(base.last.index.0);
    base.membership.encode(&mut out);
    sealed(out)
}

fn decode_base(value: &Bytes) -> Result<SnapshotMeta, StoreError> {
    let mut input = unsealed(value, "base")?;
    let read = |input: &mut Reader| {
        let last = read_id(input)?;
        let membership = Membership::decode(input)?;
        Ok(SnapshotMeta { last, membership })
    };
    read(&mut input)
        .and_then(|base| input.finish().map(|()| base))
        .map_err(|error: types::DecodeError| damaged(&format!("the log's base: {error}")))
}
