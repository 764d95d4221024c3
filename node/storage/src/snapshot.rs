//! Reading a state as of one moment, while commits go on.
//!
//! A `RocksDB` snapshot borrows its database, and a [`SnapshotSource`] must own what it reads. So a thread
//! holds both, and hands over one chunk at a time: at most two chunks are in memory.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use raft::{SnapshotMeta, StoreError};
use replica::chunk::ChunkEncoder;
use replica::{Applied, SnapshotSource, Table};
use rocksdb::{IteratorMode, ReadOptions};

use crate::error::translate;
use crate::state::Instance;

type Chunk = Result<Bytes, StoreError>;

/// A snapshot that is being read.
pub(crate) struct RocksSnapshot {
    meta: SnapshotMeta,
    /// `None` after the last chunk.
    chunks: Option<Receiver<Chunk>>,
    thread: Option<JoinHandle<()>>,
}

impl RocksSnapshot {
    /// Takes the snapshot: when this returns, later commits are not in it.
    pub(crate) fn take(instance: Arc<Instance>, applied: Applied) -> Result<Self, StoreError> {
        let meta = applied.meta();
        let (ready, taken) = sync_channel(0);
        let (send, chunks) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("state-snapshot".into())
            .spawn(move || read(&instance, applied, &ready, &send))
            .map_err(|error| StoreError::Io(format!("can't start a thread: {error}")))?;
        if taken.recv().is_err() {
            return Err(StoreError::Io("the snapshot's thread died".into()));
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
        // The thread is done: it sent the last chunk, or an error, before this.
        self.chunks = None;
        Ok(None)
    }
}

impl Drop for RocksSnapshot {
    fn drop(&mut self) {
        // Without a receiver the thread stops at its next chunk.
        self.chunks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(instance: &Instance, applied: Applied, ready: &SyncSender<()>, send: &SyncSender<Chunk>) {
    let snapshot = instance.db().snapshot();
    if ready.send(()).is_err() {
        return;
    }
    let mut encoder = ChunkEncoder::new(applied);
    for table in Table::ALL {
        let family = match instance.family(table) {
            Ok(family) => family,
            Err(error) => {
                let _ = send.send(Err(error));
                return;
            }
        };
        let mut options = ReadOptions::default();
        // Reading everything once must not push out what is in use.
        options.fill_cache(false);
        options.set_readahead_size(1 << 20);
        for pair in snapshot.iterator_cf_opt(family, options, IteratorMode::Start) {
            let outcome = match pair {
                Ok((key, value)) => encoder.pair(table, &key, &value).map(Ok),
                Err(error) => Some(Err(translate(&error))),
            };
            if let Some(outcome) = outcome {
                let failed = outcome.is_err();
                if send.send(outcome).is_err() || failed {
                    return;
                }
            }
        }
    }
    // A receiver that is gone does not want the last chunk either.
    let _ = send.send(Ok(encoder.finish()));
}
