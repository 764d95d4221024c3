//! Checks keyspaces against a model: each applied operation when the first replica applies it, and each answer when a client gets it.
//!
//! | invariant | check |
//! |---|---|
//! | an operation of a keyspace is applied once, over all groups | each has a name of its own, and clients never send it again |
//! | a keyspace follows the model | at each applied operation: refusal, revision and events; so a lost or doubled row or revision shows |
//! | answers are those of the model | at each answer, with all pairs that it returns |
//! | what was refused before the log is never applied | at each refusal and each applied operation |
//! | reads are linearizable | an answer is the state at a revision that the keyspace had between the read's beginning and its end |
//! | a lease doesn't expire before the term that was promised, at its grant or its last renewal | at each applied expiry |
//! | keyspaces exist from their feature level on | at each applied operation |
//!
//! A keyspace is one atomic object. The moment at which the first replica applies an operation lies between the operation's
//! beginning and its answer. So the order of these moments is an order that linearizability asks for, and no search is
//! needed: the model follows it. The same holds where a shard moves, because the new owner applies nothing before the fence was
//! applied at the old one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keyspace::{
    Action, Answer, Event, KeyValue, KeyspaceId, LeaseId, Operation, Outcome, Place, RangeAnswer,
    Refusal, Write,
};
use raft::EntryId;
use shardkv::{KEYSPACE_LEVEL, Response};
use types::{Gid, ShardId};

use crate::keyspace_model::Model;
use crate::machine::{KeyspaceRead, LeaseOf, Reply};
use crate::queue::{Micros, SECOND};
use crate::recorder::AppliedOperation;
use crate::rng::digest;
use crate::violation::{Checked, Violation};

/// The name of an operation: a digest of its bytes, which no other operation has.
pub type Name = u64;

/// A keyspace, by the model.
#[derive(Debug)]
struct Life {
    model: Model,
    name: String,
    deleted: bool,
    leases: BTreeMap<LeaseId, Promise>,
}

/// What is known of a lease that exists.
#[derive(Clone, Copy, Debug)]
struct Promise {
    grant: u64,
    ttl: i64,
    /// The moment of the grant.
    since: Micros,
    /// The moment before which it must not expire.
    until: Micros,
}

/// An operation that was applied.
#[derive(Debug)]
struct Applied {
    gid: Gid,
    entry: EntryId,
    /// The answer by the model; `None` if the model doesn't know it: how much a step of clearing leaves.
    expected: Option<Result<Answer, Refusal>>,
}

/// A keyspace when a read of it began.
#[derive(Clone, Copy, Debug)]
pub struct ReadBegan {
    revision: i64,
    compacted: i64,
    deleted: bool,
}

/// All keyspaces of a world.
#[derive(Debug, Default)]
pub struct KeyspaceChecker {
    lives: BTreeMap<Place, Life>,
    places: BTreeMap<String, Place>,
    /// The last id that was given in each shard.
    last_ids: BTreeMap<ShardId, u64>,
    sent: BTreeMap<Name, Operation>,
    applied: BTreeMap<Name, Applied>,
    /// Operations that were refused before the log.
    void: BTreeSet<Name>,
    reads: u64,
}

impl KeyspaceChecker {
    /// Notes an operation that is sent for the first time.
    pub fn sent(&mut self, operation: &Operation) -> Name {
        let encoded = shardkv::encode_keyspace_operation(operation);
        let name = digest(&encoded);
        self.sent.insert(name, operation.clone());
        name
    }

    /// Returns the place and the newest revision of the keyspace with this name, if there is one.
    pub fn find(&self, name: &str) -> Option<(Place, i64)> {
        let place = self.places.get(name)?;
        Some((*place, self.lives.get(place)?.model.revision))
    }

    /// Returns the places of all keyspaces that exist.
    pub fn all(&self) -> impl Iterator<Item = Place> + '_ {
        self.places.values().copied()
    }

    /// Returns the numbers of applied operations, of checked reads, and of keyspaces that were ever created.
    pub fn counts(&self) -> [(&'static str, u64); 3] {
        [
            ("keyspace operations applied", self.applied.len() as u64),
            ("keyspace reads checked", self.reads),
            ("keyspaces created", self.lives.len() as u64),
        ]
    }

    /// Takes an operation that a group applied, once, when the first replica of the group applies it.
    pub fn applied(&mut self, gid: Gid, operation: &AppliedOperation, now: Micros) -> Checked {
        let Reply::Kv(Response::Keyspace(outcome)) = &operation.response else {
            return Ok(());
        };
        let name = digest(&operation.operation);
        let Some(sent) = self.sent.get(&name).cloned() else {
            return Err(broken("clients sent what is applied", &operation.operation));
        };
        if operation.level < KEYSPACE_LEVEL {
            let what = "keyspaces exist from their feature level on";
            return Err(broken(what, &sent));
        }
        if self.void.contains(&name) {
            let what = "what was refused before the log is never applied";
            return Err(broken(what, &sent));
        }
        if let Some(first) = self.applied.get(&name) {
            return Err(Violation::new(
                "an operation of a keyspace is applied once",
                format!(
                    "{sent:?} was applied by {} at {} and by {gid} at {}",
                    first.gid, first.entry, operation.entry
                ),
            ));
        }
        self.check_expiry(&sent, operation, outcome, now)?;
        let (expected, revision, events) = self.expect(&sent, operation);
        self.note_leases(&sent, expected.as_ref(), now);
        let right = match &expected {
            None => outcome.events().is_empty(),
            Some(Err(refusal)) => outcome.answer.as_ref().err() == Some(refusal),
            Some(Ok(answer)) => {
                outcome.answer.as_ref() == Ok(&without_pairs(answer.clone()))
                    && outcome.revision == revision
                    && outcome.events() == events
            }
        };
        if !right {
            return Err(Violation::new(
                "a keyspace follows the model",
                format!(
                    "{gid} applied {sent:?} at {} with {outcome:?}, and by the model it is {expected:?} at {revision} with {events:?}",
                    operation.entry
                ),
            ));
        }
        let entry = operation.entry;
        let applied = Applied {
            gid,
            entry,
            expected,
        };
        self.applied.insert(name, applied);
        Ok(())
    }

    /// Carries out an operation by the model. Returns the answer, the revision after it, and the events.
    fn expect(
        &mut self,
        operation: &Operation,
        at: &AppliedOperation,
    ) -> (Option<Result<Answer, Refusal>>, i64, Vec<Event>) {
        let refused = |refusal| (Some(Err(refusal)), 0, Vec::new());
        let shard = operation.shard;
        let (id, write) = match &operation.action {
            Action::Create { name, .. } => {
                if self.places.contains_key(name) {
                    return refused(Refusal::KeyspaceExists);
                }
                let last = self.last_ids.entry(shard).or_default();
                *last += 1;
                let id = KeyspaceId(*last);
                let place = Place { shard, id };
                self.places.insert(name.clone(), place);
                let life = Life {
                    model: Model::new(u64::MAX),
                    name: name.clone(),
                    deleted: false,
                    leases: BTreeMap::new(),
                };
                self.lives.insert(place, life);
                return (Some(Ok(Answer::Created { id })), 1, Vec::new());
            }
            Action::In(id, write) => (*id, write),
        };
        let life = self.lives.get_mut(&Place { shard, id });
        let Some(life) = life.filter(|life| !life.deleted || *write == Write::Clear) else {
            return refused(Refusal::KeyspaceNotFound);
        };
        let revision = life.model.revision;
        match write {
            Write::Clear => (None, revision, Vec::new()),
            Write::Delete => {
                life.deleted = true;
                self.places.remove(&life.name);
                (Some(Ok(Answer::Done { revision })), revision, Vec::new())
            }
            Write::Expire {
                id,
                grant,
                term,
                config,
            } => {
                let is_other = life.leases.get(id).is_some_and(|it| it.grant != *grant);
                if (*term, *config) != (at.entry.term, at.served_since) || is_other {
                    return refused(Refusal::StaleExpiry);
                }
                let (answer, events) = life.model.write(&Write::Revoke { id: *id }, 0);
                (Some(answer), life.model.revision, events)
            }
            write => {
                let (answer, events) = life.model.write(write, 0);
                (Some(answer), life.model.revision, events)
            }
        }
    }

    /// Checks that a lease doesn't end before the term that was promised.
    fn check_expiry(
        &self,
        sent: &Operation,
        operation: &AppliedOperation,
        outcome: &Outcome,
        now: Micros,
    ) -> Checked {
        let (Action::In(id, Write::Expire { id: lease, .. }), Ok(_)) =
            (&sent.action, &outcome.answer)
        else {
            return Ok(());
        };
        let place = Place {
            shard: sent.shard,
            id: *id,
        };
        let promise = self
            .lives
            .get(&place)
            .and_then(|life| life.leases.get(lease));
        match promise {
            Some(promise) if promise.until > now => Err(Violation::new(
                "a lease doesn't end before its term",
                format!(
                    "{sent:?} was applied at {} with {promise:?}",
                    operation.entry
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Takes in which leases there are after an operation.
    fn note_leases(
        &mut self,
        sent: &Operation,
        expected: Option<&Result<Answer, Refusal>>,
        now: Micros,
    ) {
        let (Action::In(id, write), Some(Ok(answer))) = (&sent.action, expected) else {
            return;
        };
        let place = Place {
            shard: sent.shard,
            id: *id,
        };
        let Some(life) = self.lives.get_mut(&place) else {
            return;
        };
        match (write, answer) {
            (Write::Revoke { id } | Write::Expire { id, .. }, _) => {
                life.leases.remove(id);
            }
            (_, Answer::Granted { id, ttl, grant, .. }) => {
                let (ttl, grant) = (*ttl, *grant);
                let until = now + term(ttl);
                let promise = Promise {
                    grant,
                    ttl,
                    since: now,
                    until,
                };
                life.leases.insert(*id, promise);
            }
            _ => {}
        }
    }

    /// Notes that a node has renewed a lease by a request that came at `came`. The node has applied what was granted before; it may not
    /// know a later grant under the same id.
    pub fn renewed(&mut self, lease: LeaseOf, ttl: i64, came: Micros, now: Micros) {
        let life = self.lives.get_mut(&lease.place);
        let promise = life.and_then(|life| life.leases.get_mut(&lease.id));
        if let Some(promise) = promise.filter(|it| it.ttl == ttl && it.since <= came) {
            promise.until = promise.until.max(now + term(ttl));
        }
    }

    /// Returns true if the keyspace exists.
    pub fn exists(&self, place: Place) -> bool {
        self.lives.get(&place).is_some_and(|life| !life.deleted)
    }

    /// Returns the newest and the compacted revision of a keyspace.
    pub fn revisions(&self, place: Place) -> (i64, i64) {
        let model = self.lives.get(&place).map(|life| &life.model);
        model.map_or((1, -1), |model| (model.revision, model.compacted))
    }

    /// Returns the events of a keyspace from a revision on.
    pub fn events(&self, place: Place, from: i64) -> Vec<Event> {
        let model = self.lives.get(&place).map(|life| &life.model);
        model.map(|model| model.events(from)).unwrap_or_default()
    }

    /// Checks the answer that a client got.
    pub fn answered(&self, name: Name, outcome: &Outcome) -> Checked {
        let sent = self.sent.get(&name);
        let Some(applied) = self.applied.get(&name) else {
            return Err(broken("an answered operation was applied", &sent));
        };
        let right = applied.expected.as_ref();
        if right.is_none_or(|expected| *expected == outcome.answer) {
            return Ok(());
        }
        Err(Violation::new(
            "answers are those of the model",
            format!("{sent:?} was answered {outcome:?} instead of {right:?}"),
        ))
    }

    /// Notes that an operation was refused before the log.
    pub fn refused(&mut self, name: Name) -> Checked {
        self.void.insert(name);
        if self.applied.contains_key(&name) {
            let what = "what was refused before the log is never applied";
            return Err(broken(what, &self.sent.get(&name)));
        }
        Ok(())
    }

    /// Notes the beginning of a read of a keyspace that was created.
    pub fn begin_read(&self, place: Place) -> Option<ReadBegan> {
        let life = self.lives.get(&place)?;
        Some(ReadBegan {
            revision: life.model.revision,
            compacted: life.model.compacted,
            deleted: life.deleted,
        })
    }

    /// Checks the answer to a read.
    pub fn read(
        &mut self,
        read: &KeyspaceRead,
        began: ReadBegan,
        answer: &Result<RangeAnswer, Refusal>,
    ) -> Checked {
        self.reads += 1;
        let Some(life) = self.lives.get(&read.place) else {
            return Err(broken("reads are of keyspaces that were created", read));
        };
        let asked = read.range.revision;
        let right = match answer {
            Ok(answer) => {
                let at = if asked > 0 { asked } else { answer.revision };
                let in_time = (began.revision..=life.model.revision).contains(&answer.revision);
                let readable = at <= answer.revision && (asked <= 0 || asked >= began.compacted);
                let exists = !began.deleted;
                exists && in_time && readable && *answer == self.range_at(read, at, answer.revision)
            }
            Err(Refusal::KeyspaceNotFound) => life.deleted,
            Err(Refusal::FutureRevision) => asked > began.revision,
            Err(Refusal::Compacted { compacted }) => {
                asked > 0 && asked < *compacted && *compacted <= life.model.compacted
            }
            Err(_) => false,
        };
        if right {
            return Ok(());
        }
        Err(Violation::new(
            "reads of keyspaces are linearizable",
            format!(
                "{read:?} from {began:?} to revision {} was answered {answer:?}",
                life.model.revision
            ),
        ))
    }

    /// Returns the answer to a plain range at a revision.
    fn range_at(&self, read: &KeyspaceRead, at: i64, revision: i64) -> RangeAnswer {
        let state = self.lives.get(&read.place).map(|life| life.model.state(at));
        let pairs = state.into_iter().flat_map(BTreeMap::into_values);
        let kvs: Vec<KeyValue> = pairs
            .filter(|kv| read.range.span.contains(&kv.key))
            .collect();
        RangeAnswer {
            revision,
            count: i64::try_from(kvs.len()).unwrap_or(i64::MAX),
            more: false,
            kvs,
        }
    }
}

/// Removes from an outcome what a replica leaves out where nobody waits for the answer, so that those of all replicas are equal.
pub fn comparable(response: Reply) -> Reply {
    let Reply::Kv(Response::Keyspace(mut outcome)) = response else {
        return response;
    };
    outcome.answer = outcome.answer.map(without_pairs);
    Reply::Kv(Response::Keyspace(outcome))
}

/// Returns the length of a lease's term.
fn term(ttl: i64) -> Micros {
    u64::try_from(ttl).unwrap_or(0) * SECOND
}

fn without_pairs(mut answer: Answer) -> Answer {
    match &mut answer {
        Answer::Put(answer) => answer.prev_kv = None,
        Answer::DeleteRange(answer) => answer.prev_kvs.clear(),
        Answer::Txn(answer) => answer.responses.clear(),
        _ => {}
    }
    answer
}

fn broken(invariant: &'static str, what: &dyn std::fmt::Debug) -> Violation {
    Violation::new(invariant, format!("{what:?}"))
}

/// Returns the whole range of a keyspace.
pub(crate) fn whole(place: Place) -> KeyspaceRead {
    let all = keyspace::Span::From(Bytes::from_static(b"\0"));
    KeyspaceRead {
        place,
        range: keyspace::Range::new(all),
    }
}
