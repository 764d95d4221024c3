//! Planning of upkeep: the objects to bring up to date, and those to sweep.

use super::action::{Action, Plan};
use super::rollout;
use super::state::{Object, State};
use crate::crd::Retention;
use crate::parts::{Component, Kind};
use crate::validate::Intent;

/// Completes the plan of a running cluster: the finalizer and the shared objects come before all changes of groups,
/// upkeep of the parts after them. While groups are lost, nothing but the finalizer is changed.
pub(super) fn complete(seen: &State, plan: Plan) -> Plan {
    let mut actions = Vec::new();
    actions.extend(finalizer(seen));
    let rollout = rollout::plan(seen, &plan.phases);
    if plan.lost.is_empty() {
        let created = |gid: u64| {
            let mut actions = plan.actions.iter();
            actions
                .any(|action| matches!(action, Action::CreateGroup { gid: of, .. } if *of == gid))
        };
        actions.extend(Kind::SHARED.map(Action::UpdateShared));
        actions.extend(plan.actions.iter().cloned());
        actions.extend(updates(seen));
        actions.extend(strays(seen, created));
        let unused = seen.unused_options.iter().cloned();
        actions.extend(unused.map(Action::DeleteOptions));
    }
    Plan {
        actions,
        rollout,
        ..plan
    }
}

/// Completes the plan of a cluster that is to stay as it is: paused, or of an invalid resource. It may be deleted at any time, so the
/// finalizer alone follows the resource.
pub(super) fn idle(seen: &State, plan: Plan) -> Plan {
    let actions = finalizer(seen).into_iter().collect();
    Plan { actions, ..plan }
}

/// Returns the change of the finalizer that the retention of the volumes asks for.
///
/// A resource without a finalizer can be deleted where no operator is left: with its namespace, which takes the rights of an
/// operator of single namespaces away first. Its volumes have no owner, so only their deletion needs the operator.
fn finalizer(seen: &State) -> Option<Action> {
    match (seen.has_finalizer, seen.on_cluster_deletion) {
        (false, Retention::Delete) => Some(Action::AddFinalizer),
        (true, Retention::Retain) => Some(Action::DropFinalizer),
        _ => None,
    }
}

/// Returns an action for each object of each existing part.
fn updates(seen: &State) -> Vec<Action> {
    let controllers = seen.controllers.iter();
    let controllers = controllers.map(|object| (Component::Controller, object));
    let groups = seen.sets.iter();
    let groups = groups.map(|(gid, set)| (Component::Group(*gid), &set.object));
    let of_part = |(part, object): (Component, &Object)| {
        let kinds = Kind::OF_PART.into_iter();
        // The `StatefulSet` alone, which shows that the part's end is being waited for.
        let kinds = kinds.filter(|kind| !object.terminating || *kind == Kind::Set);
        kinds
            .map(|kind| Action::Update(part, kind))
            .collect::<Vec<_>>()
    };
    controllers.chain(groups).flat_map(of_part).collect()
}

/// Returns the deletions of services and budgets whose part has no `StatefulSet` and needs none. Only the controllers
/// know if a group is needed; a cluster that is being deleted needs none. `is_created` tells the groups that this plan
/// creates.
pub(super) fn strays(seen: &State, is_created: impl Fn(u64) -> bool) -> Vec<Action> {
    let deleting = seen.intent == Intent::Delete;
    let is_stray = |part: Component| match part {
        Component::Controller => deleting && seen.controllers.is_none(),
        Component::Group(gid) if seen.sets.contains_key(&gid) => false,
        Component::Group(gid) => {
            let unneeded = seen.store.as_ref().is_some_and(|store| !store.knows(gid));
            deleting || (unneeded && !is_created(gid))
        }
    };
    let satellites = seen.satellites.iter();
    let strays = satellites.filter(|(part, _)| is_stray(*part));
    strays
        .map(|(part, kind)| Action::DeleteStray(*part, *kind))
        .collect()
}
