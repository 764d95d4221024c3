//! What a client makes of answers.

use std::collections::BTreeMap;

use bytes::Bytes;
use replica::{Answer, Refusal, RequestId};
use shardkv::{KvError, Query, Response, Write};
use types::{ClientId, ConfigNum, Gid, LogTime, Sequence};

use super::{Client, Operation, Session, Surroundings, Timing, What};
use crate::machine::{Outcome, Reply};
use crate::oracle::Violation;
use crate::queue::{MILLI, Micros};

impl Client {
    /// An answer arrives.
    pub fn answered(
        &mut self,
        id: RequestId,
        outcome: Outcome,
        around: &mut Surroundings<'_>,
    ) -> Result<(), Violation> {
        if self
            .opening
            .as_ref()
            .is_some_and(|opening| opening.id == id)
        {
            self.opened(outcome, around);
            return Ok(());
        }
        if self.routes.is_asked(id) {
            self.routes.answered(outcome, around.now);
            return Ok(());
        }
        let Some((number, gid)) = self.requests.remove(&id) else {
            return Ok(());
        };
        if !self.operations.contains_key(&number) {
            return Ok(());
        }
        match outcome {
            Ok(Answer::Machine(Reply::Kv(response))) => self.served(number, id, response, around),
            Ok(other) => Err(Violation::new(
                "answers fit their questions",
                format!("an operation was answered {other:?}"),
            )),
            Err(refusal) => {
                self.refused((number, gid), id, &refusal, around);
                Ok(())
            }
        }
    }

    fn opened(&mut self, outcome: Outcome, around: &mut Surroundings<'_>) {
        match outcome {
            Ok(Answer::LogTime(birth)) => {
                self.opening = None;
                self.session = Some(Session {
                    id: self.name(birth),
                    opened: around.now,
                    next: Sequence(1),
                });
            }
            Ok(_) => self.opening = None,
            Err(refusal) => {
                let gid = self.opening.as_ref().and_then(|opening| opening.gid);
                let wait = self.after(&refusal, gid, around);
                if let Some(opening) = &mut self.opening {
                    opening.retry_at = around.now + wait;
                }
            }
        }
    }

    fn name(&mut self, birth: LogTime) -> ClientId {
        ClientId {
            birth,
            nonce: self.dice.number(),
        }
    }

    fn served(
        &mut self,
        number: u64,
        id: RequestId,
        response: Response,
        around: &mut Surroundings<'_>,
    ) -> Result<(), Violation> {
        match response {
            Response::Written(written) => {
                let Some(operation) = self.end(number) else {
                    return Ok(());
                };
                if let What::Write(write, _) = &operation.what {
                    let now_known = match write {
                        Write::Put { key, value } => Some((key.clone(), Some(value.clone()))),
                        Write::Delete { key } => Some((key.clone(), None)),
                        _ => None,
                    };
                    self.seen.extend(now_known);
                }
                self.time(&operation, around.now);
                for (_, mark) in operation.marks {
                    around.history.return_written(mark, written)?;
                }
                Ok(())
            }
            Response::Value(value) => {
                let Some(operation) = self.end(number) else {
                    return Ok(());
                };
                self.time(&operation, around.now);
                for (key, mark) in operation.marks {
                    around.history.return_value(mark, value.as_deref())?;
                    self.seen.insert(key, value.clone());
                }
                Ok(())
            }
            Response::Page { pairs, more } => self.paged(number, &pairs, more, around),
            Response::Refused(error) => self.rejected(number, id, &error, around),
            other => Err(Violation::new(
                "an answer is of its question",
                format!("{other:?}"),
            )),
        }
    }

    fn time(&mut self, operation: &Operation, now: Micros) {
        if let Some((key, _)) = operation.marks.first() {
            self.timings.push(Timing {
                key: key.clone(),
                began: operation.began,
                took: now - operation.began,
            });
        }
    }

    fn paged(
        &mut self,
        number: u64,
        pairs: &[(Bytes, Bytes)],
        more: bool,
        around: &mut Surroundings<'_>,
    ) -> Result<(), Violation> {
        let Some(operation) = self.end(number) else {
            return Ok(());
        };
        if pairs.is_sorted_by(|a, b| a.0 < b.0) {
            let found: BTreeMap<&Bytes, &Bytes> = pairs.iter().map(|(k, v)| (k, v)).collect();
            let last = found.last_key_value().map(|(key, _)| (*key).clone());
            for (key, mark) in operation.marks {
                let covered = !more || last.as_ref().is_some_and(|last| key <= *last);
                if covered {
                    let value = found.get(&key).map(|value| &value[..]);
                    around.history.return_value(mark, value)?;
                } else {
                    around.history.never(mark);
                }
            }
            return Ok(());
        }
        Err(Violation::new(
            "scans are in key order",
            format!("{pairs:?}"),
        ))
    }

    /// The state machine refused.
    fn rejected(
        &mut self,
        number: u64,
        id: RequestId,
        error: &KvError,
        around: &mut Surroundings<'_>,
    ) -> Result<(), Violation> {
        if let Some(operation) = self.operations.get_mut(&number) {
            operation.unresolved.remove(&id);
        }
        match error {
            KvError::SessionExpired => {
                let of = self.operations.get(&number).and_then(|operation| {
                    let What::Write(_, named) = &operation.what else {
                        return None;
                    };
                    named.map(|(client, _)| client)
                });
                if self.session.as_ref().map(|session| session.id) == of {
                    self.session = None;
                }
                self.give_up(number, around);
                Ok(())
            }
            KvError::ValueTooLarge { .. } => {
                self.give_up(number, around);
                Ok(())
            }
            KvError::WrongGroup { config, .. } => {
                self.moved(number, *config, around);
                Ok(())
            }
            KvError::ShardNotReady { .. } => {
                let wait = self.dice.between(10 * MILLI, 40 * MILLI);
                if let Some(operation) = self.operations.get_mut(&number) {
                    operation.retry_at = operation.retry_at.min(around.now + wait);
                }
                Ok(())
            }
            KvError::SessionLimit { .. } => {
                if let Some(operation) = self.operations.get_mut(&number) {
                    operation.retry_at = around.now + 50 * MILLI;
                }
                Ok(())
            }
            _ => Err(Violation::new(
                "refusals make sense",
                format!("client {}: {error}", self.number),
            )),
        }
    }

    /// The shard is elsewhere: one of the two has an old configuration.
    fn moved(&mut self, number: u64, config: ConfigNum, around: &mut Surroundings<'_>) {
        self.routes.want(config);
        if config > self.routes.num() || self.dice.chance(200_000) {
            self.refresh(around);
        }
        let wait = self.dice.between(10 * MILLI, 40 * MILLI);
        if let Some(gid) = self.operations.get(&number).and_then(|it| it.gid) {
            // Or the node isn't of the group that it was taken for.
            self.routes.elsewhere(gid, &mut self.dice, around);
        }
        let Some(operation) = self.operations.get_mut(&number) else {
            return;
        };
        if matches!(operation.what, What::Read(Query::Scan { .. })) {
            // Its shards aren't one group's any more.
            self.give_up(number, around);
            return;
        }
        operation.retry_at = operation.retry_at.min(around.now + wait);
    }

    /// The replica refused.
    fn refused(
        &mut self,
        (number, gid): (u64, Gid),
        id: RequestId,
        refusal: &Refusal,
        around: &mut Surroundings<'_>,
    ) {
        let wait = self.after(refusal, Some(gid), around);
        let Some(operation) = self.operations.get_mut(&number) else {
            return;
        };
        operation.unresolved.remove(&id);
        match refusal {
            Refusal::Unknown { .. } | Refusal::Stopping => operation.maybe = true,
            Refusal::TooLarge { .. } => {
                self.give_up(number, around);
                return;
            }
            _ => {}
        }
        if operation.maybe && matches!(operation.what, What::Write(_, None)) {
            self.give_up(number, around);
            return;
        }
        operation.retry_at = operation.retry_at.min(around.now + wait);
    }

    /// Learns from a refusal where to go, and when.
    fn after(
        &mut self,
        refusal: &Refusal,
        gid: Option<Gid>,
        around: &mut Surroundings<'_>,
    ) -> Micros {
        let Some(gid) = gid else {
            return 20 * MILLI;
        };
        match refusal {
            Refusal::NotLeader { leader } | Refusal::Unknown { leader } => {
                let known = leader.and_then(|node| around.addresses.get(&node));
                match known {
                    Some(host) if self.routes.leads(gid, *host) => MILLI,
                    _ => {
                        self.routes.elsewhere(gid, &mut self.dice, around);
                        self.dice.between(5 * MILLI, 60 * MILLI)
                    }
                }
            }
            Refusal::Stopping => {
                self.routes.elsewhere(gid, &mut self.dice, around);
                10 * MILLI
            }
            _ => self.dice.between(10 * MILLI, 80 * MILLI),
        }
    }

    /// Ends an operation whose outcome nobody will tell.
    pub(super) fn give_up(&mut self, number: u64, around: &mut Surroundings<'_>) {
        let Some(operation) = self.end(number) else {
            return;
        };
        let is_read = matches!(operation.what, What::Read(_));
        if is_read || (operation.unresolved.is_empty() && !operation.maybe) {
            for (_, mark) in operation.marks {
                around.history.never(mark);
            }
        }
    }

    pub(super) fn end(&mut self, number: u64) -> Option<Operation> {
        let operation = self.operations.remove(&number)?;
        if let What::Write(_, Some((client, sequence))) = &operation.what
            && let Some(open) = self.open.get_mut(client)
        {
            open.remove(sequence);
        }
        Some(operation)
    }
}
