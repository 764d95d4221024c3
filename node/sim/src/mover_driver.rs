//! The driver of a mover: runs the actions of a leader's mover over the simulated network.
//!
//! It works like the server's driver. It pulls a chunk of a shard from any node of the source, follows redirects to the
//! leader of the source or of the controllers, tries another node when no answer comes, and fails the action at its
//! deadline. Requests and answers are lost, delayed, duplicated and cut off like all others.

use std::collections::BTreeMap;

use raft::Role;
use replica::{Answer, Refusal, Request, RequestId, Status};
use shardkv::{Action, ActionId, ActionOutcome, Mover, Query, Response, Step as ShardStep};
use types::{ClusterId, ConfigNum, Gid};

use crate::caller::MOVERS;
use crate::event::Event;
use crate::host::Input;
use crate::machine::{Outcome, Question, Reply, to_ctrl, to_kv};
use crate::network::{HostId, host_at};
use crate::queue::{MILLI, Micros};
use crate::violation::Checked as Step;
use crate::world::World;

/// The controllers' incarnation.
pub(crate) const CONTROLLERS: ClusterId = ClusterId(0xc0);

/// The longest time of an action.
const DEADLINE: Micros = 1_500 * MILLI;
/// The longest time of a query for new configurations.
const LONG_POLL: Micros = 400 * MILLI;
/// The time without an answer after which another node is tried.
const PATIENCE: Micros = 250 * MILLI;
/// The pause before a retry after an empty answer, or a refusal without a hint.
const PAUSE: Micros = 20 * MILLI;
/// The most configurations in an answer.
const DELTAS: u32 = 3;

/// A host's mover and its running actions.
#[derive(Debug)]
pub(crate) struct MoverDriver {
    mover: Mover,
    open: BTreeMap<ActionId, RunningAction>,
    asked: BTreeMap<RequestId, ActionId>,
    sent: u64,
    /// The time of the next scheduled poll.
    due: Micros,
}

#[derive(Debug)]
struct RunningAction {
    action: Action,
    /// The nodes that can serve the action; `target` is the next one to try.
    hosts: Vec<HostId>,
    target: HostId,
    ask_at: Micros,
    deadline: Micros,
}

impl MoverDriver {
    /// Creates a mover without running actions. Its request ids continue after those of the process `before`, so that
    /// late answers to that process match no request.
    pub(crate) fn new(
        gid: Gid,
        shards: u32,
        options: shardkv::MoverOptions,
        bug: Option<shardkv::Bug>,
        before: Option<Self>,
    ) -> Self {
        Self {
            mover: Mover::with_bug(gid, shards, options, bug),
            open: BTreeMap::new(),
            asked: BTreeMap::new(),
            sent: before.map_or(0, |before| before.sent),
            due: Micros::MAX,
        }
    }

    /// Returns the reason why the group can't follow the controllers any more, if there is one.
    pub(crate) fn fatal(&self) -> Option<&str> {
        self.mover.fatal()
    }

    /// Describes the running actions.
    pub(crate) fn describe(&self) -> String {
        let actions: Vec<&Action> = self.open.values().map(|running| &running.action).collect();
        format!("{actions:?}")
    }
}

impl World {
    /// Polls a host's mover, and begins the actions that it returns.
    pub(crate) fn run_mover_actions(&mut self, number: HostId, status: &Status) -> Step {
        let host = &mut self.hosts[number];
        let (Some(mover_driver), Some(process)) = (&mut host.mover_driver, &host.process) else {
            return Ok(());
        };
        let leads = status.role == Role::Leader;
        let ownership = process.machine().machine().ownership().filter(|_| leads);
        let actions = mover_driver
            .mover
            .poll(self.now / MILLI, ownership.as_ref());
        if !leads {
            mover_driver.open.clear();
            mover_driver.asked.clear();
        }
        if let Some(fatal) = mover_driver.fatal() {
            return Err(crate::violation::Violation::new(
                "groups can follow the controllers",
                format!("host {number}: {fatal}"),
            ));
        }
        for (id, action) in actions {
            self.begin_action(number, id, action);
        }
        self.plan_mover(number);
        Ok(())
    }

    fn begin_action(&mut self, number: HostId, id: ActionId, action: Action) {
        self.trace(number, || format!("mover {id:?}: {}", describe(&action)));
        let (hosts, patience): (Vec<HostId>, Micros) = match &action {
            Action::FetchConfigs { .. } => ((self.kv_hosts..self.hosts.len()).collect(), LONG_POLL),
            Action::Report { .. } => ((self.kv_hosts..self.hosts.len()).collect(), DEADLINE),
            Action::Pull { addresses, .. } | Action::Delete { addresses, .. } => {
                let known = addresses.iter().filter_map(|it| host_at(it));
                (known.collect(), DEADLINE)
            }
            Action::Propose(_) => (vec![number], DEADLINE),
        };
        let target = self.rng.pick(&hosts).copied().unwrap_or(number);
        let running = RunningAction {
            action,
            hosts,
            target,
            ask_at: self.now,
            deadline: self.now + patience,
        };
        if let Some(mover_driver) = &mut self.hosts[number].mover_driver {
            mover_driver.open.insert(id, running);
        }
        self.ask_for(number, id);
    }

    /// Sends the request of a running action.
    fn ask_for(&mut self, number: HostId, id: ActionId) {
        let Some((to, request)) = self.question(number, id) else {
            return;
        };
        if to == number {
            let name = self.name_call(number, id);
            self.echo(number, &request);
            let input = Input::Request(name, request);
            // The host's own process takes the request in its next step.
            self.hosts[number].inbox.push_back(input);
            self.plan_work(number);
            return;
        }
        let arrivals = self.network.arrivals(number, to, self.now);
        for at in arrivals.into_iter().flatten() {
            let name = self.name_call(number, id);
            let request = request.clone();
            self.queue.push(
                at,
                Event::Ask {
                    host: to,
                    id: name,
                    request,
                },
            );
        }
    }

    /// Sends some requests to the host a second time, late, because steps must be idempotent. No action waits for the
    /// second answer.
    fn echo(&mut self, number: HostId, request: &Request<Question>) {
        let echoes = self.scenario.cluster.as_ref().map_or(0, |it| it.echoes);
        if !self.rng.chance(echoes) || self.ending {
            return;
        }
        let Some(mover_driver) = &mut self.hosts[number].mover_driver else {
            return;
        };
        mover_driver.sent += 1;
        let id = RequestId(((MOVERS + number as u64) << 40) | mover_driver.sent);
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

    /// Returns the request of a running action and its target, and schedules the retry.
    fn question(&mut self, number: HostId, id: ActionId) -> Option<(HostId, Request<Question>)> {
        let local = self.rng.coin();
        let now = self.now;
        let gid = self.groups[self.hosts[number].group].gid;
        let running = self.hosts[number]
            .mover_driver
            .as_mut()?
            .open
            .get_mut(&id)?;
        running.ask_at = now + PATIENCE;
        let request = match &running.action {
            Action::FetchConfigs { after } => {
                let query = shardctrler::Query::After {
                    num: *after,
                    limit: DELTAS,
                    gid: Some(gid),
                };
                // Configurations never change, so any controller may return those that it knows. The first query must
                // reach the leader, because the oldest kept configuration changes.
                to_ctrl(if local && *after > ConfigNum(0) {
                    Request::ReadLocal(query)
                } else {
                    Request::Read(query)
                })
            }
            Action::Report { settled } => {
                let change = shardctrler::Change::Report {
                    gid,
                    settled: *settled,
                };
                let command = shardctrler::Command {
                    session: None,
                    change,
                };
                write(command.encode(), true)
            }
            Action::Pull {
                shard,
                config,
                after,
                max_bytes,
                ..
            } => to_kv(Request::ReadLocal(Query::Pull {
                shard: *shard,
                config: *config,
                after: after.clone(),
                max_bytes: *max_bytes,
            })),
            Action::Delete { shard, config, .. } => {
                let step = ShardStep::Delete {
                    shard: *shard,
                    config: *config,
                };
                write(step.encode(), step.frees_space())
            }
            Action::Propose(step) => {
                running.ask_at = Micros::MAX;
                write(step.encode(), step.frees_space())
            }
        };
        let target = self.hosts[number]
            .mover_driver
            .as_ref()?
            .open
            .get(&id)?
            .target;
        Some((target, request))
    }

    fn name_call(&mut self, number: HostId, action: ActionId) -> RequestId {
        let Some(mover_driver) = &mut self.hosts[number].mover_driver else {
            return RequestId(0);
        };
        mover_driver.sent += 1;
        let id = RequestId(((MOVERS + number as u64) << 40) | mover_driver.sent);
        mover_driver.asked.insert(id, action);
        id
    }

    /// Takes in an answer to a mover's driver.
    pub(crate) fn action_answered(
        &mut self,
        number: HostId,
        id: RequestId,
        outcome: Outcome,
    ) -> Step {
        let Some(mover_driver) = &mut self.hosts[number].mover_driver else {
            return Ok(());
        };
        let Some(action) = mover_driver.asked.remove(&id) else {
            return Ok(());
        };
        let Some(running) = mover_driver.open.get_mut(&action) else {
            return Ok(());
        };
        let end = match outcome {
            Err(Refusal::NotLeader { leader } | Refusal::Unknown { leader })
                if !matches!(running.action, Action::Propose(_)) =>
            {
                let known = leader.and_then(|node| self.nodes.get(&node).copied());
                running.target = match known.filter(|host| *host != running.target) {
                    Some(host) => host,
                    None => self.rng.pick(&running.hosts).copied().unwrap_or(number),
                };
                running.ask_at = self.now + if known.is_some() { 1 } else { PAUSE };
                None
            }
            Err(refusal) => Some(ActionOutcome::Failed(refusal.to_string())),
            Ok(answer) => {
                let shards = self.scenario.genesis.shards;
                Some(verdict(&running.action, answer, shards))
            }
        };
        match end {
            Some(ActionOutcome::Configs {
                full: None, deltas, ..
            }) if deltas.is_empty() && running.deadline > self.now => {
                running.ask_at = self.now + PAUSE;
                self.plan_mover(number);
                Ok(())
            }
            Some(outcome) => self.end_action(number, action, outcome),
            None => {
                self.plan_mover(number);
                Ok(())
            }
        }
    }

    fn end_action(&mut self, number: HostId, id: ActionId, outcome: ActionOutcome) -> Step {
        self.trace(number, || {
            format!("mover {id:?} ends: {}", describe_outcome(&outcome))
        });
        if let Some(mover_driver) = &mut self.hosts[number].mover_driver
            && mover_driver.open.remove(&id).is_some()
        {
            mover_driver.asked.retain(|_, action| *action != id);
            mover_driver.mover.ended(id, outcome);
        }
        self.poll_mover(number)
    }

    /// Ends actions that are past their deadline, repeats requests that are due, and polls the mover.
    pub(crate) fn mover_due(&mut self, number: HostId) -> Step {
        let now = self.now;
        let Some(mover_driver) = &mut self.hosts[number].mover_driver else {
            return Ok(());
        };
        mover_driver.due = Micros::MAX;
        let late = |running: &&RunningAction| running.deadline <= now || running.ask_at <= now;
        let late: Vec<(ActionId, bool)> = mover_driver
            .open
            .iter()
            .filter(|(_, running)| late(running))
            .map(|(id, running)| (*id, running.deadline <= now))
            .collect();
        for (id, over) in late {
            if over {
                let outcome = self.without_answer(number, id);
                self.end_action(number, id, outcome)?;
            } else {
                self.turn(number, id);
                self.ask_for(number, id);
            }
        }
        self.poll_mover(number)
    }

    /// Returns the outcome of an action at its deadline. A query for configurations then counts as answered without
    /// news.
    fn without_answer(&self, number: HostId, id: ActionId) -> ActionOutcome {
        let mover_driver = self.hosts[number].mover_driver.as_ref();
        let running = mover_driver.and_then(|mover_driver| mover_driver.open.get(&id));
        match running.map(|running| &running.action) {
            Some(Action::FetchConfigs { .. }) => ActionOutcome::Configs {
                controller: CONTROLLERS,
                shards: self.scenario.genesis.shards,
                full: None,
                deltas: Vec::new(),
            },
            _ => ActionOutcome::Failed("no answer in time".to_owned()),
        }
    }

    /// Draws the next node to try, in most cases another one.
    fn turn(&mut self, number: HostId, id: ActionId) {
        let again = self.rng.chance(300_000);
        let Some(mover_driver) = &mut self.hosts[number].mover_driver else {
            return;
        };
        if let Some(running) = mover_driver.open.get_mut(&id)
            && !again
            && let Some(host) = self.rng.pick(&running.hosts)
        {
            running.target = *host;
        }
    }

    /// Schedules a mover anew after a pause, in which its events were dropped.
    pub(crate) fn wake_mover(&mut self, number: HostId) {
        if let Some(mover_driver) = &mut self.hosts[number].mover_driver {
            mover_driver.due = Micros::MAX;
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
        let now = self.now;
        let host = &mut self.hosts[number];
        let Some(mover_driver) = &mut host.mover_driver else {
            return;
        };
        let calls = mover_driver
            .open
            .values()
            .map(|running| running.ask_at.min(running.deadline));
        let own = mover_driver.mover.next_due().map(|due| due * MILLI);
        let Some(due) = calls.chain(own).min() else {
            return;
        };
        let due = due.max(now + 1);
        if due < mover_driver.due {
            mover_driver.due = due;
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

/// Converts an answer into the outcome of an action.
fn verdict(action: &Action, answer: Answer<Reply>, shards: u32) -> ActionOutcome {
    let Answer::Machine(reply) = answer else {
        return ActionOutcome::Failed("the answer is of another kind".to_owned());
    };
    match (action, reply) {
        (Action::Pull { .. }, Reply::Kv(Response::Chunk(chunk))) => ActionOutcome::Pulled(*chunk),
        (Action::Delete { .. } | Action::Propose(_), Reply::Kv(Response::Stepped))
        | (Action::Report { .. }, Reply::Ctrl(shardctrler::Response::Reported)) => {
            ActionOutcome::Done
        }
        (Action::FetchConfigs { .. }, Reply::Ctrl(shardctrler::Response::Configs(configs))) => {
            ActionOutcome::Configs {
                controller: CONTROLLERS,
                shards,
                full: configs.full.map(|full| (*full).clone()),
                deltas: configs.deltas,
            }
        }
        (_, Reply::Kv(Response::Refused(error))) => ActionOutcome::Failed(error.to_string()),
        (_, Reply::Ctrl(shardctrler::Response::Refused(error))) => {
            ActionOutcome::Failed(error.to_string())
        }
        (_, other) => ActionOutcome::Failed(format!("was answered {other:?}")),
    }
}

/// Describes an action in one line.
fn describe(action: &Action) -> String {
    match action {
        Action::FetchConfigs { after } => format!("fetches the configurations after {after}"),
        Action::Pull {
            shard,
            config,
            source,
            after,
            ..
        } => format!("pulls {shard} of configuration {config} from {source} after {after:?}"),
        Action::Delete {
            shard,
            config,
            source,
            ..
        } => format!("asks {source} to delete {shard} of configuration {config}"),
        Action::Propose(step) => format!("proposes {}", describe_step(step)),
        Action::Report { settled } => report(*settled),
    }
}

fn report(settled: ConfigNum) -> String {
    format!("reports that {settled} is settled")
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

fn describe_outcome(outcome: &ActionOutcome) -> String {
    match outcome {
        ActionOutcome::Configs { full, deltas, .. } => {
            let nums: Vec<ConfigNum> = deltas.iter().map(|delta| delta.num).collect();
            format!(
                "configurations {nums:?}, full {:?}",
                full.as_ref().map(types::ShardConfig::num)
            )
        }
        ActionOutcome::Pulled(chunk) => {
            format!("{} pairs, then {:?}", chunk.pairs.len(), chunk.next)
        }
        ActionOutcome::Done => "done".to_owned(),
        ActionOutcome::Failed(why) => format!("failed: {why}"),
    }
}
