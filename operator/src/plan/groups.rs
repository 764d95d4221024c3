//! Planning of groups: their phases, and the changes by which they come and go. [`crate::plan`] has the safety rules.

use std::collections::{BTreeMap, BTreeSet};

use super::action::{Action, Plan};
use super::state::{Progress, Set, Stage, State};
use crate::crd::{GroupPhase, Retention};
use crate::validate::Intent;

/// The most groups that join at once: the controllers ask each for a proof that it exists. The others join in the next rounds.
const MAX_JOINS: usize = 64;

/// State of a group; see the table of the module. Variants are in the order in which groups are kept when there are too
/// many; the last four are never kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// In the configuration.
    Member,
    /// Leaving, with shards still to hand over.
    Left,
    /// Never a member.
    New,
    /// A member that the controllers don't know.
    Lost,
    /// Marked as leaving before any group joined. A configuration without groups doesn't prove that the group is
    /// drained.
    Unborn,
    /// Forgotten: a person told the controllers that it is gone for good. Its volumes may hold the only copy of its data, so they
    /// stay.
    Forgotten,
    /// Marked as leaving, and unknown to controllers that know other groups: most likely it never joined. Nothing proves
    /// that it is drained, so its volumes stay.
    Unknown,
    /// Left, with nothing to hand over: the controllers say so.
    Drained,
}

/// Plans the groups of a cluster that is to have this many.
pub(super) fn plan(seen: &State, wanted: u32) -> Plan {
    match &seen.store {
        Some(store) => groups(seen, store, wanted),
        None => first_groups(seen, wanted),
    }
}

/// Returns the phases of a cluster that is to stay as it is.
pub(super) fn phases(seen: &State) -> Plan {
    let plan = match &seen.store {
        // The phases are those of a cluster whose groups are all wanted.
        Some(store) => groups(seen, store, u32::MAX),
        None => first_groups(seen, 0),
    };
    Plan {
        actions: Vec::new(),
        ..plan
    }
}

fn create_controllers(seen: &State) -> Option<Action> {
    seen.controllers
        .is_none()
        .then_some(Action::CreateControllers)
}

/// Plans while the controllers don't answer. Creates only the very first groups, so that all pods start in parallel.
fn first_groups(seen: &State, wanted: u32) -> Plan {
    let mut plan = Plan::default();
    plan.actions.extend(create_controllers(seen));
    let is_new = |set: &Set| set.stage == Stage::New;
    let strangers = seen.volumes.iter().any(|gid| !seen.sets.contains_key(gid));
    if seen.recorded_gid == 0 && !strangers && seen.sets.values().all(is_new) {
        plan.actions
            .extend(new_groups(seen, seen.sets.len(), wanted));
    }
    plan.phases
        .extend(seen.sets.iter().map(|(gid, set)| (*gid, guess(set))));
    plan
}

/// Returns the phase of a group of which only the `StatefulSet` is known.
fn guess(set: &Set) -> GroupPhase {
    match set.stage {
        Stage::New => GroupPhase::Provisioning,
        Stage::Member if set.has_served => GroupPhase::Serving,
        Stage::Member => GroupPhase::Joining,
        Stage::Leaving => GroupPhase::Draining,
    }
}

fn groups(seen: &State, store: &Progress, wanted: u32) -> Plan {
    let standings = standings(seen, store);
    let lost = standings
        .iter()
        .filter(|(_, standing)| **standing == Standing::Lost);
    let mut lost: BTreeSet<u64> = lost.map(|(gid, _)| *gid).collect();
    if standings.is_empty() {
        // The groups' volumes were kept, but not the controllers': new controllers would start an empty cluster beside
        // the data.
        lost.extend(&seen.volumes);
    }
    let retained = retained(seen, &standings, wanted);
    let mut next = Next {
        seen,
        store,
        plan: Plan::default(),
        join: Vec::new(),
        leave: Vec::new(),
    };
    next.plan.actions.extend(create_controllers(seen));
    for (gid, standing) in standings {
        next.group(gid, standing, retained.contains(&gid));
    }
    let Next {
        mut plan,
        mut join,
        leave,
        ..
    } = next;
    // No group leaves before all groups that stay are members; `retained` explains why this holds, and the controllers
    // refuse it too. No group leaves before all groups that stay have leaders: shards moved to a group without a quorum
    // can be neither read nor moved back.
    let takes = |gid: &u64| {
        let set = seen.sets.get(gid);
        store.members.contains(gid) && set.is_some_and(|set| set.has_leader)
    };
    if join.is_empty() && !retained.is_empty() && retained.iter().all(takes) && !leave.is_empty() {
        plan.actions.push(Action::Leave(leave));
    }
    if !join.is_empty() {
        join.truncate(MAX_JOINS);
        plan.actions.push(Action::Join(join));
    }
    if seen.intent != Intent::Pause {
        plan.actions
            .extend(new_groups(seen, retained.len(), wanted));
    }
    if !lost.is_empty() {
        plan.actions.clear();
    }
    Plan { lost, ..plan }
}

fn standings(seen: &State, store: &Progress) -> BTreeMap<u64, Standing> {
    let gids = seen
        .sets
        .keys()
        .chain(&store.members)
        .chain(store.settled.keys());
    let standing = |gid: &u64| {
        if store.members.contains(gid) {
            return Standing::Member;
        }
        if store.settled.contains_key(gid) {
            return Standing::Left;
        }
        match seen.sets.get(gid).map(|set| set.stage) {
            Some(_) if store.proves_forgotten(*gid) => Standing::Forgotten,
            Some(Stage::New) => Standing::New,
            // The last group never leaves, so controllers that know no group may have lost their data.
            Some(Stage::Leaving) if store.proves_drained(*gid) => Standing::Drained,
            Some(Stage::Leaving) if !store.members.is_empty() => Standing::Unknown,
            Some(Stage::Leaving) if !seen.sets.values().any(|set| set.stage == Stage::Member) => {
                Standing::Unborn
            }
            _ => Standing::Lost,
        }
    };
    gids.map(|gid| (*gid, standing(gid))).collect()
}

/// Returns the groups to keep. Members come first, so that no member leaves in favour of a group that isn't a member
/// yet; then groups that left but can still join again; then new ones. Among equals the oldest groups stay.
fn retained(seen: &State, standings: &BTreeMap<u64, Standing>, wanted: u32) -> BTreeSet<u64> {
    let leaving = |gid: &u64| {
        seen.sets
            .get(gid)
            .is_some_and(|set| set.stage == Stage::Leaving)
    };
    let mut candidates: Vec<_> = standings
        .iter()
        .filter(|(_, standing)| **standing < Standing::Unborn)
        .map(|(gid, standing)| (*standing, leaving(gid), *gid))
        .collect();
    candidates.sort_unstable();
    candidates.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
    candidates.into_iter().map(|(.., gid)| gid).collect()
}

/// Returns actions that create the groups missing from `there` to `wanted`, with gids that no group has had.
fn new_groups(seen: &State, there: usize, wanted: u32) -> impl Iterator<Item = Action> {
    let of_store = seen
        .store
        .iter()
        .flat_map(|store| store.members.iter().chain(store.settled.keys()));
    let known = seen.sets.keys().chain(&seen.volumes).chain(of_store);
    let last = known.copied().max().unwrap_or(0).max(seen.recorded_gid);
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let gids = (last.saturating_add(1)..).take(wanted.saturating_sub(there));
    gids.map(|gid| Action::CreateGroup {
        gid,
        stage: Stage::New,
    })
}

/// Accumulates the plan while the operator examines the groups one by one.
struct Next<'a> {
    seen: &'a State,
    store: &'a Progress,
    plan: Plan,
    join: Vec<u64>,
    leave: Vec<u64>,
}

impl Next<'_> {
    fn group(&mut self, gid: u64, standing: Standing, keep: bool) {
        let set = self.seen.sets.get(&gid);
        self.plan
            .phases
            .insert(gid, self.phase(gid, standing, set, keep));
        match set {
            None => self.bring_back(gid, standing),
            // The `StatefulSet` is already being deleted. A later round handles its absence.
            Some(set) if set.object.terminating => {}
            Some(set) if standing == Standing::Drained => self.remove(gid, set),
            Some(set) if standing == Standing::Forgotten && set.stage == Stage::Leaving => {
                self.retire(gid);
                self.delete_group(gid, set);
            }
            Some(set) if standing == Standing::Unknown => self.delete_group(gid, set),
            Some(set) if keep => self.retain(gid, standing, set),
            Some(set) => self.release(gid, standing, set),
        }
    }

    fn phase(&self, gid: u64, standing: Standing, set: Option<&Set>, keep: bool) -> GroupPhase {
        let settled = self
            .store
            .settled
            .get(&gid)
            .is_some_and(|num| *num >= self.store.num);
        let serves = settled && !self.store.awaiting.contains(&gid);
        match (standing, keep) {
            (Standing::Drained | Standing::Forgotten | Standing::Unknown | Standing::Unborn, _)
            | (Standing::New, false) => GroupPhase::Removing,
            (Standing::New, true) => GroupPhase::Provisioning,
            (Standing::Left, _) | (Standing::Member, false) => GroupPhase::Draining,
            (Standing::Lost, _) => set.map_or(GroupPhase::Joining, guess),
            (Standing::Member, true) if serves || set.is_some_and(|set| set.has_served) => {
                GroupPhase::Serving
            }
            (Standing::Member, true) => GroupPhase::Joining,
        }
    }

    /// Recreates the `StatefulSet` of a group that has shards, or has some to hand over. Somebody else deleted it; the
    /// group's volumes may still exist.
    fn bring_back(&mut self, gid: u64, standing: Standing) {
        let stage = match standing {
            Standing::Member => Stage::Member,
            _ => Stage::Leaving,
        };
        self.plan.actions.push(Action::CreateGroup { gid, stage });
    }

    fn retain(&mut self, gid: u64, standing: Standing, set: &Set) {
        match standing {
            Standing::Member if set.stage != Stage::Member => self.set_stage(gid, Stage::Member),
            Standing::New if set.has_leader => self.join.push(gid),
            // The group joins again even without a leader, because it still holds the shards.
            Standing::Left => self.join.push(gid),
            _ => {}
        }
    }

    fn release(&mut self, gid: u64, standing: Standing, set: &Set) {
        match standing {
            _ if set.stage != Stage::Leaving => self.set_stage(gid, Stage::Leaving),
            Standing::Member => self.leave.push(gid),
            _ => {}
        }
    }

    fn set_stage(&mut self, gid: u64, stage: Stage) {
        self.plan.actions.push(Action::SetStage { gid, stage });
    }

    fn remove(&mut self, gid: u64, set: &Set) {
        self.record(gid);
        self.retire(gid);
        if self.seen.on_group_removal == Retention::Delete && self.seen.volumes.contains(&gid) {
            self.plan.actions.push(Action::DeleteVolumes(gid));
        }
        self.delete_group(gid, set);
    }

    /// Records a gid before the objects that show it are deleted.
    fn record(&mut self, gid: u64) {
        let record = Action::RecordGid(gid);
        if self.seen.recorded_gid < gid && !self.plan.actions.contains(&record) {
            self.plan.actions.push(record);
        }
    }

    /// Retires a removed group's gid, so that no delayed `Join` brings the group back while its objects are deleted.
    fn retire(&mut self, gid: u64) {
        if let Some(removed) = self.store.removed(gid).filter(|it| !it.retired) {
            let incarnation = removed.incarnation;
            let retire = Action::Retire { gid, incarnation };
            self.plan.actions.push(retire);
        }
    }

    fn delete_group(&mut self, gid: u64, set: &Set) {
        self.record(gid);
        self.plan
            .actions
            .push(Action::DeleteGroup(gid, set.object.clone()));
    }
}
