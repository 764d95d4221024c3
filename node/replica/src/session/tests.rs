// The numbers here are small.
#![allow(clippy::cast_possible_truncation)]

use std::collections::BTreeSet as Set;

use super::*;

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

/// Found by the simulator: with the table full of results above it, the one write whose answer would let
/// the client acknowledge them was refused for ever.
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
fn age_tells_a_new_session_from_a_forgotten_one() {
    let mut table = SessionTable::default();
    let (young, old) = (client(1_000, 1), client(999, 2));
    assert_eq!(
        refusal(&mut table, write(old, 1, 1), 1_000 + TTL),
        SessionRefusal::Expired
    );
    execute(&mut table, write(young, 1, 1), 1_000 + TTL, 1);
}

#[test]
fn a_silent_session_is_refused_whether_it_was_removed_or_not() {
    let c = client(1_000, 1);
    for removed in [false, true] {
        let mut table = SessionTable::default();
        execute(&mut table, write(c, 1, 1), 1_500, 1);
        let late = 1_500 + TTL + 1;
        assert_eq!(table.expire(LogTime(late - 1), &LIMITS, 9), 0);
        if removed {
            assert_eq!(table.expire(LogTime(late), &LIMITS, 9), 1);
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
fn a_birth_ahead_of_the_log_does_not_shorten_memory() {
    // Were `last_used` the log's time and not at least the birth, the session would be forgotten while it
    // still counts as young, and this copy would be executed again.
    let mut table = SessionTable::default();
    let c = client(100 + AHEAD, 1);
    execute(&mut table, write(c, 1, 1), 100, 7);
    let late = LogTime(100 + TTL + 1);
    assert_eq!(table.expire(late, &LIMITS, 9), 0);
    assert_eq!(
        table.admit(write(c, 1, 1), late, &LIMITS),
        Admission::Replay(7)
    );
    assert_eq!(
        refusal(
            &mut table,
            write(client(late.0 + AHEAD + 5, 2), 1, 1),
            late.0
        ),
        SessionRefusal::FromFuture {
            ahead_ms: AHEAD + 5
        }
    );
}

#[test]
fn the_clock_does_not_run_backwards_with_a_move() {
    let mut source = SessionTable::default();
    let c = client(1_000, 1);
    execute(&mut source, write(c, 1, 1), 1_000, 7);
    let forgotten_at = LogTime(1_001 + TTL);
    assert_eq!(source.expire(forgotten_at, &LIMITS, 9), 1);

    let mut destination = SessionTable::<u64>::default();
    for (client, record) in source.records() {
        destination.load(client, record).unwrap();
    }
    destination.raise_clock(source.clock());
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
    assert_eq!(table.expire(LogTime(21 + TTL), &LIMITS, 3), 3);
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
            // What is accepted is a session, and can be written down again.
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

/// `SplitMix64`: small, and the same everywhere.
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

/// A client as it really behaves: numbers its writes, repeats them, acknowledges what was answered.
struct Sender {
    id: ClientId,
    next: u64,
    answered: Set<u64>,
    acked_below: u64,
}

/// How often each outcome was seen over all histories, so that the test can't pass by testing nothing.
#[derive(Debug, Default)]
struct Seen {
    executed: u64,
    replayed: u64,
    expired: u64,
    future: u64,
    stale: u64,
    too_many_sessions: u64,
    too_many_results: u64,
    forgotten: u64,
    moved: u64,
    reopened: u64,
}

/// The world around one table: a network that keeps every copy for ever, a log clock, restarts and moves.
struct World {
    random: Random,
    table: SessionTable<u64>,
    /// The clock of the log that the table lives on now.
    log_time: u64,
    /// The clock that came with the last move.
    floor: LogTime,
    /// The greatest log time that the table ever saw.
    greatest: u64,
    senders: Vec<Sender>,
    network: Vec<(usize, SessionRef)>,
    /// The truth: what was executed, with its result.
    executed: BTreeMap<(ClientId, u64), u64>,
    seen: Seen,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            table: SessionTable::default(),
            log_time: 5_000,
            floor: LogTime(0),
            greatest: 0,
            senders: Vec::new(),
            network: Vec::new(),
            executed: BTreeMap::new(),
            seen: Seen::default(),
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=2 => self.open(),
            3..=22 => self.send(),
            23..=79 if !self.network.is_empty() => self.deliver(),
            80..=91 => self.log_time += self.random.below(20),
            92 => self.log_time += self.random.below(TTL / 2),
            93 if self.random.below(4) == 0 => self.log_time += TTL + self.random.below(20),
            94 => {
                let at_most = self.random.below(4) as usize;
                let now = LogTime(self.log_time);
                self.greatest = self.greatest.max(self.log_time);
                self.seen.forgotten += self.table.expire(now, &LIMITS, at_most) as u64;
            }
            95 => self.reopen(),
            96 => {
                // A move to a group whose log is behind or ahead; the clock comes along and is kept. The
                // entry that fences the shard carries the old log's time.
                self.table.raise_clock(LogTime(self.log_time));
                self.greatest = self.greatest.max(self.log_time);
                self.floor = self.table.clock();
                let shift = self.random.below(2 * AHEAD);
                self.log_time = (self.log_time + AHEAD).saturating_sub(shift);
                self.reopen();
                self.seen.moved += 1;
            }
            _ => {}
        }
        self.check_invariants();
    }

    fn open(&mut self) {
        let skew = self.random.below(2 * AHEAD);
        let birth = (self.log_time + skew).saturating_sub(AHEAD / 2);
        self.senders.push(Sender {
            id: client(birth, self.random.next()),
            next: 1,
            answered: Set::new(),
            acked_below: 1,
        });
    }

    fn send(&mut self) {
        // Mostly the newest sessions; now and then one from long ago.
        let count = self.senders.len() as u64;
        if count == 0 {
            return;
        }
        let recent = if self.random.below(8) == 0 {
            count
        } else {
            count.min(6)
        };
        let back = self.random.below(recent);
        let chosen = (count - 1 - back) as usize;
        let writer = &mut self.senders[chosen];
        let named = write(writer.id, writer.next, writer.acked_below);
        writer.next += 1;
        self.network.push((chosen, named));
        // The client repeats with what it has acknowledged by then: the copies differ in that.
        if self.random.below(2) == 0 {
            self.network.push((chosen, named));
        }
    }

    fn deliver(&mut self) {
        let count = self.network.len() as u64;
        let recent = if self.random.below(3) == 0 {
            count
        } else {
            count.min(10)
        };
        let back = self.random.below(recent);
        let (writer, mut named) = self.network[(count - 1 - back) as usize];
        if self.random.below(3) == 0 {
            let acked = self.senders[writer].acked_below.min(named.sequence.0);
            named.acked_below = Sequence(acked);
        }
        self.greatest = self.greatest.max(self.log_time);
        let before = self.table.clone();
        let key = (named.client, named.sequence.0);
        let admission = self.table.admit(named, LogTime(self.log_time), &LIMITS);
        match admission {
            Admission::Execute(permit) => {
                let result = self.random.next();
                let twice = self.executed.insert(key, result);
                assert_eq!(twice, None, "{named:?} was executed twice");
                self.table.record(permit, result);
                self.seen.executed += 1;
                self.answered(writer, named.sequence.0);
            }
            Admission::Replay(result) => {
                assert_eq!(self.executed.get(&key), Some(&result), "{named:?}");
                self.seen.replayed += 1;
                self.answered(writer, named.sequence.0);
            }
            Admission::Refuse(refusal) => {
                self.check_refusal(writer, named, refusal, &before);
                assert_eq!(self.table.drain_dirty(), before.clone().drain_dirty());
            }
        }
    }

    fn answered(&mut self, writer: usize, sequence: u64) {
        // Some answers are lost on their way.
        if self.random.below(4) == 0 {
            return;
        }
        let writer = &mut self.senders[writer];
        writer.answered.insert(sequence);
        while writer.answered.contains(&writer.acked_below) {
            writer.acked_below += 1;
        }
    }

    fn check_refusal(
        &mut self,
        writer: usize,
        named: SessionRef,
        refusal: SessionRefusal,
        before: &SessionTable<u64>,
    ) {
        let birth = named.client.birth.0;
        match refusal {
            SessionRefusal::Expired => {
                self.seen.expired += 1;
                assert!(
                    self.greatest.saturating_sub(birth) > TTL,
                    "a young session is never refused as expired: {named:?}"
                );
            }
            SessionRefusal::FromFuture { ahead_ms } => {
                self.seen.future += 1;
                assert_eq!(birth - self.greatest, ahead_ms);
                assert!(ahead_ms > AHEAD);
            }
            SessionRefusal::Stale { .. } => {
                self.seen.stale += 1;
                let answered = &self.senders[writer].answered;
                assert!(answered.contains(&named.sequence.0), "{named:?}");
            }
            SessionRefusal::TooManySessions { .. } => {
                self.seen.too_many_sessions += 1;
                assert_eq!(before.len(), LIMITS.max_sessions as usize);
                assert!(!before.sessions.contains_key(&named.client));
            }
            SessionRefusal::TooManyResults { .. } => {
                self.seen.too_many_results += 1;
                let held = before.sessions[&named.client].results.len();
                assert!(held >= LIMITS.max_results as usize);
                assert!(named.sequence > named.acked_below);
            }
            SessionRefusal::BadSequence { .. } => panic!("no client sends {named:?}"),
        }
    }

    /// Writes the table down and reads it back, as after a restart. Of the clock only what came from
    /// another log is kept: the log's own time comes back with the next write.
    fn reopen(&mut self) {
        let mut again = SessionTable::default();
        for (client, record) in self.table.records() {
            again.load(client, record).unwrap();
        }
        again.raise_clock(self.floor);
        self.table = again;
        self.seen.reopened += 1;
    }

    fn check_invariants(&self) {
        let table = &self.table;
        assert_eq!(table.by_last_used.len(), table.sessions.len());
        for (client, session) in &table.sessions {
            assert!(table.by_last_used.contains(&(session.last_used, *client)));
            assert!(session.last_used >= client.birth);
            assert!(session.results.keys().all(|s| *s >= session.acked_below));
            assert!(session.results.len() <= LIMITS.max_results as usize + 1);
        }
        assert!(table.sessions.len() <= LIMITS.max_sessions as usize);
    }
}

#[test]
fn no_history_executes_a_write_twice_or_refuses_a_young_one() {
    let mut total = Seen::default();
    for seed in 0..150 {
        let mut world = World::new(seed);
        for _ in 0..1_500 {
            world.step();
        }
        let seen = world.seen;
        total.executed += seen.executed;
        total.replayed += seen.replayed;
        total.expired += seen.expired;
        total.future += seen.future;
        total.stale += seen.stale;
        total.too_many_sessions += seen.too_many_sessions;
        total.too_many_results += seen.too_many_results;
        total.forgotten += seen.forgotten;
        total.moved += seen.moved;
        total.reopened += seen.reopened;
    }
    let counts = [
        total.executed,
        total.replayed,
        total.expired,
        total.future,
        total.stale,
        total.too_many_sessions,
        total.too_many_results,
        total.forgotten,
        total.moved,
        total.reopened,
    ];
    assert!(counts.iter().all(|&count| count > 100), "{total:?}");
}
