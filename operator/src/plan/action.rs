//! The plan's output: the phases of the groups, and the actions to take, in order.

use std::collections::{BTreeMap, BTreeSet};

use super::rollout::Rollout;
use super::state::{Object, Stage};
use crate::crd::GroupPhase;
use crate::parts::{Component, Kind};

/// One change. Every action is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Add the finalizer, which keeps a deleted resource until its volumes are deleted.
    AddFinalizer,
    /// Remove the finalizer, because Kubernetes deletes, or keeps, everything by itself when the resource is deleted.
    DropFinalizer,
    /// Bring an object that all pods share up to date, or create it.
    UpdateShared(Kind),
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
    /// Ask the controllers to refuse each later `Join` under the gid of a group that was drained or forgotten.
    Retire {
        /// The group.
        gid: u64,
        /// Its last incarnation.
        incarnation: u64,
    },
    /// Delete a group's volumes.
    DeleteVolumes(u64),
    /// Delete a group's objects, if its `StatefulSet` still matches this one.
    DeleteGroup(u64, Object),
    /// Delete the controllers' volumes.
    DeleteControllerVolumes,
    /// Delete the controllers, if their `StatefulSet` still matches this one.
    DeleteControllers(Object),
    /// Bring an object of an existing part up to date.
    Update(Component, Kind),
    /// Delete a service or a budget without a `StatefulSet`, left by an interrupted deletion or creation.
    DeleteStray(Component, Kind),
    /// Delete a config map with options that nothing uses any more.
    DeleteOptions(String),
    /// Remove the finalizer, so that the API server deletes the resource. Everything else has been deleted.
    RemoveFinalizer,
}

/// Condition for performing an action, about the earlier actions of the same plan. No action is performed after the
/// finalizer couldn't be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// No condition: a failure elsewhere doesn't block the action.
    Nothing,
    /// No earlier change of groups, controllers or volumes failed, except creations.
    Changes,
    /// As [`Self::Changes`], and the config map with the options is there: pods would start with what somebody else put under its name.
    ChangesAndOptions,
    /// No earlier action has changed the part's `StatefulSet`: the next round compares the changed one.
    Untouched(Component),
    /// As [`Self::Untouched`], and the config map with the options is there: a pod without it can't start.
    Options(Component),
    /// All earlier actions succeeded.
    All,
}

impl Action {
    /// Returns the condition for performing the action.
    pub fn needs(&self) -> Needs {
        match self {
            Self::AddFinalizer
            | Self::UpdateShared(_)
            | Self::DeleteStray(..)
            | Self::DeleteOptions(_)
            | Self::DropFinalizer => Needs::Nothing,
            Self::CreateControllers | Self::CreateGroup { .. } => Needs::ChangesAndOptions,
            Self::RecordGid(_)
            | Self::SetStage { .. }
            | Self::Join(_)
            | Self::Leave(_)
            | Self::Retire { .. }
            | Self::DeleteVolumes(_)
            | Self::DeleteGroup(..)
            | Self::DeleteControllerVolumes
            | Self::DeleteControllers(_) => Needs::Changes,
            Self::Update(part, Kind::Set) => Needs::Options(*part),
            Self::Update(part, _) => Needs::Untouched(*part),
            Self::RemoveFinalizer => Needs::All,
        }
    }

    /// Returns true if the action creates a part. A failed creation doesn't block other changes.
    pub fn creates(&self) -> bool {
        matches!(self, Self::CreateControllers | Self::CreateGroup { .. })
    }

    /// Returns true if the action only brings an existing object up to date. At rest a plan has only such actions.
    pub fn updates(&self) -> bool {
        matches!(self, Self::UpdateShared(_) | Self::Update(..))
    }

    /// Returns the part whose `StatefulSet` the action changes or deletes.
    pub fn touches(&self) -> Option<Component> {
        match self {
            Self::SetStage { gid, .. } | Self::DeleteGroup(gid, _) => Some(Component::Group(*gid)),
            Self::DeleteControllers(_) => Some(Component::Controller),
            _ => None,
        }
    }

    /// Returns true if the operator gives up the resource by this action.
    pub fn releases(&self) -> bool {
        matches!(self, Self::RemoveFinalizer | Self::DropFinalizer)
    }
}

/// Phases of the groups, and the actions to take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The phase of each existing group.
    pub phases: BTreeMap<u64, GroupPhase>,
    /// Actions that are allowed now, in this order; [`Action::needs`] says which ones a failed action blocks until the
    /// next round.
    pub actions: Vec<Action>,
    /// Former members that the controllers don't know: found by their `StatefulSet`s, or, where there are none, by
    /// their volumes. While this set isn't empty, the operator changes nothing but the finalizer.
    pub lost: BTreeSet<u64>,
    /// The parts' turns, if their `StatefulSet`s are to change.
    pub rollout: Rollout,
}

impl Plan {
    /// Returns the greatest gid that the plan records.
    pub fn recorded_gid(&self) -> Option<u64> {
        let recorded = self.actions.iter().filter_map(|action| match action {
            Action::RecordGid(gid) => Some(*gid),
            _ => None,
        });
        recorded.max()
    }
}
