//! The effects of answers on a client.

use std::collections::BTreeMap;

use bytes::Bytes;
use replica::{Answer, RequestId};
use request::{OpenedSession, Refusal, Refused, Rejection, Time};
use shardkv::{KvError, Query, Response, Write};
use types::{ClientId, ConfigNum, Gid};

use super::connection::{Sent, Stream, encode, time};
use super::context::Surroundings;
use super::operation::{Call, Operation, Timing, What};
use super::{Client, FOR_EVER};
use crate::machine::{Outcome, Reply};
use crate::queue::Micros;
use crate::rng::SimRng;
use crate::violation::Violation;

impl Client {
    /// Takes in an answer.
    pub fn answered(
        &mut self,
        id: RequestId,
        outcome: Outcome,
        around: &mut Surroundings<'_>,
    ) -> Result<(), Violation> {
        self.now = around.now;
        let opening = |stream: &Stream| stream.opening == Some(id);
        let opener = self.streams.iter().find(|(_, stream)| opening(stream));
        if let Some(gid) = opener.map(|(gid, _)| *gid) {
            self.opened(gid, outcome, around);
        } else if self.routes.is_asked(id) {
            if self.routes.answered(outcome, around.now) {
                self.reconfigure(around);
            }
        } else if self.sessions.is_opening(id) {
            self.unary_opened(outcome, around);
        } else if let Some(sent) = self.requests.remove(&id) {
            self.heard(id, sent, outcome, around)?;
        }
        self.pump(around);
        Ok(())
    }

    fn heard(
        &mut self,
        id: RequestId,
        sent: Sent,
        outcome: Outcome,
        around: &mut Surroundings<'_>,
    ) -> Result<(), Violation> {
        let result = match outcome {
            Ok(Answer::Machine(Reply::Kv(Response::Refused(error)))) => Err(self.rejected(&error)?),
            Ok(Answer::Machine(Reply::Kv(response))) => Ok(response),
            Ok(other) => {
                return Err(Violation::new(
                    "answers fit their requests",
                    format!("an operation was answered {other:?}"),
                ));
            }
            Err(refusal) => Err(self.refused(&refusal, around)),
        };
        if self.unaries.contains_key(&sent.number) {
            match result {
                Ok(response) => self.served(sent.number, response, around)?,
                Err(refused) => self.unary_refused(sent.number, id, refused, around),
            }
            return Ok(());
        }
        let Some(stream) = self.streams.get_mut(&sent.gid) else {
            return Ok(());
        };
        let current = sent.connection == Some(stream.connection) && stream.engine.is_up();
        if result.is_err() && !current {
            // A refusal says nothing about later attempts.
            return Ok(());
        }
        stream.losses = 0;
        let moved = match &result {
            Err(refused) => match &refused.refusal {
                Refusal::WrongGroup { config_num } => Some(*config_num),
                _ => None,
            },
            Ok(_) => None,
        };
        let now = time(around.now);
        let answered = stream.engine.handle_results(now, [(sent.call, result)]);
        if let Some(num) = moved {
            self.moved(sent, num, around);
        }
        for (call, response) in answered {
            self.served(call.number, response, around)?;
        }
        Ok(())
    }

    fn opened(&mut self, gid: Gid, outcome: Outcome, around: &mut Surroundings<'_>) {
        let result = match outcome {
            Ok(Answer::LogTime(birth)) => {
                let nonce = self.rng.number();
                let half = self.options.renew_after.unwrap_or(FOR_EVER);
                Ok(OpenedSession {
                    client_id: encode(ClientId { birth, nonce }),
                    ttl: time(half * 2),
                })
            }
            Ok(_) => return,
            Err(refusal) => Err(self.refused(&refusal, around)),
        };
        if let Some(stream) = self.streams.get_mut(&gid) {
            stream.opening = None;
            stream.engine.handle_session(time(around.now), result);
        }
    }

    fn served(
        &mut self,
        number: u64,
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

    /// Converts a refusal of the state machine.
    fn rejected(&mut self, error: &KvError) -> Result<Refused, Violation> {
        let millis = |rng: &mut SimRng, least, most| Time::from_millis(rng.between(least, most));
        let refusal = match error {
            KvError::SessionExpired => Refusal::SessionExpired,
            KvError::ValueTooLarge { size, limit } => Refusal::Rejected(Rejection::TooLarge {
                what: "value".to_owned(),
                size: *size,
                limit: *limit,
                message: error.to_string(),
            }),
            KvError::WrongGroup { config, .. } => Refusal::WrongGroup {
                config_num: *config,
            },
            KvError::ShardNotReady { .. } => Refusal::ShardNotReady {
                retry_after: millis(&mut self.rng, 10, 40),
            },
            KvError::SessionLimit { .. } => Refusal::Overloaded {
                retry_after: Time::from_millis(50),
            },
            _ => {
                return Err(Violation::new(
                    "refusals are valid",
                    format!("client {}: {error}", self.number),
                ));
            }
        };
        let message = error.to_string();
        Ok(Refused { refusal, message })
    }

    /// The shard is elsewhere: one of the two has an old configuration.
    fn moved(&mut self, sent: Sent, num: ConfigNum, around: &mut Surroundings<'_>) {
        if self.rng.chance(200_000) {
            self.refresh(around);
        }
        let scan = self
            .operations
            .get(&sent.number)
            .is_some_and(|operation| matches!(operation.what, What::Read(Query::Scan { .. })));
        let stranger = num <= self.routes.num() && self.rng.chance(200_000);
        let Some(stream) = self.streams.get_mut(&sent.gid) else {
            return;
        };
        if stranger && stream.engine.is_up() {
            // Perhaps the node isn't of the group that it was taken for, which real calls name.
            let refused = Refused {
                refusal: Refusal::WrongGroup { config_num: num },
                message: "the node is of another group".to_owned(),
            };
            stream.engine.handle_stream_ended(time(around.now), refused);
        }
        if scan {
            // Its shards aren't one group's any more.
            for stream in self.streams.values_mut() {
                stream.engine.update_calls(|call: &mut Call| {
                    call.abandoned |= call.number == sent.number;
                });
            }
            self.give_up(sent.number, true, around);
        }
    }
}
