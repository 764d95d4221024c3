//! Tests of reads beside the thread that owns the state.

use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;
use replica::memory::MemoryState;
use replica::{Listed, Order, StateReader, StateStore, Table, WriteBatch};
use shardkv_storage::RocksState;

use crate::support::{applied, open, put};

fn content(state: &dyn StateReader) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
    state.scan(
        Table::Data,
        (Bound::Unbounded, Bound::Unbounded),
        usize::MAX,
        usize::MAX,
    )
}

fn pair(key: u64, value: &'static str) -> (Bytes, Bytes) {
    (format!("{key:08}").into(), value.into())
}

#[test]
fn a_read_sees_one_commit_while_others_go_on() {
    let root = tempfile::tempdir().unwrap();
    let mut state = open(root.path()).unwrap().state;
    state.commit(put(1, "old"), applied(1)).unwrap();
    let reads = state.reads();
    let seen = reads.read(|moment| {
        state.commit(put(1, "new"), applied(2)).unwrap();
        state.commit(put(2, "more"), applied(3)).unwrap();
        assert_eq!(
            moment.get(Table::Data, b"00000001")?,
            Some(Bytes::from("old"))
        );
        assert_eq!(moment.get(Table::Data, b"00000002")?, None);
        content(moment)
    });
    assert_eq!(seen.unwrap(), [pair(1, "old")]);
    let later = reads.read(content).unwrap();
    assert_eq!(later, [pair(1, "new"), pair(2, "more")]);
}

/// Cursors of one read see the same commit in all tables, however late they are made and moved.
#[test]
fn cursors_of_a_read_see_one_commit_of_all_tables() {
    let root = tempfile::tempdir().unwrap();
    let mut state = open(root.path()).unwrap().state;
    let commit = |state: &mut RocksState, index: u64, value: &'static str| {
        let mut batch = WriteBatch::default();
        for table in Table::ALL {
            for key in 0..3u8 {
                batch.put(table, Bytes::from(vec![key]), value.into());
            }
        }
        state.commit(batch, applied(index)).unwrap();
    };
    commit(&mut state, 1, "old");
    let whole = (Bound::Unbounded, Bound::Unbounded);
    let seen = state.reads().read(|moment| {
        let mut early = moment.cursor(Table::Meta, whole, Order::Descending)?;
        let first = early.next()?;
        commit(&mut state, 2, "new");
        state.flush()?;
        let mut pairs = vec![first, early.next()?];
        for table in Table::ALL {
            let mut late = moment.cursor(table, whole, Order::Ascending)?;
            late.seek(&[1])?;
            pairs.push(late.next()?);
        }
        Ok(pairs)
    });
    let old = |key| Some((Bytes::from(vec![key]), Listed::Value("old".into())));
    assert_eq!(seen.unwrap(), [2, 1, 1, 1, 1, 1].map(old));
}

#[test]
fn a_scan_of_a_read_keeps_its_bounds() {
    let root = tempfile::tempdir().unwrap();
    let mut state = open(root.path()).unwrap().state;
    for key in 0..10 {
        state.commit(put(key, "v"), applied(key + 1)).unwrap();
    }
    let keys = |from: Bound<&[u8]>, to: Bound<&[u8]>, limit, bytes| {
        let beside = state
            .reads()
            .read(|moment| moment.scan(Table::Data, (from, to), limit, bytes));
        let own = state.scan(Table::Data, (from, to), limit, bytes);
        assert_eq!(beside, own);
        own.unwrap().len()
    };
    let (two, five) = (b"00000002".as_slice(), b"00000005".as_slice());
    let most = usize::MAX;
    assert_eq!(
        keys(Bound::Included(two), Bound::Excluded(five), most, most),
        3
    );
    assert_eq!(
        keys(Bound::Excluded(two), Bound::Included(five), most, most),
        3
    );
    assert_eq!(
        keys(Bound::Included(five), Bound::Excluded(two), most, most),
        0
    );
    assert_eq!(keys(Bound::Unbounded, Bound::Unbounded, 4, most), 4);
    assert_eq!(keys(Bound::Unbounded, Bound::Unbounded, most, 10), 2);
    assert_eq!(keys(Bound::Unbounded, Bound::Unbounded, 0, most), 0);
}

#[test]
fn reads_follow_a_restore_and_end_with_the_state() {
    let mut other = MemoryState::default();
    other.commit(put(7, "restored"), applied(9)).unwrap();
    let mut snapshot = other.snapshot().unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut state = open(root.path()).unwrap().state;
    state.commit(put(1, "old"), applied(1)).unwrap();
    let reads = state.reads();
    let before = reads.read(|moment| {
        state.begin_restore(snapshot.meta()).unwrap();
        while let Some(chunk) = snapshot.next_chunk().unwrap() {
            state.restore_chunk(&chunk).unwrap();
        }
        state.finish_restore().unwrap();
        content(moment)
    });
    assert_eq!(before.unwrap(), [pair(1, "old")], "the read goes on");
    assert_eq!(reads.read(content).unwrap(), [pair(7, "restored")]);
    drop(state);
    assert!(matches!(reads.read(content), Err(StoreError::Io(_))));
}
