//! Checks keyspaces against a model: each applied operation when the first replica applies it, and each answer when a client gets it.
//!
//! | invariant | check |
//! |---|---|
//! | an operation of a keyspace is applied once, over all groups | each has a name of its own, and clients never send it again |
//! | a keyspace follows the model | at each applied operation: refusal, revision and events; so a lost or doubled row or revision shows |
//! | answers are those of the model | at each answer, with all pairs that it returns |
//! | what was refused before the log is never applied | at each refusal and each applied operation |
//! | reads are linearizable | an answer is the state at a revision that the keyspace had between the read's beginning and its end |
//! | keyspaces exist from their feature level on | at each applied operation |
//!
//! A keyspace is one atomic object. The moment at which the first replica applies an operation lies between the operation's
//! beginning and its answer. So the order of these moments is an order that linearizability asks for, and no search is
//! needed: the model follows it. The same holds where a shard moves, because the new owner applies nothing before the fence was
//! applied at the old one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keyspace::{
    Action, Answer, Event, KeyValue, KeyspaceId, Operation, Outcome, Place, RangeAnswer, Refusal,
    Write,
};
use raft::EntryId;
use shardkv::{KEYSPACE_LEVEL, Response};
use types::{Gid, ShardId};

use crate::keyspace_model::Model;
use crate::machine::{KeyspaceRead, Reply};
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
    pub fn applied(&mut self, gid: Gid, operation: &AppliedOperation) -> Checked {
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
        let (expected, revision, events) = self.expect(&sent);
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
            write => {
                let (answer, events) = life.model.write(write, 0);
                (Some(answer), life.model.revision, events)
            }
        }
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
