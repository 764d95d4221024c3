//! Snapshots and restores.

use bytes::Bytes;
use raft::{Index, StoreError};

use super::{Content, Harness, applied, chunks, content, fill, large, numbered, stamped, text};
use crate::memory::MemoryState;
use crate::{PairReader, StateStore, Table, WriteBatch};

/// A snapshot shows the state of its moment, even if later commits change and clear it.
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

/// Chunks have about the intended size, and one pair may be larger than a chunk.
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

/// An abandoned restore is gone, and another one may follow.
pub fn an_abandoned_restore_is_gone<H: Harness>(harness: &mut H) {
    let (expected, meta, chunks) = large(77);
    let mut state = harness.create();
    fill(&mut state, 1..=20);
    state.abandon_restore();
    state.begin_restore(&meta).unwrap();
    state.restore_chunk(&chunks[0]).unwrap();
    state.abandon_restore();
    assert!(state.restore_chunk(&chunks[1]).is_err());
    assert!(state.finish_restore().is_err());
    assert_eq!(
        (state.applied(), content(&state)),
        (applied(20), stamped(20))
    );
    state.begin_restore(&meta).unwrap();
    for chunk in &chunks {
        state.restore_chunk(chunk).unwrap();
    }
    state.finish_restore().unwrap();
    assert_eq!((state.applied(), content(&state)), (applied(77), expected));
}

/// A finished restore is visible and durable at once, with its position and content, and nothing of the old state is left.
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
    // Commits go on.
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

/// A crash after any number of chunks leaves the old state, with the commits made during the restore.
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

/// Cut, repeated, swapped, damaged and foreign chunks give `Damaged`, and the old state stays usable.
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

/// `begin_restore` drops chunks that were staged before. Chunks without it are refused.
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
