//! Reads a whole state as of one moment, while commits go on.
//!
//! A `RocksDB` snapshot borrows its database, but a [`SnapshotSource`] must own what it reads. So a thread holds both, and
//! hands over one chunk at a time: at most two chunks are in memory.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use raft::{SnapshotMeta, StoreError};
use replica::chunk::ChunkEncoder;
use replica::{Applied, SnapshotSource, Table};
use rocksdb::{IteratorMode, ReadOptions};

use crate::error::translate;
use crate::state_db::StateDb;
use crate::tables::Tables;

type Chunk = Result<Bytes, StoreError>;

/// A snapshot that is being read.
pub(crate) struct RocksSnapshot {
    meta: SnapshotMeta,
    /// `None` after the last chunk.
    chunks: Option<Receiver<Chunk>>,
    thread: Option<JoinHandle<()>>,
}

impl RocksSnapshot {
    /// Takes the snapshot. Commits after this call returns are not in it.
    pub(crate) fn take(db: Arc<StateDb>, applied: Applied) -> Result<Self, StoreError> {
        let meta = applied.meta();
        let (ready, taken) = sync_channel(0);
        let (send, chunks) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("state-snapshot".into())
            .spawn(move || read(&db, applied, &ready, &send))
            .map_err(|error| {
                StoreError::Io(format!("can't start the snapshot's thread: {error}"))
            })?;
        if taken.recv().is_err() {
            return Err(StoreError::Io("the snapshot's thread ended early".into()));
        }
        Ok(Self {
            meta,
            chunks: Some(chunks),
            thread: Some(thread),
        })
    }
}

impl SnapshotSource for RocksSnapshot {
    fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        let Some(chunks) = &self.chunks else {
            return Ok(None);
        };
        if let Ok(chunk) = chunks.recv() {
            return chunk.map(Some);
        }
        // The thread has ended: it sent the last chunk or an error before.
        self.chunks = None;
        Ok(None)
    }
}

impl Drop for RocksSnapshot {
    fn drop(&mut self) {
        // Without a receiver the thread stops at its next chunk. Wait for it: it holds the directory's lock.
        self.chunks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(db: &StateDb, applied: Applied, ready: &SyncSender<()>, send: &SyncSender<Chunk>) {
    let snapshot = &db.db().snapshot();
    if ready.send(()).is_err() {
        return;
    }
    let mut encoder = ChunkEncoder::new(applied);
    let tables = Tables {
        source: snapshot,
        db,
        fills_cache: false,
    };
    for table in Table::ALL {
        let family = match db.column_family(table) {
            Ok(family) => family,
            Err(error) => {
                let _ = send.send(Err(error));
                return;
            }
        };
        let mut options = ReadOptions::default();
        // A single read of everything must not evict the blocks that other reads use.
        options.fill_cache(false);
        options.set_readahead_size(1 << 20);
        for pair in snapshot.iterator_cf_opt(family, options, IteratorMode::Start) {
            let pair = pair.map_err(|error| translate(&error));
            let pair = pair.and_then(|(key, stored)| {
                let value = tables.value(table, &key, stored)?;
                Ok((key, value))
            });
            let outcome = match pair {
                Ok((key, value)) => encoder.pair(table, &key, &value).map(Ok),
                Err(error) => Some(Err(error)),
            };
            if let Some(outcome) = outcome {
                let failed = outcome.is_err();
                if send.send(outcome).is_err() || failed {
                    return;
                }
            }
        }
    }
    // Sending fails if the receiver is dropped, and then the chunk isn't needed.
    let _ = send.send(Ok(encoder.finish()));
}
