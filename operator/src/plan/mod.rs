//! The plan: the phase of each group and the next actions for it. Pure.
//!
//! # Decisions
//!
//! [`decide`] depends only on the observed state. It keeps no memory and compares no two specs: its input is the
//! current state, and its output is the actions that are allowed in that state. The operator observes again after the
//! actions. So the operator may be killed between any two actions; its successor observes the same state and continues.
//!
//! The controllers' configuration is the source of truth for membership. It can't distinguish a group that never joined
//! from one that has left and is drained. The [`Stage`], an annotation of the group's `StatefulSet`, distinguishes
//! them:
//!
//! | in the configuration | left, not drained | stage | the group is |
//! |---|---|---|---|
//! | yes | | any | a member |
//! | no | yes | any | leaving, or joins again if it is wanted again |
//! | no | no | new | new: joins when it has a leader |
//! | no | no | leaving | drained: deleted |
//! | no | no | member | *lost*: the controllers don't know it, though nobody asked it to leave |
//!
//! # Safety rules
//!
//! - The operator deletes a group's objects and volumes only after the group was marked as leaving, the configuration
//!   doesn't name it, it has nothing left to hand over, and other groups are members. Controllers that lost their disks
//!   know no groups, so a configuration without groups proves nothing, and a lost group stops all changes until a
//!   person intervenes.
//! - The last group never leaves: a group is asked to leave only when all groups that are to stay are members with a
//!   leader, and at least one is to stay.
//! - A gid is never reused. The next gid is above the greatest one visible anywhere (`StatefulSet`s, volumes,
//!   configuration, status), and the status records a gid before the object that shows it is deleted.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::crd::{GroupPhase, Retention};

/// Lifecycle stage of a group, stored in the annotation of its `StatefulSet`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The group has never been seen in the configuration.
    New,
    /// The group has been seen in the configuration.
    Member,
    /// The group is to leave, or has left.
    Leaving,
}

impl Stage {
    /// All stages.
    pub const ALL: [Self; 3] = [Self::New, Self::Member, Self::Leaving];

    /// Returns the annotation's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Member => "member",
            Self::Leaving => "leaving",
        }
    }

    /// Returns the stage that an annotation names. An unknown or missing value counts as a member: members are never
    /// deleted unless the user asks for it.
    pub fn of(annotation: Option<&str>) -> Self {
        let stage = Self::ALL
            .into_iter()
            .find(|stage| Some(stage.name()) == annotation);
        stage.unwrap_or(Self::Member)
    }
}

/// Goal that the resource sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Run this many groups; at least 1.
    Run(u32),
    /// Change nothing.
    Pause,
    /// Delete the cluster.
    Delete,
}

/// Observed state of the cluster, as far as groups are concerned.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Goal that the resource sets.
    pub intent: Intent,
    /// Retention of a group's volumes when the group is removed.
    pub on_group_removal: Retention,
    /// Retention of all volumes when the resource is deleted.
    pub on_cluster_deletion: Retention,
    /// The greatest gid that the status records; 0 for none.
    pub recorded_gid: u64,
    /// The controllers' `StatefulSet`.
    pub controllers: Option<Object>,
    /// True if the controllers have volumes that aren't being deleted.
    pub controller_volumes: bool,
    /// The groups' `StatefulSet`s, by gid.
    pub sets: BTreeMap<u64, Set>,
    /// Gids with volumes that aren't being deleted.
    pub volumes: BTreeSet<u64>,
    /// Progress that the controllers report; `None` when they don't answer.
    pub store: Option<Progress>,
}

/// Identity and version of an object when it was observed; a deletion uses them as preconditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Uid of the object.
    pub uid: String,
    /// Resource version of the object.
    pub version: String,
    /// True if the object is already being deleted.
    pub terminating: bool,
}

/// A group's `StatefulSet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The `StatefulSet` as an object.
    pub object: Object,
    /// Lifecycle stage of the group.
    pub stage: Stage,
    /// True if the group has a leader, and so a quorum.
    pub has_leader: bool,
    /// True if the status calls the group serving: it has received its first shards.
    pub has_served: bool,
}

/// Report of the controllers: the latest configuration, and the progress of each group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The configuration's number.
    pub num: u64,
    /// The groups in the configuration.
    pub members: BTreeSet<u64>,
    /// The latest configuration that each group has fully carried out. Covers members, and groups that left and aren't
    /// drained.
    pub settled: BTreeMap<u64, u64>,
}

/// One change. Every action is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Record in the status that gids up to this one have been assigned.
    RecordGid(u64),
    /// Create the controllers.
    CreateControllers,
    /// Create a group's objects.
    CreateGroup {
        /// The group.
        gid: u64,
        /// Stage in its annotation.
        stage: Stage,
    },
    /// Change the annotation of a group's `StatefulSet`.
    SetStage {
        /// The group.
        gid: u64,
        /// New stage in its annotation.
        stage: Stage,
    },
    /// Ask the controllers to add these groups, in one change of the configuration, so that shards move once.
    Join(Vec<u64>),
    /// Ask the controllers to remove these groups.
    Leave(Vec<u64>),
    /// Delete a group's volumes.
    DeleteVolumes(u64),
    /// Delete a group's objects, if its `StatefulSet` still matches this one.
    DeleteGroup(u64, Object),
    /// Delete the controllers' volumes.
    DeleteControllerVolumes,
    /// Delete the controllers, if their `StatefulSet` still matches this one.
    DeleteControllers(Object),
    /// Remove the finalizer, so that the API server deletes the resource. Everything else has been deleted.
    RemoveFinalizer,
}

/// Phases of the groups, and the actions to take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The phase of each existing group.
    pub phases: BTreeMap<u64, GroupPhase>,
    /// Actions that are allowed now, in this order. When one fails, the rest waits for the next round.
    pub actions: Vec<Action>,
    /// Former members that the controllers don't know: found by their `StatefulSet`s, or, where there are none, by
    /// their volumes. While this set isn't empty, the operator changes nothing.
    pub lost: BTreeSet<u64>,
}

/// State of a group; see the table of the module. Variants are in the order in which groups are kept when there are too
/// many; the last two are never kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// In the configuration.
    Member,
    /// Not in the configuration, with shards still to hand over.
    Left,
    /// Never a member.
    New,
    /// A member that the controllers don't know.
    Lost,
    /// Marked as leaving before any group joined. A configuration without groups doesn't prove that the group is
    /// drained.
    Unborn,
    /// Left, with nothing to hand over.
    Drained,
}

/// Returns the phases and the actions for the observed state.
pub fn decide(seen: &Observed) -> Plan {
    let plan = match (seen.intent, &seen.store) {
        (Intent::Delete, _) => return delete(seen),
        (Intent::Run(wanted), Some(store)) => groups(seen, store, wanted),
        // Computes the phases as if all groups were wanted.
        (Intent::Pause, Some(store)) => groups(seen, store, u32::MAX),
        (Intent::Run(wanted), None) => first_groups(seen, wanted),
        (Intent::Pause, None) => first_groups(seen, 0),
    };
    match seen.intent {
        Intent::Pause => Plan {
            actions: Vec::new(),
            ..plan
        },
        _ => plan,
    }
}

fn create_controllers(seen: &Observed) -> Option<Action> {
    seen.controllers
        .is_none()
        .then_some(Action::CreateControllers)
}

/// Plans while the controllers don't answer. Creates only the very first groups, so that all pods start in parallel.
fn first_groups(seen: &Observed, wanted: u32) -> Plan {
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

fn groups(seen: &Observed, store: &Progress, wanted: u32) -> Plan {
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
        join,
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
        plan.actions.push(Action::Join(join));
    }
    if seen.intent != Intent::Pause {
        plan.actions
            .extend(new_groups(seen, retained.len(), wanted));
    }
    if !lost.is_empty() {
        plan.actions
            .retain(|action| *action == Action::CreateControllers);
    }
    Plan { lost, ..plan }
}

fn standings(seen: &Observed, store: &Progress) -> BTreeMap<u64, Standing> {
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
            Some(Stage::New) => Standing::New,
            // The last group never leaves, so a configuration without groups doesn't mean that this group is drained:
            // the controllers may have lost their data.
            Some(Stage::Leaving) if !store.members.is_empty() => Standing::Drained,
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
fn retained(seen: &Observed, standings: &BTreeMap<u64, Standing>, wanted: u32) -> BTreeSet<u64> {
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
fn new_groups(seen: &Observed, there: usize, wanted: u32) -> impl Iterator<Item = Action> {
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
    seen: &'a Observed,
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
        match (standing, keep) {
            (Standing::Drained | Standing::Unborn, _) | (Standing::New, false) => {
                GroupPhase::Removing
            }
            (Standing::New, true) => GroupPhase::Provisioning,
            (Standing::Left, _) | (Standing::Member, false) => GroupPhase::Draining,
            (Standing::Lost, _) => set.map_or(GroupPhase::Joining, guess),
            (Standing::Member, true) if settled || set.is_some_and(|set| set.has_served) => {
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
        if self.seen.recorded_gid < gid {
            self.plan.actions.push(Action::RecordGid(gid));
        }
        if self.seen.on_group_removal == Retention::Delete && self.seen.volumes.contains(&gid) {
            self.plan.actions.push(Action::DeleteVolumes(gid));
        }
        self.plan
            .actions
            .push(Action::DeleteGroup(gid, set.object.clone()));
    }
}

/// Plans the deletion of the cluster: groups first, then controllers, so that no group contacts deleted controllers.
/// Needs no answer of the store, and waits only for objects to disappear, so it completes even if the pods disappeared
/// long ago.
fn delete(seen: &Observed) -> Plan {
    let mut plan = Plan::default();
    plan.phases
        .extend(seen.sets.keys().map(|gid| (*gid, GroupPhase::Removing)));
    let volumes_too = seen.on_cluster_deletion == Retention::Delete;
    if volumes_too {
        plan.actions
            .extend(seen.volumes.iter().map(|gid| Action::DeleteVolumes(*gid)));
    }
    let live = seen.sets.iter().filter(|(_, set)| !set.object.terminating);
    plan.actions
        .extend(live.map(|(gid, set)| Action::DeleteGroup(*gid, set.object.clone())));
    if !seen.sets.is_empty() {
        return plan;
    }
    if volumes_too && seen.controller_volumes {
        plan.actions.push(Action::DeleteControllerVolumes);
    }
    match &seen.controllers {
        Some(object) if object.terminating => {}
        Some(object) => plan.actions.push(Action::DeleteControllers(object.clone())),
        None if plan.actions.is_empty() => plan.actions.push(Action::RemoveFinalizer),
        None => {}
    }
    plan
}
