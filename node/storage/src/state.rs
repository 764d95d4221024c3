//! The state machine's data on `RocksDB`.
//!
//! `state/<n>/` holds a database; `state/CURRENT` names the one in force and is replaced by a rename. Each
//! table is a column family; the default one holds the position (`applied`) and the format's version. A
//! commit is one batch over all of them, without a write-ahead log, and they are flushed together: what a
//! crash leaves is one commit, whole.

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io};

use bytes::Bytes;
use raft::{EntryId, SnapshotMeta, StoreError};
use replica::memory::{check_commit, no_restore};
use replica::{
    Applied, SnapshotSource, StateReader, StateStore, Table, View, WriteBatch as Changes,
};
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, Direction, FlushOptions, IteratorMode, ReadOptions,
    WriteBatch, WriteOptions,
};

use crate::directory::{Directory, remove_tree, replace_file, sync_dir};
use crate::engine;
use crate::error::{Latch, OpenError, translate, translate_io};
use crate::flusher::Flusher;
use crate::options::StorageOptions;
use crate::reclaim::Reclaimer;
use crate::restore::Restore;
use crate::snapshot::RocksSnapshot;
use crate::space::{Disk, Writer};
use crate::tally::Tally;
use crate::view::RocksView;

const APPLIED: &[u8] = b"applied";
const VERSION: &[u8] = b"version";
const FORMAT: u8 = 1;
const DEFAULT: &str = "default";
const CURRENT: &str = "CURRENT";
/// A range with at most this many keys is cleared key by key: cheaper to read over than a range tombstone.
const POINT_DELETES: usize = 128;

/// A durable state. See the module's text for its layout and the crate's for its promises.
pub struct RocksState {
    /// First, so that both stop before the rest goes.
    reclaimer: Reclaimer,
    flusher: Flusher,
    instance: Arc<Instance>,
    restore: Option<Restore>,
    number: u64,
    applied: Applied,
    directory: Arc<Directory>,
    disk: Disk,
    options: StorageOptions,
    write_options: WriteOptions,
    latch: Arc<Latch>,
    /// Behind a lock only because a reader forgets what was flushed.
    tally: Mutex<Tally>,
}

/// One open database and its directory, shared with the snapshots that read it.
pub(crate) struct Instance {
    /// Before `remains`: the database is closed before its directory goes.
    db: DB,
    remains: Remains,
}

/// Removes the directory when the last user is gone, if it is not in force any more.
struct Remains {
    dir: PathBuf,
    doomed: AtomicBool,
    /// The lock outlives all files in the directory.
    _directory: Arc<Directory>,
}

impl Drop for Remains {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Acquire) {
            // The next start removes the files that this call could not.
            let _ = remove_tree(&self.dir);
        }
    }
}

fn family_name(table: Table) -> &'static str {
    match table {
        Table::Meta => "meta",
        Table::Data => "data",
        Table::Sessions => "sessions",
    }
}

impl Instance {
    fn open(
        directory: &Arc<Directory>,
        number: u64,
        create: bool,
        options: &StorageOptions,
    ) -> Result<Arc<Self>, StoreError> {
        let dir = directory.state_dir().join(number.to_string());
        let open = || {
            let mut engine = engine::state(options)?;
            engine.create_if_missing(create);
            engine.create_missing_column_families(create);
            engine.set_error_if_exists(create);
            let names = Table::ALL.map(family_name);
            let families = [DEFAULT]
                .into_iter()
                .chain(names)
                .map(|name| ColumnFamilyDescriptor::new(name, engine.clone()));
            DB::open_cf_descriptors(&engine, &dir, families)
        };
        let db = open().map_err(|error| translate(&error))?;
        Ok(Arc::new(Self {
            db,
            remains: Remains {
                dir,
                doomed: AtomicBool::new(false),
                _directory: Arc::clone(directory),
            },
        }))
    }

    /// Makes an empty one, durable but not in force.
    fn create(
        directory: &Arc<Directory>,
        number: u64,
        options: &StorageOptions,
    ) -> Result<Arc<Self>, StoreError> {
        let state_dir = directory.state_dir();
        fs::create_dir_all(&state_dir)
            .map_err(|error| translate_io("can't make the state's directory", &error))?;
        remove_tree(&state_dir.join(number.to_string()))?;
        let instance = Self::open(directory, number, true, options)?;
        let mut batch = WriteBatch::default();
        batch.put(VERSION, [FORMAT]);
        engine::write(&instance.db, batch, &engine::unlogged())?;
        instance.put_applied(&Applied::default())?;
        instance.flush()?;
        sync_dir(&state_dir)?;
        Ok(instance)
    }

    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    fn family_named(&self, name: &str) -> Result<&ColumnFamily, StoreError> {
        self.db
            .cf_handle(name)
            .ok_or_else(|| StoreError::Damaged(format!("the state has no column family {name}")))
    }

    pub(crate) fn family(&self, table: Table) -> Result<&ColumnFamily, StoreError> {
        self.family_named(family_name(table))
    }

    /// Writes all that is in memory to the disk, all column families as of one commit, and waits for it.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        let mut families = vec![self.family_named(DEFAULT)?];
        for table in Table::ALL {
            families.push(self.family(table)?);
        }
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db
            .flush_cfs_opt(&families, &options)
            .map_err(|error| translate(&error))
    }

    pub(crate) fn put_applied(&self, applied: &Applied) -> Result<(), StoreError> {
        // Not `put_opt`: after a burst of chunks the database may be stalled, which is no failure of the disk.
        let mut batch = WriteBatch::default();
        batch.put(APPLIED, applied.encode());
        engine::write(&self.db, batch, &engine::unlogged())
    }

    fn read_applied(&self) -> Result<Applied, StoreError> {
        let get = |key| self.db.get(key).map_err(|error| translate(&error));
        match get(VERSION)?.as_deref() {
            Some([FORMAT]) => {}
            found => {
                return Err(StoreError::Damaged(format!(
                    "the state's version is {found:?}, this program knows {FORMAT}"
                )));
            }
        }
        let value = get(APPLIED)?
            .ok_or_else(|| StoreError::Damaged("the state's position is missing".into()))?;
        Applied::decode(value.into())
            .map_err(|error| StoreError::Damaged(format!("the state's position: {error}")))
    }

    /// The directory goes when the last user is gone.
    pub(crate) fn doom(&self) {
        self.remains.doomed.store(true, Ordering::Release);
    }

    fn spare(&self) {
        self.remains.doomed.store(false, Ordering::Release);
    }
}

/// Makes the state of a new data directory.
pub(crate) fn create(
    directory: &Arc<Directory>,
    options: &StorageOptions,
) -> Result<(), OpenError> {
    Instance::create(directory, 1, options)
        .and_then(|_| set_current(directory, 1))
        .and_then(|()| sync_dir(directory.path()))
        .map_err(|error| directory.failed("make the state", error))
}

fn set_current(directory: &Directory, number: u64) -> Result<(), StoreError> {
    let text = format!("{number}\n");
    let checksum = crc32fast::hash(text.as_bytes());
    let text = format!("{text}{checksum:08x}\n");
    replace_file(&directory.state_dir(), CURRENT, text.as_bytes())
}

fn get_current(directory: &Directory) -> Result<u64, String> {
    let path = directory.state_dir().join(CURRENT);
    let text = fs::read_to_string(path).map_err(|error| format!("its file CURRENT: {error}"))?;
    let number = text.split_once('\n').and_then(|(number, checksum)| {
        let expected = format!(
            "{:08x}\n",
            crc32fast::hash(format!("{number}\n").as_bytes())
        );
        (checksum == expected).then(|| number.parse().ok())?
    });
    number.ok_or_else(|| "its file CURRENT is damaged".to_owned())
}

/// Removes what was being staged or was to be removed when the process ended.
fn remove_leftovers(directory: &Directory, current: u64) -> io::Result<()> {
    let kept = [current.to_string(), CURRENT.to_owned()];
    for entry in fs::read_dir(directory.state_dir())? {
        let entry = entry?;
        if kept.iter().any(|name| entry.file_name() == name.as_str()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl RocksState {
    pub(crate) fn open(
        directory: Arc<Directory>,
        disk: Disk,
        options: &StorageOptions,
    ) -> Result<Self, OpenError> {
        let number = get_current(&directory).map_err(|what| directory.state_damaged(what))?;
        remove_leftovers(&directory, number).map_err(|error| {
            directory.failed(
                "remove an unfinished restore",
                translate_io("state", &error),
            )
        })?;
        let read = || {
            let instance = Instance::open(&directory, number, false, options)?;
            let applied = instance.read_applied()?;
            Ok((instance, applied))
        };
        let (instance, applied) = read().map_err(|error| match error {
            StoreError::Full(_) => directory.failed("open the state", error),
            StoreError::Io(what) | StoreError::Damaged(what) => directory.state_damaged(what),
        })?;
        let latch = Arc::new(Latch::default());
        let flusher = Flusher::start(applied.last, Arc::clone(&latch)).map_err(|error| {
            directory.failed("start a thread", translate_io("state-flush", &error))
        })?;
        let reclaimer =
            Reclaimer::start(options.reclaim_after, Arc::clone(&latch)).map_err(|error| {
                directory.failed("start a thread", translate_io("state-reclaim", &error))
            })?;
        Ok(Self {
            reclaimer,
            flusher,
            instance,
            restore: None,
            number,
            applied,
            directory,
            disk,
            options: options.clone(),
            write_options: engine::unlogged(),
            latch,
            tally: Mutex::default(),
        })
    }

    /// Waits until a flush that was started is done: for tests, and for a stop that is in no hurry.
    pub fn wait_flushed(&self) -> Result<(), StoreError> {
        self.flusher.wait()
    }

    /// Waits until the space of what was cleared so far is given back: for tests. What a snapshot or a view can see stays.
    pub fn wait_reclaimed(&self) {
        self.reclaimer.wait();
    }

    fn fail(&self, error: &rocksdb::Error) -> StoreError {
        self.latch.keep(translate(error))
    }

    /// Takes note of what a commit put, and of the ranges that it cleared and that were not empty.
    fn account(&mut self, changes: &Changes, cleared: &[&(Table, Bytes, Bytes)]) {
        let tally = self.tally.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (table, start, end) in cleared {
            tally.cleared(*table, start, end);
            self.reclaimer.cleared(&self.instance, *table, start, end);
        }
        for ((table, key), change) in &changes.changes {
            if let Some(value) = change {
                tally.put(*table, key, value);
            }
        }
    }

    /// Clears a range: key by key where that is few, otherwise with one tombstone. Returns whether there was anything.
    fn clear(
        &self,
        batch: &mut WriteBatch,
        table: Table,
        start: &Bytes,
        end: &Bytes,
    ) -> Result<bool, StoreError> {
        if start >= end {
            return Ok(false);
        }
        let family = self.instance.family(table)?;
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end.as_ref());
        options.fill_cache(false);
        let from = IteratorMode::From(start, Direction::Forward);
        let mut doomed = Vec::new();
        for pair in self.instance.db.iterator_cf_opt(family, options, from) {
            let (key, _) = pair.map_err(|error| self.fail(&error))?;
            doomed.push(key);
            if doomed.len() > POINT_DELETES {
                batch.delete_range_cf(family, start, end);
                return Ok(true);
            }
        }
        let found = !doomed.is_empty();
        for key in doomed {
            batch.delete_cf(family, key);
        }
        Ok(found)
    }
}

impl StateReader for RocksState {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.latch.check()?;
        let family = self.instance.family(table)?;
        let found = self.instance.db.get_pinned_cf(family, key);
        let value = found.map_err(|error| self.fail(&error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        table: Table,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.latch.check()?;
        // The smallest key after `key` is `key` with a zero byte.
        let after = |key: &[u8]| [key, &[0]].concat();
        let start = match bounds.0 {
            Bound::Included(key) => key.to_vec(),
            Bound::Excluded(key) => after(key),
            Bound::Unbounded => Vec::new(),
        };
        let end = match bounds.1 {
            Bound::Included(key) => Some(after(key)),
            Bound::Excluded(key) => Some(key.to_vec()),
            Bound::Unbounded => None,
        };
        let mut found = Vec::new();
        if limit == 0 || end.as_ref().is_some_and(|end| *end <= start) {
            return Ok(found);
        }
        let mut options = ReadOptions::default();
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        let family = self.instance.family(table)?;
        let from = IteratorMode::From(&start, Direction::Forward);
        let mut bytes = 0;
        for pair in self.instance.db.iterator_cf_opt(family, options, from) {
            let (key, value) = pair.map_err(|error| self.fail(&error))?;
            bytes += key.len() + value.len();
            found.push((Bytes::from(key), Bytes::from(value)));
            if found.len() >= limit || bytes >= max_bytes {
                break;
            }
        }
        Ok(found)
    }

    fn view(&self, table: Table, start: Bytes, end: Bytes) -> Result<View, StoreError> {
        self.latch.check()?;
        let view = RocksView::take(Arc::clone(&self.instance), table, start, end)?;
        Ok(View::new(view))
    }

    fn estimate_bytes(&self, table: Table, start: &[u8], end: &[u8]) -> Result<u64, StoreError> {
        self.latch.check()?;
        let family = self.instance.family(table)?;
        let ranges = [rocksdb::Range::new(start, end)];
        let sizes = self.instance.db.get_approximate_sizes_cf(family, &ranges);
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.durable(self.flusher.durable().index);
        Ok(sizes.first().copied().unwrap_or(0) + tally.bytes(table, start, end))
    }
}

impl StateStore for RocksState {
    fn applied(&self) -> Applied {
        self.applied.clone()
    }

    fn durable(&self) -> EntryId {
        self.flusher.durable()
    }

    fn commit(&mut self, changes: Changes, applied: Applied) -> Result<(), StoreError> {
        self.latch.check()?;
        check_commit(&self.applied, &applied)?;
        let mut batch = WriteBatch::default();
        let mut cleared = Vec::new();
        for range in &changes.cleared {
            if self.clear(&mut batch, range.0, &range.1, &range.2)? {
                cleared.push(range);
            }
        }
        for ((table, key), change) in &changes.changes {
            let family = self.instance.family(*table)?;
            match change {
                Some(value) => batch.put_cf(family, key, value),
                None => batch.delete_cf(family, key),
            }
        }
        batch.put(APPLIED, applied.encode());
        self.disk.check(Writer::State, batch.size_in_bytes())?;
        engine::write(&self.instance.db, batch, &self.write_options)
            .map_err(|error| self.latch.keep(error))?;
        self.applied = applied;
        self.account(&changes, &cleared);
        Ok(())
    }

    fn start_flush(&mut self) -> Result<(), StoreError> {
        self.latch.check()?;
        let tally = self.tally.get_mut().unwrap_or_else(PoisonError::into_inner);
        tally.durable(self.flusher.durable().index);
        tally.flushing(self.applied.last);
        self.flusher.want(&self.instance, self.applied.last);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.start_flush()?;
        self.flusher.wait()
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, StoreError> {
        self.latch.check()?;
        let instance = Arc::clone(&self.instance);
        let snapshot = RocksSnapshot::take(instance, self.applied.clone())?;
        Ok(Box::new(snapshot))
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> Result<(), StoreError> {
        self.latch.check()?;
        // First the old one, which has the same directory.
        self.restore = None;
        self.disk
            .check(Writer::State, self.options.state_write_buffer_bytes)?;
        let instance = Instance::create(&self.directory, self.number + 1, &self.options)
            .map_err(|error| self.latch.keep(error))?;
        self.restore = Some(Restore::new(instance, meta));
        Ok(())
    }

    fn restore_chunk(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        self.latch.check()?;
        let restore = self.restore.as_mut().ok_or_else(no_restore)?;
        restore.chunk(chunk, &self.disk)
    }

    fn finish_restore(&mut self) -> Result<(), StoreError> {
        self.latch.check()?;
        let restore = self.restore.take().ok_or_else(no_restore)?;
        let (instance, applied) = restore.finish()?;
        instance.spare();
        if let Err(error) = set_current(&self.directory, self.number + 1) {
            // The file may name the new instance or the old one, so both are kept, and every later call fails.
            return Err(self.latch.keep(StoreError::Io(error.to_string())));
        }
        let old = std::mem::replace(&mut self.instance, instance);
        old.doom();
        self.number += 1;
        self.flusher.replaced(applied.last);
        self.reclaimer.replaced();
        self.tally = Mutex::default();
        self.applied = applied;
        Ok(())
    }
}
