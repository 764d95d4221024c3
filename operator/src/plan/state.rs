//! The plan's input: the state of a cluster, as far as decisions depend on it.

use std::collections::{BTreeMap, BTreeSet};

use crate::crd::{GroupPhase, Retention};
use crate::parts::{Component, Kind};
use crate::validate::Intent;

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

    /// Returns the stage that an annotation names.
    pub fn named(annotation: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|stage| stage.name() == annotation)
    }

    /// Returns the stage of a group whose annotation somebody removed or garbled, from its phase in the status. Without one
    /// it counts as a member: members are never deleted unless the user asks for it.
    pub fn implied(phase: Option<GroupPhase>) -> Self {
        match phase {
            Some(GroupPhase::Provisioning) => Self::New,
            Some(GroupPhase::Draining | GroupPhase::Removing) => Self::Leaving,
            Some(GroupPhase::Joining | GroupPhase::Serving) | None => Self::Member,
        }
    }
}

/// State of a cluster, as far as decisions depend on it.
#[derive(Clone, Debug)]
pub struct State {
    /// Goal that the resource sets.
    pub intent: Intent,
    /// True if the resource has the operator's finalizer.
    pub has_finalizer: bool,
    /// True if the resource is being deleted and the operator is to delete nothing: the objects are to stay (`kubectl delete
    /// --cascade=orphan`), or go with their namespace, which took the operator's rights away already.
    pub left_alone: bool,
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
    /// The pods of each part that has a `StatefulSet`.
    pub pods: BTreeMap<Component, Pods>,
    /// Gids with volumes that aren't being deleted.
    pub volumes: BTreeSet<u64>,
    /// The parts' services and disruption budgets, with or without a `StatefulSet`.
    pub satellites: BTreeSet<(Component, Kind)>,
    /// The config maps with options that neither a pod nor a `StatefulSet` uses, and that aren't the present options.
    pub unused_options: BTreeSet<String>,
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

/// State of a part's pods, as far as a rollout depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pods {
    /// All pods are ready, and all their nodes answer, vote and have caught up.
    Whole,
    /// Pods are being replaced, because the template has changed, and a further change costs no majority.
    Rolling,
    /// No majority is ready, so a change costs nothing.
    Broken,
    /// A pod fails for a reason that a change of the template may remove, and Kubernetes replaces it before those that are ready.
    Curable,
    /// Pods are missing, start, catch up, or can't be asked; a change might cost the majority.
    Short,
}

/// Report of the controllers: the latest configuration, and the progress of each group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The configuration's number.
    pub num: u64,
    /// The groups in the configuration that aren't leaving.
    pub members: BTreeSet<u64>,
    /// The latest configuration that each group has fully carried out. Covers members, and groups that are leaving.
    pub settled: BTreeMap<u64, u64>,
    /// The members that own no shard yet, and are to get some.
    pub awaiting: BTreeSet<u64>,
    /// The groups that the controllers explicitly call drained or forgotten, with the last incarnation of each.
    pub removed: BTreeMap<u64, Removed>,
}

/// A group that the controllers removed from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The last incarnation that was removed.
    pub incarnation: u64,
    /// True if the group handed nothing over, because a person called it gone for good.
    pub forgotten: bool,
    /// True if no group may join under the gid any more.
    pub retired: bool,
}

impl Progress {
    /// Returns true if the group is part of the configuration, as a member or as leaving.
    pub fn knows(&self, gid: u64) -> bool {
        self.members.contains(&gid) || self.settled.contains_key(&gid)
    }

    /// Returns the controllers' record of a group that was drained or forgotten, and isn't part of the configuration.
    pub fn removed(&self, gid: u64) -> Option<&Removed> {
        self.removed.get(&gid).filter(|_| !self.knows(gid))
    }

    /// Returns true if the controllers say that a group is drained: it left and holds nothing. Its absence alone proves
    /// nothing: the controllers may have lost their data. A forgotten group isn't drained: it may have the only copy of its data.
    pub fn proves_drained(&self, gid: u64) -> bool {
        self.removed(gid).is_some_and(|it| !it.forgotten)
    }

    /// Returns true if a person told the controllers that a group is gone for good.
    pub fn proves_forgotten(&self, gid: u64) -> bool {
        self.removed(gid).is_some_and(|it| it.forgotten)
    }

    /// Returns true if a group's volumes may be deleted: it is drained, and no group can join under its gid any more.
    pub fn permits_deletion(&self, gid: u64) -> bool {
        self.proves_drained(gid) && self.removed(gid).is_some_and(|it| it.retired)
    }
}
