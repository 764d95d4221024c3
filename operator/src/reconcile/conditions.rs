//! The conditions: the state of a cluster, its reason, and the remedy. Pure.
//!
//! A message contains nothing that changes between rounds while nothing happens, because a status is written whenever
//! it differs.

use std::collections::BTreeSet;

use super::dereference::{ObservedSet, gid};
use super::movement::behind;
use super::status::{Facts, listed, owners};
use crate::build::{Component, names};
use crate::crd::GroupPhase;
use crate::crd::condition::{AVAILABLE, DEGRADED, PAUSED, PROGRESSING, Verdict};
use crate::plan::Intent;
use crate::store::StoreError;

/// Maximum length of a message; the API server accepts 32768 bytes.
const MAX_MESSAGE: usize = 2_000;

/// A reason and a message.
type Why = (&'static str, String);

/// Computes the four conditions.
pub(super) fn verdicts(facts: &Facts<'_>) -> [Verdict; 4] {
    let (progressing, going_on) = match (idle(facts), doing(facts)) {
        (Some(why), _) => (false, why),
        (None, Some(why)) => (true, why),
        (None, None) => (false, why("Stable", "All groups serve their shards.")),
    };
    let (available, served) = available(facts);
    let (degraded, wrong) = match degraded(facts) {
        Some(why) => (true, why),
        None => (false, why("AsExpected", "Nothing is wrong.")),
    };
    let paused = facts.intent == Intent::Pause;
    let pause = if paused {
        why("Paused", "spec.paused is true: nothing is changed.")
    } else {
        why("Running", "spec.paused is false.")
    };
    [
        verdict(AVAILABLE, available, served),
        verdict(PROGRESSING, Some(progressing), going_on),
        verdict(DEGRADED, Some(degraded), wrong),
        verdict(PAUSED, Some(paused), pause),
    ]
}

fn verdict(of: &'static str, holds: Option<bool>, (reason, mut message): Why) -> Verdict {
    if let Some(end) = (0..=MAX_MESSAGE)
        .rev()
        .find(|end| message.is_char_boundary(*end))
    {
        message.truncate(end);
    }
    Verdict {
        of,
        holds,
        reason,
        message,
    }
}

fn why(reason: &'static str, message: impl Into<String>) -> Why {
    (reason, message.into())
}

/// Decides if every key can be read and written; `None` if unknown.
fn available(facts: &Facts<'_>) -> (Option<bool>, Why) {
    if facts.intent == Intent::Delete {
        return (
            Some(false),
            why("Deleting", "The cluster is being deleted."),
        );
    }
    let Some(view) = facts.view() else {
        return if facts.was_known() {
            let message = "The controllers don't answer the operator, so this can't be told. Clients that know the configuration go on.";
            (None, why("StoreUnreachable", message))
        } else {
            (Some(false), why("Creating", waiting(facts)))
        };
    };
    if owners(view).next().is_none() && !facts.plan.lost.is_empty() {
        let message = "The controllers know no group, though there were members.";
        return (Some(false), why("GroupsLost", message));
    }
    // A configuration alone doesn't serve keys: a group must have taken over its shards.
    let mut phases = facts.plan.phases.values();
    let serves = phases.any(|phase| matches!(phase, GroupPhase::Serving | GroupPhase::Draining));
    if owners(view).next().is_none() || !serves {
        return (Some(false), why("Creating", waiting(facts)));
    }
    let health = &facts.snapshot.health;
    let leads = |part: &Component| health.get(part).is_some_and(|it| it.leader.is_some());
    // Moving shards may come from groups that own nothing any more.
    let sources = behind(view).into_iter().filter(|_| view.moving > 0);
    let needed: BTreeSet<u64> = owners(view).chain(sources).collect();
    let needed = needed.into_iter().map(Component::Group);
    let headless: Vec<Component> = needed.filter(|part| !leads(part)).collect();
    if headless.is_empty() && facts.stalled.is_some() && view.moving > 0 {
        let message = "Shards are on their way, and none has arrived for longer than is usual: their keys wait.";
        return (Some(false), why("Stalled", message));
    }
    if headless.is_empty() {
        let message = "The controllers answer, and every group that owns shards has a leader.";
        return (Some(true), why("AllServing", message));
    }
    let message = format!(
        "No leader, so no quorum, is seen in {}: keys of these groups wait.",
        listed(headless.into_iter())
    );
    (Some(false), why("NoLeader", message))
}

/// Returns the reason why the operator makes no progress, whatever the plan is.
fn idle(facts: &Facts<'_>) -> Option<Why> {
    match facts.intent {
        Intent::Pause => Some(why("Paused", "spec.paused is true: nothing is changed.")),
        Intent::Run(_) if !facts.plan.lost.is_empty() => Some(why(
            "GroupsLost",
            "Nothing is changed while the controllers don't know groups that were members.",
        )),
        _ => None,
    }
}

/// Returns the change in progress.
fn doing(facts: &Facts<'_>) -> Option<Why> {
    if facts.intent == Intent::Delete {
        let message = format!("{} StatefulSets are left.", facts.snapshot.sets.len());
        return Some(why("Deleting", message));
    }
    let in_phase = |wanted: &[GroupPhase]| {
        let phases = facts.plan.phases.iter();
        let groups = phases.filter(|(_, phase)| wanted.contains(phase));
        let groups: Vec<String> = groups
            .map(|(gid, phase)| format!("group {gid} is {phase:?}"))
            .collect();
        (!groups.is_empty()).then(|| groups.join(", "))
    };
    let serving = in_phase(&[GroupPhase::Serving]).is_some();
    let unknown = facts.view().is_none();
    if !serving && (!unknown || !facts.was_known()) {
        return Some(why("Creating", waiting(facts)));
    }
    if let Some(groups) = in_phase(&[GroupPhase::Provisioning, GroupPhase::Joining]) {
        let message = format!("{groups}. {}", unready(facts));
        return Some(why("ScalingOut", message.trim_end()));
    }
    if let Some(groups) = in_phase(&[GroupPhase::Draining, GroupPhase::Removing]) {
        let message = format!("{groups}. {}{}", moving(facts), held_up(facts));
        return Some(why("ScalingIn", message.trim_end()));
    }
    disappearing(facts)
        .or_else(|| rescaling(facts))
        .or_else(|| rolling(facts))
        .or_else(|| rebalancing(facts))
        .or_else(|| starting(facts))
        .or_else(|| {
            let rolled = facts.applied.rolled;
            rolled.then(|| why("RollingOut", "StatefulSets have just been changed."))
        })
}

/// Reports needed objects that somebody is deleting.
fn disappearing(facts: &Facts<'_>) -> Option<Why> {
    let waits = &facts.applied.waits;
    let message = format!("{}; it is created again then.", waits.join(", "));
    (!waits.is_empty()).then(|| why("Creating", message))
}

/// Reports a wrong number of groups, before any group has been created or asked to leave.
fn rescaling(facts: &Facts<'_>) -> Option<Why> {
    let Intent::Run(wanted) = facts.intent else {
        return None;
    };
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let there = facts.plan.phases.len();
    let message = format!("There are {there} groups; {wanted} are wanted.");
    match there.cmp(&wanted) {
        std::cmp::Ordering::Less => Some(why("ScalingOut", message)),
        std::cmp::Ordering::Greater => Some(why("ScalingIn", message)),
        std::cmp::Ordering::Equal => None,
    }
}

fn rolling(facts: &Facts<'_>) -> Option<Why> {
    let sets = facts.snapshot.sets.iter();
    let mut rolling = sets.filter_map(|(part, set)| Some((part, set, set.rolling?)));
    let (part, set, updated) = rolling.next()?;
    let message = format!(
        "{updated} of {} pods of {} are of the latest revision.",
        set.replicas,
        names::part(facts.cluster, *part)
    );
    Some(why("RollingOut", message))
}

fn rebalancing(facts: &Facts<'_>) -> Option<Why> {
    let view = facts.view()?;
    let moves = view.moving > 0 || !behind(view).is_empty();
    moves.then(|| why("Rebalancing", moving(facts)))
}

/// Reports pods of new `StatefulSet`s that aren't ready: they start after the first pods, which already serve, or their
/// machine was lost early. The operator can't distinguish the two, so the message claims neither.
fn starting(facts: &Facts<'_>) -> Option<Why> {
    let mut sets = facts.snapshot.sets.values();
    let starts = sets.any(|set| set.young && set.ready < set.replicas);
    starts.then(|| why("Starting", unready(facts)))
}

fn moving(facts: &Facts<'_>) -> String {
    let Some(view) = facts.view() else {
        return "The controllers don't answer.".to_owned();
    };
    let behind = behind(view);
    if view.moving == 0 && !behind.is_empty() {
        let groups = listed(behind.into_iter().map(Component::Group));
        return format!("All shards have arrived; {groups} tidies up.");
    }
    match view.moving {
        0 => String::new(),
        1 => "1 shard is on its way.".to_owned(),
        moving => format!("{moving} shards are on their way."),
    }
}

/// Describes the groups that are to stay but can't take over shards; empty if all can.
fn held_up(facts: &Facts<'_>) -> String {
    let stays = facts.plan.phases.iter();
    let stays = stays.filter(|(_, phase)| **phase == GroupPhase::Serving);
    let stays = stays.map(|(gid, _)| Component::Group(*gid));
    let health = &facts.snapshot.health;
    let headless = |part: &Component| health.get(part).is_none_or(|it| it.leader.is_none());
    let headless: Vec<Component> = stays.filter(headless).collect();
    if headless.is_empty() || facts.view().is_none() {
        return String::new();
    }
    let groups = listed(headless.into_iter());
    format!(" No group is let go while no leader is seen in {groups}.")
}

/// Describes the event that a cluster that doesn't serve yet waits for.
fn waiting(facts: &Facts<'_>) -> String {
    if !facts.applied.waits.is_empty() {
        return format!("{}.", facts.applied.waits.join(", "));
    }
    let message = match facts.view() {
        None if !facts.snapshot.sets.contains_key(&Component::Controller) => {
            return "The controllers are being created.".to_owned();
        }
        None => "Waiting for the controllers to answer.",
        Some(view) if view.plan.members.is_empty() => {
            "The controllers answer. Waiting for groups to elect leaders and join."
        }
        Some(_) => "Groups have joined. Waiting for them to serve their shards.",
    };
    format!("{message} {}", unready(facts))
        .trim_end()
        .to_owned()
}

/// Describes the pods that aren't ready; empty if all are.
fn unready(facts: &Facts<'_>) -> String {
    let sets = facts.snapshot.sets.iter();
    let unready: Vec<String> = sets
        .filter(|(_, set)| set.ready < set.replicas)
        .map(|(part, set)| counted(facts, *part, set))
        .collect();
    if unready.is_empty() {
        return String::new();
    }
    format!("Pods ready: {}.", unready.join(", "))
}

fn counted(facts: &Facts<'_>, part: Component, set: &ObservedSet) -> String {
    let name = names::part(facts.cluster, part);
    format!("{} of {} of {name}", set.ready, set.replicas)
}

/// Returns all problems in the message, and the first, which is most likely the cause, as the reason.
fn degraded(facts: &Facts<'_>) -> Option<Why> {
    if facts.intent == Intent::Delete {
        return first(refused(facts));
    }
    let mut found = lost(facts);
    found.extend(refused(facts));
    found.extend(broken_pods(facts));
    found.extend(unreachable(facts));
    found.extend(stalled(facts));
    found.extend(troubled_nodes(facts));
    if found.is_empty() {
        found.extend(missing_pods(facts));
    }
    first(found)
}

fn first(found: Vec<Why>) -> Option<Why> {
    let (reason, _) = found.first()?;
    let reason = *reason;
    let mut messages: Vec<String> = found.into_iter().map(|(_, message)| message).collect();
    messages.dedup();
    Some((reason, messages.join(" ")))
}

fn lost(facts: &Facts<'_>) -> Vec<Why> {
    if facts.plan.lost.is_empty() {
        return Vec::new();
    }
    let lost = || facts.plan.lost.iter().map(|gid| Component::Group(*gid));
    let (sets, volumes): (Vec<Component>, Vec<Component>) =
        lost().partition(|part| facts.snapshot.sets.contains_key(part));
    let named = |parts: Vec<Component>| {
        let names = parts.into_iter().map(|it| names::part(facts.cluster, it));
        names.collect::<Vec<_>>().join(", ")
    };
    let instead = if volumes.is_empty() {
        format!("delete StatefulSet {}", named(sets))
    } else {
        format!("delete the volumes of the pods of {}", named(volumes))
    };
    let message = format!(
        "The controllers don't know {}, which were members: most likely the controllers have lost their volumes. Nothing is changed. \
         Give the controllers their volumes back, or, if these groups' data may go, {instead}.",
        listed(lost()),
    );
    vec![("GroupsLost", message)]
}

fn refused(facts: &Facts<'_>) -> Vec<Why> {
    let of = |reason: &str| {
        let problems = facts.applied.problems.iter();
        let messages: Vec<&str> = problems
            .filter(|problem| problem.reason == reason)
            .map(|problem| problem.message.trim_end_matches('.'))
            .collect();
        (!messages.is_empty()).then(|| messages.join(", "))
    };
    let taken = of("NameTaken").map(|objects| {
        let message = format!(
            "{objects}: what is there already under these names isn't this cluster's, and is left alone. \
             Delete it, or create the cluster under another name."
        );
        ("NameTaken", message)
    });
    let others =
        ["ApplyRefused", "Refused"].map(|reason| Some((reason, format!("{}.", of(reason)?))));
    taken
        .into_iter()
        .chain(others.into_iter().flatten())
        .collect()
}

fn unreachable(facts: &Facts<'_>) -> Vec<Why> {
    let asked = facts
        .snapshot
        .view
        .as_ref()
        .and_then(|view| view.as_ref().err());
    let problems = facts.applied.problems.iter();
    let in_vain = problems
        .filter(|problem| problem.reason == "StoreUnreachable")
        .map(|problem| problem.message.as_str())
        .next();
    let message = match (asked, in_vain) {
        (Some(StoreError::Unreachable(_)), _) => "The controllers don't answer.".to_owned(),
        (Some(error), _) => error.to_string(),
        (None, Some(_)) => {
            "The controllers didn't answer when they were asked for a change; it is asked again."
                .to_owned()
        }
        (None, None) => return Vec::new(),
    };
    let controllers = facts.snapshot.sets.get(&Component::Controller);
    let quorum = controllers.is_some_and(|set| set.ready > set.replicas / 2);
    // Controllers that are still starting don't answer; that isn't a problem.
    if !facts.was_known() && !quorum {
        return Vec::new();
    }
    let hint = if quorum {
        " Their pods are ready: can the operator reach port 7400 of them?"
    } else {
        " Too few of their pods are ready."
    };
    vec![("StoreUnreachable", format!("{message}{hint}"))]
}

fn stalled(facts: &Facts<'_>) -> Vec<Why> {
    let Some(groups) = &facts.stalled else {
        return Vec::new();
    };
    let groups = groups.iter().map(|gid| Component::Group(*gid));
    let message = format!(
        "No shard has moved for longer than is usual. Waiting for {}: look at the logs of their pods. It goes on by itself when they do.",
        listed(groups)
    );
    vec![("Stalled", message)]
}

fn broken_pods(facts: &Facts<'_>) -> Vec<Why> {
    let pods = facts.snapshot.pods.values().flatten();
    let all: Vec<String> = pods
        .map(|trouble| {
            format!(
                "Pod {}: {}.",
                trouble.pod,
                trouble.why.trim_end_matches('.')
            )
        })
        .collect();
    if all.is_empty() {
        return Vec::new();
    }
    vec![("PodsNotReady", all.join(" "))]
}

fn troubled_nodes(facts: &Facts<'_>) -> Vec<Why> {
    let health = facts.snapshot.health.values();
    let troubles = health.flat_map(|health| &health.troubles);
    let all: Vec<String> = troubles
        .map(|(pod, what)| format!("{pod}: {}.", what.trim_end_matches('.')))
        .collect();
    if all.is_empty() {
        return Vec::new();
    }
    vec![("NodesInTrouble", all.join(" "))]
}

/// Reports pods that should be ready and aren't, although no other problem explains it. Allows one pod of a
/// `StatefulSet` to be away while its pods are replaced, and ignores groups that have never served, because their pods
/// are still starting.
fn missing_pods(facts: &Facts<'_>) -> Vec<Why> {
    if !facts.was_known() {
        return Vec::new();
    }
    let counts = |part: Component, set: &ObservedSet| {
        let away = set.replicas - set.ready;
        let served = gid(part).is_none_or(|gid| {
            let phase = facts.plan.phases.get(&gid);
            matches!(phase, Some(GroupPhase::Serving | GroupPhase::Draining))
        });
        served && !set.young && away > i32::from(set.rolling.is_some())
    };
    let sets = facts.snapshot.sets.iter();
    let missing: Vec<String> = sets
        .filter(|(part, set)| counts(**part, set))
        .map(|(part, set)| counted(facts, *part, set))
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let message = format!("Pods ready: {}.", missing.join(", "));
    vec![("PodsNotReady", message)]
}
