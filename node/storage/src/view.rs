//! Reads a range as of one moment, while commits go on.
//!
//! As in [`crate::snapshot`], a thread holds the `RocksDB` snapshot and hands over one page at a time.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use raft::StoreError;
use replica::{PageSource, Table};
use rocksdb::{IteratorMode, ReadOptions};

use crate::error::translate;
use crate::state_db::StateDb;
use crate::tables::Tables;

/// A page ends with the pair that reaches this size.
const PAGE_BYTES: usize = 256 << 10;

type Page = Result<Vec<(Bytes, Bytes)>, StoreError>;

/// A range that is being read. While the view lives, everything that it can see stays on the disk, so its owner bounds the
/// number of views and their lifetime.
pub(crate) struct RocksView {
    /// `None` only while the view is being dropped.
    pages: Option<Receiver<Page>>,
    thread: Option<JoinHandle<()>>,
}

impl RocksView {
    /// Takes the view. Commits after this call returns are not in it.
    pub(crate) fn take(
        db: Arc<StateDb>,
        table: Table,
        start: Bytes,
        end: Bytes,
    ) -> Result<Self, StoreError> {
        let (ready, taken) = sync_channel(0);
        let (send, pages) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("state-view".into())
            .spawn(move || read(&db, table, (&start, &end), &ready, &send))
            .map_err(|error| StoreError::Io(format!("can't start the view's thread: {error}")))?;
        taken
            .recv()
            .map_err(|_| StoreError::Io("the view's thread ended early".into()))?;
        Ok(Self {
            pages: Some(pages),
            thread: Some(thread),
        })
    }
}

impl Drop for RocksView {
    fn drop(&mut self) {
        // Without a receiver the thread stops at its next page. Wait for it: it holds the directory's lock.
        self.pages = None;
        if let Some(thread) = self.thread.take() {
            // The panic hook has already reported a panic of the thread.
            let _ = thread.join();
        }
    }
}

impl PageSource for RocksView {
    fn next_page(&mut self) -> Result<Option<Vec<(Bytes, Bytes)>>, StoreError> {
        // Without a sender the thread has ended: it sent the last page or an error before.
        let page = self.pages.as_ref().and_then(|pages| pages.recv().ok());
        page.transpose()
    }
}

fn read(
    db: &StateDb,
    table: Table,
    (start, end): (&Bytes, &Bytes),
    ready: &SyncSender<()>,
    send: &SyncSender<Page>,
) {
    let snapshot = &db.db().snapshot();
    if ready.send(()).is_err() || start >= end {
        return;
    }
    let family = match db.column_family(table) {
        Ok(family) => family,
        Err(error) => {
            // Sending fails if the view is dropped, and then the error isn't needed.
            let _ = send.send(Err(error));
            return;
        }
    };
    let mut options = ReadOptions::default();
    // A single read of everything must not evict the blocks that other reads use.
    options.fill_cache(false);
    options.set_readahead_size(1 << 20);
    options.set_iterate_upper_bound(end.as_ref());
    let from = IteratorMode::From(start, rocksdb::Direction::Forward);
    let tables = Tables {
        source: snapshot,
        db,
        fills_cache: false,
    };
    let mut page = Vec::new();
    let mut bytes = 0;
    for pair in snapshot.iterator_cf_opt(family, options, from) {
        let pair = pair.map_err(|error| translate(&error));
        let pair = pair.and_then(|(key, stored)| {
            let value = tables.value(table, &key, stored)?;
            Ok((Bytes::from(key), value))
        });
        match pair {
            Ok((key, value)) => {
                bytes += key.len() + value.len();
                page.push((key, value));
            }
            Err(error) => {
                let _ = send.send(Err(error));
                return;
            }
        }
        if bytes >= PAGE_BYTES {
            bytes = 0;
            if send.send(Ok(std::mem::take(&mut page))).is_err() {
                return;
            }
        }
    }
    if !page.is_empty() {
        let _ = send.send(Ok(page));
    }
}
