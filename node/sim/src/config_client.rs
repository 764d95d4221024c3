//! A client of the controllers that joins groups, removes them and moves shards. It has a session, and repeats a change
//! under its sequence until it knows the outcome.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replica::{Answer, Refusal, Request, RequestId};
use shardctrler::{Change, Command, CtrlError, Response};
use types::{ClientId, Gid, LogTime, Sequence, ShardId};

use crate::caller::Caller;
use crate::client::{ClientContext, Outgoing};
use crate::machine::{Outcome, Reply};
use crate::network::{HostId, address};
use crate::queue::{MILLI, Micros};
use crate::rng::SimRng;
use crate::violation::Violation;

/// The time without an answer after which another controller is tried.
const PATIENCE: Micros = 200 * MILLI;

/// A finished change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The change.
    pub change: Change,
    /// The outcome, or `None` if it is unknown because the session expired.
    pub response: Option<Response>,
    /// The time of the outcome.
    pub at: Micros,
}

/// A client of the controllers.
#[derive(Debug)]
pub(crate) struct ConfigClient {
    number: u64,
    rng: SimRng,
    /// The groups and their hosts.
    groups: BTreeMap<Gid, Vec<HostId>>,
    shards: u32,
    session: Option<(ClientId, Sequence)>,
    change: Option<Change>,
    asked: BTreeSet<RequestId>,
    sent: u64,
    target: HostId,
    retry_at: Micros,
    /// The time of the next drawn change; never, if it only sends queued changes.
    next_at: Micros,
    /// The mean pause between two drawn changes.
    every: Micros,
    burst: u64,
    script: VecDeque<Change>,
    /// The groups in the configuration, as far as this client knows.
    joined: BTreeSet<Gid>,
    pub(crate) finished: Vec<Changed>,
}

impl ConfigClient {
    pub(crate) fn new(
        number: u64,
        groups: BTreeMap<Gid, Vec<HostId>>,
        shards: u32,
        every: Option<Micros>,
        mut rng: SimRng,
    ) -> Self {
        let next_at = every.map_or(Micros::MAX, |every| rng.between(every / 4, every * 2));
        Self {
            number,
            rng,
            groups,
            shards,
            session: None,
            change: None,
            asked: BTreeSet::new(),
            sent: 0,
            target: 0,
            retry_at: Micros::MAX,
            next_at,
            every: every.unwrap_or(Micros::MAX),
            burst: 0,
            script: VecDeque::new(),
            joined: BTreeSet::new(),
            finished: Vec::new(),
        }
    }

    /// Queues a change.
    pub(crate) fn queue(&mut self, change: Change) {
        self.script.push_back(change);
    }

    /// Returns the change that joins these groups, each with all its hosts.
    pub(crate) fn join(&self, gids: impl IntoIterator<Item = Gid>) -> Change {
        let groups = gids.into_iter().map(|gid| {
            let hosts = self.groups.get(&gid).map(Vec::as_slice).unwrap_or_default();
            (gid, hosts.iter().map(|host| address(*host)).collect())
        });
        Change::Join {
            groups: groups.collect(),
        }
    }

    /// Draws no more changes.
    pub(crate) fn finish(&mut self) {
        self.next_at = Micros::MAX;
        self.burst = 0;
    }

    /// Returns true if no change is open or queued.
    pub(crate) fn is_idle(&self) -> bool {
        self.change.is_none() && self.script.is_empty()
    }

    pub(crate) fn describe(&self) -> String {
        format!(
            "config client {} has {:?} open, then {:?}",
            self.number, self.change, self.script
        )
    }

    /// Returns the time at which the client wants to be woken.
    pub(crate) fn due(&self) -> Micros {
        if self.change.is_some() {
            return self.retry_at;
        }
        if self.script.is_empty() {
            self.next_at
        } else {
            0
        }
    }

    /// Does what is due.
    pub(crate) fn wake(&mut self, context: &mut ClientContext<'_>) {
        if self.change.is_none() {
            let next = self.script.pop_front();
            if next.is_none() && self.next_at > context.now {
                return;
            }
            self.change = Some(next.unwrap_or_else(|| self.draw(context.now)));
            self.next_sequence();
        } else if self.retry_at <= context.now {
            if !self.asked.is_empty() {
                self.draw_target(context);
            }
        } else {
            return;
        }
        self.send(context);
    }

    fn next_sequence(&mut self) {
        if let Some((_, sequence)) = &mut self.session {
            *sequence = sequence.next();
        }
        self.asked.clear();
    }

    fn draw_target(&mut self, context: &ClientContext<'_>) {
        let controllers = &context.controllers;
        self.target = controllers.start + self.rng.index(controllers.len());
    }

    fn send(&mut self, context: &mut ClientContext<'_>) {
        let Some(change) = self.change.clone() else {
            return;
        };
        self.retry_at = context.now + PATIENCE;
        if !context.controllers.contains(&self.target) {
            self.draw_target(context);
        }
        let request = match self.session {
            None => Request::Birth {
                at_least: LogTime(0),
            },
            Some((client, sequence)) => {
                let command = Command {
                    session: Some(shardctrler::SessionRef {
                        client,
                        sequence,
                        acked_below: sequence,
                    }),
                    change,
                };
                Request::Write {
                    operation: command.encode(),
                    frees_space: false,
                }
            }
        };
        self.sent += 1;
        let id = Caller::ConfigClient(self.number).request(self.sent);
        self.asked.insert(id);
        context.out.push(Outgoing {
            to: self.target,
            id,
            request,
            delay: 0,
        });
    }

    /// Draws a change, which mostly makes sense.
    fn draw(&mut self, now: Micros) -> Change {
        if self.burst == 0 && self.rng.chance(300_000) {
            self.burst = self.rng.between(1, 6);
        }
        let pause = if self.burst > 0 {
            self.burst -= 1;
            self.rng.between(0, 20 * MILLI)
        } else {
            self.rng.between(self.every / 4, self.every * 7 / 4)
        };
        self.next_at = now + pause;
        let gids: Vec<Gid> = self.groups.keys().copied().collect();
        let gid = self.rng.pick(&gids).copied().unwrap_or(Gid(1));
        let (inside, outside): (Vec<Gid>, Vec<Gid>) =
            gids.iter().partition(|gid| self.joined.contains(gid));
        match self.rng.below(10) {
            0..3 if !outside.is_empty() => {
                let many = self.rng.chance(300_000);
                let first = self.rng.pick(&outside).copied().unwrap_or(gid);
                self.join(if many { outside } else { vec![first] })
            }
            // Joins the same group with other addresses.
            3 => {
                let mut change = self.join([gid]);
                if let Change::Join { groups } = &mut change
                    && let Some(addresses) = groups.get_mut(&gid)
                {
                    addresses.rotate_left(1);
                }
                change
            }
            4..6 if inside.len() > 1 => {
                let gone = self.rng.pick(&inside).copied().unwrap_or(gid);
                Change::Leave {
                    gids: [gone].into(),
                }
            }
            6 if inside.len() > 2 => {
                let stays = self.rng.index(inside.len());
                let mut gids: BTreeSet<Gid> = inside.iter().copied().collect();
                gids.remove(&inside[stays]);
                Change::Leave { gids }
            }
            _ => {
                let shard = ShardId(u32::try_from(self.rng.below(self.shards.into())).unwrap_or(0));
                let to = self.rng.pick(&inside).copied().unwrap_or(gid);
                Change::Move { shard, gid: to }
            }
        }
    }

    /// Takes in an answer.
    pub(crate) fn answered(
        &mut self,
        id: RequestId,
        outcome: Outcome,
        context: &ClientContext<'_>,
    ) -> Result<(), Violation> {
        if !self.asked.contains(&id) {
            return Ok(());
        }
        match outcome {
            Ok(Answer::Birth(birth)) => self.session_opened(birth, context.now),
            Ok(Answer::Machine(Reply::Ctrl(Response::Refused(error)))) => {
                return self.refused(id, &error, context.now);
            }
            Ok(Answer::Machine(Reply::Ctrl(response))) => {
                self.finish_change(Some(response), context.now);
            }
            Ok(other) => {
                return Err(Violation::new(
                    "answers fit their requests",
                    format!("a change was answered {other:?}"),
                ));
            }
            Err(Refusal::NotLeader { leader } | Refusal::Unknown { leader }) => {
                let known = leader.and_then(|node| context.addresses.get(&node));
                if let Some(host) = known.filter(|host| **host != self.target) {
                    self.target = *host;
                    self.retry_at = context.now + MILLI;
                } else {
                    self.draw_target(context);
                    self.retry_at = context.now + self.rng.between(5 * MILLI, 50 * MILLI);
                }
            }
            Err(_) => {
                self.draw_target(context);
                self.retry_at = context.now + self.rng.between(10 * MILLI, 80 * MILLI);
            }
        }
        Ok(())
    }

    fn session_opened(&mut self, birth: LogTime, now: Micros) {
        if self.session.is_none() {
            let nonce = self.rng.number();
            self.session = Some((ClientId { birth, nonce }, Sequence(1)));
            self.asked.clear();
            self.retry_at = now;
        }
    }

    fn refused(&mut self, id: RequestId, error: &CtrlError, now: Micros) -> Result<(), Violation> {
        match error {
            CtrlError::SessionExpired => {
                self.session = None;
                // A repeated join does no harm, and without the first join no group serves anything.
                if let Some(join @ Change::Join { .. }) = &self.change {
                    self.script.push_front(join.clone());
                }
                self.finish_change(None, now);
            }
            CtrlError::SessionLimit { .. } => {
                self.asked.remove(&id);
                self.retry_at = now + 50 * MILLI;
            }
            CtrlError::UnknownGroup(_)
            | CtrlError::Leaving(_)
            | CtrlError::LastGroup
            | CtrlError::DataLoss(_)
            | CtrlError::NotDrained(_)
            | CtrlError::Retired(_) => {
                self.finish_change(Some(Response::Refused(error.clone())), now);
            }
            error => {
                return Err(Violation::new(
                    "refusals are valid",
                    format!("{:?} was refused: {error}", self.change),
                ));
            }
        }
        Ok(())
    }

    fn finish_change(&mut self, response: Option<Response>, now: Micros) {
        let Some(change) = self.change.take() else {
            return;
        };
        self.asked.clear();
        if let Some(Response::Changed { .. } | Response::Forgotten { .. }) = &response {
            match &change {
                Change::Join { groups } => self.joined.extend(groups.keys()),
                Change::Leave { gids } | Change::Forget { gids, .. } => {
                    self.joined.retain(|gid| !gids.contains(gid));
                }
                _ => {}
            }
        }
        self.finished.push(Changed {
            change,
            response,
            at: now,
        });
    }
}
