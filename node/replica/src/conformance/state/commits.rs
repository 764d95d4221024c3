//! Commits, scans, flushes and crashes.

use std::ops::Bound;

use bytes::Bytes;
use raft::{EntryId, StoreError};

use super::{Content, Harness, applied, content, fill, numbered, stamp, stamped, text};
use crate::conformance::Random;
use crate::{
    Applied, Bounds, Listed, MAX_LISTED_BYTES, PairReader, StateReader, StateStore, Table,
    WriteBatch,
};

/// A new state holds no pairs, and no entry is applied.
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

/// A commit before the state's position is refused, because its effect is in the state already.
pub fn a_commit_does_not_go_back<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    fill(&mut state, 1..=5);
    assert!(matches!(
        state.commit(stamp(4), applied(4)),
        Err(StoreError::Damaged(_))
    ));
}

/// A scan keeps bounds of every kind, also crossed bounds, and the limits of count and bytes.
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

/// Long values are read, listed, replaced and removed as others are, and only they may be left out of a list.
pub fn long_values_are_values_like_others<H: Harness>(harness: &mut H) {
    let mut state = harness.create();
    let lengths = [0, 24, MAX_LISTED_BYTES, MAX_LISTED_BYTES + 1, 300_000];
    let mut index = 0;
    let mut commit = |state: &mut H::State, batch: WriteBatch| {
        index += 1;
        state.commit(batch, applied(index)).unwrap();
    };
    let value = |length: usize| Bytes::from(vec![7; length]);
    // Each length follows each other one under the same key.
    for first in lengths {
        for second in [lengths.as_slice(), &[usize::MAX]].concat() {
            for length in [first, second] {
                let mut batch = WriteBatch::default();
                if length == usize::MAX {
                    batch.remove(Table::Data, text("k"));
                } else {
                    batch.put(Table::Data, text("k"), value(length));
                }
                commit(&mut state, batch);
                let expected = (length != usize::MAX).then(|| value(length));
                assert_eq!(state.get(Table::Data, b"k"), Ok(expected.clone()));
                let whole = (Bound::Unbounded, Bound::Unbounded);
                let pairs = state.scan(Table::Data, whole, 9, usize::MAX).unwrap();
                let found = pairs.into_iter().map(|(_, value)| value).next();
                assert_eq!(found, expected);
                let listed = state.list(Table::Data, whole, 9, usize::MAX).unwrap();
                match listed.first() {
                    Some((_, Listed::Value(value))) => assert_eq!(Some(value), expected.as_ref()),
                    Some((_, Listed::Unread(left_out))) => {
                        assert!(length > MAX_LISTED_BYTES);
                        assert_eq!(*left_out, length);
                    }
                    None => assert_eq!(expected, None),
                }
            }
        }
    }
    let mut batch = WriteBatch::default();
    for n in 0..200 {
        batch.put(Table::Data, numbered(n), value(5_000));
    }
    commit(&mut state, batch);
    state.flush().unwrap();
    let mut state = harness.crash(state);
    assert_eq!(state.get(Table::Data, b"000199"), Ok(Some(value(5_000))));
    // A cleared range takes its long values along, and keys that come back don't find them.
    let mut batch = WriteBatch::default();
    batch.clear(Table::Data, numbered(0), numbered(199));
    commit(&mut state, batch);
    let mut batch = WriteBatch::default();
    batch.put(Table::Data, numbered(5), Bytes::new());
    commit(&mut state, batch);
    assert_eq!(state.get(Table::Data, b"000004"), Ok(None));
    assert_eq!(state.get(Table::Data, b"000005"), Ok(Some(Bytes::new())));
    assert_eq!(state.get(Table::Data, b"000199"), Ok(Some(value(5_000))));
}

/// After a crash the state is that of one commit, which is not older than `durable` was.
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

/// A finished flush covers the commits before its start.
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

/// An empty range counts nothing, and another counts about its bytes, flushed or not. Cleared pairs stop counting once the
/// clear is on the disk.
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
