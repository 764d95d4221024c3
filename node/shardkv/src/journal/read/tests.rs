//! Pages at, below and above their limits.

use replica::memory::MemoryState;
use replica::{Applied, StateStore, WriteBatch};

use super::*;
use crate::journal::MAX_NAMED_ROW_BYTES;

const SHARD: ShardId = ShardId(3);
/// The bytes of a stored pair's key and value.
const PAIR: usize = 11;

fn key(n: usize) -> Bytes {
    format!("{n:06}").into()
}

/// A state with so many pairs, and these names of the first generation. A name of the next one follows.
fn state<'a>(pairs: usize, names: impl Iterator<Item = Name<'a>>) -> MemoryState {
    let mut state = MemoryState::new();
    let mut batch = WriteBatch::default();
    for n in 0..pairs {
        let stored = keys::data(SHARD, &key(n));
        assert_eq!(stored.len() + 1, PAIR);
        batch.put(Table::Data, stored, Bytes::from_static(b"v"));
    }
    let next = [(2, Name::Pair(b"next"))].into_iter();
    for (generation, name) in names.map(|name| (1, name)).chain(next) {
        let name = keys::journal_name(SHARD, generation, &name.encode());
        batch.put(Table::Journal, name, Bytes::new());
    }
    state.commit(batch, Applied::default()).unwrap();
    state
}

/// Reads all pages of the first generation. Returns the number of changes in each, and all changes.
fn pages(state: &MemoryState, room: usize) -> (Vec<usize>, Vec<RowChange>) {
    let (mut counts, mut changes) = (Vec::new(), Vec::new());
    let mut after = Some(Position::default());
    while let Some(from) = after {
        let mut page = Page {
            state,
            shard: SHARD,
            generation: 1,
            room,
            changes: Vec::new(),
            bugs: Bugs::default(),
        };
        after = page.read(&from).unwrap().unwrap();
        assert!(after.as_ref().is_none_or(|next| *next > from));
        counts.push(page.changes.len());
        changes.extend(page.changes);
    }
    (counts, changes)
}

fn is_pair(change: &RowChange, n: usize) -> bool {
    matches!(change, RowChange::Pair(of, Some(_)) if *of == key(n))
}

/// The pages of so many named pairs, which must be complete.
fn named(count: usize, room: usize) -> Vec<usize> {
    let named: Vec<Bytes> = (0..count).map(key).collect();
    let state = state(count, named.iter().map(|key| Name::Pair(key)));
    let (counts, changes) = pages(&state, room);
    assert_eq!(changes.len(), count);
    assert!(
        changes
            .iter()
            .zip(0..)
            .all(|(change, n)| is_pair(change, n))
    );
    counts
}

/// The pages of a cleared range in which so many pairs are, which must be complete.
fn cleared(count: usize, room: usize) -> Vec<usize> {
    let (start, end) = (&b""[..], &b""[..]);
    let state = state(count, [Name::Range { start, end }].into_iter());
    let (counts, changes) = pages(&state, room);
    assert_eq!(changes.len(), count + 1);
    let (first, pairs) = changes.split_first().unwrap();
    assert!(matches!(first, RowChange::Clear { .. }));
    assert!(pairs.iter().zip(0..).all(|(change, n)| is_pair(change, n)));
    counts
}

/// A page that is full isn't the last one, although the generation may have nothing more.
#[test]
fn a_page_with_the_most_changes_is_followed_by_another() {
    let (all, most) = (usize::MAX, MAX_CHANGES);
    assert_eq!(named(most - 1, all), [most - 1]);
    assert_eq!(named(most, all), [most, 0]);
    assert_eq!(named(most + 1, all), [most, 1]);
    // That the range is cleared is a change, too.
    assert_eq!(cleared(most - 2, all), [most - 1]);
    assert_eq!(cleared(most - 1, all), [most, 0]);
    assert_eq!(cleared(most, all), [most, 1]);
}

/// The change that uses up the room is the last one of a page, also if it fills the room exactly.
#[test]
fn a_page_that_fills_its_room_is_followed_by_another() {
    let named_pair = Name::Pair(&key(0)).encode().len() + 1;
    let room = 2 * named_pair;
    assert_eq!(named(3, room), [2, 1]);
    assert_eq!(named(2, room), [2, 0]);
    assert_eq!(named(2, room + 1), [2]);
    assert_eq!(named(4, room + 1), [3, 1]);
    let (start, end) = (&b""[..], &b""[..]);
    let room = Name::Range { start, end }.encode().len() + 2 * PAIR;
    assert_eq!(cleared(3, room), [3, 1]);
    assert_eq!(cleared(2, room), [3, 0]);
    assert_eq!(cleared(2, room + 1), [3]);
    assert_eq!(cleared(4, room + 1), [4, 1]);
    // Nothing of the range fits beside its clear.
    assert_eq!(cleared(1, room - 2 * PAIR), [1, 1, 0]);
}

/// Reads the pages of one long name of rows, of which so many are there. One more row is just outside.
fn long_rows(count: usize, room: usize) -> Vec<usize> {
    let prefix = [0xff; MAX_NAMED_ROW_BYTES].to_vec();
    let mut state = MemoryState::new();
    let mut batch = WriteBatch::default();
    let long = |n: usize| [&prefix[..], format!("{n:06}").as_bytes()].concat();
    for n in 0..count {
        let stored = keys::row(SHARD, &long(n));
        batch.put(Table::Data, stored, Bytes::from_static(b"v"));
    }
    let next = keys::row(ShardId(SHARD.0 + 1), b"");
    batch.put(Table::Data, next, Bytes::new());
    let before = keys::row(SHARD, &prefix[1..]);
    batch.put(Table::Data, before, Bytes::new());
    let name = keys::journal_name(SHARD, 1, &Name::Rows(&prefix).encode());
    batch.put(Table::Journal, name, Bytes::new());
    state.commit(batch, Applied::default()).unwrap();
    let (counts, changes) = pages(&state, room);
    let (first, rows) = changes.split_first().unwrap();
    assert_eq!(*first, RowChange::ClearRows(prefix.clone().into()));
    let expected = (0..count).map(|n| RowChange::Row(long(n).into(), Some("v".into())));
    assert!(rows.iter().cloned().eq(expected));
    counts
}

/// A part that begins or ends within the rows of a long name has at most one row of them that exceeds the room.
#[test]
fn rows_with_long_keys_are_read_in_parts() {
    assert_eq!(long_rows(5, usize::MAX), [6]);
    assert_eq!(long_rows(0, usize::MAX), [1]);
    assert_eq!(long_rows(3, 1), [1, 1, 1, 1, 0]);
    // The name itself, two rows, and not quite a third.
    let row = MAX_NAMED_ROW_BYTES + 4 + 6 + 1;
    let room = 1 + MAX_NAMED_ROW_BYTES + 3 * row - 1;
    assert_eq!(long_rows(3, room), [3, 1]);
    assert_eq!(long_rows(3, room + 1), [4, 0]);
}

/// A row's name has the row or its absence.
#[test]
fn rows_are_read_by_their_names() {
    let mut state = state(0, [Name::Row(b"a"), Name::Row(b"b")].into_iter());
    let mut batch = WriteBatch::default();
    batch.put(
        Table::Data,
        keys::row(SHARD, b"b"),
        Bytes::from_static(b"v"),
    );
    // A pair of the same key is another thing.
    batch.put(Table::Data, keys::data(SHARD, b"a"), Bytes::new());
    state.commit(batch, Applied::default()).unwrap();
    let expected = [
        RowChange::Row("a".into(), None),
        RowChange::Row("b".into(), Some("v".into())),
    ];
    let (counts, changes) = pages(&state, usize::MAX);
    assert_eq!((counts, &changes[..]), (vec![2], &expected[..]));
    assert_eq!(pages(&state, 1).0, [1, 1, 0]);
}

/// A page of rows with long values and of rows with long keys fits into an entry, whatever else it has.
#[test]
fn pages_with_the_largest_rows_fit_into_entries() {
    let (entry, chunk) = (1 << 20, 600_000);
    let most = crate::max_keyspace_operation_bytes(entry, 600_000);
    let prefix = vec![9; MAX_NAMED_ROW_BYTES];
    let long = |n: u8| [&prefix[..], &vec![n; 2 * most - MAX_NAMED_ROW_BYTES][..]].concat();
    let mut state = state(
        0,
        [Name::Row(b"a"), Name::Row(b"b"), Name::Rows(&prefix)].into_iter(),
    );
    let mut batch = WriteBatch::default();
    for key in [b"a", b"b"] {
        batch.put(Table::Data, keys::row(SHARD, key), vec![7; most].into());
    }
    for n in 0..3 {
        batch.put(Table::Data, keys::row(SHARD, &long(n)), Bytes::new());
    }
    state.commit(batch, Applied::default()).unwrap();
    let mut after = Some(Position::default());
    let mut rows = 0;
    while let Some(from) = after {
        let mut page = Page {
            state: &state,
            shard: SHARD,
            generation: 1,
            room: chunk,
            changes: Vec::new(),
            bugs: Bugs::default(),
        };
        after = page.read(&from).unwrap().unwrap();
        let cursor = |after| CopyCursor::Page {
            generation: 1,
            after,
        };
        let is_row = |change: &&RowChange| matches!(change, RowChange::Row(..));
        rows += page.changes.iter().filter(is_row).count();
        let part = Part {
            shard: SHARD,
            copy: crate::CopyId {
                since: types::ConfigNum(1),
                journal: raft::Index(1),
            },
            after: cursor(from),
            changes: page.changes,
            next: PartNext::At(after.clone().map_or(CopyCursor::page(2), cursor)),
        };
        let bytes = part.encode().len();
        assert!(bytes <= entry, "{bytes} of {entry}");
        assert_eq!(Part::decode(part.encode()), Ok(part));
    }
    assert_eq!(rows, 5);
}

/// Names are read in batches, which the generation may fill exactly.
#[test]
fn no_name_is_lost_between_two_reads() {
    for count in [MAX_NAMES - 1, MAX_NAMES, MAX_NAMES + 1] {
        assert_eq!(named(count, usize::MAX), [count]);
    }
}
