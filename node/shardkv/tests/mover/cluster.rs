//! Several real machines with real movers, without replication, and controllers.

use std::collections::BTreeMap;

use shardkv::mover::{Action, ActionId, Mover, Outcome as ActionOutcome};
use shardkv::{
    Bug, CopyStep, Genesis, KvError, MoverOptions, Next, PartNext, Query, Response, ShardState,
    Step,
};
use types::{Cut, Gid, ShardConfig, ShardId};

use crate::common::{Replica, SHARDS_GENESIS};
use crate::controllers::Controllers;
use crate::stage::failed;

const GENESIS: Genesis = Genesis {
    // Long enough for a test in which hours pass.
    session_ttl_ms: 1_000 * 3_600_000,
    max_results_per_session: 65_536,
    ..SHARDS_GENESIS
};

pub(crate) struct Member {
    pub(crate) replica: Replica,
    pub(crate) mover: Mover,
    pub(crate) up: bool,
}

pub(crate) struct Cluster {
    pub(crate) now: u64,
    pub(crate) controllers: Controllers,
    pub(crate) members: BTreeMap<Gid, Member>,
    pub(crate) counts: Counts,
}

/// The shards that were cut by a report, those whose copy was completed or was useless, and those that were pulled whole.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) cuts: u64,
    pub(crate) completed: u64,
    pub(crate) restarted: u64,
    pub(crate) pulled: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.cuts += other.cuts;
        self.completed += other.completed;
        self.restarted += other.restarted;
        self.pulled += other.pulled;
    }
}

impl Cluster {
    pub(crate) fn new(groups: u64, shards: u32, options: MoverOptions) -> Self {
        Self::with_bug(groups, shards, options, None)
    }

    /// One whose groups show a known bug, in the build that can.
    pub(crate) fn with_bug(
        groups: u64,
        shards: u32,
        options: MoverOptions,
        bug: Option<Bug>,
    ) -> Self {
        let genesis = Genesis { shards, ..GENESIS };
        let member = |gid| Member {
            replica: Replica::with_bug(genesis, bug),
            mover: Mover::new(gid, shards, options),
            up: true,
        };
        let gids = (1..=groups).map(Gid);
        Self {
            now: 1_000,
            controllers: Controllers::new(shards, gids.clone()),
            members: gids.map(|gid| (gid, member(gid))).collect(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn config(&self) -> &ShardConfig {
        &self.controllers.config
    }

    pub(crate) fn gids(&self) -> Vec<Gid> {
        self.members.keys().copied().collect()
    }

    /// The shards whose target isn't their owner.
    pub(crate) fn moving(&self) -> Vec<ShardId> {
        let rows = (0..).map(ShardId).zip(self.config().rows());
        let moving = rows.filter(|(_, row)| row.is_moving());
        moving.map(|(shard, _)| shard).collect()
    }

    /// A report arrives late, when the destination has lost the copy of which it tells: each of the shards that may be cut is.
    pub(crate) fn cut_late(&mut self) {
        let shards = self.moving().into_iter();
        let may_be = |shard: &ShardId| self.is_served(*shard) && !self.is_owed(*shard);
        let shards: Vec<ShardId> = shards.filter(may_be).collect();
        self.controllers.cut(&shards);
    }

    /// Returns true if the shard's owner serves it.
    fn is_served(&self, shard: ShardId) -> bool {
        let row = self.config().row(shard);
        let owner = self.members[&row.owner].replica.machine.ownership();
        let serves = ShardState::Serving {
            config: row.owner_since,
        };
        owner.state(shard) == Some(&serves)
    }

    /// Returns true if the shard's target still has it fenced from an earlier move. So it had no copy yet of which to tell.
    fn is_owed(&self, shard: ShardId) -> bool {
        let target = self.config().row(shard).target;
        let target = self.members[&target].replica.machine.ownership();
        matches!(target.state(shard), Some(ShardState::Fenced { .. }))
    }

    /// The controllers apply a report. That a copy was reported proves that the owner serves the shard.
    fn report_cut(&mut self, cuts: &BTreeMap<ShardId, Cut>) {
        let due = self.controllers.due_cuts(cuts);
        for shard in &due {
            assert!(self.is_served(*shard), "{shard} was reported too early");
        }
        if !due.is_empty() {
            self.controllers.cut(&due);
            self.counts.cuts += due.len() as u64;
        }
    }

    /// Polls a group's mover and returns its actions.
    pub(crate) fn poll(&mut self, gid: Gid) -> Vec<(ActionId, Action)> {
        let member = self.members.get_mut(&gid).unwrap();
        let ownership = member.up.then(|| member.replica.machine.ownership());
        let actions = member.mover.poll(self.now, ownership.as_ref());
        assert_eq!(member.mover.fatal(), None, "{gid}");
        actions
    }

    /// Does what group `gid`'s mover asked for. `None`: there are no news of the controllers yet.
    pub(crate) fn carry_out(&mut self, gid: Gid, action: &Action) -> Option<ActionOutcome> {
        let outcome = match action {
            Action::FetchConfigs { after } => return self.controllers.answer(gid, *after),
            Action::Pull {
                shard,
                config,
                source,
                after,
                max_bytes,
                ..
            } => {
                let query = Query::Pull {
                    shard: *shard,
                    config: *config,
                    after: after.clone(),
                    max_bytes: *max_bytes,
                };
                match self.up(*source).map(|source| source.query(&query)) {
                    Some(Response::Chunk(chunk)) => ActionOutcome::Pulled(*chunk),
                    response => refusal(response),
                }
            }
            Action::Delete {
                shard,
                config,
                source,
                ..
            } => {
                let (shard, config) = (*shard, *config);
                self.apply(*source, &Step::Delete { shard, config })
            }
            Action::Copy {
                source, request, ..
            } => {
                let query = Query::Copy(request.clone());
                match self.up(*source).map(|source| source.query(&query)) {
                    Some(Response::Part(part)) => ActionOutcome::Part(*part),
                    Some(Response::Refused(KvError::Journal { error, .. })) => {
                        ActionOutcome::Refused(error)
                    }
                    response => refusal(response),
                }
            }
            Action::Journal { source, step, .. } => {
                let (now, step) = (self.now, step.encode());
                let source = self.up(*source);
                match source.map(|source| source.apply_bytes(now, 1 << 20, step)) {
                    Some(Response::Begun { journal }) => ActionOutcome::Begun(journal),
                    Some(Response::Stepped) => ActionOutcome::Done,
                    Some(Response::Refused(KvError::Journal { error, .. })) => {
                        ActionOutcome::Refused(error)
                    }
                    response => refusal(response),
                }
            }
            Action::ReportCut { cuts } => {
                self.report_cut(cuts);
                ActionOutcome::Done
            }
            Action::Propose(step) => {
                let outcome = self.apply(gid, step);
                self.check_accepted(gid, step, &outcome);
                outcome
            }
            Action::Report { settled, .. } => {
                self.controllers.settle(gid, *settled);
                ActionOutcome::Done
            }
        };
        Some(outcome)
    }

    fn up(&mut self, gid: Gid) -> Option<&mut Replica> {
        let member = self.members.get_mut(&gid)?;
        member.up.then_some(&mut member.replica)
    }

    fn apply(&mut self, gid: Gid, step: &Step) -> ActionOutcome {
        let now = self.now;
        match step {
            Step::Copy(CopyStep::Take(part)) if matches!(part.next, PartNext::Done { .. }) => {
                self.counts.completed += 1;
            }
            Step::Copy(CopyStep::Restart { .. }) => self.counts.restarted += 1,
            Step::Install(chunk) if matches!(chunk.next, Next::Done { .. }) => {
                self.counts.pulled += 1;
            }
            _ => {}
        }
        match self.up(gid).map(|group| group.step(now, step)) {
            Some(Response::Stepped) => ActionOutcome::Done,
            response => refusal(response),
        }
    }

    /// The controllers' guarantee makes every configuration acceptable.
    fn check_accepted(&self, gid: Gid, step: &Step, outcome: &ActionOutcome) {
        if let Step::Configure(step) = step
            && self.members[&gid].up
        {
            assert_eq!(*outcome, ActionOutcome::Done, "{gid}: {step:?}");
        }
    }

    pub(crate) fn ended(&mut self, gid: Gid, id: ActionId, outcome: ActionOutcome) {
        self.members.get_mut(&gid).unwrap().mover.ended(id, outcome);
    }

    /// Returns true if each shard is where it is to be, and every group has settled that, as the controllers know.
    pub(crate) fn is_settled(&self) -> bool {
        let latest = self.config().num();
        let mut members = self.members.values();
        let all = members.all(|it| it.replica.machine.ownership().settled() == latest);
        all && self.controllers.know_all_settled()
    }
}

fn refusal(response: Option<Response>) -> ActionOutcome {
    match response {
        Some(Response::Refused(error)) => failed(&error.to_string()),
        Some(other) => panic!("{other:?}"),
        None => failed("connection refused"),
    }
}
