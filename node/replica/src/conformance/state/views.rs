//! Views, which stay as they are while the state changes.

use bytes::Bytes;

use super::{Harness, applied, content, large, numbered, text};
use crate::{StateReader, StateStore, Table, View, WriteBatch};

/// Returns the rest of a view.
fn pages(view: &View) -> Vec<(Bytes, Bytes)> {
    let mut pairs = Vec::new();
    while let Some(page) = view.next_page().unwrap() {
        assert!(!page.is_empty(), "a page has something");
        pairs.extend(page);
    }
    assert_eq!(view.next_page(), Ok(None), "the end stays the end");
    pairs
}

/// Commits about 4 MB, so that a view has more pages than any store reads ahead.
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

/// Each view shows the pairs of its own moment, even if they are changed, cleared and flushed while it is read.
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

/// A view includes its start and excludes its end. Empty and crossed ranges have no pairs. Tables don't mix.
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

/// A view stays readable after a restore replaced the state. Views that are read partly, or not at all, leave nothing behind
/// that would prevent the state from being opened again.
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
