//! Groups that are gone for good: their shards go on without them, and their numbers may be retired.
//!
//! # Where the shards go
//!
//! A forgotten group takes with it all that only it had. For each shard that it has to do with, one of these holds:
//!
//! | the shard's owner | the owner before | then |
//! |---|---|---|
//! | forgotten | stays, and has neither handed the shard over nor settled the change | is the owner again: the shard is *returned* |
//! | forgotten | anything else | the target becomes the owner: the shard is *lost* |
//! | stays, and hasn't settled the change | forgotten | stays the owner: the shard is *lost* |
//!
//! In the next configuration the owner of each such shard has no owner before ([`types::ConfigDelta::resets`]), so it waits for nobody. It
//! serves what it has whole, and begins with an empty shard if it has nothing or a part.
//!
//! The controllers know of a group only what it reported. So a shard that is listed as lost is not lost if its owner had taken it
//! over and hadn't reported that yet: the owner keeps it. And a returned shard lacks what the forgotten owner may have written.
//! It even begins empty if the forgotten owner had told the owner before to delete it, and that hadn't been reported.
//!
//! # A forgotten group that comes back
//!
//! A forgotten group must be stopped first. If it runs, it serves its shards to clients with old configurations until it hears of the
//! configuration without it. From then on it serves nothing and keeps what it had, for people to look at. If
//! it joins again, it is another incarnation, and begins with nothing (`shardkv::configure`).

use std::collections::BTreeSet;
use std::fmt;

use raft::StoreError;
use replica::{Table, Transaction};
use types::{
    ConfigNum, DecodeError, Gid, Incarnation, Reader, ShardConfig, ShardId, ShardSet, Writer,
};

use crate::bug::Bug;
use crate::outcome::{Outcome, Refusal};
use crate::rules::Plan;
use crate::{Shardctrler, keys};

/// The most runs of shards of a list: answers are remembered, and must stay small.
pub const MAX_LISTED_RUNS: usize = 256;

/// Shards, of which only the first runs are listed if there are very many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardList {
    /// The number of shards.
    pub count: u32,
    /// The shards, up to [`MAX_LISTED_RUNS`] runs.
    pub listed: ShardSet,
}

/// The shards that groups take with them that are gone for good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// The shards that begin empty, except those that their owners had already taken over without having reported it.
    pub emptied: ShardList,
    /// The shards that are served again by the groups that had them before, as they were when they were handed over.
    pub returned: ShardList,
}

impl ShardList {
    fn new(shards: &ShardSet) -> Self {
        let runs = shards.runs().iter().take(MAX_LISTED_RUNS);
        Self {
            count: u32::try_from(shards.len()).unwrap_or(u32::MAX),
            // The runs are in order.
            listed: ShardSet::from_runs(runs.copied()).unwrap_or_default(),
        }
    }

    fn encode(&self, out: &mut Writer) {
        out.number(self.count.into());
        self.listed.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            count: input.number_u32("shards")?,
            listed: ShardSet::decode(input)?,
        })
    }
}

/// `2 shards (4-5)`, or `none`.
impl fmt::Display for ShardList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.count == 1 { "" } else { "s" };
        let more = if u64::from(self.count) > self.listed.len() {
            " and more"
        } else {
            ""
        };
        match self.count {
            0 => f.write_str("none"),
            count => write!(f, "{count} shard{plural} ({}{more})", self.listed),
        }
    }
}

impl Loss {
    /// Returns true if nothing is lost: the groups had nothing.
    pub fn is_empty(&self) -> bool {
        self.emptied.count == 0 && self.returned.count == 0
    }

    pub(crate) fn encode(&self, out: &mut Writer) {
        self.emptied.encode(out);
        self.returned.encode(out);
    }

    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            emptied: ShardList::decode(input)?,
            returned: ShardList::decode(input)?,
        })
    }
}

/// The next configuration without forgotten groups.
struct Forgetting {
    plan: Plan,
    owners: Vec<Gid>,
    /// The shards whose owners get them from nobody.
    resets: ShardSet,
    /// The groups that serve shards again which they had handed over.
    returned_to: BTreeSet<Gid>,
    loss: Loss,
}

impl Shardctrler {
    /// Makes the configuration without groups that are gone for good.
    pub(crate) fn forget(
        &mut self,
        gids: &BTreeSet<Gid>,
        accept_data_loss: bool,
        state: &mut Transaction<'_>,
    ) -> Result<Outcome, StoreError> {
        let latest = self.latest();
        let forgetting = match self.plan_forget(gids, &latest) {
            Ok(forgetting) => forgetting,
            Err(refusal) => return Ok(Outcome::Refused(refusal)),
        };
        let Forgetting {
            plan,
            owners,
            resets,
            returned_to,
            loss,
        } = forgetting;
        if !loss.is_empty() && !accept_data_loss {
            return Ok(Outcome::Refused(Refusal::DataLoss(loss)));
        }
        let delta = self.delta(&latest, &plan, &owners);
        let delta = delta.with_resets(&latest, &owners, &resets);
        let num = delta.num;
        self.hold(&latest, &plan, state);
        self.push(delta, state)?;
        for gid in returned_to {
            // It has the data of these shards. If it comes with empty disks, it must find that they are lost, not begin with nothing.
            if let Some(progress) = self.progress.get_mut(&gid) {
                progress.held = num;
                state.put(Table::Meta, keys::group(gid), progress.encode());
            }
        }
        for gid in gids {
            if let Some(ended) = self.drained.get_mut(gid) {
                ended.forgotten = true;
                state.put(Table::Meta, keys::drained(*gid), ended.encode());
            }
        }
        Ok(Outcome::Forgotten { num, loss })
    }

    fn plan_forget(
        &self,
        gids: &BTreeSet<Gid>,
        latest: &ShardConfig,
    ) -> Result<Forgetting, Refusal> {
        let mut plan = Plan::same(latest);
        for gid in gids {
            if plan.groups.remove(gid).is_none() {
                return Err(Refusal::UnknownGroup(*gid));
            }
        }
        if plan.groups.values().all(|group| group.leaving) {
            return Err(Refusal::LastGroup);
        }
        let (mut emptied, mut returned) = (Vec::new(), Vec::new());
        let mut returned_to = BTreeSet::new();
        let mut owners = latest.owners().to_vec();
        let rows = (0..).map(ShardId).zip(latest.rows());
        for ((shard, row), owner) in rows.zip(&mut owners) {
            let waits = |gid| self.waits_for(gid, row.owner_since);
            if !gids.contains(&row.owner) {
                if gids.contains(&row.previous) && waits(row.owner) {
                    emptied.push(shard);
                }
            } else if plan.groups.contains_key(&row.previous)
                && waits(row.owner)
                && waits(row.previous)
                && !self.bugs.has(Bug::ForgottenShardBeginsEmpty)
            {
                *owner = row.previous;
                returned_to.insert(row.previous);
                returned.push(shard);
            } else {
                *owner = Gid::NONE;
                emptied.push(shard);
            }
        }
        plan.rebalance(latest, &owners, &self.moved);
        for (owner, target) in owners.iter_mut().zip(&plan.targets) {
            if *owner == Gid::NONE {
                *owner = *target;
            }
        }
        let both = emptied.iter().chain(&returned).copied();
        Ok(Forgetting {
            resets: both.collect(),
            returned_to,
            loss: Loss {
                emptied: ShardList::new(&emptied.into_iter().collect()),
                returned: ShardList::new(&returned.into_iter().collect()),
            },
            plan,
            owners,
        })
    }

    /// Returns true if a group is known to have hand-offs of configuration `num`, or of an earlier one, to complete.
    fn waits_for(&self, gid: Gid, num: ConfigNum) -> bool {
        self.progress.get(&gid).is_some_and(|it| it.settled < num)
    }

    /// Retires the number of a group that is drained: no group joins under it any more.
    pub(crate) fn retire(
        &mut self,
        gid: Gid,
        incarnation: Incarnation,
        state: &mut Transaction<'_>,
    ) -> Outcome {
        let is_part = self.latest().groups().contains_key(&gid);
        let drained = self.drained.get_mut(&gid);
        let drained = drained.filter(|it| it.incarnation >= incarnation && !is_part);
        let Some(drained) = drained else {
            return Outcome::Refused(Refusal::NotDrained(gid));
        };
        drained.retired = true;
        state.put(Table::Meta, keys::drained(gid), drained.encode());
        Outcome::Retired
    }

    /// Returns the first of these groups whose number was retired.
    pub(crate) fn retired<'a>(&self, gids: impl IntoIterator<Item = &'a Gid>) -> Option<Gid> {
        let is_retired = |gid: &Gid| self.drained.get(gid).is_some_and(|it| it.retired);
        gids.into_iter().copied().find(is_retired)
    }
}
