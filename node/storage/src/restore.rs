//! Building a state from a snapshot's chunks, beside the one in force.

use std::sync::Arc;

use raft::{SnapshotMeta, StoreError};
use replica::Applied;
use replica::chunk::ChunkDecoder;
use rocksdb::WriteBatch;

use crate::engine;
use crate::space::{Disk, Writer};
use crate::state::Instance;

/// A state that is being received. Dropped unfinished, it removes its directory.
pub(crate) struct Restore {
    instance: Arc<Instance>,
    decoder: ChunkDecoder,
    /// The first error: a stream that lost a chunk can't become whole again.
    broken: Option<StoreError>,
}

impl Restore {
    /// Starts with an empty `instance`.
    pub(crate) fn new(instance: Arc<Instance>, meta: &SnapshotMeta) -> Self {
        instance.doom();
        Self {
            instance,
            decoder: ChunkDecoder::new(meta.clone()),
            broken: None,
        }
    }

    /// Adds a chunk.
    pub(crate) fn chunk(&mut self, chunk: &[u8], disk: &Disk) -> Result<(), StoreError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        // Before decoding, so that the same chunk can come again when there is space.
        disk.check(Writer::State, 4 * chunk.len())?;
        let outcome = self.add(chunk);
        if let Err(error) = &outcome {
            self.broken = Some(error.clone());
        }
        outcome
    }

    fn add(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for (table, key, value) in self.decoder.chunk(chunk)? {
            batch.put_cf(self.instance.family(table)?, key, value);
        }
        engine::write(self.instance.db(), batch, &engine::unlogged())
    }

    /// Verifies that the snapshot is whole and makes it durable. It is not in force yet.
    pub(crate) fn finish(self) -> Result<(Arc<Instance>, Applied), StoreError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let applied = self.decoder.finish()?;
        self.instance.put_applied(&applied)?;
        self.instance.flush()?;
        Ok((self.instance, applied))
    }
}
