//! The rules of changes: which are allowed, and the groups and targets that each makes.

use std::collections::{BTreeMap, BTreeSet};

use types::{Gid, Group, Incarnation, MAX_GROUPS, ShardConfig, ShardId, check_addresses};

use crate::outcome::Refusal;
use crate::{Change, CtrlError, Cut, MAX_CUTS, rebalance};

/// The most bytes of the addresses of all groups together. Every configuration goes to groups and clients in one message, so it must fit
/// there with its rows.
pub const MAX_ALL_ADDRESS_BYTES: usize = 8 << 20;

/// The groups and targets of the next configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) groups: BTreeMap<Gid, Group>,
    pub(crate) targets: Vec<Gid>,
    /// A shard whose target is now where a `Move` put it.
    pub(crate) moved: Option<ShardId>,
}

impl Plan {
    /// Returns the plan that leaves groups and targets as they are.
    pub(crate) fn same(latest: &ShardConfig) -> Self {
        Self {
            groups: latest.groups().clone(),
            targets: latest.targets().to_vec(),
            moved: None,
        }
    }
}

/// Refuses what no configuration of a cluster of `shards` shards allows. Depends on nothing else.
pub(crate) fn check(change: &Change, shards: u32) -> Result<(), CtrlError> {
    match change {
        Change::Join { groups } => check_join(groups),
        Change::Leave { gids } | Change::Forget { gids, .. } if gids.is_empty() => {
            Err(CtrlError::NoGroups)
        }
        Change::Leave { gids } | Change::Forget { gids, .. } if gids.contains(&Gid::NONE) => {
            Err(CtrlError::GidZero)
        }
        Change::Move { gid: Gid::NONE, .. }
        | Change::Report { gid: Gid::NONE, .. }
        | Change::Retire { gid: Gid::NONE, .. } => Err(CtrlError::GidZero),
        Change::Move { shard, .. } if shard.0 >= shards => Err(CtrlError::NoShard {
            shard: *shard,
            shards,
        }),
        Change::Cut { cuts } => check_cuts(cuts, shards),
        Change::Leave { .. }
        | Change::Move { .. }
        | Change::Forget { .. }
        | Change::Retire { .. }
        | Change::Report { .. } => Ok(()),
    }
}

fn check_cuts(cuts: &BTreeMap<ShardId, Cut>, shards: u32) -> Result<(), CtrlError> {
    if cuts.len() > MAX_CUTS {
        return Err(CtrlError::TooManyCuts {
            limit: MAX_CUTS as u64,
        });
    }
    match cuts.keys().find(|shard| shard.0 >= shards) {
        Some(shard) => Err(CtrlError::NoShard {
            shard: *shard,
            shards,
        }),
        None => Ok(()),
    }
}

fn check_join(groups: &BTreeMap<Gid, Vec<String>>) -> Result<(), CtrlError> {
    if groups.is_empty() {
        return Err(CtrlError::NoGroups);
    }
    if groups.contains_key(&Gid::NONE) {
        return Err(CtrlError::GidZero);
    }
    if groups.len() > MAX_GROUPS {
        return Err(CtrlError::TooManyGroups {
            limit: MAX_GROUPS as u64,
        });
    }
    for (gid, addresses) in groups {
        check_addresses(addresses)
            .map_err(|reason| CtrlError::BadAddresses { gid: *gid, reason })?;
    }
    match twice(groups) {
        Some((address, owner)) => Err(CtrlError::AddressTaken { address, owner }),
        None => Ok(()),
    }
}

/// An address that two groups claim, with the first of them.
fn twice(groups: &BTreeMap<Gid, Vec<String>>) -> Option<(String, Gid)> {
    let mut owners = BTreeMap::new();
    for (gid, addresses) in groups {
        for address in addresses {
            if let Some(owner) = owners.insert(address, *gid) {
                return Some((address.clone(), owner));
            }
        }
    }
    None
}

/// Returns the groups and targets that a change which passed [`check`] makes; `None` if the change has no effect, as a report or
/// a cut never has. Forgetting groups has a plan of its own. `moved` are the shards whose targets a `Move` set; `incarnation` is for each group that isn't part yet.
pub(crate) fn plan(
    change: &Change,
    latest: &ShardConfig,
    moved: &BTreeSet<ShardId>,
    incarnation: impl Fn(Gid) -> Incarnation,
) -> Result<Option<Plan>, Refusal> {
    match change {
        Change::Join { groups } => plan_join(groups, latest, moved, incarnation),
        Change::Leave { gids } => plan_leave(gids, latest, moved),
        Change::Move { shard, gid } => plan_move(*shard, *gid, latest),
        Change::Forget { .. }
        | Change::Retire { .. }
        | Change::Report { .. }
        | Change::Cut { .. } => Ok(None),
    }
}

fn plan_join(
    joining: &BTreeMap<Gid, Vec<String>>,
    latest: &ShardConfig,
    moved: &BTreeSet<ShardId>,
    incarnation: impl Fn(Gid) -> Incarnation,
) -> Result<Option<Plan>, Refusal> {
    let mut plan = Plan::same(latest);
    for (gid, addresses) in joining {
        let group = plan.groups.entry(*gid).or_insert_with(|| Group {
            addresses: addresses.clone(),
            incarnation: incarnation(*gid),
            leaving: false,
        });
        // One that joins again while it leaves has its data still: it is the same group.
        group.leaving = false;
        if !same_addresses(&group.addresses, addresses) {
            group.addresses.clone_from(addresses);
        }
    }
    if plan.groups == *latest.groups() {
        return Ok(None);
    }
    if plan.groups.len() > MAX_GROUPS {
        return Err(Refusal::TooManyGroups {
            limit: MAX_GROUPS as u64,
        });
    }
    let addresses = plan.groups.values().flat_map(|group| &group.addresses);
    if addresses.map(String::len).sum::<usize>() > MAX_ALL_ADDRESS_BYTES {
        return Err(Refusal::TooManyAddressBytes {
            limit: MAX_ALL_ADDRESS_BYTES as u64,
        });
    }
    refuse_taken(joining, &plan.groups)?;
    plan.rebalance(latest, latest.owners(), moved);
    Ok(Some(plan))
}

impl Plan {
    /// Gives each shard a target among the groups that aren't leaving. If these are the same as before, nothing changes: other
    /// addresses are no reason to move a shard. `owners` are the groups that have the data.
    pub(crate) fn rebalance(
        &mut self,
        latest: &ShardConfig,
        owners: &[Gid],
        moved: &BTreeSet<ShardId>,
    ) {
        let members = self.groups.iter().filter(|(_, group)| !group.leaving);
        let members: BTreeSet<Gid> = members.map(|(gid, _)| *gid).collect();
        if !latest.members().eq(members.iter().copied()) {
            self.targets = rebalance(latest.targets(), owners, members, moved);
        }
    }
}

/// The order of a group's addresses means nothing.
fn same_addresses(known: &[String], given: &[String]) -> bool {
    let sorted = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
    known == given || sorted(known) == sorted(given)
}

/// Refuses an address of a joining group that a group which isn't joining has.
fn refuse_taken(
    joining: &BTreeMap<Gid, Vec<String>>,
    groups: &BTreeMap<Gid, Group>,
) -> Result<(), Refusal> {
    let claimed: BTreeSet<&String> = joining.values().flatten().collect();
    let staying = groups.iter().filter(|(gid, _)| !joining.contains_key(gid));
    for (gid, group) in staying {
        let mut addresses = group.addresses.iter();
        if let Some(address) = addresses.find(|address| claimed.contains(address)) {
            return Err(Refusal::AddressTaken {
                address: address.clone(),
                owner: *gid,
            });
        }
    }
    Ok(())
}

fn plan_leave(
    gids: &BTreeSet<Gid>,
    latest: &ShardConfig,
    moved: &BTreeSet<ShardId>,
) -> Result<Option<Plan>, Refusal> {
    let mut plan = Plan::same(latest);
    for gid in gids {
        let Some(group) = plan.groups.get_mut(gid) else {
            return Err(Refusal::UnknownGroup(*gid));
        };
        group.leaving = true;
    }
    if plan.groups.values().all(|group| group.leaving) {
        return Err(Refusal::LastGroup);
    }
    if plan.groups == *latest.groups() {
        return Ok(None);
    }
    plan.rebalance(latest, latest.owners(), moved);
    Ok(Some(plan))
}

fn plan_move(shard: ShardId, gid: Gid, latest: &ShardConfig) -> Result<Option<Plan>, Refusal> {
    match latest.groups().get(&gid) {
        None => return Err(Refusal::UnknownGroup(gid)),
        Some(group) if group.leaving => return Err(Refusal::Leaving(gid)),
        Some(_) if latest.target(shard) == gid => return Ok(None),
        Some(_) => {}
    }
    let mut plan = Plan::same(latest);
    if let Some(target) = plan.targets.get_mut(shard.0 as usize) {
        *target = gid;
    }
    plan.moved = Some(shard);
    Ok(Some(plan))
}

/// Returns the owners after a change of targets: the target of each shard that nobody owns, and the owner of every other shard.
pub(crate) fn first_owners(latest: &ShardConfig, targets: &[Gid]) -> Vec<Gid> {
    let pairs = latest.owners().iter().zip(targets);
    let owner = |(owner, target): (&Gid, &Gid)| {
        if *owner == Gid::NONE { *target } else { *owner }
    };
    pairs.map(owner).collect()
}
