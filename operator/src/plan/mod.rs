//! Groups that come and go: what phase each is in, and what has to be done next. Pure.
//!
//! # How it decides
//!
//! [`decide`] looks at the world and nothing else. It keeps no memory and compares no two specs: what it is told is what
//! there is *now*, and what it answers is what may be done *now*. After an action the world is looked at again. So the operator may be
//! killed between any two actions; the next one sees the same world and goes on.
//!
//! The controllers' configuration is the truth about who is part of the cluster. One thing it can't tell: a group that never joined
//! looks like one that has left and is drained. That is told apart by the [`Stage`], an annotation of the group's StatefulSet:
//!
//! | in the configuration | left, not drained | stage | the group is |
//! |---|---|---|---|
//! | yes | | any | a member |
//! | no | yes | any | on its way out, or comes back if it is wanted again |
//! | no | no | new | new: joins when it has a leader |
//! | no | no | leaving | drained: deleted |
//! | no | no | member | *lost*: the controllers don't know it, though nobody let it go |
//!
//! # What never happens
//!
//! - A group's objects and volumes are not deleted before it was marked as leaving, the configuration doesn't name it, nothing
//!   of it is left to hand over, and other groups are there. Controllers that lost their disks know no groups; that is why a
//!   configuration without groups proves nothing, and a lost group stops all changes until a person has looked.
//! - The last group never leaves: one is asked to leave only when all that are to stay are members with a leader, and at least
//!   one is to stay.
//! - A gid is never given twice. The greatest of all that can be seen counts (StatefulSets, volumes, configuration, status), and
//!   it is recorded in the status before the object that shows it is deleted.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::crd::{GroupPhase, Retention};

/// How far a group's life is, as the annotation of its StatefulSet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It has never been seen in the configuration.
    New,
    /// It has.
    Member,
    /// It is to leave, or has left.
    Leaving,
}

impl Stage {
    /// All stages.
    pub const ALL: [Self; 3] = [Self::New, Self::Member, Self::Leaving];

    /// The annotation's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Member => "member",
            Self::Leaving => "leaving",
        }
    }

    /// The stage of an annotation. Something else, or nothing, counts as a member: members are never deleted unasked.
    pub fn of(annotation: Option<&str>) -> Self {
        let stage = Self::ALL
            .into_iter()
            .find(|stage| Some(stage.name()) == annotation);
        stage.unwrap_or(Self::Member)
    }
}

/// What the resource asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// To run with this many groups; at least 1.
    Run(u32),
    /// To be left alone.
    Pause,
    /// To be deleted.
    Delete,
}

/// The world, as far as groups are concerned.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What the resource asks for.
    pub intent: Intent,
    /// What becomes of a group's volumes when it is removed.
    pub on_group_removal: Retention,
    /// What becomes of all volumes when the resource is deleted.
    pub on_cluster_deletion: Retention,
    /// The greatest gid that the status knows; 0 for none.
    pub recorded_gid: u64,
    /// The controllers' StatefulSet.
    pub controllers: Option<Object>,
    /// Whether controllers have volumes that aren't being deleted.
    pub controller_volumes: bool,
    /// The groups' StatefulSets, by gid.
    pub sets: BTreeMap<u64, Set>,
    /// Gids with volumes that aren't being deleted.
    pub volumes: BTreeSet<u64>,
    /// What the controllers say; `None` when they don't answer.
    pub store: Option<Progress>,
}

/// An object as it was seen, so that it is deleted only if it is still the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Which object.
    pub uid: String,
    /// Which version of it.
    pub version: String,
    /// Whether it is being deleted already.
    pub terminating: bool,
}

/// A group's StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The object.
    pub object: Object,
    /// How far its life is.
    pub stage: Stage,
    /// Whether the group has a leader, and so a quorum.
    pub has_leader: bool,
    /// Whether the status calls it serving: it has got its first shards.
    pub has_served: bool,
}

/// What the controllers say: the latest configuration, and who is how far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The configuration's number.
    pub num: u64,
    /// The groups that are part of it.
    pub members: BTreeSet<u64>,
    /// The configuration up to which each group has done all: of members, and of those that left and aren't drained.
    pub settled: BTreeMap<u64, u64>,
}

/// Something to do. Each may be done twice without harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write into the status that gids up to this one have been given.
    RecordGid(u64),
    /// Create the controllers.
    CreateControllers,
    /// Create a group's objects.
    CreateGroup {
        /// Which.
        gid: u64,
        /// What its annotation says.
        stage: Stage,
    },
    /// Change the annotation of a group's StatefulSet.
    SetStage {
        /// Which.
        gid: u64,
        /// What it says from now on.
        stage: Stage,
    },
    /// Ask the controllers to take these groups in; one change of the configuration, so that shards move once.
    Join(Vec<u64>),
    /// Ask the controllers to let these groups go.
    Leave(Vec<u64>),
    /// Delete a group's volumes.
    DeleteVolumes(u64),
    /// Delete a group's objects, if its StatefulSet is still this one.
    DeleteGroup(u64, Object),
    /// Delete the controllers' volumes.
    DeleteControllerVolumes,
    /// Delete the controllers, if their StatefulSet is still this one.
    DeleteControllers(Object),
    /// All is gone that was to go: let the resource go too.
    RemoveFinalizer,
}

/// What is, and what is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The phase of each group that there is.
    pub phases: BTreeMap<u64, GroupPhase>,
    /// What may be done now, in this order. When one fails, the rest waits for the next look.
    pub actions: Vec<Action>,
    /// Members of old that the controllers don't know: by their StatefulSets, or, where there are none, by their volumes. While
    /// there are any, nothing is changed.
    pub lost: BTreeSet<u64>,
}

/// What a group is; see the table of the module. The order is that in which groups are kept when there are too many; the last
/// two never are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Part of the configuration.
    Member,
    /// Out of the configuration, with shards that are still to be handed over.
    Left,
    /// Never was a member.
    New,
    /// A member that the controllers don't know.
    Lost,
    /// Was let go before it ever joined, and before any group did: nothing can be told from a configuration without groups.
    Unborn,
    /// Has left, and has nothing any more.
    Drained,
}

/// Decides what is to be done.
pub fn decide(seen: &Observed) -> Plan {
    let plan = match (seen.intent, &seen.store) {
        (Intent::Delete, _) => return delete(seen),
        (Intent::Run(wanted), Some(store)) => groups(seen, store, wanted),
        // The phases, as if all were wanted.
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

/// While the controllers don't answer. Only the very first groups are made, so that all pods start side by side.
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

/// The phase of a group of which only the StatefulSet is known.
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
        // Volumes of groups were kept, but not those of the controllers, who would begin an empty cluster beside the data.
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
    // Nobody is let go before all who stay are members; see `retained` for why this holds, and the controllers refuse it too. And
    // nobody before all who stay have leaders: shards that are given to a group without a quorum can't be read any more, nor
    // be called back.
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
            // The last group never leaves, so where there is none the controllers have forgotten, not drained.
            Some(Stage::Leaving) if !store.members.is_empty() => Standing::Drained,
            Some(Stage::Leaving) if !seen.sets.values().any(|set| set.stage == Stage::Member) => {
                Standing::Unborn
            }
            _ => Standing::Lost,
        }
    };
    gids.map(|gid| (*gid, standing(gid))).collect()
}

/// Who stays. Members first, so that nobody leaves in favour of one who isn't a member yet; then those who can still come back;
/// then new ones. Among equals the oldest stay.
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

/// New groups, where `there` are and more are wanted, with gids that nobody has had.
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

/// What is put together while the groups are looked at one by one.
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
            // Somebody deletes it. When it is gone it is looked at again.
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

    /// Its StatefulSet was deleted by somebody else, but it has shards, or has some to hand over. Its volumes may be there still.
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
            // It comes back whether it has a leader or not: it is where the shards still are.
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

/// The end: groups, then controllers, so that nobody asks controllers that are gone. It needs no answer of the store, and waits
/// only for objects to disappear, so it ends also when the pods are long gone.
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
