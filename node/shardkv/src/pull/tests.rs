//! Chunks at, below and above their limits.

use replica::memory::MemoryState;
use replica::{Applied, StateStore, WriteBatch};
use types::LogTime;

use super::*;

const SHARD: ShardId = ShardId(3);

fn key(n: usize) -> Bytes {
    format!("{n:06}").into()
}

fn client(n: usize) -> ClientId {
    ClientId {
        birth: LogTime(n as u64),
        nonce: 0,
    }
}

/// A state with so many pairs and sessions of the shard, and one of each neighbour.
fn state(pairs: usize, sessions: usize) -> MemoryState {
    let mut state = MemoryState::new();
    let mut batch = WriteBatch::default();
    let value = Bytes::from_static(b"v");
    for shard in [ShardId(2), ShardId(4)] {
        batch.put(Table::Data, keys::data(shard, b"other"), value.clone());
        let session = keys::session(shard, client(1));
        batch.put(Table::Sessions, session, value.clone());
    }
    for n in 0..pairs {
        batch.put(Table::Data, keys::data(SHARD, &key(n)), value.clone());
    }
    for n in 0..sessions {
        let session = keys::session(SHARD, client(n));
        batch.put(Table::Sessions, session, value.clone());
    }
    state.commit(batch, Applied::default()).unwrap();
    state
}

/// Returns the numbers of pairs and sessions of each chunk, whose rows together must be those of [`state`].
fn chunks(state: &MemoryState, room: usize, rows: (usize, usize)) -> Vec<(usize, usize)> {
    let (mut pairs, mut sessions, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    let mut after = Some(Cursor::default());
    while let Some(from) = after {
        let mut cutter = Cutter::new(state, SHARD, room);
        after = cutter.cut(&from, Bugs::default()).unwrap();
        assert!(after.as_ref().is_none_or(|next| *next > from));
        counts.push((cutter.pairs.len(), cutter.sessions.len()));
        pairs.extend(cutter.pairs.into_iter().map(|(key, _)| key));
        sessions.extend(cutter.sessions.into_iter().map(|(client, _)| client));
    }
    assert!(pairs.into_iter().eq((0..rows.0).map(key)));
    assert!(sessions.into_iter().eq((0..rows.1).map(client)));
    counts
}

/// A chunk that is full isn't the last one, although the shard may have nothing more.
#[test]
fn a_chunk_with_the_most_rows_is_followed_by_another() {
    let (all, most) = (usize::MAX, MAX_CHUNK_PAIRS);
    for (count, expected) in [
        (most - 1, vec![(most - 1, 1)]),
        (most, vec![(most, 0), (0, 1)]),
        (most + 1, vec![(most, 0), (1, 1)]),
    ] {
        let state = state(count, 1);
        assert_eq!(chunks(&state, all, (count, 1)), expected);
    }
    let most = MAX_CHUNK_SESSIONS;
    for (count, expected) in [
        (most - 1, vec![(1, most - 1)]),
        (most, vec![(1, most), (0, 0)]),
        (most + 1, vec![(1, most), (0, 1)]),
    ] {
        let state = state(1, count);
        assert_eq!(chunks(&state, all, (1, count)), expected);
    }
}

/// The row that uses up the room is the last one of a chunk, also if it fills the room exactly.
#[test]
fn a_chunk_that_fills_its_room_is_followed_by_another() {
    let pair = keys::data(SHARD, &key(0)).len() + 1;
    let session = keys::session(SHARD, client(0)).len() + 1;
    let room = 2 * pair;
    assert_eq!(chunks(&state(3, 0), room, (3, 0)), [(2, 0), (1, 0)]);
    assert_eq!(chunks(&state(2, 0), room, (2, 0)), [(2, 0), (0, 0)]);
    assert_eq!(chunks(&state(2, 0), room + 1, (2, 0)), [(2, 0)]);
    assert_eq!(chunks(&state(4, 0), room + 1, (4, 0)), [(3, 0), (1, 0)]);
    let room = 2 * session;
    assert_eq!(chunks(&state(0, 3), room, (0, 3)), [(0, 2), (0, 1)]);
    assert_eq!(chunks(&state(0, 2), room, (0, 2)), [(0, 2), (0, 0)]);
    assert_eq!(chunks(&state(0, 2), room + 1, (0, 2)), [(0, 2)]);
}
