//! The suite of states.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use raft::{EntryId, Index, Membership, StoreError, Term};
use types::{LogTime, NodeId};

use super::Random;
use crate::memory::MemoryState;
use crate::{Applied, StateReader, StateStore, Table, View, WriteBatch};

/// Makes, crashes and reopens states.
pub trait Harness {
    /// The state under test.
    type State: StateStore;

    /// A new, empty state on a disk of its own.
    fn create(&mut self) -> Self::State;

    /// Crashes: what was not durable may be gone. Opens again.
    fn crash(&mut self, state: Self::State) -> Self::State;

    /// Waits until a flush that was started is done.
    fn settle(&mut self, state: &mut Self::State);

    /// Waits until the space of what was cleared is given back, where that takes time.
    fn reclaim(&mut self, state: &mut Self::State);
}

/// Runs all of the suite.
pub fn all<H: Harness>(harness: &mut H) {
    an_empty_state_is_empty(harness);
    commits_are_visible_and_whole(harness);
    clears_come_before_changes(harness);
    a_commit_does_not_go_back(harness);
    scans_keep_their_bounds(harness);
    a_crash_leaves_some_whole_commit(harness);
    a_flush_is_durable(harness);
    a_started_flush_covers_what_was_committed(harness);
    a_snapshot_stays_while_commits_go_on(harness);
    a_large_snapshot_comes_in_chunks(harness);
    a_view_is_a_cut_of_one_moment(harness);
    a_view_keeps_its_bounds(harness);
    a_view_outlives_a_restore_and_may_be_dropped_early(harness);
    estimates_are_about_right(harness);
    a_restore_replaces_the_state_durably(harness);
    a_crash_before_the_end_of_a_restore_leaves_the_old_state(harness);
    a_broken_stream_of_chunks_changes_nothing(harness);
    a_restore_starts_over(harness);
    snapshots_go_both_ways_with_the_model(harness);
    random_walks_agree_with_the_model(harness, 0..6);
}

type Content = BTreeMap<(Table, Bytes), Bytes>;
type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

fn applied(index: u64) -> Applied {
    Applied {
        last: EntryId::new(Term(1 + index / 10), Index(index)),
        membership: Membership::of_voters([(NodeId(1), "a:1"), (NodeId(2 + index / 7), "b:2")]),
        time: LogTime(1_000 * index),
    }
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn numbered(n: u64) -> Bytes {
    format!("{n:06}").into()
}

/// All of a state, read page by page.
pub fn content(state: &impl StateStore) -> BTreeMap<(Table, Bytes), Bytes> {
    let mut all = Content::new();
    for table in Table::ALL {
        let mut after: Option<Bytes> = None;
        loop {
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let page = state
                .scan(table, (from, Bound::Unbounded), 100, usize::MAX)
                .expect("a state can be scanned");
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            all.extend(page.into_iter().map(|(key, value)| ((table, key), value)));
        }
    }
    all
}

/// A commit whose pairs tell its number in all tables.
fn stamp(index: u64) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for table in Table::ALL {
        batch.put(table, text("stamp"), numbered(index));
        batch.put(table, numbered(index), Bytes::from(vec![7; 100]));
    }
    batch
}

fn stamped(upto: u64) -> Content {
    let mut all = Content::new();
    for table in Table::ALL {
        for index in 1..=upto {
            all.insert((table, numbered(index)), Bytes::from(vec![7; 100]));
            all.insert((table, text("stamp")), numbered(index));
        }
    }
    all
}

fn fill(state: &mut impl StateStore, range: std::ops::RangeInclusive<u64>) {
    for index in range {
        state.commit(stamp(index), applied(index)).unwrap();
    }
}

fn chunks(state: &mut impl StateStore) -> (raft::SnapshotMeta, Vec<Bytes>) {
    let mut source = state.snapshot().unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = source.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    assert_eq!(source.next_chunk(), Ok(None), "the end stays the end");
    (source.meta().clone(), chunks)
}

/// A model with enough data for several chunks, and its snapshot.
fn large(last: u64) -> (Content, raft::SnapshotMeta, Vec<Bytes>) {
    let mut model = MemoryState::new();
    let mut batch = WriteBatch::default();
    for n in 0..1_000 {
        batch.put(
            Table::Data,
            numbered(n),
            Bytes::from(vec![(n % 251) as u8; 1_000]),
        );
    }
    batch.put(Table::Meta, text("only"), text("meta"));
    batch.put(Table::Sessions, Bytes::new(), Bytes::new());
    model.commit(batch, applied(last)).unwrap();
    let (meta, chunks) = chunks(&mut model);
    assert!(chunks.len() > 3);
    (model.pairs().clone(), meta, chunks)
}

/// A new state holds nothing and stands at the beginning.
pub fn an_empty_state_is_empty<H: Harness>(harness: &mut H) {
    let state = harness.create();
    assert_eq!(state.applied(), Applied::default());
    assert_eq!(state.durable(), EntryId::default());
    assert_eq!(content(&state), Content::new());
    let state = harness.crash(state);
    assert_eq!(state.applied(), Applied::default());
}

/// A commit is visible at once, in all tables, with its position; tables do not mix.
pub fn commits_are_visible_and_whole<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    let mut batch = WriteBatch::default();
    batch.put(Table::Data, text("k"), text("data"));
    batch.put(Table::Meta, text("k"), text("meta"));
    batch.put(Table::Data, Bytes::new(), Bytes::new());
    state.commit(batch, applied(3)).unwrap();
    assert_eq!(state.applied(), applied(3));
    assert_eq!(state.get(Table::Data, b"k"), Ok(Some(text("data"))));
    assert_eq!(state.get(Table::Meta, b"k"), Ok(Some(text("meta"))));
    assert_eq!(state.get(Table::Sessions, b"k"), Ok(None));
    assert_eq!(state.get(Table::Data, b""), Ok(Some(Bytes::new())));
    let mut batch = WriteBatch::default();
    batch.remove(Table::Data, text("k"));
    batch.remove(Table::Data, text("never there"));
    state.commit(batch, applied(4)).unwrap();
    assert_eq!(state.get(Table::Data, b"k"), Ok(None));
    state.commit(WriteBatch::default(), applied(5)).unwrap();
    assert_eq!(state.applied(), applied(5), "an empty batch still moves on");
    assert_eq!(state.get(Table::Meta, b"k"), Ok(Some(text("meta"))));
}

/// Clears take effect before the puts and removals of the same batch, exactly within `[start, end)`.
pub fn clears_come_before_changes<H: Harness>(harness: &mut H) {
    for count in [10, 5_000] {
        let mut state = harness.create();
        let mut batch = WriteBatch::default();
        for n in 0..count {
            batch.put(Table::Data, numbered(n), text("old"));
            batch.put(Table::Sessions, numbered(n), text("old"));
        }
        state.commit(batch, applied(1)).unwrap();
        let mut batch = WriteBatch::default();
        batch.put(Table::Data, numbered(3), text("dropped"));
        batch.clear(Table::Data, numbered(2), numbered(count - 2));
        batch.put(Table::Data, numbered(5), text("new"));
        batch.clear(Table::Data, numbered(8), numbered(8));
        batch.clear(Table::Data, numbered(9), numbered(1));
        state.commit(batch, applied(2)).unwrap();
        let check = |state: &H::State| {
            let found = state
                .scan(
                    Table::Data,
                    (Bound::Unbounded, Bound::Unbounded),
                    100,
                    usize::MAX,
                )
                .unwrap();
            let expected: Vec<_> = [
                (0, "old"),
                (1, "old"),
                (5, "new"),
                (count - 2, "old"),
                (count - 1, "old"),
            ]
            .map(|(n, value)| (numbered(n), text(value)))
            .into();
            assert_eq!(found, expected);
            assert_eq!(
                state.get(Table::Sessions, &numbered(3)),
                Ok(Some(text("old")))
            );
        };
        check(&state);
        state.flush().unwrap();
        let state = harness.crash(state);
        check(&state);
    }
}

/// A commit behind the state's position is refused: its effect is in the state already.
pub fn a_commit_does_not_go_back<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    fill(&mut state, 1..=5);
    assert!(matches!(
        state.commit(stamp(4), applied(4)),
        Err(StoreError::Damaged(_))
    ));
}

/// Bounds of every kind, crossed ones included; limits of count and bytes.
pub fn scans_keep_their_bounds<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    let mut batch = WriteBatch::default();
    for n in 0..10 {
        batch.put(Table::Data, numbered(n), Bytes::from(vec![0; 94]));
    }
    state.commit(batch, applied(1)).unwrap();
    let (two, five) = (numbered(2), numbered(5));
    let (two, five): (&[u8], &[u8]) = (&two, &five);
    let scan = |bounds, limit, bytes| -> Vec<u64> {
        let found = state.scan(Table::Data, bounds, limit, bytes).unwrap();
        found
            .iter()
            .map(|(key, _)| std::str::from_utf8(key).unwrap().parse().unwrap())
            .collect()
    };
    let (all, big) = (usize::MAX, usize::MAX);
    let cases: [(Bounds<'_>, &[u64]); 8] = [
        ((Bound::Included(two), Bound::Included(five)), &[2, 3, 4, 5]),
        ((Bound::Excluded(two), Bound::Excluded(five)), &[3, 4]),
        ((Bound::Unbounded, Bound::Excluded(two)), &[0, 1]),
        ((Bound::Included(five), Bound::Unbounded), &[5, 6, 7, 8, 9]),
        ((Bound::Included(five), Bound::Included(two)), &[]),
        ((Bound::Excluded(two), Bound::Excluded(two)), &[]),
        ((Bound::Included(two), Bound::Included(two)), &[2]),
        ((Bound::Included(b"1"), Bound::Excluded(b"2")), &[]),
    ];
    for (bounds, expected) in cases {
        assert_eq!(scan(bounds, all, big), expected, "{bounds:?}");
    }
    let whole = (Bound::Unbounded, Bound::Unbounded);
    assert_eq!(scan(whole, 0, big), [0; 0]);
    assert_eq!(scan(whole, 3, big), [0, 1, 2]);
    // A pair has 100 bytes: the page ends after the pair that reaches the bound.
    for (bytes, expected) in [(0, 1), (1, 1), (100, 1), (101, 2), (250, 3)] {
        assert_eq!(scan(whole, all, bytes).len(), expected, "{bytes} bytes");
    }
}

/// After a crash the state is that of one commit, no older than `durable` said.
pub fn a_crash_leaves_some_whole_commit<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    let mut index = 0;
    for round in 0..6 {
        fill(&mut state, index + 1..=index + 5);
        if round % 2 == 1 {
            state.start_flush().unwrap();
            fill(&mut state, index + 6..=index + 9);
        }
        let (promised, reached) = (state.durable(), state.applied().last);
        state = harness.crash(state);
        index = state.applied().last.index.0;
        assert!(
            promised.index.0 <= index && index <= reached.index.0,
            "{promised} was durable, {reached} was committed, {index} is left"
        );
        if index > 0 {
            assert_eq!(state.applied(), applied(index));
        }
        assert_eq!(content(&state), stamped(index));
        assert_eq!(state.durable(), state.applied().last);
    }
}

/// `flush` makes all commits durable.
pub fn a_flush_is_durable<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    for round in 0..4 {
        fill(&mut state, round * 10 + 1..=round * 10 + 10);
        state.flush().unwrap();
        assert_eq!(state.durable(), state.applied().last);
        state = harness.crash(state);
        assert_eq!(state.applied(), applied(round * 10 + 10));
    }
    assert_eq!(content(&state), stamped(40));
    state.flush().unwrap();
}

/// A flush that is done covers the commits before its start.
pub fn a_started_flush_covers_what_was_committed<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    fill(&mut state, 1..=10);
    state.start_flush().unwrap();
    state.start_flush().unwrap();
    fill(&mut state, 11..=20);
    harness.settle(&mut state);
    let durable = state.durable().index.0;
    assert!((10..=20).contains(&durable), "{durable} is durable");
    let state = harness.crash(state);
    assert!(state.applied().last.index.0 >= durable);
}

/// A snapshot shows the state of its moment, whatever is committed and cleared afterwards.
pub fn a_snapshot_stays_while_commits_go_on<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    fill(&mut state, 1..=50);
    let mut source = state.snapshot().unwrap();
    fill(&mut state, 51..=60);
    let mut batch = WriteBatch::default();
    for table in Table::ALL {
        batch.clear(table, Bytes::new(), Bytes::from_static(&[0xff]));
    }
    state.commit(batch, applied(61)).unwrap();
    state.flush().unwrap();
    assert_eq!(*source.meta(), applied(50).meta());
    let mut copy = harness.create();
    copy.begin_restore(source.meta()).unwrap();
    while let Some(chunk) = source.next_chunk().unwrap() {
        copy.restore_chunk(&chunk).unwrap();
    }
    copy.finish_restore().unwrap();
    assert_eq!(copy.applied(), applied(50));
    assert_eq!(content(&copy), stamped(50));
    assert_eq!(content(&state), Content::new());
}

/// Chunks are about as large as they should be, and one pair may be larger than a chunk.
pub fn a_large_snapshot_comes_in_chunks<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    let mut batch = WriteBatch::default();
    for n in 0..2_000 {
        batch.put(Table::Data, numbered(n), Bytes::from(vec![1; 1_000]));
    }
    batch.put(Table::Data, numbered(1_000), vec![2; 700_000].into());
    state.commit(batch, applied(1)).unwrap();
    let (_, chunks) = chunks(&mut state);
    assert!((8..=12).contains(&chunks.len()), "{} chunks", chunks.len());
    let large = chunks
        .iter()
        .filter(|chunk| chunk.len() > crate::SNAPSHOT_CHUNK_BYTES + 2_000)
        .count();
    assert_eq!(large, 1, "only the one with the large pair");
}

/// The rest of a view.
fn pages(view: &View) -> Vec<(Bytes, Bytes)> {
    let mut pairs = Vec::new();
    while let Some(page) = view.next_page().unwrap() {
        assert!(!page.is_empty(), "a page has something");
        pairs.extend(page);
    }
    assert_eq!(view.next_page(), Ok(None), "the end stays the end");
    pairs
}

/// About 4 MB, so that a view has more pages than any store reads ahead.
fn wide(state: &mut impl StateStore, index: u64, fill: u8) {
    let mut batch = WriteBatch::default();
    for n in 0..4_000 {
        batch.put(Table::Data, numbered(n), Bytes::from(vec![fill; 1_000]));
        batch.put(Table::Sessions, numbered(n), text("other"));
    }
    state.commit(batch, applied(index)).unwrap();
}

fn wide_pairs(range: std::ops::Range<u64>, fill: u8) -> Vec<(Bytes, Bytes)> {
    range
        .map(|n| (numbered(n), Bytes::from(vec![fill; 1_000])))
        .collect()
}

/// A view shows the pairs of its moment, whatever is changed, cleared and flushed while it is read; and each view its own.
pub fn a_view_is_a_cut_of_one_moment<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    wide(&mut state, 1, 1);
    let view = |state: &H::State| {
        let (start, end) = (numbered(100), numbered(3_900));
        state.view(Table::Data, start, end).unwrap()
    };
    let first = view(&state);
    let begun = view(&state);
    let page = begun.next_page().unwrap().unwrap();
    assert!(page.len() < 3_800, "more than one page");
    wide(&mut state, 2, 2);
    let second = view(&state);
    let mut batch = WriteBatch::default();
    batch.clear(Table::Data, Bytes::new(), Bytes::from_static(&[0xff]));
    batch.put(Table::Data, numbered(200), text("after"));
    state.commit(batch, applied(3)).unwrap();
    state.flush().unwrap();
    assert_eq!(pages(&first), wide_pairs(100..3_900, 1));
    let rest: Vec<_> = page.into_iter().chain(pages(&begun)).collect();
    assert_eq!(rest, wide_pairs(100..3_900, 1));
    assert_eq!(pages(&second), wide_pairs(100..3_900, 2));
    assert_eq!(pages(&view(&state)), [(numbered(200), text("after"))]);
}

/// From the start, which is in it, to the end, which is not; empty and crossed ranges have nothing; tables don't mix.
pub fn a_view_keeps_its_bounds<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    let mut batch = WriteBatch::default();
    for n in 0..10 {
        batch.put(Table::Data, numbered(n), text("data"));
        batch.put(Table::Meta, numbered(n), text("meta"));
    }
    batch.put(Table::Data, Bytes::from_static(&[0xff, 0xff]), text("last"));
    state.commit(batch, applied(1)).unwrap();
    let keys = |table, start: Bytes, end: Bytes| -> Vec<Bytes> {
        let pairs = pages(&state.view(table, start, end).unwrap());
        pairs.into_iter().map(|(key, _)| key).collect()
    };
    let all: Vec<Bytes> = (0..10).map(numbered).collect();
    let end = Bytes::from_static(&[0xff]);
    assert_eq!(keys(Table::Data, Bytes::new(), end.clone()), all);
    assert_eq!(keys(Table::Data, numbered(2), numbered(5)), all[2..5]);
    assert_eq!(keys(Table::Data, text("0000015"), numbered(3)), all[2..3]);
    assert!(keys(Table::Sessions, Bytes::new(), end).is_empty());
    for (start, end) in [(5, 5), (5, 2), (20, 30)] {
        let found = keys(Table::Data, numbered(start), numbered(end));
        assert_eq!(found, Vec::<Bytes>::new(), "{start}..{end}");
    }
    let meta = pages(&state.view(Table::Meta, numbered(3), numbered(4)).unwrap());
    assert_eq!(meta, [(numbered(3), text("meta"))]);
}

/// A restore puts another state in force under a view, which reads on; views that nobody reads to the end, or at all, leave
/// nothing behind that would keep the state from being opened again.
pub fn a_view_outlives_a_restore_and_may_be_dropped_early<H: Harness>(harness: &mut H) {
    let (expected, meta, chunks) = large(77);
    let mut state = harness.create();
    wide(&mut state, 1, 1);
    let view = |state: &H::State| {
        let (start, end) = (numbered(0), numbered(4_000));
        state.view(Table::Data, start, end).unwrap()
    };
    let (whole, dropped, unread) = (view(&state), view(&state), view(&state));
    dropped.next_page().unwrap().unwrap();
    state.begin_restore(&meta).unwrap();
    for chunk in &chunks {
        state.restore_chunk(chunk).unwrap();
    }
    state.finish_restore().unwrap();
    drop(dropped);
    drop(unread);
    assert_eq!(pages(&whole), wide_pairs(0..4_000, 1));
    drop(whole);
    drop(view(&state));
    let state = harness.crash(state);
    assert_eq!(content(&state), expected);
}

/// Nothing counts nothing, and a range counts about what it has, flushed or not; whatever is cleared stops counting once
/// that is on the disk.
pub fn estimates_are_about_right<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    let range = |shard: u32| (shard.to_be_bytes(), (shard + 1).to_be_bytes());
    let estimate = |state: &H::State, shard| {
        let (start, end) = range(shard);
        state.estimate_bytes(Table::Data, &start, &end).unwrap()
    };
    assert_eq!(estimate(&state, 7), 0);
    let mut random = Random(1);
    let mut index = 0;
    // Shard 7 has four times of shard 3, and no value can be compressed.
    for (shard, pairs) in [(3_u32, 250_u64), (7, 1_000)] {
        let mut batch = WriteBatch::default();
        for n in 0..pairs {
            let key = [&shard.to_be_bytes()[..], &numbered(n)].concat();
            let value: Vec<u8> = (0..125)
                .flat_map(|_| random.below(u64::MAX).to_be_bytes())
                .collect();
            batch.put(Table::Data, key.into(), value.into());
        }
        index += 1;
        state.commit(batch, applied(index)).unwrap();
    }
    let check = |state: &H::State, when: &str| {
        for (shard, bytes) in [(3, 250_000), (5, 0), (7, 1_000_000)] {
            let found = estimate(state, shard);
            // Half to double: blocks and files don't end where ranges do.
            let about = bytes / 2..=bytes * 2 + 40_000;
            assert!(
                about.contains(&found),
                "{when}: {found} of {bytes} in shard {shard}"
            );
        }
    };
    check(&state, "in memory");
    state.flush().unwrap();
    check(&state, "flushed");
    let mut state = harness.crash(state);
    check(&state, "opened again");
    let mut batch = WriteBatch::default();
    let (start, end) = range(7);
    batch.clear(Table::Data, start.to_vec().into(), end.to_vec().into());
    state.commit(batch, applied(index + 1)).unwrap();
    state.flush().unwrap();
    harness.reclaim(&mut state);
    assert!(estimate(&state, 7) < 100_000, "{}", estimate(&state, 7));
    assert!(estimate(&state, 3) >= 125_000, "{}", estimate(&state, 3));
}

/// A finished restore is in force and durable at once: position, content, nothing of the old.
pub fn a_restore_replaces_the_state_durably<H: Harness>(harness: &mut H) {
    let (expected, meta, chunks) = large(77);
    let mut state = harness.create();
    fill(&mut state, 1..=20);
    state.start_flush().unwrap();
    let mut old = state.snapshot().unwrap();
    state.begin_restore(&meta).unwrap();
    for chunk in &chunks {
        state.restore_chunk(chunk).unwrap();
        assert_eq!(state.applied(), applied(20), "the old state until the end");
    }
    assert_eq!(content(&state), stamped(20));
    state.finish_restore().unwrap();
    assert_eq!((state.applied(), state.durable()), (applied(77), meta.last));
    assert_eq!(content(&state), expected);
    while old.next_chunk().unwrap().is_some() {}
    harness.settle(&mut state);
    assert_eq!(state.durable(), meta.last, "an older flush changes nothing");
    let mut state = harness.crash(state);
    assert_eq!((state.applied(), state.durable()), (applied(77), meta.last));
    assert_eq!(content(&state), expected);
    // Life goes on.
    fill(&mut state, 78..=80);
    state.flush().unwrap();
    let state = harness.crash(state);
    assert_eq!(state.applied(), applied(80));
    assert_eq!(state.get(Table::Data, b"stamp"), Ok(Some(numbered(80))));
    // Backwards too: the log decides what is newer, not the store.
    let (expected, meta, chunks) = large(5);
    let mut state = state;
    state.begin_restore(&meta).unwrap();
    for chunk in &chunks {
        state.restore_chunk(chunk).unwrap();
    }
    state.finish_restore().unwrap();
    assert_eq!((state.applied(), state.durable()), (applied(5), meta.last));
    let state = harness.crash(state);
    assert_eq!(content(&state), expected);
}

/// A crash after any number of chunks leaves the old state; also commits during a restore stay.
pub fn a_crash_before_the_end_of_a_restore_leaves_the_old_state<H: Harness>(harness: &mut H) {
    let (_, meta, chunks) = large(77);
    for staged in 0..=chunks.len() {
        let mut state = harness.create();
        fill(&mut state, 1..=20);
        state.flush().unwrap();
        state.begin_restore(&meta).unwrap();
        for chunk in &chunks[..staged] {
            state.restore_chunk(chunk).unwrap();
        }
        fill(&mut state, 21..=22);
        state.flush().unwrap();
        let mut state = harness.crash(state);
        assert_eq!(state.applied(), applied(22), "after {staged} chunks");
        assert_eq!(content(&state), stamped(22));
        assert!(
            state.finish_restore().is_err(),
            "a restore doesn't outlive its process"
        );
        assert_eq!(content(&state), stamped(22));
    }
}

/// Cut, repeated, swapped, damaged and foreign chunks: `Damaged`, and the old state works on.
pub fn a_broken_stream_of_chunks_changes_nothing<H: Harness>(harness: &mut H) {
    let (expected, meta, good) = large(77);
    let mut state = harness.create();
    fill(&mut state, 1..=3);
    state.flush().unwrap();
    let last = good.len() - 1;
    let mut streams: Vec<Vec<Bytes>> = vec![Vec::new(), good[..last].to_vec(), good[1..].to_vec()];
    let mut repeated = good.clone();
    repeated.insert(1, good[0].clone());
    streams.push(repeated);
    let mut swapped = good.clone();
    swapped.swap(0, 1);
    streams.push(swapped);
    for at in [0, 1, 7, good[1].len() / 2, good[1].len() - 1] {
        let mut damaged = good.clone();
        let mut bytes = good[1].to_vec();
        bytes[at] ^= 0x10;
        damaged[1] = bytes.into();
        streams.push(damaged);
    }
    let mut longer = good.clone();
    longer.push(good[last].clone());
    streams.push(longer);
    streams.push(vec![Bytes::new()]);
    streams.push(vec![text("no chunk at all")]);
    for (number, stream) in streams.iter().enumerate() {
        state.begin_restore(&meta).unwrap();
        let mut failed = false;
        for chunk in stream {
            if let Err(error) = state.restore_chunk(chunk) {
                assert!(matches!(error, StoreError::Damaged(_)), "{error}");
                failed = true;
            }
        }
        let end = state.finish_restore();
        assert!(
            matches!(end, Err(StoreError::Damaged(_))),
            "stream {number} (a chunk failed: {failed}): {end:?}"
        );
        assert_eq!(state.applied(), applied(3));
        assert_eq!(content(&state), stamped(3));
    }
    // Announced as another snapshot than it is.
    let mut other = meta.clone();
    other.last.index = Index(78);
    state.begin_restore(&other).unwrap();
    let failed = good.iter().any(|chunk| state.restore_chunk(chunk).is_err());
    assert!(state.finish_restore().is_err(), "{failed}");
    let mut state = harness.crash(state);
    assert_eq!(content(&state), stamped(3));
    // And a good one still works.
    state.begin_restore(&meta).unwrap();
    for chunk in &good {
        state.restore_chunk(chunk).unwrap();
    }
    state.finish_restore().unwrap();
    assert_eq!(content(&state), expected);
}

/// `begin_restore` drops what was staged before; chunks without it are refused.
pub fn a_restore_starts_over<H: Harness>(harness: &mut H) {
    let (expected, meta, chunks) = large(77);
    let mut state = harness.create();
    assert!(state.restore_chunk(&chunks[0]).is_err());
    assert!(state.finish_restore().is_err());
    state.begin_restore(&meta).unwrap();
    for chunk in &chunks[..2] {
        state.restore_chunk(chunk).unwrap();
    }
    state.begin_restore(&meta).unwrap();
    for chunk in &chunks {
        state.restore_chunk(chunk).unwrap();
    }
    state.finish_restore().unwrap();
    assert!(state.finish_restore().is_err(), "only once");
    assert_eq!(content(&state), expected);
}

/// Every store reads the model's snapshots, and the model reads every store's; the bytes are the same.
pub fn snapshots_go_both_ways_with_the_model<H: Harness>(harness: &mut H) {
    let (expected, meta, ours) = large(9);
    let mut state = harness.create();
    state.begin_restore(&meta).unwrap();
    for chunk in &ours {
        state.restore_chunk(chunk).unwrap();
    }
    state.finish_restore().unwrap();
    let (their_meta, theirs) = chunks(&mut state);
    assert_eq!(their_meta, meta);
    assert_eq!(theirs, ours);
    let mut model = MemoryState::new();
    model.begin_restore(&meta).unwrap();
    for chunk in &theirs {
        model.restore_chunk(chunk).unwrap();
    }
    model.finish_restore().unwrap();
    assert_eq!(*model.pairs(), expected);
}

/// Random commits, clears, flushes, restores and crashes, in step with [`MemoryState`].
pub fn random_walks_agree_with_the_model<H: Harness>(harness: &mut H, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut random = Random(seed);
        let mut state = harness.create();
        // The model's state after each commit since the last restore, by index.
        let mut history: BTreeMap<u64, MemoryState> = BTreeMap::new();
        let mut model = MemoryState::new();
        history.insert(0, model.clone());
        let mut index = 0;
        for step in 0..80 {
            match random.below(12) {
                0 => state.start_flush().unwrap(),
                1 => state.flush().unwrap(),
                2 => {
                    let promised = state.durable().index.0;
                    state = harness.crash(state);
                    index = state.applied().last.index.0;
                    assert!(promised <= index, "seed {seed} step {step}");
                    model = history[&index].clone();
                    history.retain(|at, _| *at <= index);
                }
                3 => {
                    let (meta, stream) = chunks(&mut model);
                    state.begin_restore(&meta).unwrap();
                    for chunk in &stream {
                        state.restore_chunk(chunk).unwrap();
                    }
                    state.finish_restore().unwrap();
                    history.clear();
                    history.insert(index, model.clone());
                }
                _ => {
                    index += 1;
                    let batch = random_batch(&mut random);
                    state.commit(batch.clone(), applied(index)).unwrap();
                    model.commit(batch, applied(index)).unwrap();
                    history.insert(index, model.clone());
                }
            }
            assert_eq!(state.applied(), model.applied(), "seed {seed} step {step}");
            assert_eq!(content(&state), *model.pairs(), "seed {seed} step {step}");
        }
    }
}

fn random_batch(random: &mut Random) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for _ in 0..random.below(12) {
        let table = Table::ALL[usize::try_from(random.below(3)).unwrap()];
        let key = numbered(random.below(60));
        match random.below(8) {
            0 => batch.clear(table, key, numbered(random.below(60))),
            1 | 2 => batch.remove(table, key),
            _ => batch.put(table, key, numbered(random.below(1_000_000))),
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Crashes leave some of the unflushed commits; flushes end only when they must.
    struct Memory(Random);

    impl Harness for Memory {
        type State = MemoryState;

        fn create(&mut self) -> MemoryState {
            let mut state = MemoryState::new();
            state.set_deferred_flush(self.0.below(2) == 0);
            state
        }

        fn crash(&mut self, state: MemoryState) -> MemoryState {
            let extra = state.unflushed() as u64;
            state.crash(usize::try_from(self.0.below(extra + 1)).unwrap())
        }

        fn settle(&mut self, state: &mut MemoryState) {
            state.complete_flush();
        }

        fn reclaim(&mut self, _: &mut MemoryState) {}
    }

    #[test]
    fn the_state_in_memory_conforms() {
        for seed in 0..4 {
            all(&mut Memory(Random(seed)));
        }
        random_walks_agree_with_the_model(&mut Memory(Random(9)), 100..200);
    }
}
