//! Planning of rollouts: which `StatefulSet`s may change now. A changed template replaces pods, so one part changes at a time: the
//! controllers first, then the groups by gid.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{Pods, State};
use crate::crd::GroupPhase;
use crate::parts::Component;

/// The turns of the parts in a rollout. A part in no set may change at once: its pods are being replaced anyway, or it serves nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Parts that may change, but only the first of them that differs.
    pub next: BTreeSet<Component>,
    /// Parts that don't change in this round.
    pub held: BTreeSet<Component>,
    /// Parts whose pods aren't whole: the others wait for them.
    pub unwell: BTreeSet<Component>,
}

/// Returns the turns of the parts of a cluster whose groups have these phases.
///
/// - Parts whose pods are being replaced may change: a correction must reach them. So may parts without a majority, which have nothing
///   to lose.
/// - Otherwise a part that the change may mend goes first, because it may have been made for that.
/// - A part whose pods are whole changes only if those of all other parts are: at most one part lacks a pod.
/// - A part that lacks another pod than Kubernetes replaces first waits: it would lose its majority.
pub(super) fn plan(seen: &State, phases: &BTreeMap<u64, GroupPhase>) -> Rollout {
    // Without the controllers' answer, a group that seems to be new may have joined.
    let may_serve =
        |phase| serves(phase) || (seen.store.is_none() && phase == GroupPhase::Provisioning);
    let groups = phases.iter().filter(|(_, phase)| may_serve(**phase));
    let groups = groups.map(|(gid, _)| Component::Group(*gid));
    let pods = |part| seen.pods.get(&part).copied().unwrap_or(Pods::Short);
    let parts = std::iter::once(Component::Controller).chain(groups);
    let parts: BTreeMap<Component, Pods> = parts.map(|part| (part, pods(part))).collect();
    let rolls = parts.values().any(|pods| *pods == Pods::Rolling);
    let whole = parts.values().all(|pods| *pods == Pods::Whole);
    let mut rollout = Rollout::default();
    for (part, pods) in parts {
        let turn = match pods {
            Pods::Rolling | Pods::Broken => None,
            Pods::Curable if !rolls => Some(&mut rollout.next),
            Pods::Whole if whole => Some(&mut rollout.next),
            Pods::Curable | Pods::Whole | Pods::Short => Some(&mut rollout.held),
        };
        if let Some(turn) = turn {
            turn.insert(part);
        }
        if pods != Pods::Whole {
            rollout.unwell.insert(part);
        }
    }
    rollout
}

/// Returns true if a group in this phase has, or is about to get, shards that keys wait for.
fn serves(phase: GroupPhase) -> bool {
    match phase {
        GroupPhase::Joining | GroupPhase::Serving | GroupPhase::Draining => true,
        GroupPhase::Provisioning | GroupPhase::Removing => false,
    }
}
