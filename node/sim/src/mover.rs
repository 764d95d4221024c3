//! The mover of a host: the product's [`Driver`], its calls in flight, and the conversion of requests and answers.
//!
//! The driver is the server's, so the seeds test which node it asks next, what it makes of late and missing answers, and
//! how it settles with sources that are gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use replica::{Refusal, Request, RequestId};
use request::Refused;
use shardkv::mover::{
    Answer, CallId, Driver, DriverOptions, Effect, Request as MoverRequest, Room,
};
use shardkv::{
    CopyCursor, CopyStep, Cursor, JournalStep, KvError, MoverOptions, Ownership, Part, PartNext,
    Query, Response, ShardState, Step,
};
use types::{ClusterId, ConfigNum, Gid, NodeId};

use crate::caller::Caller;
use crate::late_calls::Subject;
use crate::machine::{Outcome, Question, Reply, to_ctrl, to_kv};
use crate::network::{HostId, address};
use crate::queue::{MILLI, Micros};
use crate::rng::{Concern, SimRng};
use crate::violation::Violation;

/// The controllers' incarnation.
const CONTROLLERS: ClusterId = ClusterId(0xc0);

/// The size of a shard as a source tells it. A group has room for any shard or for none.
const SHARD_BYTES: u64 = 1;

/// The kind of the steps that drop a copy.
pub(crate) const DROP_STEP: &str = "step: drop";

/// The kind of the steps that take the last page of a generation.
pub(crate) const LAST_PAGE_STEP: &str = "step: take last";

/// The kind of the calls that seal a generation of a journal.
pub(crate) const SEAL: &str = "seal";

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
    /// True if the mover takes a fenced shard that is to come back for absent, as [`shardkv::Bug::CopyIntoFencedRange`] has it.
    ignores_fences: bool,
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
            ignores_fences: false,
        }
    }

    /// Lets the mover begin copies where an earlier stay of the shard is still fenced.
    pub(crate) fn ignore_fences(&mut self) {
        self.ignores_fences = true;
    }

    /// Polls the driver. `ownership` is that of a leader, and `None` on other replicas. Fails if the driver finds that
    /// the group can't follow the controllers any more.
    pub(crate) fn poll(
        &mut self,
        now: Micros,
        ownership: Option<&Arc<Ownership>>,
    ) -> Result<Vec<Effect>, Violation> {
        let seen = ownership.filter(|_| self.ignores_fences);
        let seen = seen.map(without_returning);
        let effects = self.driver.poll(now / MILLI, seen.as_ref().or(ownership));
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

    /// Returns the id of a request that is sent again, of the same call as `earlier` if that call is remembered.
    pub(crate) fn repeat_request(&mut self, earlier: RequestId) -> RequestId {
        match self.calls.get(&earlier).copied() {
            Some(call) => self.request_of(call),
            None => self.next_request(),
        }
    }

    /// Says if the group's disks have room for shards.
    pub(crate) fn set_room(&mut self, has_room: bool) {
        let node = "a host with little space".to_owned();
        let full = Room { node, bytes: 0 };
        self.driver.set_room((!has_room).then_some(full));
    }

    /// Passes an answer to the driver, also one that came before. Returns false if no call awaited it.
    pub(crate) fn handle_answer(&mut self, id: RequestId, answer: Result<Answer, Refused>) -> bool {
        let Some(call) = self.calls.get(&id).copied() else {
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

/// Returns an ownership without the fenced shards that are to come back.
fn without_returning(ownership: &Arc<Ownership>) -> Arc<Ownership> {
    let mut seen = Ownership::clone(ownership);
    for (shard, planned) in ownership.planned.iter() {
        let fenced = matches!(ownership.state(*shard), Some(ShardState::Fenced { .. }));
        if fenced && planned.target.to == ownership.gid {
            seen.shards.remove(shard);
        }
    }
    Arc::new(seen)
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
        propose_timeout_ms: rng.magnitude(150, 1_500),
        news_wait_ms: 0,
    }
}

/// Returns the subject of a request.
pub(crate) fn subject_of_request(request: &MoverRequest) -> Subject {
    let of = |kind, shard| Subject { kind, shard };
    match request {
        MoverRequest::Pull { shard, .. } => of("pull", Some(*shard)),
        MoverRequest::Delete { shard, .. } => of("delete", Some(*shard)),
        MoverRequest::Copy { request, .. } => of("part", Some(request.shard)),
        MoverRequest::Journal { step, .. } => {
            let kind = match step {
                JournalStep::Begin { .. } => "begin",
                JournalStep::Seal { .. } => SEAL,
                JournalStep::Drop { .. } => "drop of a generation",
                JournalStep::Renew { .. } => "renew",
            };
            of(kind, Some(step.shard()))
        }
        MoverRequest::ReportCut { cuts, .. } => of("cut", cuts.keys().next().copied()),
        MoverRequest::Configs { .. } => of("configurations", None),
        MoverRequest::Report { .. } => of("report", None),
    }
}

/// Returns the subject of a step.
pub(crate) fn subject_of_step(step: &Step) -> Subject {
    let of = |kind, shard| Subject { kind, shard };
    match step {
        Step::Configure(_) | Step::ConfigurePart(_) => of("step: configure", None),
        Step::Install(chunk) => of("step: install", Some(chunk.shard)),
        Step::Delete { shard, .. } => of("step: delete", Some(*shard)),
        Step::Deleted { shard, .. } => of("step: deleted", Some(*shard)),
        Step::Copy(step) => {
            let kind = match step {
                CopyStep::Start { .. } => "step: start",
                // The first part fits each later copy of the shard.
                CopyStep::Take(part) if part.after == CopyCursor::Base(Cursor::default()) => {
                    "step: take first"
                }
                CopyStep::Take(part) if ends_generation(part) => LAST_PAGE_STEP,
                CopyStep::Take(_) => "step: take",
                CopyStep::Drop { .. } => DROP_STEP,
                CopyStep::Restart { .. } => "step: restart",
            };
            of(kind, Some(step.shard()))
        }
    }
}

/// Returns true for a part after which the next generation begins.
fn ends_generation(part: &Part) -> bool {
    match (&part.after, &part.next) {
        (
            CopyCursor::Page { generation, .. },
            PartNext::At(CopyCursor::Page {
                generation: next, ..
            }),
        ) => next > generation,
        _ => false,
    }
}

/// Converts a step into a request to the state machine.
pub(crate) fn step_request(step: &Step) -> Request<Question> {
    write(step.encode(), step.frees_space())
}

/// Converts a request of the driver into one to the state machine that answers it.
pub(crate) fn convert_request(request: MoverRequest, rng: &mut SimRng) -> Request<Question> {
    match request {
        MoverRequest::Configs {
            gid, after, begun, ..
        } => {
            let query = shardctrler::Query::After {
                num: after,
                limit: MAX_DELTAS,
                gid: Some(gid),
            };
            // Configurations never change, so any controller may return those that it knows. The first query must reach
            // the leader, because what the group has settled must be recent.
            to_ctrl(if rng.coin() && (begun || after > ConfigNum(0)) {
                Request::ReadLocal(query)
            } else {
                Request::Read(query)
            })
        }
        MoverRequest::Report {
            gid, settled, held, ..
        } => {
            let command = shardctrler::Command {
                session: None,
                change: shardctrler::Change::Report { gid, settled, held },
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
            shard_bytes: chunk.content_bytes().max(SHARD_BYTES),
            chunk: *chunk,
        },
        Reply::Kv(Response::Part(part)) => Answer::Part(*part),
        Reply::Kv(Response::Begun { journal }) => Answer::Begun {
            journal,
            shard_bytes: SHARD_BYTES,
        },
        Reply::Kv(Response::Refused(KvError::Journal { error, .. })) => Answer::Refused(error),
        Reply::Kv(Response::Stepped) => Answer::Stepped,
        Reply::Kv(Response::Refused(error @ KvError::ShardNotReady { .. })) => {
            return Err(Refused {
                refusal: request::Refusal::ShardNotReady {
                    retry_after: request::Time::ZERO,
                },
                message: error.to_string(),
            });
        }
        Reply::Kv(Response::Refused(error)) => return Err(refused(error.to_string())),
        Reply::Ctrl(shardctrler::Response::Reported | shardctrler::Response::Cut { .. }) => {
            Answer::Reported
        }
        Reply::Ctrl(shardctrler::Response::Configs(configs)) => Answer::Configs {
            controller: CONTROLLERS,
            shards,
            settled: configs.settled,
            held: configs.held,
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
        Step::ConfigurePart(part) => format!(
            "Part {} of {} of Configure {}",
            part.index, part.whole.count, part.whole.num
        ),
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
