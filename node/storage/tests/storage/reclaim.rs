//! Tests that the space of cleared ranges is reclaimed, as after a shard has moved away.

use std::time::{Duration, Instant};

use bytes::Bytes;
use replica::conformance::Random;
use replica::{StateReader, StateStore, Table, WriteBatch};
use shardkv_storage::{Opened, StorageOptions};

use crate::support::applied;

const SHARDS: u32 = 8;
const PAIRS: u64 = 200;
const VALUE_BYTES: usize = 8_000;
/// The bytes of a full shard. Its random values can't be compressed.
const SHARD_BYTES: u64 = PAIRS * VALUE_BYTES as u64;

/// An opened directory and the position of its last commit.
struct Disk {
    opened: Opened,
    last: u64,
    random: Random,
    _root: tempfile::TempDir,
}

impl Disk {
    fn new(reclaim_after: Duration) -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = StorageOptions {
            reclaim_after,
            // Small, so that this test fills many files, as gigabytes do with the default.
            state_write_buffer_bytes: 1 << 20,
            ..StorageOptions::default()
        };
        Self {
            opened: shardkv_storage::open(root.path(), &options).unwrap(),
            last: 0,
            random: Random(5),
            _root: root,
        }
    }

    fn commit(&mut self, batch: WriteBatch) {
        self.last += 1;
        self.opened.state.commit(batch, applied(self.last)).unwrap();
    }

    fn fill(&mut self, shard: u32) {
        for n in 0..PAIRS {
            let mut batch = WriteBatch::default();
            let mut value = Vec::with_capacity(VALUE_BYTES);
            while value.len() < VALUE_BYTES {
                value.extend(self.random.below(u64::MAX).to_be_bytes());
            }
            batch.put(Table::Data, key(shard, n), value.into());
            batch.put(Table::Sessions, key(shard, n), Bytes::from_static(b"seen"));
            self.commit(batch);
        }
    }

    fn clear(&mut self, shard: u32) {
        let mut batch = WriteBatch::default();
        for table in [Table::Data, Table::Sessions] {
            batch.clear(table, start(shard), start(shard + 1));
        }
        self.commit(batch);
    }

    fn bytes(&self) -> u64 {
        self.opened.disk.sizes().state_bytes
    }

    /// Waits until the state takes at most `most` bytes.
    fn shrinks_to(&mut self, most: u64) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while self.bytes() > most {
            assert!(
                Instant::now() < deadline,
                "{} bytes stay, {most} are allowed",
                self.bytes()
            );
            self.opened.state.wait_reclaimed();
            // A pause between two checks. Nothing depends on its length.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn keys(&self, shard: u32) -> usize {
        let view = self
            .opened
            .state
            .view(Table::Data, start(shard), start(shard + 1))
            .unwrap();
        let mut keys = 0;
        while let Some(page) = view.next_page().unwrap() {
            keys += page.len();
        }
        keys
    }
}

fn start(shard: u32) -> Bytes {
    Bytes::copy_from_slice(&shard.to_be_bytes())
}

fn key(shard: u32, n: u64) -> Bytes {
    [&shard.to_be_bytes()[..], format!("{n:08}").as_bytes()]
        .concat()
        .into()
}

#[test]
fn twenty_rounds_of_clearing_and_filling_leave_no_waste() {
    let mut disk = Disk::new(Duration::from_millis(20));
    for round in 0..20 {
        for shard in 0..SHARDS {
            disk.fill(shard);
        }
        disk.opened.state.start_flush().unwrap();
        // Clear every other shard, so that its neighbours stay; in the next round clear all.
        let step = if round % 2 == 0 { 2 } else { 1 };
        for shard in (0..SHARDS).step_by(step) {
            disk.clear(shard);
        }
    }
    for shard in 0..SHARDS {
        disk.clear(shard);
        disk.fill(shard);
    }
    for shard in (0..SHARDS).step_by(2) {
        disk.clear(shard);
    }
    disk.opened.state.flush().unwrap();
    let data = SHARD_BYTES * u64::from(SHARDS) / 2;
    disk.shrinks_to(data + data * 3 / 10);
    for shard in 0..SHARDS {
        let expected = if shard % 2 == 0 { 0 } else { PAIRS as usize };
        assert_eq!(disk.keys(shard), expected, "shard {shard}");
    }
    assert!(
        disk.bytes() >= data,
        "{} bytes can't hold {data}",
        disk.bytes()
    );
    for shard in 0..SHARDS {
        disk.clear(shard);
    }
    // The rest is RocksDB's own records of all the files that it made and deleted.
    disk.shrinks_to(1_000_000);
}

/// Space is reclaimed without a flush by the caller and without another commit, as in a group that is idle after its shards
/// left.
#[test]
fn space_is_reclaimed_without_a_flush_by_the_caller() {
    let mut disk = Disk::new(Duration::ZERO);
    for shard in 0..SHARDS {
        disk.fill(shard);
    }
    for shard in 0..SHARDS - 1 {
        disk.clear(shard);
    }
    disk.shrinks_to(SHARD_BYTES + SHARD_BYTES * 3 / 10);
    assert_eq!(disk.keys(SHARDS - 1), PAIRS as usize);
}

/// A range that is filled again before its space is reclaimed keeps its new content.
#[test]
fn a_range_that_is_filled_again_stays() {
    let mut disk = Disk::new(Duration::ZERO);
    for _ in 0..5 {
        for shard in 0..2 {
            disk.fill(shard);
        }
        for shard in 0..2 {
            disk.clear(shard);
            disk.fill(shard);
        }
        disk.opened.state.wait_reclaimed();
        assert_eq!([disk.keys(0), disk.keys(1)], [PAIRS as usize; 2]);
    }
}

/// A view keeps the pairs that it shows. They are reclaimed after the view is dropped.
#[test]
fn pairs_of_a_view_are_reclaimed_after_it() {
    let mut disk = Disk::new(Duration::ZERO);
    for shard in 0..3 {
        disk.fill(shard);
    }
    disk.opened.state.flush().unwrap();
    let view = disk
        .opened
        .state
        .view(Table::Data, start(0), start(1))
        .unwrap();
    for shard in 0..2 {
        disk.clear(shard);
    }
    disk.opened.state.wait_reclaimed();
    let mut keys = 0;
    while let Some(page) = view.next_page().unwrap() {
        keys += page.len();
    }
    assert_eq!(keys, PAIRS as usize);
    drop(view);
    disk.shrinks_to(SHARD_BYTES + SHARD_BYTES * 3 / 10);
}

/// A state that is closed or replaced during a reclaim does not wait for it and is not damaged.
#[test]
fn closing_and_restoring_do_not_wait_for_a_reclaim() {
    let mut disk = Disk::new(Duration::ZERO);
    for shard in 0..SHARDS {
        disk.fill(shard);
    }
    let mut source = disk.opened.state.snapshot().unwrap();
    let meta = source.meta().clone();
    for shard in 0..SHARDS {
        disk.clear(shard);
    }
    disk.opened.state.begin_restore(&meta).unwrap();
    while let Some(chunk) = source.next_chunk().unwrap() {
        disk.opened.state.restore_chunk(&chunk).unwrap();
    }
    disk.opened.state.finish_restore().unwrap();
    drop(source);
    disk.last = meta.last.index.0;
    for shard in 0..SHARDS {
        assert_eq!(disk.keys(shard), PAIRS as usize, "shard {shard}");
        disk.clear(shard);
    }
    disk.opened.state.flush().unwrap();
    let Disk {
        opened,
        _root: root,
        ..
    } = disk;
    drop(opened);
    let opened = shardkv_storage::open(root.path(), &StorageOptions::default());
    // Opening refuses this state, because it has no log. It must not find damage in the state itself.
    assert!(!matches!(
        opened,
        Err(shardkv_storage::OpenError::StateDamaged { .. }
            | shardkv_storage::OpenError::Locked { .. })
    ));
}
