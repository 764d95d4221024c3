//! Operations that a client makes attempt by attempt, as a unary call of the library or a call that a node forwards.

use replica::{Answer, Request, RequestId};
use request::{Jitter, Leader, Name, Next, Policy, Refusal, Refused, Repeat, SingleCall, Time};
use types::{ClientId, LogTime};

use super::attempt::{Opening, Unary};
use super::connection::{Sent, encode, session_of, time};
use super::context::{ClientContext, Outgoing};
use super::{Client, UNLIMITED_AGE};
use crate::machine::Outcome;
use crate::network::host_at;
use crate::queue::{MILLI, Micros};

/// The pause while something is missing: an owner, a session, a configuration.
const PAUSE: Micros = 20 * MILLI;

impl Client {
    /// Begins a unary operation, by the rules of the library or of a node that forwards.
    pub(super) fn start_unary(&mut self, number: u64, repeat: Repeat, deadline: Micros) {
        let forwarded = self.rng.coin();
        let policy = Policy {
            max_attempts: if forwarded { 12 } else { u32::MAX },
            reports_delays: forwarded,
            min_backoff: Time::from_millis(5),
            max_backoff: Time::from_millis(if forwarded { 320 } else { 100 }),
            doubling: forwarded,
            bugs: self.options.bugs,
        };
        let jitter = Jitter::new(self.rng.number());
        let unary = Unary {
            engine: SingleCall::new(repeat, policy, jitter),
            repeat,
            deadline,
            attempt: None,
            retry_at: 0,
        };
        self.unaries.insert(number, unary);
    }

    pub(super) fn unaries_due(&self) -> Option<Micros> {
        let patience = self.options.patience;
        self.unaries.values().map(|it| it.due(patience)).min()
    }

    /// Makes the attempts that are due, and ends those that got no answer.
    pub(super) fn advance_unaries(&mut self, context: &mut ClientContext<'_>) {
        let (now, patience) = (context.now, self.options.patience);
        let due = self
            .unaries
            .iter()
            .filter(|(_, it)| it.due(patience) <= now);
        let due: Vec<u64> = due.map(|(number, _)| *number).collect();
        for number in due {
            let Some(unary) = self.unaries.get_mut(&number) else {
                continue;
            };
            if unary.deadline <= now {
                let failure = unary.engine.handle_deadline();
                self.give_up(number, failure.maybe_applied(), context);
            } else if unary.attempt.is_some() {
                let lost = Refused {
                    refusal: Refusal::ConnectionLost,
                    message: "no answer came".to_owned(),
                };
                self.unary_failed(number, lost, context);
            } else {
                self.attempt(number, context);
            }
        }
    }

    fn attempt(&mut self, number: u64, context: &mut ClientContext<'_>) {
        let now = context.now;
        let operation = self.operations.get(&number);
        let route = operation.and_then(|it| self.route(&it.body, context));
        let asked = route.and_then(|(_, gid)| {
            let addresses = self.routes.addresses(gid, context);
            let turn = self.rng.index(addresses.len());
            let leader = self.leaders.next(gid, &addresses, turn)?;
            Some((gid, host_at(&leader.address)?, leader))
        });
        let Some((gid, host, leader)) = asked else {
            self.refresh(context);
            if let Some(unary) = self.unaries.get_mut(&number) {
                unary.retry_at = now + PAUSE;
            }
            return;
        };
        if !self.assign_sequence(number, &leader, context) {
            return;
        }
        let unary = self.unaries.get(&number);
        let name = unary.and_then(|unary| unary.engine.attempts.name.as_ref());
        let session = name.and_then(Name::stamp).as_ref().and_then(session_of);
        let Some(request) = self.encode(number, session, context) else {
            return;
        };
        let id = self.next_id();
        if let Some(unary) = self.unaries.get_mut(&number) {
            unary.engine.handle_sent();
            unary.attempt = Some((id, leader, now));
        }
        self.requests.insert(id, Sent::unary(number, gid, now));
        context.out.push(Outgoing {
            to: host,
            id,
            request,
            delay: 0,
        });
    }

    /// Names an operation if it needs a name. Returns false if it must wait for a session.
    fn assign_sequence(
        &mut self,
        number: u64,
        leader: &Leader,
        context: &mut ClientContext<'_>,
    ) -> bool {
        let Some(unary) = self.unaries.get_mut(&number) else {
            return false;
        };
        if unary.repeat != Repeat::ByName {
            return true;
        }
        let name = &mut unary.engine.attempts.name;
        if name.is_none() {
            *name = self.sessions.allocator.allocate(time(context.now)).ok();
        }
        let named = name.is_some();
        if !named {
            unary.retry_at = context.now + PAUSE;
        }
        let wanted = {
            let sequences = self.sessions.allocator.sequences();
            sequences.wants_session(time(context.now))
        };
        if let Some(opening) = &self.sessions.opening
            && context.now >= opening.asked + self.options.patience
        {
            self.leaders.failed(&opening.leader, None);
            self.sessions.opening = None;
        }
        if wanted
            && self.sessions.opening.is_none()
            && let Some(to) = host_at(&leader.address)
        {
            let id = self.next_id();
            self.sessions.opening = Some(Opening {
                id,
                leader: leader.clone(),
                asked: context.now,
            });
            context.out.push(Outgoing {
                to,
                id,
                request: Request::Birth {
                    at_least: LogTime(0),
                },
                delay: 0,
            });
        }
        named
    }

    /// Takes in the answer to the request for a session of unary writes.
    pub(super) fn unary_opened(&mut self, outcome: Outcome, context: &ClientContext<'_>) {
        let Some(opening) = self.sessions.opening.take() else {
            return;
        };
        match outcome {
            Ok(Answer::Birth(birth)) => {
                let nonce = self.rng.number();
                let half = self.options.renew_after.unwrap_or(UNLIMITED_AGE);
                let client = encode(ClientId { birth, nonce });
                let mut sequences = self.sessions.allocator.sequences();
                sequences.session_opened(time(opening.asked), client, time(half * 2));
            }
            Ok(_) => {}
            Err(refusal) => {
                let refused = self.convert_refusal(&refusal, context);
                let hint = refused.refusal.hint();
                self.leaders.failed(&opening.leader, hint);
            }
        }
    }

    /// Takes in the refusal of a request.
    pub(super) fn unary_refused(
        &mut self,
        number: u64,
        id: RequestId,
        refused: Refused,
        context: &mut ClientContext<'_>,
    ) {
        let unary = self.unaries.get(&number);
        let attempt = unary.and_then(|unary| unary.attempt.as_ref());
        // A refusal says nothing about later attempts.
        if attempt.is_some_and(|(current, _, _)| *current == id) {
            self.unary_failed(number, refused, context);
        }
    }

    fn unary_failed(&mut self, number: u64, refused: Refused, context: &mut ClientContext<'_>) {
        let now = context.now;
        let Some(unary) = self.unaries.get_mut(&number) else {
            return;
        };
        let Some((_, leader, _)) = unary.attempt.take() else {
            return;
        };
        let hint = refused.refusal.hint().cloned();
        let news = hint.is_some_and(|hint| self.leaders.failed(&leader, Some(&hint)));
        let known = Some(self.routes.num());
        let next = unary.engine.handle_refusal(time(now), refused, known, news);
        let doubt = unary.engine.attempts.doubt;
        match next {
            Next::Retry {
                pause,
                leader_failed,
            } => {
                unary.retry_at = now + micros(pause);
                if leader_failed {
                    self.leaders.failed(&leader, None);
                }
            }
            Next::AwaitConfig {
                num,
                pause,
                leader_failed,
            } => {
                unary.retry_at = now + micros(pause).max(PAUSE);
                if leader_failed {
                    self.leaders.failed(&leader, None);
                }
                self.routes.want(num);
                self.refresh(context);
            }
            Next::Report => self.give_up(number, doubt, context),
            Next::Fail(failure) => self.give_up(number, failure.maybe_applied(), context),
        }
        if self
            .unaries
            .get(&number)
            .is_some_and(|it| it.engine.failures() % 8 == 7)
        {
            // The group may have left.
            self.refresh(context);
        }
    }
}

fn micros(pause: Time) -> Micros {
    u64::try_from(pause.as_micros()).unwrap_or(Micros::MAX)
}
