//! The rules of a session table.

// The numbers in these tests are small.
#![allow(clippy::cast_possible_truncation)]

use super::*;

mod histories;

const TTL: u64 = 1_000;

const AHEAD: u64 = 100;

const LIMITS: SessionLimits = SessionLimits {
    ttl_ms: TTL,
    max_birth_ahead_ms: AHEAD,
    max_sessions: 8,
    max_results: 4,
};

impl Remembered for u64 {
    fn encode(&self, out: &mut Writer) {
        out.number(*self);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        input.number("result")
    }
}

fn client(birth: u64, nonce: u64) -> ClientId {
    ClientId {
        birth: LogTime(birth),
        nonce,
    }
}

fn write(client: ClientId, sequence: u64, acked_below: u64) -> SessionRef {
    SessionRef {
        client,
        sequence: Sequence(sequence),
        acked_below: Sequence(acked_below),
    }
}

/// A small generator (`SplitMix64`) that is the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Executes a write that must be admitted as new.
fn execute(table: &mut SessionTable<u64>, write: SessionRef, time: u64, result: u64) {
    match table.admit(write, LogTime(time), &LIMITS) {
        Admission::Execute(permit) => table.record(permit, result),
        other => panic!("{write:?} at {time}: {other:?}"),
    }
}

fn refusal(table: &mut SessionTable<u64>, write: SessionRef, time: u64) -> SessionRefusal {
    match table.admit(write, LogTime(time), &LIMITS) {
        Admission::Refuse(refusal) => refusal,
        other => panic!("{write:?} at {time}: {other:?}"),
    }
}

/// The simulator found this: when results above it filled the table, the table refused for ever the one write
/// whose answer would let the client acknowledge them.
#[test]
fn the_lowest_write_has_room_in_a_full_table() {
    let mut table = SessionTable::default();
    let c = client(10, 1);
    for sequence in 2..=u64::from(LIMITS.max_results) + 1 {
        execute(&mut table, write(c, sequence, 1), 20, sequence);
    }
    assert!(matches!(
        refusal(&mut table, write(c, 9, 1), 20),
        SessionRefusal::TooManyResults { .. }
    ));
    execute(&mut table, write(c, 1, 1), 20, 1);
    assert!(matches!(
        refusal(&mut table, write(c, 9, 1), 20),
        SessionRefusal::TooManyResults { .. }
    ));
    execute(&mut table, write(c, 9, 6), 20, 9);
}

#[test]
fn a_copy_is_answered_with_the_first_result() {
    let mut table = SessionTable::default();
    let c = client(10, 1);
    execute(&mut table, write(c, 1, 0), 20, 71);
    execute(&mut table, write(c, 3, 1), 20, 73);
    execute(&mut table, write(c, 2, 1), 21, 72);
    for (sequence, result) in [(1, 71), (2, 72), (3, 73)] {
        assert_eq!(
            table.admit(write(c, sequence, 1), LogTime(30), &LIMITS),
            Admission::Replay(result)
        );
    }
}

#[test]
fn acknowledged_results_are_dropped_and_their_copies_stale() {
    let mut table = SessionTable::default();
    let c = client(10, 1);
    for sequence in 1..=4 {
        execute(&mut table, write(c, sequence, 1), 20, sequence);
    }
    execute(&mut table, write(c, 5, 4), 20, 5);
    assert_eq!(
        refusal(&mut table, write(c, 3, 1), 20),
        SessionRefusal::Stale {
            sequence: Sequence(3),
            acked_below: Sequence(4)
        }
    );
    // A late copy with an old acknowledgement doesn't lower the bound.
    assert_eq!(
        table.admit(write(c, 4, 1), LogTime(20), &LIMITS),
        Admission::Replay(4)
    );
    assert!(matches!(
        refusal(&mut table, write(c, 3, 1), 20),
        SessionRefusal::Stale { .. }
    ));
}

#[test]
fn a_dropped_permit_changes_nothing() {
    let mut table = SessionTable::<u64>::default();
    let c = client(10, 1);
    let admission = table.admit(write(c, 1, 1), LogTime(20), &LIMITS);
    assert!(matches!(admission, Admission::Execute(_)));
    assert!(table.is_empty());
    assert_eq!(table.drain_dirty(), []);
    execute(&mut table, write(c, 1, 1), 20, 1);
}

#[test]
fn bad_numbers_are_refused() {
    let mut table = SessionTable::default();
    let c = client(10, 1);
    for bad in [write(c, 0, 0), write(c, 1, 2), write(c, 7, u64::MAX)] {
        assert!(matches!(
            refusal(&mut table, bad, 20),
            SessionRefusal::BadSequence { .. }
        ));
    }
    execute(&mut table, write(c, u64::MAX, u64::MAX), 20, 1);
    execute(&mut table, write(client(0, 2), 1, 1), 20, 1);
}

#[test]
fn the_horizon_tells_a_new_session_from_a_forgotten_one() {
    let mut table = SessionTable::default();
    let (old, other) = (client(1_000, 1), client(1_000, 2));
    execute(&mut table, write(old, 1, 1), 5_000, 1);
    // Nothing was forgotten, so a session is new at any age.
    execute(&mut table, write(client(0, 3), 1, 1), 5_000 + TTL, 1);
    assert_eq!(table.horizon(), LogTime(0));
    let late = 5_001 + TTL;
    assert_eq!(table.expire(LogTime(late), &LIMITS, 9), [old]);
    assert_eq!(table.horizon(), LogTime(1_001));
    for forgotten in [old, other] {
        assert_eq!(
            refusal(&mut table, write(forgotten, 1, 1), late),
            SessionRefusal::Expired
        );
    }
    execute(&mut table, write(client(1_001, 1), 1, 1), late, 1);
}

#[test]
fn a_silent_session_is_refused_whether_it_was_removed_or_not() {
    let c = client(1_000, 1);
    for removed in [false, true] {
        let mut table = SessionTable::default();
        execute(&mut table, write(c, 1, 1), 1_500, 1);
        let late = 1_500 + TTL + 1;
        assert_eq!(table.expire(LogTime(late - 1), &LIMITS, 9).len(), 0);
        if removed {
            assert_eq!(table.expire(LogTime(late), &LIMITS, 9).len(), 1);
            assert!(table.is_empty());
        }
        for sequence in [1, 2] {
            assert_eq!(
                refusal(&mut table, write(c, sequence, 1), late),
                SessionRefusal::Expired
            );
        }
    }
}

#[test]
fn a_replay_counts_as_use_and_a_refusal_does_not() {
    let mut table = SessionTable::default();
    let (used, refused) = (client(10, 1), client(10, 2));
    execute(&mut table, write(used, 1, 1), 20, 1);
    execute(&mut table, write(refused, 1, 1), 20, 1);
    let later = 20 + TTL;
    assert_eq!(
        table.admit(write(used, 1, 1), LogTime(later), &LIMITS),
        Admission::Replay(1)
    );
    refusal(&mut table, write(refused, 0, 0), later);
    execute(&mut table, write(used, 2, 2), later + TTL, 2);
    assert_eq!(
        refusal(&mut table, write(refused, 2, 2), later + 1),
        SessionRefusal::Expired
    );
}

#[test]
fn a_birth_ahead_neither_shortens_nor_lengthens_memory() {
    let mut table = SessionTable::default();
    let c = client(100 + AHEAD, 1);
    execute(&mut table, write(c, 1, 1), 100, 7);
    assert_eq!(table.expire(LogTime(100 + TTL), &LIMITS, 9), []);
    let late = 101 + TTL;
    assert_eq!(table.expire(LogTime(late), &LIMITS, 9), [c]);
    assert_eq!(
        refusal(&mut table, write(c, 1, 1), late),
        SessionRefusal::Expired
    );
    execute(&mut table, write(client(101 + AHEAD, 1), 1, 1), late, 1);
    assert_eq!(
        refusal(&mut table, write(client(late + AHEAD + 5, 2), 1, 1), late),
        SessionRefusal::FromFuture {
            ahead_ms: AHEAD + 5
        }
    );
}

#[test]
fn a_copy_follows_removals() {
    let mut source = SessionTable::default();
    let mut copy = SessionTable::<u64>::default();
    for nonce in 1..=3 {
        execute(&mut source, write(client(1_000, nonce), 1, 1), 1_000, 7);
    }
    for (client, record) in source.records() {
        copy.load(client, record).unwrap();
    }
    copy.unload(client(1_000, 2));
    copy.unload(client(1_000, 9));
    assert_eq!(copy.len(), 2);
    assert!(copy.drain_dirty().is_empty());
    assert_eq!(copy.expire(LogTime(1_001 + TTL), &LIMITS, 9).len(), 2);
    assert!(copy.is_empty());
}

#[test]
fn the_horizon_moves_along() {
    let mut source = SessionTable::default();
    let c = client(1_000, 1);
    execute(&mut source, write(c, 1, 1), 1_000, 7);
    let forgotten_at = LogTime(1_001 + TTL);
    assert_eq!(source.expire(forgotten_at, &LIMITS, 9).len(), 1);

    let mut destination = SessionTable::<u64>::default();
    for (client, record) in source.records() {
        destination.load(client, record).unwrap();
    }
    destination.raise_horizon(source.horizon());
    // The destination's log is far behind; by its own time the session would be young.
    assert_eq!(
        refusal(&mut destination, write(c, 1, 1), 1_200),
        SessionRefusal::Expired
    );
}

#[test]
fn full_tables_refuse_and_never_evict() {
    let mut table = SessionTable::default();
    for nonce in 0..u64::from(LIMITS.max_sessions) {
        execute(&mut table, write(client(10, nonce), 1, 1), 20, nonce);
    }
    let one_more = write(client(10, 99), 1, 1);
    assert_eq!(
        refusal(&mut table, one_more, 20),
        SessionRefusal::TooManySessions {
            limit: LIMITS.max_sessions
        }
    );
    let c = client(10, 0);
    for sequence in 2..=u64::from(LIMITS.max_results) {
        execute(&mut table, write(c, sequence, 1), 20, sequence);
    }
    assert_eq!(
        refusal(&mut table, write(c, 5, 1), 20),
        SessionRefusal::TooManyResults {
            limit: LIMITS.max_results
        }
    );
    // A copy is still answered, and an acknowledgement that travels with the write makes room for it.
    assert_eq!(
        table.admit(write(c, 2, 1), LogTime(20), &LIMITS),
        Admission::Replay(2)
    );
    execute(&mut table, write(c, 5, 2), 20, 5);
    assert!(matches!(
        refusal(&mut table, one_more, 20),
        SessionRefusal::TooManySessions { .. }
    ));
    assert_eq!(table.expire(LogTime(21 + TTL), &LIMITS, 3).len(), 3);
    execute(&mut table, write(client(30, 99), 1, 1), 21 + TTL, 1);
}

#[test]
fn dirty_sessions_are_told_once() {
    let mut table = SessionTable::default();
    let (a, b) = (client(10, 1), client(10, 2));
    execute(&mut table, write(a, 1, 1), 20, 1);
    execute(&mut table, write(a, 2, 1), 20, 2);
    execute(&mut table, write(b, 1, 1), 20, 3);
    let told = table.drain_dirty();
    assert_eq!(
        told,
        table
            .records()
            .map(|(client, record)| (client, Some(record)))
            .collect::<Vec<_>>()
    );
    assert_eq!(table.drain_dirty(), []);
    table.expire(LogTime(21 + TTL), &LIMITS, 9);
    assert_eq!(table.drain_dirty(), [(a, None), (b, None)]);
}

#[test]
fn damaged_records_are_errors() {
    let mut table = SessionTable::default();
    let c = client(10, 1);
    for sequence in [1, 3, 4] {
        execute(&mut table, write(c, sequence, 1), 20, 300 + sequence);
    }
    let (_, record) = table.records().next().unwrap();
    let mut accepted = 0;
    let mut random = Random(1);
    let mut read = |bytes: Vec<u8>| {
        let mut fresh = SessionTable::<u64>::default();
        if fresh.load(c, Bytes::from(bytes)).is_ok() {
            // An accepted record is a session that can be encoded again.
            let (_, again) = fresh.records().next().unwrap();
            SessionTable::<u64>::default().load(c, again).unwrap();
            accepted += 1;
        }
    };
    for length in 0..record.len() {
        let mut fresh = SessionTable::<u64>::default();
        assert!(
            fresh.load(c, record.slice(..length)).is_err(),
            "cut at {length}"
        );
    }
    for bit in 0..record.len() * 8 {
        let mut flipped = record.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        read(flipped);
    }
    for _ in 0..20_000 {
        let length = random.below(40);
        let mut bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        if let Some(version) = bytes.first_mut() {
            *version = RECORD_VERSION;
        }
        read(bytes);
    }
    assert!(accepted > 0, "some flips only change a result");
}
