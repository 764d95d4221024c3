//! Random histories: clients, copies of their writes, restarts and moves.

use std::collections::BTreeSet as Set;

use super::*;

/// A client as it really behaves: numbers its writes, repeats them, acknowledges what was answered.
struct Sender {
    id: ClientId,
    next: u64,
    answered: Set<u64>,
    acked_below: u64,
}

/// The number of times that each outcome occurred in all histories, so that the test can't pass by testing nothing.
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
    /// The table's time.
    log_time: u64,
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
                self.seen.forgotten += self.table.expire(now, &LIMITS, at_most).len() as u64;
            }
            95 => self.reopen(),
            96 => {
                // A move: horizon and time go along.
                self.reopen();
                self.seen.moved += 1;
            }
            _ => {}
        }
        self.check_invariants();
    }

    fn open(&mut self) {
        let skew = self.random.below(2 * AHEAD);
        let mut birth = (self.log_time + skew).saturating_sub(AHEAD / 2);
        // The group where it is opened may be this one, or another.
        if self.random.below(2) == 0 {
            birth = birth.max(self.table.horizon().0);
        }
        self.senders.push(Sender {
            id: client(birth, self.random.next()),
            next: 1,
            answered: Set::new(),
            acked_below: 1,
        });
    }

    fn send(&mut self) {
        // Mostly the newest sessions, and sometimes an old session.
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
        // The client repeats with its present acknowledgement, so copies of a write may differ in it.
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
        // Some answers are lost.
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
                let silent = before
                    .sessions
                    .get(&named.client)
                    .is_some_and(|it| LogTime(self.log_time).since(it.last_used) > TTL);
                assert!(
                    silent || named.client.birth < before.horizon(),
                    "nothing says that this session was forgotten: {named:?}"
                );
            }
            SessionRefusal::FromFuture { ahead_ms } => {
                self.seen.future += 1;
                assert_eq!(birth - self.log_time, ahead_ms);
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

    /// Writes the table down and reads it back, as after a restart.
    fn reopen(&mut self) {
        let mut again = SessionTable::default();
        for (client, record) in self.table.records() {
            again.load(client, record).unwrap();
        }
        again.raise_horizon(self.table.horizon());
        self.table = again;
        self.seen.reopened += 1;
    }

    fn check_invariants(&self) {
        let table = &self.table;
        assert_eq!(table.by_last_used.len(), table.sessions.len());
        for (client, session) in &table.sessions {
            assert!(table.by_last_used.contains(&(session.last_used, *client)));
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
