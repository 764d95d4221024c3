//! The state machine: applies the operations of the log to the store.

use std::num::NonZeroU64;

use bytes::Bytes;
use raft::{StoreError, Term};
use types::ConfigNum;

use crate::auth::{self, Guard};
use crate::draft::{Draft, Finished};
use crate::failure::Failure;
use crate::limits::Budget;
use crate::record::read_record;
use crate::store::Store;
use crate::{
    Action, Answer, Effect, Limits, Operation, Outcome, Place, Record, Refusal, Write, compaction,
    lease, lifecycle, txn,
};

/// The circumstances of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applying {
    /// The term of the entry.
    pub term: Term,
    /// The configuration in which this group owns the shard.
    pub config: ConfigNum,
    /// True if somebody waits for the answer. It changes nothing but the answer.
    pub answer: bool,
}

/// Applies the operation of an entry. The caller has checked that this group owns the shard.
///
/// Equal entries in equal order give equal rows, however they are grouped into batches. A refusal changes nothing but the alarm
/// of the keyspace's record.
pub fn apply(entry: Bytes, at: Applying, store: &mut dyn Store) -> Result<Outcome, StoreError> {
    let operation = match Operation::read(entry) {
        Ok(operation) => operation,
        Err(refusal) => return Ok(Outcome::refused(refusal, None)),
    };
    let Operation {
        shard,
        cluster_id,
        limits,
        action,
    } = operation;
    match action {
        Action::Create {
            name,
            options,
            nonce,
        } => {
            let record = Record::new(name, options, nonce);
            let id = lifecycle::create(shard, &record, &limits, store)?;
            Ok(match id {
                Ok(id) => Outcome {
                    answer: Ok(Answer::Created { id }),
                    place: Some(Place { shard, id }),
                    revision: record.revision,
                    effects: vec![Effect::Created],
                },
                Err(refusal) => Outcome::refused(refusal, None),
            })
        }
        Action::In(id, write) => {
            let place = Place { shard, id };
            let Some(record) = read_meant(store, place, cluster_id)? else {
                return Ok(Outcome::refused(Refusal::KeyspaceNotFound, Some(place)));
            };
            apply_write(place, record, &write, &limits, at, store)
        }
    }
}

/// Reads the record of a keyspace, if it is the one that is meant.
fn read_meant(
    store: &dyn Store,
    place: Place,
    cluster_id: Option<NonZeroU64>,
) -> Result<Option<Record>, StoreError> {
    let record = read_record(store, place)?;
    Ok(record.filter(|record| cluster_id.is_none_or(|id| id.get() == record.cluster_id())))
}

fn apply_write(
    place: Place,
    mut record: Record,
    write: &Write,
    limits: &Limits,
    at: Applying,
    store: &mut dyn Store,
) -> Result<Outcome, StoreError> {
    // Clearing goes on after the deletion.
    if record.deleted && *write != Write::Clear {
        return Ok(Outcome::refused(Refusal::KeyspaceNotFound, Some(place)));
    }
    let before = record.clone();
    let mut machine = Machine {
        place,
        record: &mut record,
        limits,
        at,
        store,
        effects: Vec::new(),
        gone: false,
    };
    let result = Failure::split(machine.write_as(write))?;
    let (effects, gone) = (machine.effects, machine.gone);
    if record != before && !gone {
        record.store(place, store);
    }
    Ok(Outcome {
        answer: result,
        place: Some(place),
        revision: record.revision,
        effects,
    })
}

/// One write, and what it works on.
struct Machine<'a> {
    place: Place,
    record: &'a mut Record,
    limits: &'a Limits,
    at: Applying,
    store: &'a mut dyn Store,
    effects: Vec<Effect>,
    /// True if the record is gone.
    gone: bool,
}

impl Machine<'_> {
    /// Carries out a write, if its caller may do it in this state.
    fn write_as(&mut self, write: &Write) -> Result<Answer, Failure> {
        let (caller, write) = write.caller();
        if self.record.auth.enabled {
            let budget = Budget::of_write(self.limits);
            Guard::new(&*self.store, self.place, self.record, caller, budget)?.write(write)?;
        }
        self.write(write)
    }

    fn write(&mut self, write: &Write) -> Result<Answer, Failure> {
        match write {
            Write::Put(put) => {
                let mut draft = self.draft()?;
                txn::check_put(&mut draft, put)?;
                let answer = draft.put(put, self.at.answer)?;
                let finished = draft.finish();
                self.commit(finished)?;
                Ok(Answer::Put(answer))
            }
            Write::DeleteRange(request) => {
                let mut draft = self.draft()?;
                let answer = draft.delete_range(request, self.at.answer)?;
                let finished = draft.finish();
                self.commit(finished)?;
                Ok(Answer::DeleteRange(answer))
            }
            Write::Txn(request) => {
                let mut draft = self.draft()?;
                let mut budget = draft.budget.clone();
                let decided = txn::decide(draft.view(), request, &mut budget)?;
                draft.budget = budget;
                txn::check(&mut draft, &decided, self.record)?;
                let mut answer = txn::execute(&mut draft, &decided, self.at.answer)?;
                answer.revision = draft.newest();
                let finished = draft.finish();
                self.commit(finished)?;
                Ok(Answer::Txn(answer))
            }
            Write::Compact { revision } => {
                compaction::compact(self.record, *revision)?;
                self.effects.push(Effect::Compacted {
                    compacted: *revision,
                });
                Ok(self.done())
            }
            Write::Clear => self.clear(),
            Write::Grant { id, ttl } => {
                let row =
                    lease::grant(self.place, *id, *ttl, self.limits, self.record, self.store)?;
                self.effects.push(Effect::Granted {
                    id: *id,
                    ttl: row.ttl,
                    grant: row.grant,
                });
                Ok(Answer::Granted {
                    revision: self.record.revision,
                    id: *id,
                    ttl: row.ttl,
                    grant: row.grant,
                })
            }
            Write::Revoke { id } => {
                let finished =
                    lease::revoke(self.place, *id, self.record, self.limits, self.store)?;
                self.commit(finished)?;
                lease::revoked(self.record)?;
                self.effects.push(Effect::Revoked { id: *id });
                Ok(self.done())
            }
            Write::Expire {
                id,
                grant,
                term,
                config,
            } => {
                if (*term, *config) != (self.at.term, self.at.config) {
                    return Err(Refusal::StaleExpiry.into());
                }
                let lease = lease::read_lease(&*self.store, self.place, *id)?;
                if lease.is_some_and(|lease| lease.grant != *grant) {
                    return Err(Refusal::StaleExpiry.into());
                }
                self.write(&Write::Revoke { id: *id })
            }
            Write::SetOptions(options) => {
                self.record.options = *options;
                self.record.end_alarm();
                Ok(self.done())
            }
            Write::Auth(write) => {
                auth::manage(self.place, self.record, write, self.store)?;
                self.effects.push(Effect::AuthChanged);
                Ok(self.done())
            }
            // Each is checked for this before.
            Write::As { .. } => Err(Refusal::Malformed.into()),
            Write::Delete => {
                lifecycle::delete(self.place, self.record, self.store);
                self.effects.push(Effect::Deleted);
                Ok(self.done())
            }
        }
    }

    fn draft(&self) -> Result<Draft<'_>, StoreError> {
        let budget = Budget::of_write(self.limits);
        Draft::new(&*self.store, self.place, self.record, self.limits, budget)
    }

    fn commit(&mut self, finished: Finished) -> Result<(), Failure> {
        let events = finished.write(self.record, self.store)?;
        if !events.is_empty() {
            self.effects.push(Effect::Changed(events));
        }
        Ok(())
    }

    fn done(&self) -> Answer {
        Answer::Done {
            revision: self.record.revision,
        }
    }

    fn clear(&mut self) -> Result<Answer, Failure> {
        let more = if self.record.deleted {
            let more = lifecycle::clear(self.place, self.record, self.limits, self.store)?;
            self.gone = !more;
            more
        } else {
            compaction::clear(self.place, self.record, self.limits, self.store)?
        };
        Ok(Answer::Cleared { more })
    }
}
