//! The effects of answers on a client.

use std::collections::BTreeMap;

use bytes::Bytes;
use replica::{Answer, RequestId};
use request::{OpenedSession, Refusal, Refused, Rejection, Time};
use shardkv::{KvError, Query, Response, Write};
use types::{ClientId, ConfigNum, Gid};

use super::connection::{Sent, Stream, encode, time};
use super::context::ClientContext;
use super::operation::{Body, Call, Operation, Timing};
use super::{Client, UNLIMITED_AGE};
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
        context: &mut ClientContext<'_>,
    ) -> Result<(), Violation> {
        self.now = context.now;
        let opening = |stream: &Stream| stream.opening == Some(id);
        let opener = self.streams.iter().find(|(_, stream)| opening(stream));
        if let Some(gid) = opener.map(|(gid, _)| *gid) {
            self.session_opened(gid, outcome, context);
        } else if self.routes.is_asked(id) {
            if self.routes.answered(outcome, context.now) {
                self.reconfigure(context);
            }
        } else if self.sessions.is_opening(id) {
            self.unary_opened(outcome, context);
        } else if let Some(sent) = self.requests.remove(&id) {
            self.request_answered(id, sent, outcome, context)?;
        }
        self.run_streams(context);
        Ok(())
    }

    fn request_answered(
        &mut self,
        id: RequestId,
        sent: Sent,
        outcome: Outcome,
        context: &mut ClientContext<'_>,
    ) -> Result<(), Violation> {
        let result = match outcome {
            Ok(Answer::Machine(Reply::Kv(Response::Refused(error)))) => {
                Err(self.convert_error(&error)?)
            }
            Ok(Answer::Machine(Reply::Kv(response))) => Ok(response),
            Ok(other) => {
                return Err(Violation::new(
                    "answers fit their requests",
                    format!("an operation was answered {other:?}"),
                ));
            }
            Err(refusal) => Err(self.convert_refusal(&refusal, context)),
        };
        if self.unaries.contains_key(&sent.number) {
            match result {
                Ok(response) => self.succeeded(sent.number, response, context)?,
                Err(refused) => self.unary_refused(sent.number, id, refused, context),
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
        let now = time(context.now);
        let answered = stream.engine.handle_results(now, [(sent.call, result)]);
        if let Some(num) = moved {
            self.wrong_group(sent, num, context);
        }
        for (call, response) in answered {
            self.succeeded(call.number, response, context)?;
        }
        Ok(())
    }

    fn session_opened(&mut self, gid: Gid, outcome: Outcome, context: &mut ClientContext<'_>) {
        let result = match outcome {
            Ok(Answer::Birth(birth)) => {
                let nonce = self.rng.number();
                let half = self.options.renew_after.unwrap_or(UNLIMITED_AGE);
                Ok(OpenedSession {
                    client_id: encode(ClientId { birth, nonce }),
                    ttl: time(half * 2),
                })
            }
            Ok(_) => return,
            Err(refusal) => Err(self.convert_refusal(&refusal, context)),
        };
        if let Some(stream) = self.streams.get_mut(&gid) {
            stream.opening = None;
            stream.engine.handle_session(time(context.now), result);
        }
    }

    fn succeeded(
        &mut self,
        number: u64,
        response: Response,
        context: &mut ClientContext<'_>,
    ) -> Result<(), Violation> {
        match response {
            Response::Written(written) => {
                let Some(operation) = self.end(number) else {
                    return Ok(());
                };
                if let Body::Write(write, _) = &operation.body {
                    let now_known = match write {
                        Write::Put { key, value } => Some((key.clone(), Some(value.clone()))),
                        Write::Delete { key } => Some((key.clone(), None)),
                        _ => None,
                    };
                    self.seen.extend(now_known);
                }
                self.record_timing(&operation, context.now);
                for (_, record) in operation.records {
                    context.history.return_written(record, written)?;
                }
                Ok(())
            }
            Response::Value(value) => {
                let Some(operation) = self.end(number) else {
                    return Ok(());
                };
                self.record_timing(&operation, context.now);
                for (key, record) in operation.records {
                    context.history.return_value(record, value.as_deref())?;
                    self.seen.insert(key, value.clone());
                }
                Ok(())
            }
            Response::Page { pairs, more } => self.page_returned(number, &pairs, more, context),
            other => Err(Violation::new(
                "an answer is of its question",
                format!("{other:?}"),
            )),
        }
    }

    fn record_timing(&mut self, operation: &Operation, now: Micros) {
        if let Some((key, _)) = operation.records.first() {
            self.timings.push(Timing {
                key: key.clone(),
                began: operation.began,
                took: now - operation.began,
            });
        }
    }

    fn page_returned(
        &mut self,
        number: u64,
        pairs: &[(Bytes, Bytes)],
        more: bool,
        context: &mut ClientContext<'_>,
    ) -> Result<(), Violation> {
        let Some(operation) = self.end(number) else {
            return Ok(());
        };
        if pairs.is_sorted_by(|a, b| a.0 < b.0) {
            let found: BTreeMap<&Bytes, &Bytes> = pairs.iter().map(|(k, v)| (k, v)).collect();
            let last = found.last_key_value().map(|(key, _)| (*key).clone());
            for (key, record) in operation.records {
                let covered = !more || last.as_ref().is_some_and(|last| key <= *last);
                if covered {
                    let value = found.get(&key).map(|value| &value[..]);
                    context.history.return_value(record, value)?;
                } else {
                    context.history.mark_void(record);
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
    fn convert_error(&mut self, error: &KvError) -> Result<Refused, Violation> {
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

    /// Handles the refusal of a node whose group doesn't own the shard: the client or the node has an old configuration.
    fn wrong_group(&mut self, sent: Sent, num: ConfigNum, context: &mut ClientContext<'_>) {
        if self.rng.chance(200_000) {
            self.refresh(context);
        }
        let scan = self
            .operations
            .get(&sent.number)
            .is_some_and(|operation| matches!(operation.body, Body::Read(Query::Page(_))));
        let stranger = num <= self.routes.num() && self.rng.chance(200_000);
        let Some(stream) = self.streams.get_mut(&sent.gid) else {
            return;
        };
        if stranger && stream.engine.is_up() {
            // Real calls name their group, and a node of another group refuses them. Such a refusal ends the stream.
            let refused = Refused {
                refusal: Refusal::WrongGroup { config_num: num },
                message: "the node is of another group".to_owned(),
            };
            stream
                .engine
                .handle_stream_ended(time(context.now), refused);
        }
        if scan {
            // The shards of the scan no longer belong to one group.
            for stream in self.streams.values_mut() {
                stream.engine.update_calls(|call: &mut Call| {
                    call.abandoned |= call.number == sent.number;
                });
            }
            self.give_up(sent.number, true, context);
        }
    }
}
