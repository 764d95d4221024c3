//! The rules of changes: which are allowed, and the configuration that each makes.

use std::collections::{BTreeMap, BTreeSet};

use types::{Gid, MAX_GROUPS, ShardConfig, ShardId, check_addresses};

use crate::outcome::Refusal;
use crate::{Change, CtrlError, rebalance};

/// The next configuration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) groups: BTreeMap<Gid, Vec<String>>,
    pub(crate) owners: Vec<Gid>,
    /// A shard that is now where a `Move` put it.
    pub(crate) moved: Option<ShardId>,
}

/// Refuses what no configuration of a cluster of `shards` shards allows. Depends on nothing else.
pub(crate) fn check(change: &Change, shards: u32) -> Result<(), CtrlError> {
    match change {
        Change::Join { groups } => check_join(groups),
        Change::Leave { gids } if gids.is_empty() => Err(CtrlError::NoGroups),
        Change::Leave { gids } if gids.contains(&Gid::NONE) => Err(CtrlError::GidZero),
        Change::Move { gid: Gid::NONE, .. } | Change::Report { gid: Gid::NONE, .. } => {
            Err(CtrlError::GidZero)
        }
        Change::Move { shard, .. } if shard.0 >= shards => Err(CtrlError::NoShard {
            shard: *shard,
            shards,
        }),
        Change::Leave { .. } | Change::Move { .. } | Change::Report { .. } => Ok(()),
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

/// Returns the configuration that a change that passed [`check`] makes; `None` if the change has no effect, as a report
/// never has. `moved` are the shards that a `Move` placed where they are.
pub(crate) fn plan(
    change: &Change,
    latest: &ShardConfig,
    moved: &BTreeSet<ShardId>,
) -> Result<Option<Plan>, Refusal> {
    match change {
        Change::Join { groups } => plan_join(groups, latest, moved),
        Change::Leave { gids } => plan_leave(gids, latest, moved).map(Some),
        Change::Move { shard, gid } => plan_move(*shard, *gid, latest),
        Change::Report { .. } => Ok(None),
    }
}

fn plan_join(
    joining: &BTreeMap<Gid, Vec<String>>,
    latest: &ShardConfig,
    moved: &BTreeSet<ShardId>,
) -> Result<Option<Plan>, Refusal> {
    let mut groups = latest.groups().clone();
    let mut changed = false;
    for (gid, addresses) in joining {
        match groups.get_mut(gid) {
            Some(known) if same_addresses(known, addresses) => {}
            Some(known) => {
                known.clone_from(addresses);
                changed = true;
            }
            None => {
                groups.insert(*gid, addresses.clone());
                changed = true;
            }
        }
    }
    if !changed {
        return Ok(None);
    }
    if groups.len() > MAX_GROUPS {
        return Err(Refusal::TooManyGroups {
            limit: MAX_GROUPS as u64,
        });
    }
    refuse_taken(joining, &groups)?;
    // Other addresses are no reason to move a shard.
    let owners = if groups.len() == latest.groups().len() {
        latest.owners().to_vec()
    } else {
        rebalance(latest.owners(), groups.keys().copied(), moved)
    };
    Ok(Some(Plan {
        groups,
        owners,
        moved: None,
    }))
}

/// The order of a group's addresses means nothing.
fn same_addresses(known: &[String], given: &[String]) -> bool {
    let sorted = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
    known == given || sorted(known) == sorted(given)
}

/// Refuses an address of a joining group that a group which isn't joining has.
fn refuse_taken(
    joining: &BTreeMap<Gid, Vec<String>>,
    groups: &BTreeMap<Gid, Vec<String>>,
) -> Result<(), Refusal> {
    let claimed: BTreeSet<&String> = joining.values().flatten().collect();
    let staying = groups.iter().filter(|(gid, _)| !joining.contains_key(gid));
    for (gid, addresses) in staying {
        if let Some(address) = addresses.iter().find(|address| claimed.contains(address)) {
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
) -> Result<Plan, Refusal> {
    let mut groups = latest.groups().clone();
    for gid in gids {
        if groups.remove(gid).is_none() {
            return Err(Refusal::UnknownGroup(*gid));
        }
    }
    if groups.is_empty() {
        return Err(Refusal::LastGroup);
    }
    let owners = rebalance(latest.owners(), groups.keys().copied(), moved);
    Ok(Plan {
        groups,
        owners,
        moved: None,
    })
}

fn plan_move(shard: ShardId, gid: Gid, latest: &ShardConfig) -> Result<Option<Plan>, Refusal> {
    if !latest.groups().contains_key(&gid) {
        return Err(Refusal::UnknownGroup(gid));
    }
    if latest.owner(shard) == gid {
        return Ok(None);
    }
    let mut owners = latest.owners().to_vec();
    if let Some(owner) = owners.get_mut(shard.0 as usize) {
        *owner = gid;
    }
    Ok(Some(Plan {
        groups: latest.groups().clone(),
        owners,
        moved: Some(shard),
    }))
}
