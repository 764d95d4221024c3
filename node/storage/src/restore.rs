//! Builds a state from the chunks of a snapshot, beside the state in use.

use std::sync::Arc;

use raft::{SnapshotMeta, StoreError};
use replica::Applied;
use replica::chunk::ChunkDecoder;
use rocksdb::WriteBatch;

use crate::space::{Disk, Writer};
use crate::state_db::StateDb;
use crate::{engine, tables};

/// A state that is being received. Its directory is removed when its database is dropped unfinished.
pub(crate) struct Restore {
    db: Arc<StateDb>,
    decoder: ChunkDecoder,
    /// The first error. Every later call fails with it, because a stream that lost a chunk can't become whole again.
    failed: Option<StoreError>,
}

impl Restore {
    /// Starts with an empty `db`.
    pub(crate) fn new(db: Arc<StateDb>, meta: &SnapshotMeta) -> Self {
        db.mark_obsolete();
        Self {
            db,
            decoder: ChunkDecoder::new(meta.clone()),
            failed: None,
        }
    }

    /// Adds a chunk.
    pub(crate) fn chunk(&mut self, chunk: &[u8], disk: &Disk) -> Result<(), StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        // Checked before decoding, so that the caller can pass the same chunk again when the disk has space.
        disk.check(Writer::State, 4 * chunk.len())?;
        let outcome = self.add(chunk);
        if let Err(error) = &outcome {
            self.failed = Some(error.clone());
        }
        outcome
    }

    fn add(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for (table, key, value) in self.decoder.chunk(chunk)? {
            tables::put(&self.db, &mut batch, table, &key, &value)?;
        }
        engine::write(self.db.db(), batch, &engine::unlogged())
    }

    /// Verifies that the snapshot is complete and makes it durable. `CURRENT` does not name it yet. Returns the database in
    /// any case, so that the caller decides on which thread it is dropped.
    pub(crate) fn finish(self) -> (Arc<StateDb>, Result<Applied, StoreError>) {
        let db = self.db;
        let applied = match self.failed {
            Some(error) => Err(error),
            None => self.decoder.finish(),
        };
        let applied = applied.and_then(|applied| {
            db.put_applied(&applied)?;
            db.flush()?;
            Ok(applied)
        });
        (db, applied)
    }

    /// Returns the database of a restore that is given up.
    pub(crate) fn into_db(self) -> Arc<StateDb> {
        self.db
    }
}
