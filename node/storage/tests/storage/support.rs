//! Helpers that the tests share.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use raft::{Entry, EntryId, Index, LogBatch, LogReader, Payload, Term};
use replica::{Applied, Table, WriteBatch};
use shardkv_storage::{OpenError, Opened, StorageOptions};
use types::LogTime;

pub(crate) fn open(dir: &Path) -> Result<Opened, OpenError> {
    shardkv_storage::open(dir, &StorageOptions::default())
}

pub(crate) fn entry(index: u64, size: usize) -> Entry {
    let data = Bytes::from(vec![(index % 251) as u8; size]);
    Entry::new(Term(1), Index(index), Payload::Command(data))
}

pub(crate) fn batch(range: std::ops::RangeInclusive<u64>, size: usize) -> LogBatch {
    LogBatch {
        entries: range.map(|index| entry(index, size)).collect(),
        ..LogBatch::default()
    }
}

pub(crate) fn read(log: &impl LogReader, range: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    log.entries(Index(*range.start())..=Index(*range.end()), usize::MAX)
        .expect("stored entries can be read")
}

pub(crate) fn applied(index: u64) -> Applied {
    Applied {
        last: EntryId::new(Term(1), Index(index)),
        time: LogTime(index),
        ..Applied::default()
    }
}

pub(crate) fn put(key: u64, value: impl Into<Bytes>) -> WriteBatch {
    let mut batch = WriteBatch::default();
    batch.put(Table::Data, format!("{key:08}").into(), value.into());
    batch
}

/// Copies a directory that no store has open.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Returns the files of `dir` whose names match, with their sizes, largest first.
pub(crate) fn files(dir: &Path, matches: impl Fn(&str) -> bool) -> Vec<(String, u64)> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, entry.metadata().unwrap().len())
        })
        .filter(|(name, _)| matches(name))
        .collect();
    found.sort_by_key(|(name, size)| (std::cmp::Reverse(*size), name.clone()));
    found
}
