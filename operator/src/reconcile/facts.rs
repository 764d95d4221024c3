//! Inputs of a status, and what several messages say about them. Pure.

use std::collections::BTreeSet;

use super::applied::Applied;
use super::observed::{Observed, ObservedSet};
use crate::build::names;
use crate::crd::GroupPhase;
use crate::parts::Component;
use crate::plan::Plan;
use crate::store::View;
use crate::validate::{Cluster, Desired, Intent};

/// Inputs of a status: the values of a round.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) desired: &'a Desired,
    /// Observed state before any action of this round.
    pub(super) observed: &'a Observed,
    pub(super) plan: &'a Plan,
    pub(super) applied: &'a Applied,
}

impl<'a> Facts<'a> {
    pub(super) fn cluster(&self) -> &'a Cluster {
        &self.desired.cluster
    }

    /// Returns the controllers' answer, if there is one.
    pub(super) fn view(&self) -> Option<&'a View> {
        self.observed.view()
    }

    /// Returns true if the controllers have ever answered.
    pub(super) fn was_known(&self) -> bool {
        let before = self.observed.resource.status.as_ref();
        before.is_some_and(|before| before.config_num.is_some())
    }

    pub(super) fn is_deleting(&self) -> bool {
        self.desired.intent == Intent::Delete
    }

    /// Returns the `StatefulSet` of a part.
    pub(super) fn set(&self, part: Component) -> Option<&'a ObservedSet> {
        self.observed.sets.get(&part)
    }

    /// Returns true if a leader of the part is seen.
    pub(super) fn is_led(&self, part: Component) -> bool {
        let health = self.observed.health.get(&part);
        health.is_some_and(|health| health.leader.is_some())
    }

    /// Returns the groups in one of these phases.
    pub(super) fn in_phase(&self, phases: &[GroupPhase]) -> Vec<(u64, GroupPhase)> {
        let groups = self.plan.phases.iter();
        let groups = groups.filter(|(_, phase)| phases.contains(phase));
        groups.map(|(gid, phase)| (*gid, *phase)).collect()
    }

    /// Returns true if a group serves keys: a configuration alone doesn't, a group must have taken over its shards.
    pub(super) fn serves(&self) -> bool {
        let serving = [GroupPhase::Serving, GroupPhase::Draining];
        let owned = self.view().is_none_or(|view| !owners(view).is_empty());
        owned && !self.in_phase(&serving).is_empty()
    }

    /// Counts the ready pods of a part.
    pub(super) fn ready(&self, part: Component, set: &ObservedSet) -> String {
        let name = names::part(self.cluster(), part);
        format!("{} of {} of {name}", set.ready, set.replicas)
    }

    /// Describes the pods that aren't ready; empty if all are.
    pub(super) fn unready(&self) -> String {
        let sets = self.observed.sets.iter();
        let unready: Vec<String> = sets
            .filter(|(_, set)| set.ready < set.replicas)
            .map(|(part, set)| self.ready(*part, set))
            .collect();
        if unready.is_empty() {
            return String::new();
        }
        format!("Pods ready: {}.", unready.join(", "))
    }
}

/// Returns the groups that own shards, by the latest configuration.
pub(super) fn owners(view: &View) -> BTreeSet<u64> {
    let owners = view.shards.iter().filter(|(_, shards)| **shards > 0);
    owners.map(|(gid, _)| *gid).collect()
}

/// Formats parts as text, such as `controllers, group 1`.
pub(super) fn listed(parts: impl IntoIterator<Item = Component>) -> String {
    let name = |part: Component| match part.gid() {
        None => "controllers".to_owned(),
        Some(gid) => format!("group {gid}"),
    };
    let parts = parts.into_iter().map(name);
    parts.collect::<Vec<_>>().join(", ")
}
