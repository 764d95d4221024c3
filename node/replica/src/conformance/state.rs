//! The conformance suite of state stores, by topic: [`commits`], [`cursors`], [`views`], [`snapshots`] and
//! [`walks`].

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use raft::{EntryId, Index, Membership, Term};
use types::{LogTime, NodeId};

use crate::memory::MemoryState;
use crate::{Applied, Digest, StateStore, Table, WriteBatch};

pub mod commits;
pub mod cursors;
pub mod snapshots;
pub mod views;
pub mod walks;

/// Makes, crashes and reopens states.
pub trait Harness {
    /// The state under test.
    type State: StateStore;

    /// Creates an empty state on a disk of its own.
    fn create(&mut self) -> Self::State;

    /// Crashes the state, so that changes that were not durable may be lost, and opens it again.
    fn crash(&mut self, state: Self::State) -> Self::State;

    /// Waits until a flush that was started is done.
    fn settle(&mut self, state: &mut Self::State);

    /// Waits until the space of cleared ranges is reclaimed, in a store where that takes time.
    fn reclaim(&mut self, state: &mut Self::State);
}

/// Runs the whole suite.
pub fn all<H: Harness>(harness: &mut H) {
    commits::an_empty_state_is_empty(harness);
    commits::commits_are_visible_and_whole(harness);
    commits::clears_come_before_changes(harness);
    commits::a_commit_does_not_go_back(harness);
    commits::scans_keep_their_bounds(harness);
    commits::long_values_are_values_like_others(harness);
    commits::a_crash_leaves_some_whole_commit(harness);
    commits::a_flush_is_durable(harness);
    commits::a_started_flush_covers_what_was_committed(harness);
    snapshots::a_snapshot_stays_while_commits_go_on(harness);
    snapshots::a_large_snapshot_comes_in_chunks(harness);
    views::a_view_is_a_cut_of_one_moment(harness);
    views::a_view_keeps_its_bounds(harness);
    views::a_view_outlives_a_restore_and_may_be_dropped_early(harness);
    commits::estimates_are_about_right(harness);
    snapshots::an_abandoned_restore_is_gone(harness);
    snapshots::a_restore_replaces_the_state_durably(harness);
    snapshots::a_crash_before_the_end_of_a_restore_leaves_the_old_state(harness);
    snapshots::a_broken_stream_of_chunks_changes_nothing(harness);
    snapshots::a_restore_starts_over(harness);
    snapshots::snapshots_go_both_ways_with_the_model(harness);
    cursors::cursors_agree_with_the_model(harness, 0..6);
    walks::random_walks_agree_with_the_model(harness, 0..6);
}

type Content = BTreeMap<(Table, Bytes), Bytes>;

fn applied(index: u64) -> Applied {
    Applied {
        last: EntryId::new(Term(1 + index / 10), Index(index)),
        membership: Membership::of_voters([(NodeId(1), "a:1"), (NodeId(2 + index / 7), "b:2")]),
        time: LogTime(1_000 * index),
        feature_level: u32::try_from(index / 3).unwrap_or_default(),
        digest: (index % 3 == 2).then_some(Digest {
            since: Index(index / 2),
            value: index << 40,
        }),
    }
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn numbered(n: u64) -> Bytes {
    format!("{n:06}").into()
}

/// Reads all pairs of a state, page by page.
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

/// Returns a commit that writes its number into all tables.
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

/// Returns the pairs of a model with enough data for several chunks, and its snapshot.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Random;

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
        walks::random_walks_agree_with_the_model(&mut Memory(Random(9)), 100..200);
    }
}
