//! The mover of a host: carries out the proposals and calls of its [`Driver`] over the simulated network.
//!
//! The driver is the server's, so the seeds test which node it asks next, what it makes of late and missing answers, and
//! how it settles with sources that are gone. Requests and answers are lost, delayed, duplicated and cut off like all
//! others.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::Role;
use replica::{Refusal, Request, RequestId, Status};
use request::Refused;
use shardkv::mover::{Answer, CallId, Driver, DriverOptions, Effect, Request as MoverRequest};
use shardkv::{MoverOptions, Query, Response, Step as ShardStep};
use types::{ClusterId, ConfigNum, Gid};

use crate::caller::MOVERS;
use crate::event::Event;
use crate::host::Input;
use crate::machine::{Outcome, Question, Reply, to_ctrl, to_kv};
use crate::network::{HostId, address, host_at};
use crate::queue::{MILLI, Micros};
use crate::rng::{Concern, SimRng};
use crate::violation::{Checked as Step, Violation};
use crate::world::World;

/// The controllers' incarnation.
pub(crate) const CONTROLLERS: ClusterId = ClusterId(0xc0);

/// The most configurations in an answer.
const DELTAS: u32 = 3;

/// A host's mover, and its calls on the network.
#[derive(Debug)]
pub(crate) struct MoverDriver {
    driver: Driver,
    /// The calls of the driver's requests, for as long as the host leads. An answer to an abandoned call is passed on too.
    sent: BTreeMap<RequestId, CallId>,
    /// The number of requests that the host's processes sent.
    requests: u64,
    /// The time of the next scheduled poll.
    due: Micros,
}

impl MoverDriver {
    /// Creates a mover without running actions. Its request ids continue after those of the process `before`, so that
    /// late answers to that process match no request.
    pub(crate) fn new(
        gid: Gid,
        shards: u32,
        options: MoverOptions,
        driver: DriverOptions,
        bug: Option<shardkv::Bug>,
        before: Option<Self>,
    ) -> Self {
        Self {
            driver: Driver::with_bug(gid, shards, options, driver, bug),
            sent: BTreeMap::new(),
            requests: before.map_or(0, |before| before.requests),
            due: Micros::MAX,
        }
    }

    /// Describes the pending actions.
    pub(crate) fn describe(&self) -> String {
        let actions: Vec<_> = self.driver.pending_actions().collect();
        format!("{actions:?}")
    }

    fn new_request(&mut self, number: HostId) -> RequestId {
        self.requests += 1;
        RequestId(((MOVERS + number as u64) << 40) | self.requests)
    }
}

/// Draws the options of a process's driver. Some drivers give up a call before the mover gives up its slot, others after.
pub(crate) fn draw_options(controllers: Vec<String>, seed: u64) -> DriverOptions {
    let mut rng = SimRng::new(seed, Concern::Mover);
    DriverOptions {
        first_node: rng.index(controllers.len().max(7)),
        controllers,
        call_timeout_ms: rng.magnitude(150, 1_500),
        propose_timeout_ms: 1_500,
        news_wait_ms: 0,
    }
}

impl World {
    /// Polls a host's mover, and carries out the effects.
    pub(crate) fn run_mover_actions(&mut self, number: HostId, status: &Status) -> Step {
        let host = &mut self.hosts[number];
        let (Some(mover), Some(process)) = (&mut host.mover_driver, &host.process) else {
            return Ok(());
        };
        let leads = status.role == Role::Leader;
        let ownership = process.machine().machine().ownership().filter(|_| leads);
        let effects = mover.driver.poll(self.now / MILLI, ownership.as_ref());
        if !leads {
            mover.sent.clear();
        }
        if let Some(fatal) = mover.driver.mover().fatal() {
            return Err(Violation::new(
                "groups can follow the controllers",
                format!("host {number}: {fatal}"),
            ));
        }
        for effect in effects {
            self.carry_out(number, effect);
        }
        self.plan_mover(number);
        Ok(())
    }

    fn carry_out(&mut self, number: HostId, effect: Effect) {
        match effect {
            Effect::Propose { id, step, .. } => {
                self.trace(number, || {
                    format!("mover {id:?}: proposes {}", describe_step(&step))
                });
                let request = write(step.encode(), step.frees_space());
                self.echo(number, &request);
                // The host's own process takes the request in its next step.
                let id = self.name_call(number, id);
                self.hosts[number]
                    .inbox
                    .push_back(Input::Request(id, request));
                self.plan_work(number);
            }
            Effect::Call {
                id,
                address,
                request,
                ..
            } => {
                self.trace(number, || {
                    format!("mover {id:?}: asks {address}: {request:?}")
                });
                let request = self.convert(request);
                let Some(to) = host_at(&address) else {
                    return;
                };
                let arrivals = self.network.arrivals(number, to, self.now);
                for at in arrivals.into_iter().flatten() {
                    let id = self.name_call(number, id);
                    let request = request.clone();
                    self.queue.push(
                        at,
                        Event::Ask {
                            host: to,
                            id,
                            request,
                        },
                    );
                }
            }
            Effect::Failed(why) => self.trace(number, || format!("mover: failed: {why}")),
        }
    }

    /// Sends some requests to the host a second time, late, because steps must be idempotent. No action waits for the
    /// second answer.
    fn echo(&mut self, number: HostId, request: &Request<Question>) {
        let echoes = self.scenario.cluster.as_ref().map_or(0, |it| it.echoes);
        if !self.rng.chance(echoes) || self.ending {
            return;
        }
        let Some(mover) = &mut self.hosts[number].mover_driver else {
            return;
        };
        let id = mover.new_request(number);
        let at = self.now + self.rng.magnitude(MILLI, 2_000 * MILLI);
        let request = request.clone();
        self.queue.push(
            at,
            Event::Ask {
                host: number,
                id,
                request,
            },
        );
    }

    fn name_call(&mut self, number: HostId, call: CallId) -> RequestId {
        let Some(mover) = &mut self.hosts[number].mover_driver else {
            return RequestId(0);
        };
        let id = mover.new_request(number);
        mover.sent.insert(id, call);
        id
    }

    /// Converts a request of the driver into one of the state machine that answers it.
    fn convert(&mut self, request: MoverRequest) -> Request<Question> {
        match request {
            MoverRequest::Configs { gid, after, .. } => {
                let query = shardctrler::Query::After {
                    num: after,
                    limit: DELTAS,
                    gid: Some(gid),
                };
                // Configurations never change, so any controller may return those that it knows. The first query must
                // reach the leader, because the oldest kept configuration changes.
                to_ctrl(if self.rng.coin() && after > ConfigNum(0) {
                    Request::ReadLocal(query)
                } else {
                    Request::Read(query)
                })
            }
            MoverRequest::ListGroups => {
                to_ctrl(Request::Read(shardctrler::Query::Config { num: None }))
            }
            MoverRequest::Report { gid, settled, .. } => {
                let command = shardctrler::Command {
                    session: None,
                    change: shardctrler::Change::Report { gid, settled },
                };
                write(command.encode(), true)
            }
            MoverRequest::Pull {
                shard,
                config,
                after,
                max_bytes,
                ..
            } => to_kv(Request::ReadLocal(Query::Pull {
                shard,
                config,
                after,
                max_bytes,
            })),
            MoverRequest::Delete { shard, config, .. } => {
                let step = ShardStep::Delete { shard, config };
                write(step.encode(), step.frees_space())
            }
        }
    }

    /// Passes an answer to a mover's driver.
    pub(crate) fn action_answered(
        &mut self,
        number: HostId,
        id: RequestId,
        outcome: Outcome,
    ) -> Step {
        let shards = self.scenario.genesis.shards;
        let nodes = &self.nodes;
        let answer = match outcome {
            Ok(replica::Answer::Machine(reply)) => answer(reply, shards),
            Ok(_) => Err(refused("the answer is of another kind".to_owned())),
            Err(refusal) => {
                let hint = |leader: Option<types::NodeId>| {
                    let host = nodes.get(&leader?)?;
                    Some(Arc::from(address(*host)))
                };
                let message = refusal.to_string();
                let refusal = match refusal {
                    Refusal::NotLeader { leader } => {
                        request::Refusal::NotLeader { hint: hint(leader) }
                    }
                    Refusal::Unknown { leader } => {
                        request::Refusal::OutcomeUnknown { hint: hint(leader) }
                    }
                    Refusal::Stopping => request::Refusal::Unavailable,
                    _ => overloaded(),
                };
                Err(Refused { refusal, message })
            }
        };
        let Some(mover) = &mut self.hosts[number].mover_driver else {
            return Ok(());
        };
        let Some(call) = mover.sent.remove(&id) else {
            return Ok(());
        };
        mover.driver.handle_answer(call, answer);
        self.poll_mover(number)
    }

    /// Polls a mover whose time has come.
    pub(crate) fn mover_due(&mut self, number: HostId) -> Step {
        if let Some(mover) = &mut self.hosts[number].mover_driver {
            mover.due = Micros::MAX;
        }
        self.poll_mover(number)
    }

    /// Schedules a mover anew after a pause, in which its events were dropped.
    pub(crate) fn wake_mover(&mut self, number: HostId) {
        if let Some(mover) = &mut self.hosts[number].mover_driver {
            mover.due = Micros::MAX;
        }
        self.plan_mover(number);
    }

    fn poll_mover(&mut self, number: HostId) -> Step {
        match self.status(number).filter(|_| !self.hosts[number].paused) {
            Some(status) => self.run_mover_actions(number, &status),
            None => Ok(()),
        }
    }

    fn plan_mover(&mut self, number: HostId) {
        let host = &mut self.hosts[number];
        let Some(mover) = &mut host.mover_driver else {
            return;
        };
        let Some(due) = mover.driver.next_due() else {
            return;
        };
        let due = (due * MILLI).max(self.now + 1);
        if due < mover.due {
            mover.due = due;
            let incarnation = host.incarnation;
            self.queue.push(
                due,
                Event::RunningAction {
                    host: number,
                    incarnation,
                },
            );
        }
    }
}

fn write(operation: bytes::Bytes, frees_space: bool) -> Request<Question> {
    Request::Write {
        operation,
        frees_space,
    }
}

/// Converts the answer of a state machine.
fn answer(reply: Reply, shards: u32) -> Result<Answer, Refused> {
    Ok(match reply {
        Reply::Kv(Response::Chunk(chunk)) => Answer::Chunk(*chunk),
        Reply::Kv(Response::Stepped) => Answer::Stepped,
        Reply::Kv(Response::Refused(error)) => return Err(refused(error.to_string())),
        Reply::Ctrl(shardctrler::Response::Reported) => Answer::Reported,
        Reply::Ctrl(shardctrler::Response::Configs(configs)) => Answer::Configs {
            controller: CONTROLLERS,
            shards,
            full: configs.full.map(|full| (*full).clone()),
            deltas: configs.deltas,
        },
        Reply::Ctrl(shardctrler::Response::Config(latest)) => Answer::Groups {
            controller: CONTROLLERS,
            gids: latest.progress.keys().copied().collect(),
        },
        Reply::Ctrl(shardctrler::Response::Refused(error)) => {
            return Err(refused(error.to_string()));
        }
        other => return Err(refused(format!("was answered {other:?}"))),
    })
}

/// Returns the refusal by a state machine.
fn refused(message: String) -> Refused {
    let refusal = overloaded();
    Refused { refusal, message }
}

fn overloaded() -> request::Refusal {
    request::Refusal::Overloaded {
        retry_after: request::Time::ZERO,
    }
}

/// Describes a step in one line.
pub(crate) fn describe_step(step: &ShardStep) -> String {
    match step {
        ShardStep::Begin { num, .. } => format!("Begin at {num}"),
        ShardStep::Configure { delta, .. } => format!("Configure {}", delta.num),
        ShardStep::Install(chunk) => format!(
            "Install {} of {} after {:?}: {} pairs, {} sessions, then {:?}",
            chunk.shard,
            chunk.config,
            chunk.after,
            chunk.pairs.len(),
            chunk.sessions.len(),
            chunk.next
        ),
        ShardStep::Delete { shard, config } => format!("Delete {shard} of {config}"),
        ShardStep::Deleted { shard, config } => format!("Deleted {shard} of {config}"),
    }
}
