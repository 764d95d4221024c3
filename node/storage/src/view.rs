//! A range as of one moment, for whoever reads it while commits go on.
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
use crate::state::Instance;

/// The size that a page aims at.
const PAGE_BYTES: usize = 256 << 10;

type Page = Result<Vec<(Bytes, Bytes)>, StoreError>;

/// A range that is being read. As long as it lives, what it can see stays on the disk: its owner bounds how many there are
/// and how long they are kept.
pub(crate) struct RocksView {
    /// `None` only while it is dropped.
    pages: Option<Receiver<Page>>,
    thread: Option<JoinHandle<()>>,
}

impl RocksView {
    /// Takes the view: when this returns, later commits are not in it.
    pub(crate) fn take(
        instance: Arc<Instance>,
        table: Table,
        start: Bytes,
        end: Bytes,
    ) -> Result<Self, StoreError> {
        let (ready, taken) = sync_channel(0);
        let (send, pages) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("state-view".into())
            .spawn(move || read(&instance, table, (&start, &end), &ready, &send))
            .map_err(|error| StoreError::Io(format!("can't start a thread: {error}")))?;
        taken
            .recv()
            .map_err(|_| StoreError::Io("the view's thread died".into()))?;
        Ok(Self {
            pages: Some(pages),
            thread: Some(thread),
        })
    }
}

impl Drop for RocksView {
    fn drop(&mut self) {
        // Without a receiver the thread stops at its next page. It is waited for, because it holds the directory's lock.
        self.pages = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl PageSource for RocksView {
    fn next_page(&mut self) -> Result<Option<Vec<(Bytes, Bytes)>>, StoreError> {
        // Without a sender the thread is done: it sent the last page, or an error, before.
        let page = self.pages.as_ref().and_then(|pages| pages.recv().ok());
        page.transpose()
    }
}

fn read(
    instance: &Instance,
    table: Table,
    (start, end): (&Bytes, &Bytes),
    ready: &SyncSender<()>,
    send: &SyncSender<Page>,
) {
    let snapshot = instance.db().snapshot();
    if ready.send(()).is_err() || start >= end {
        return;
    }
    let family = match instance.family(table) {
        Ok(family) => family,
        Err(error) => {
            // A receiver that is gone doesn't want to know.
            let _ = send.send(Err(error));
            return;
        }
    };
    let mut options = ReadOptions::default();
    // Reading everything once must not push out what is in use.
    options.fill_cache(false);
    options.set_readahead_size(1 << 20);
    options.set_iterate_upper_bound(end.as_ref());
    let from = IteratorMode::From(start, rocksdb::Direction::Forward);
    let mut page = Vec::new();
    let mut bytes = 0;
    for pair in snapshot.iterator_cf_opt(family, options, from) {
        match pair {
            Ok((key, value)) => {
                bytes += key.len() + value.len();
                page.push((Bytes::from(key), Bytes::from(value)));
            }
            Err(error) => {
                let _ = send.send(Err(translate(&error)));
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
