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
        batch.put(Table::Data, keys::row(shard, b"other"), value.clone());
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

/// Adds rows with these keys to a state.
fn with_rows(mut state: MemoryState, rows: &[Bytes]) -> MemoryState {
    let mut batch = WriteBatch::default();
    for row in rows {
        batch.put(Table::Data, keys::row(SHARD, row), Bytes::from_static(b"v"));
    }
    state.commit(batch, Applied::default()).unwrap();
    state
}

/// Returns the numbers of pairs, sessions and rows of each chunk, and the length of the longest encoded one. The chunks must be right
/// and have these rows.
fn chunks_with_rows(
    state: &MemoryState,
    room: usize,
    rows: &[Bytes],
) -> (Vec<(usize, usize, usize)>, usize) {
    let (mut counts, mut found, mut longest) = (Vec::new(), Vec::new(), 0);
    let mut after = Some(Cursor::default());
    while let Some(from) = after {
        let mut cutter = Cutter::new(state, SHARD, room);
        after = cutter.cut(&from, Bugs::default()).unwrap();
        let sizes = (&cutter.pairs, &cutter.sessions, &cutter.rows);
        counts.push((sizes.0.len(), sizes.1.len(), sizes.2.len()));
        found.extend(cutter.rows.iter().map(|(key, _)| key.clone()));
        let chunk = Chunk {
            shard: SHARD,
            config: ConfigNum(9),
            after: from,
            pairs: Vec::new(),
            sessions: Vec::new(),
            rows: cutter.rows,
            next: after.clone().map_or_else(done, Next::Chunk),
        };
        if !chunk.rows.is_empty() {
            assert_eq!(crate::install::check_chunk(&chunk, 8), Ok(()));
            assert!(chunk.has_rows());
        }
        let encoded = chunk.encode();
        longest = longest.max(encoded.len());
        assert_eq!(Chunk::decode(encoded), Ok(chunk));
    }
    assert_eq!(found, rows);
    (counts, longest)
}

fn done() -> Next {
    Next::Done {
        clock: crate::SessionClock::default(),
        ttl_ms: 1,
    }
}

#[test]
fn rows_follow_the_sessions() {
    let rows: Vec<Bytes> = (0..5).map(key).collect();
    let all = |pairs, sessions, room| {
        let state = with_rows(state(pairs, sessions), &rows);
        chunks_with_rows(&state, room, &rows).0
    };
    assert_eq!(all(3, 2, usize::MAX), [(3, 2, 5)]);
    assert_eq!(all(0, 0, usize::MAX), [(0, 0, 5)]);
    let pair = keys::data(SHARD, &key(0)).len() + 1;
    let session = keys::session(SHARD, client(0)).len() + 1;
    // A row that doesn't fit beside others waits, whatever is before it.
    assert_eq!(
        all(3, 2, 3 * pair + 2 * session + 1),
        [(3, 2, 0), (0, 0, 5)]
    );
    assert_eq!(all(3, 2, 3 * pair + 2 * session), [(3, 2, 0), (0, 0, 5)]);
    assert_eq!(all(3, 0, 3 * pair + 1), [(3, 0, 0), (0, 0, 3), (0, 0, 2)]);
    assert_eq!(
        all(0, 0, 1),
        [
            (0, 0, 1),
            (0, 0, 1),
            (0, 0, 1),
            (0, 0, 1),
            (0, 0, 1),
            (0, 0, 0)
        ]
    );
}

/// An entry of the log must hold a chunk, whatever keys clients chose: the key that it follows, the contents or one row, and no more.
#[test]
fn rows_with_the_longest_keys_fit_into_chunks() {
    let long = 3 << 20;
    let rows: Vec<Bytes> = (0..4).map(|n| vec![n; long].into()).collect();
    let state = with_rows(state(3, 3), &rows);
    let room = 512 << 10;
    let (counts, longest) = chunks_with_rows(&state, room, &rows);
    let one = (0, 0, 1);
    assert_eq!(counts, [(3, 3, 0), one, one, one, one, (0, 0, 0)]);
    assert!(longest < 2 * long + 1_000, "{longest}");
}

/// Rows of the largest operations move, whatever keys clients chose, in entries of every size.
#[test]
fn rows_of_the_largest_operations_fit_into_entries() {
    for (entry, chunk) in [
        (8 << 20, 512 << 10),
        (2 << 20, 512 << 10),
        (1 << 20, 900 << 10),
    ] {
        let most = crate::max_keyspace_operation_bytes(entry, chunk);
        let usual = keyspace::Limits::default().max_request_bytes as usize;
        assert!(entry < 8 << 20 || most > usual, "{most}");
        let rows: Vec<Bytes> = (0..3).map(|n| vec![n; 2 * most].into()).collect();
        let state = with_rows(state(3, 3), &rows);
        let (_, longest) = chunks_with_rows(&state, chunk as usize, &rows);
        assert!(longest <= entry, "{longest} of {entry}");
    }
}

/// Groups of older versions take what has no rows of keyspaces.
#[test]
fn chunks_without_rows_are_encoded_as_ever() {
    let chunk = Chunk {
        shard: SHARD,
        config: ConfigNum(9),
        after: Cursor::default(),
        pairs: vec![("k".into(), "v".into())],
        sessions: Vec::new(),
        rows: Vec::new(),
        next: Next::Chunk(Cursor::Data("k".into())),
    };
    let expected = b"\x02\x03\x09\0\0\x01\x01k\x01v\0\0\0\x01k";
    let expected = crate::encoding::with_checksum(&Bytes::from_static(expected));
    assert_eq!(chunk.encode(), expected);
    assert!(!chunk.has_rows());
}
