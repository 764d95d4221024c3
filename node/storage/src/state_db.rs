//! One open database of the state, and the directory that holds it.
//!
//! Each table is a column family; the default one holds the position (`applied`) and the format's version. A
//! commit is one batch over all of them, without a write-ahead log, and they are flushed together: a crash
//! leaves exactly one commit, never half of one.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use raft::StoreError;
use replica::{Applied, Table};
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, FlushOptions, IteratorMode, Range, WriteBatch,
};
use types::NodeId;

use crate::directory::{Directory, remove_tree, sync_dir};
use crate::engine;
use crate::error::{VerifyError, translate, translate_io, translate_opening};
use crate::options::StorageOptions;

const APPLIED: &[u8] = b"applied";
const VERSION: &[u8] = b"version";
/// The node that made the state. A state that another node made doesn't follow from this node's log.
const NODE: &[u8] = b"node";
/// The version of the format.
pub(crate) const FORMAT: u8 = 1;
const DEFAULT: &str = "default";
/// The column family of long values of [`Table::Data`]; see [`crate::tables`].
const VALUES: &str = "values";

/// One open database of the state. The store shares it with the snapshots and views that read it.
pub(crate) struct StateDb {
    /// Declared before `dir`, so that the database is closed before its directory is removed.
    db: DB,
    dir: StateDir,
    /// True if the column family of long values has ever had one, as far as this process knows.
    has_values: AtomicBool,
}

/// A directory `state/<n>/`. The last user removes it if it is obsolete.
struct StateDir {
    path: PathBuf,
    obsolete: AtomicBool,
    /// Keeps the data directory locked as long as a file in it is open.
    _directory: Arc<Directory>,
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire) {
            // The next start removes the files that this call could not.
            let _ = remove_tree(&self.path);
        }
    }
}

fn column_family_name(table: Table) -> &'static str {
    match table {
        Table::Meta => "meta",
        Table::Data => "data",
        Table::Sessions => "sessions",
        Table::Journal => "journal",
    }
}

/// Returns the names of all column families that this version knows.
fn known_names() -> impl Iterator<Item = &'static str> {
    [DEFAULT]
        .into_iter()
        .chain(Table::ALL.map(column_family_name))
        .chain([VALUES])
}

/// Refuses a database with column families that this version doesn't know: a newer version made them, and the state isn't whole
/// without them.
fn check_names(names: &[String]) -> Result<(), StoreError> {
    let is_unknown = |name: &&String| known_names().all(|known| known != name.as_str());
    let unknown: Vec<&str> = names
        .iter()
        .filter(is_unknown)
        .map(String::as_str)
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let text = format!("it has the unknown tables {}", unknown.join(", "));
    Err(StoreError::OtherVersion(text))
}

/// Returns true if the database has all column families except that of long values, as an older version made it.
fn lacks_values(names: &[String]) -> bool {
    let has = |name: &str| names.iter().any(|it| it == name);
    !has(VALUES) && known_names().all(|name| name == VALUES || has(name))
}

/// Adds the position to a batch.
pub(crate) fn add_applied(batch: &mut WriteBatch, applied: &Applied) {
    batch.put(APPLIED, applied.encode());
}

impl StateDb {
    /// Opens the database `state/<number>/` and reads its position.
    pub(crate) fn open(
        directory: &Arc<Directory>,
        number: u64,
        options: &StorageOptions,
    ) -> Result<(Arc<Self>, Applied), VerifyError> {
        let db = Self::open_or_create(directory, number, false, options)?;
        let applied = db.read_applied()?;
        Ok((db, applied))
    }

    /// Makes an empty database, durably. `CURRENT` does not name it yet.
    pub(crate) fn create(
        directory: &Arc<Directory>,
        number: u64,
        node: NodeId,
        options: &StorageOptions,
    ) -> Result<Arc<Self>, StoreError> {
        let state_dir = directory.state_dir();
        fs::create_dir_all(&state_dir)
            .map_err(|error| translate_io("can't make the state's directory", &error))?;
        remove_tree(&state_dir.join(number.to_string()))?;
        let db = Self::open_or_create(directory, number, true, options)?;
        let mut batch = WriteBatch::default();
        batch.put(VERSION, [FORMAT]);
        batch.put(NODE, node.0.to_be_bytes());
        engine::write(&db.db, batch, &engine::unlogged())?;
        db.put_applied(&Applied::default())?;
        db.flush()?;
        sync_dir(&state_dir)?;
        Ok(db)
    }

    fn open_or_create(
        directory: &Arc<Directory>,
        number: u64,
        create: bool,
        options: &StorageOptions,
    ) -> Result<Arc<Self>, StoreError> {
        let path = directory.state_dir().join(number.to_string());
        let translated = if create { translate } else { translate_opening };
        let failed = |error: rocksdb::Error| translated(&error);
        let mut engine = engine::state_options(options).map_err(failed)?;
        let mut older = false;
        if !create {
            let names = DB::list_cf(&engine, &path).map_err(failed)?;
            check_names(&names)?;
            older = lacks_values(&names);
        }
        engine.create_if_missing(create);
        engine.create_missing_column_families(create || older);
        engine.set_error_if_exists(create);
        let column_families =
            known_names().map(|name| ColumnFamilyDescriptor::new(name, engine.clone()));
        let db = DB::open_cf_descriptors(&engine, &path, column_families).map_err(failed)?;
        let db = Self {
            db,
            dir: StateDir {
                path,
                obsolete: AtomicBool::new(false),
                _directory: Arc::clone(directory),
            },
            has_values: AtomicBool::new(false),
        };
        let first = db.db.iterator_cf(db.values()?, IteratorMode::Start).next();
        if first
            .transpose()
            .map_err(|error| translate(&error))?
            .is_some()
        {
            db.set_has_values();
        }
        Ok(Arc::new(db))
    }

    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    /// Returns the column family of a table.
    pub(crate) fn column_family(&self, table: Table) -> Result<&ColumnFamily, StoreError> {
        self.column_family_named(column_family_name(table))
    }

    /// Returns the column family of long values.
    pub(crate) fn values(&self) -> Result<&ColumnFamily, StoreError> {
        self.column_family_named(VALUES)
    }

    /// Returns all column families that have a part of a table.
    pub(crate) fn column_families(&self, table: Table) -> Result<Vec<&ColumnFamily>, StoreError> {
        let mut families = vec![self.column_family(table)?];
        if table == Table::Data {
            families.push(self.values()?);
        }
        Ok(families)
    }

    /// Returns true if there may be long values.
    pub(crate) fn has_values(&self) -> bool {
        self.has_values.load(Ordering::Acquire)
    }

    /// Records that there is a long value, or will be one after the next write.
    pub(crate) fn set_has_values(&self) {
        self.has_values.store(true, Ordering::Release);
    }

    /// Estimates the bytes of a range in files.
    pub(crate) fn estimate_bytes(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
    ) -> Result<u64, StoreError> {
        let size = |family: &ColumnFamily| {
            let sizes = self
                .db
                .get_approximate_sizes_cf(family, &[Range::new(start, end)]);
            sizes.first().copied().unwrap_or(0)
        };
        Ok(self.column_families(table)?.into_iter().map(size).sum())
    }

    fn column_family_named(&self, name: &str) -> Result<&ColumnFamily, StoreError> {
        self.db
            .cf_handle(name)
            .ok_or_else(|| StoreError::Damaged(format!("the state has no column family {name}")))
    }

    /// Writes everything in memory to the disk, all column families as of one commit, and waits for it.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        let mut column_families = vec![self.column_family_named(DEFAULT)?];
        for table in Table::ALL {
            column_families.extend(self.column_families(table)?);
        }
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db
            .flush_cfs_opt(&column_families, &options)
            .map_err(|error| translate(&error))
    }

    /// Writes the position alone.
    pub(crate) fn put_applied(&self, applied: &Applied) -> Result<(), StoreError> {
        // Not `DB::put_opt`: after many chunks the database may be stalled, which `engine::write` waits out.
        let mut batch = WriteBatch::default();
        add_applied(&mut batch, applied);
        engine::write(&self.db, batch, &engine::unlogged())
    }

    fn read_applied(&self) -> Result<Applied, VerifyError> {
        let get = |key| self.db.get(key).map_err(|error| translate(&error));
        let damaged = |text: &str| StoreError::Damaged(text.to_owned());
        match get(VERSION)?.as_deref() {
            Some([FORMAT]) => {}
            Some([found]) => return Err(VerifyError::Version(*found)),
            _ => return Err(damaged("the state's format version is missing").into()),
        }
        let value = get(APPLIED)?.ok_or_else(|| damaged("the state's position is missing"))?;
        Ok(Applied::decode(value.into())?)
    }

    /// Returns the node that made the state. A state of an older version doesn't say so, and is taken for `node`'s from now on.
    pub(crate) fn maker_or(&self, node: NodeId) -> Result<NodeId, StoreError> {
        let maker = self.db.get(NODE).map_err(|error| translate(&error))?;
        if let Some(maker) = maker {
            let maker = <[u8; 8]>::try_from(maker).map_err(|_| {
                StoreError::Damaged("the id of the node that made the state can't be read".into())
            })?;
            return Ok(NodeId(u64::from_be_bytes(maker)));
        }
        let mut batch = WriteBatch::default();
        batch.put(NODE, node.0.to_be_bytes());
        engine::write(&self.db, batch, &engine::unlogged())?;
        Ok(node)
    }

    /// Lets the last user remove the directory.
    pub(crate) fn mark_obsolete(&self) {
        self.dir.obsolete.store(true, Ordering::Release);
    }

    /// Takes back [`StateDb::mark_obsolete`].
    pub(crate) fn mark_current(&self) {
        self.dir.obsolete.store(false, Ordering::Release);
    }
}
