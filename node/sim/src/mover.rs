//! The mover of a host: the product's [`Driver`], its calls in flight, and the conversion of requests and answers.
//!
//! The driver is the server's, so the seeds test which node it asks next, what it makes of late and missing answers, and
//! how it settles with sources that are gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use replica::{Refusal, Request, RequestId};
use request::Refused;
use shardkv::mover::{Answer, CallId, Driver, DriverOptions, Effect, Request as MoverRequest};
use shardkv::{CopyStep, KvError, MoverOptions, Ownership, Query, Response, Step};
use types::{ClusterId, ConfigNum, Gid, NodeId};

use crate::caller::Caller;
use crate::machine::{Outcome, Question, Reply, to_ctrl, to_kv};
use crate::network::{HostId, address};
use crate::queue::{MILLI, Micros};
use crate::rng::{Concern, SimRng};
use crate::violation::Violation;

/// The controllers' incarnation.
const CONTROLLERS: ClusterId = ClusterId(0xc0);

/// The most configurations in an answer.
const MAX_DELTAS: u32 = 3;

/// A host's mover, and its calls on the network.
#[derive(Debug)]
pub(crate) struct Mover {
    host: HostId,
    driver: Driver,
    /// The calls of the driver's requests, for as long as the host leads. An answer to an abandoned call is passed on too.
    calls: BTreeMap<RequestId, CallId>,
    /// The number of requests that the host's processes sent.
    requests: u64,
    /// The time of the next scheduled poll.
    due: Micros,
}

impl Mover {
    /// Creates a mover without running actions. Its request ids continue after those of the process `before`, so that
    /// late answers to that process match no request.
    pub(crate) fn new(host: HostId, driver: Driver, before: Option<Self>) -> Self {
        Self {
            host,
            driver,
            calls: BTreeMap::new(),
            requests: before.map_or(0, |before| before.requests),
            due: Micros::MAX,
        }
    }

    /// Polls the driver. `ownership` is that of a leader, and `None` on other replicas. Fails if the driver finds that
    /// the group can't follow the controllers any more.
    pub(crate) fn poll(
        &mut self,
        now: Micros,
        ownership: Option<&Arc<Ownership>>,
    ) -> Result<Vec<Effect>, Violation> {
        let effects = self.driver.poll(now / MILLI, ownership);
        if ownership.is_none() {
            self.calls.clear();
        }
        match self.driver.mover().fatal() {
            None => Ok(effects),
            Some(fatal) => Err(Violation::new(
                "groups can follow the controllers",
                format!("host {}: {fatal}", self.host),
            )),
        }
    }

    /// Returns the id of a request whose answer nobody awaits.
    pub(crate) fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        Caller::Mover(self.host).request(self.requests)
    }

    /// Returns the id of a request of `call`.
    pub(crate) fn request_of(&mut self, call: CallId) -> RequestId {
        let id = self.next_request();
        self.calls.insert(id, call);
        id
    }

    /// Passes an answer to the driver. Returns false if no call awaits it.
    pub(crate) fn handle_answer(&mut self, id: RequestId, answer: Result<Answer, Refused>) -> bool {
        let Some(call) = self.calls.remove(&id) else {
            return false;
        };
        self.driver.handle_answer(call, answer);
        true
    }

    /// Forgets the scheduled poll, which has come or was dropped.
    pub(crate) fn forget_schedule(&mut self) {
        self.due = Micros::MAX;
    }

    /// Returns the time of the next poll, unless one is scheduled by then.
    pub(crate) fn schedule(&mut self, now: Micros) -> Option<Micros> {
        let due = (self.driver.next_due()? * MILLI).max(now + 1);
        if due >= self.due {
            return None;
        }
        self.due = due;
        Some(due)
    }

    /// Describes the pending actions.
    pub(crate) fn describe(&self) -> String {
        let actions: Vec<_> = self.driver.pending_actions().collect();
        format!("{actions:?}")
    }
}

/// Creates the driver of a process, with options drawn from `seed`.
pub(crate) fn draw_driver(
    gid: Gid,
    shards: u32,
    options: MoverOptions,
    controllers: Vec<String>,
    seed: u64,
    bug: Option<shardkv::Bug>,
) -> Driver {
    Driver::with_bug(gid, shards, options, draw_options(controllers, seed), bug)
}

/// Draws the options of a process's driver. Some drivers give up a call before the mover gives up its slot, others after.
fn draw_options(controllers: Vec<String>, seed: u64) -> DriverOptions {
    let mut rng = SimRng::new(seed, Concern::Mover);
    DriverOptions {
        first_node: rng.index(controllers.len().max(7)),
        controllers,
        call_timeout_ms: rng.magnitude(150, 1_500),
        propose_timeout_ms: 1_500,
        news_wait_ms: 0,
    }
}

/// Converts a step into a request to the state machine.
pub(crate) fn step_request(step: &Step) -> Request<Question> {
    write(step.encode(), step.frees_space())
}

/// Converts a request of the driver into one to the state machine that answers it.
pub(crate) fn convert_request(request: MoverRequest, rng: &mut SimRng) -> Request<Question> {
    match request {
        MoverRequest::Configs { gid, after, .. } => {
            let query = shardctrler::Query::After {
                num: after,
                limit: MAX_DELTAS,
                gid: Some(gid),
            };
            // Configurations never change, so any controller may return those that it knows. The first query must reach
            // the leader, because what the group has settled must be recent.
            to_ctrl(if rng.coin() && after > ConfigNum(0) {
                Request::ReadLocal(query)
            } else {
                Request::Read(query)
            })
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
        MoverRequest::Copy { request, .. } => to_kv(Request::ReadLocal(Query::Copy(request))),
        MoverRequest::Journal { step, .. } => write(step.encode(), true),
        MoverRequest::ReportCut { cuts, .. } => {
            let command = shardctrler::Command {
                session: None,
                change: shardctrler::Change::Cut { cuts },
            };
            write(command.encode(), true)
        }
        MoverRequest::Delete { shard, config, .. } => step_request(&Step::Delete { shard, config }),
    }
}

fn write(operation: bytes::Bytes, frees_space: bool) -> Request<Question> {
    Request::Write {
        operation,
        frees_space,
    }
}

/// Converts the outcome of a request into an answer for the driver. `nodes` is the host of each node, and `shards` the
/// number of shards.
pub(crate) fn convert_outcome(
    outcome: Outcome,
    nodes: &BTreeMap<NodeId, HostId>,
    shards: u32,
) -> Result<Answer, Refused> {
    let refusal = match outcome {
        Ok(replica::Answer::Machine(reply)) => return convert_reply(reply, shards),
        Ok(_) => return Err(refused("the answer is of another kind".to_owned())),
        Err(refusal) => refusal,
    };
    let hint = |leader: Option<NodeId>| {
        let host = nodes.get(&leader?)?;
        Some(Arc::from(address(*host)))
    };
    let message = refusal.to_string();
    let refusal = match refusal {
        Refusal::NotLeader { leader } => request::Refusal::NotLeader { hint: hint(leader) },
        Refusal::Unknown { leader } => request::Refusal::OutcomeUnknown { hint: hint(leader) },
        Refusal::Stopping => request::Refusal::Unavailable,
        _ => overloaded(),
    };
    Err(Refused { refusal, message })
}

/// Converts the answer of a state machine.
fn convert_reply(reply: Reply, shards: u32) -> Result<Answer, Refused> {
    Ok(match reply {
        Reply::Kv(Response::Chunk(chunk)) => Answer::Chunk {
            shard_bytes: chunk.content_bytes(),
            chunk: *chunk,
        },
        Reply::Kv(Response::Part(part)) => Answer::Part(*part),
        Reply::Kv(Response::Begun { journal }) => Answer::Begun {
            journal,
            shard_bytes: 0,
        },
        Reply::Kv(Response::Refused(KvError::Journal { error, .. })) => Answer::Refused(error),
        Reply::Kv(Response::Stepped) => Answer::Stepped,
        Reply::Kv(Response::Refused(error)) => return Err(refused(error.to_string())),
        Reply::Ctrl(shardctrler::Response::Reported | shardctrler::Response::Cut { .. }) => {
            Answer::Reported
        }
        Reply::Ctrl(shardctrler::Response::Configs(configs)) => Answer::Configs {
            controller: CONTROLLERS,
            shards,
            settled: configs.settled,
            full: configs.full.map(|full| (*full).clone()),
            deltas: configs.deltas,
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
pub(crate) fn describe_step(step: &Step) -> String {
    match step {
        Step::Configure(step) => {
            format!(
                "Configure {} after {}: {:?}",
                step.num, step.after, step.rows
            )
        }
        Step::Install(chunk) => format!(
            "Install {} of {} after {:?}: {} pairs, {} sessions, then {:?}",
            chunk.shard,
            chunk.config,
            chunk.after,
            chunk.pairs.len(),
            chunk.sessions.len(),
            chunk.next
        ),
        Step::Delete { shard, config } => format!("Delete {shard} of {config}"),
        Step::Deleted { shard, config } => format!("Deleted {shard} of {config}"),
        Step::Copy(CopyStep::Take(part)) => format!(
            "Take {} of {:?} after {:?}: {} changes, then {:?}",
            part.shard,
            part.copy,
            part.after,
            part.changes.len(),
            part.next
        ),
        Step::Copy(step) => format!("{step:?}"),
    }
}
