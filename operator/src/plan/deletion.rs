//! Planning of a cluster's deletion.

use super::action::{Action, Plan};
use super::state::State;
use super::upkeep;
use crate::crd::{GroupPhase, Retention};

/// Plans the deletion of the cluster. If its volumes stay, Kubernetes deletes the rest, which the resource owns. Otherwise groups
/// are deleted first, then controllers, so that no group contacts deleted controllers. Needs no answer of the store, and waits only
/// for objects to disappear, so it completes even if the pods disappeared long ago.
pub(super) fn plan(seen: &State) -> Plan {
    // Other finalizers keep the resource; the operator has nothing left to do.
    if !seen.has_finalizer {
        return Plan::default();
    }
    if seen.left_alone || seen.on_cluster_deletion == Retention::Retain {
        return Plan {
            actions: vec![Action::DropFinalizer],
            ..Plan::default()
        };
    }
    let phases = seen.sets.keys().map(|gid| (*gid, GroupPhase::Removing));
    let mut actions = groups(seen);
    if seen.sets.is_empty() {
        actions.extend(controllers(seen));
    }
    let is_done = actions.is_empty() && seen.sets.is_empty() && seen.controllers.is_none();
    actions.extend(upkeep::strays(seen, |_| false));
    actions.extend(is_done.then_some(Action::RemoveFinalizer));
    Plan {
        phases: phases.collect(),
        actions,
        ..Plan::default()
    }
}

fn groups(seen: &State) -> Vec<Action> {
    let volumes = seen.volumes.iter().map(|gid| Action::DeleteVolumes(*gid));
    let live = seen.sets.iter().filter(|(_, set)| !set.object.terminating);
    let sets = live.map(|(gid, set)| Action::DeleteGroup(*gid, set.object.clone()));
    volumes.chain(sets).collect()
}

fn controllers(seen: &State) -> impl Iterator<Item = Action> {
    let live = seen.controllers.iter().filter(|object| !object.terminating);
    let volumes = seen.controller_volumes;
    let volumes = volumes.then_some(Action::DeleteControllerVolumes);
    volumes
        .into_iter()
        .chain(live.cloned().map(Action::DeleteControllers))
}
