//! The messages of the conditions' rules: each function returns the message if its rule applies. Pure.
//!
//! A message contains nothing that changes between rounds while nothing happens, because a status is written whenever
//! it differs.

use std::collections::BTreeSet;

use super::facts::{Facts, listed, owners};
use super::movement::behind;
use super::observed::ObservedSet;
use super::wanted::{VERSION, VERSION_ANNOTATION};
use crate::build::names;
use crate::crd::GroupPhase;
use crate::parts::Component;
use crate::store::{StoreError, View};
use crate::validate::Intent;

type Message = Option<String>;

/// Returns the message if the condition holds.
fn when(holds: bool, message: impl Into<String>) -> Message {
    holds.then(|| message.into())
}

pub(super) fn invalid(facts: &Facts<'_>) -> Message {
    let why = facts.desired.invalid.as_ref()?;
    Some(format!("{why}. Nothing is changed until it is corrected."))
}

pub(super) fn invalid_runs(facts: &Facts<'_>) -> Message {
    when(facts.desired.invalid.is_some(), "")
}

pub(super) fn paused(facts: &Facts<'_>) -> Message {
    let paused = facts.desired.intent == Intent::Pause;
    when(paused, "spec.paused is true: nothing is changed.")
}

pub(super) fn running(_: &Facts<'_>) -> Message {
    when(true, "spec.paused is false.")
}

// Available: every key can be read and written.

pub(super) fn being_deleted(facts: &Facts<'_>) -> Message {
    when(facts.is_deleting(), "The cluster is being deleted.")
}

pub(super) fn unanswered(facts: &Facts<'_>) -> Message {
    let message = "The controllers don't answer the operator, so this can't be told. Clients that know the configuration go on.";
    when(facts.view().is_none() && facts.was_known(), message)
}

pub(super) fn forgotten(facts: &Facts<'_>) -> Message {
    let unowned = facts.view().is_some_and(|view| owners(view).is_empty());
    let message = "The controllers know no group, though there were members.";
    when(unowned && !facts.plan.lost.is_empty(), message)
}

pub(super) fn not_serving(facts: &Facts<'_>) -> Message {
    when(facts.view().is_none() || !facts.serves(), waiting(facts))
}

pub(super) fn headless(facts: &Facts<'_>) -> Message {
    let view = facts.view()?;
    // Shards that nobody serves yet may come from groups that own nothing any more.
    let sources = behind(view).into_iter().filter(|_| view.unserved > 0);
    let needed: BTreeSet<u64> = owners(view).into_iter().chain(sources).collect();
    let needed = needed.into_iter().map(Component::Group);
    let headless: Vec<Component> = needed.filter(|part| !facts.is_led(*part)).collect();
    let message = format!(
        "No leader, so no quorum, is seen in {}: keys of these groups wait.",
        listed(headless.iter().copied())
    );
    when(!headless.is_empty(), message)
}

pub(super) fn keys_wait(facts: &Facts<'_>) -> Message {
    let waits = facts.view().is_some_and(|view| view.unserved > 0);
    let message = "Shards are on their way to new owners, and none has arrived for longer than is usual: their keys wait.";
    when(facts.observed.stalled.is_some() && waits, message)
}

pub(super) fn all_serving(_: &Facts<'_>) -> Message {
    when(
        true,
        "The controllers answer, and every group that owns shards has a leader.",
    )
}

// Progressing: a change is in progress.

/// Reports that the operator makes no progress, whatever the plan would be.
pub(super) fn changes_stopped(facts: &Facts<'_>) -> Message {
    let message = "Nothing is changed while the controllers don't know groups that were members.";
    when(!facts.plan.lost.is_empty(), message)
}

pub(super) fn deleting(facts: &Facts<'_>) -> Message {
    let message = format!("{} StatefulSets are left.", facts.observed.sets.len());
    when(facts.is_deleting(), message)
}

pub(super) fn creating(facts: &Facts<'_>) -> Message {
    let serving = !facts.in_phase(&[GroupPhase::Serving]).is_empty();
    let tells = facts.view().is_some() || !facts.was_known();
    when(!serving && tells, waiting(facts))
}

pub(super) fn arriving(facts: &Facts<'_>) -> Message {
    let groups = phases(facts, &[GroupPhase::Provisioning, GroupPhase::Joining])?;
    let moving = facts.view().map(|_| moving(facts)).unwrap_or_default();
    let sentences = [format!("{groups}."), moving, facts.unready()];
    Some(joined(&sentences))
}

pub(super) fn leaving(facts: &Facts<'_>) -> Message {
    let groups = phases(facts, &[GroupPhase::Draining, GroupPhase::Removing])?;
    let message = format!("{groups}. {}{}", moving(facts), held_up(facts));
    Some(trimmed(&message))
}

/// Reports needed objects that somebody is deleting.
pub(super) fn disappearing(facts: &Facts<'_>) -> Message {
    let waits = facts.applied.waits();
    let message = format!("{}; it is created again then.", waits.join(", "));
    when(!waits.is_empty(), message)
}

/// Reports missing groups before any has been created.
pub(super) fn too_few(facts: &Facts<'_>) -> Message {
    let (there, wanted) = counts(facts)?;
    when(
        there < wanted,
        format!("There are {there} groups; {wanted} are wanted."),
    )
}

/// Reports surplus groups before any has been asked to leave.
pub(super) fn too_many(facts: &Facts<'_>) -> Message {
    let (there, wanted) = counts(facts)?;
    when(
        there > wanted,
        format!("There are {there} groups; {wanted} are wanted."),
    )
}

fn counts(facts: &Facts<'_>) -> Option<(usize, usize)> {
    let Intent::Run(wanted) = facts.desired.intent else {
        return None;
    };
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    Some((facts.plan.phases.len(), wanted))
}

/// Reports how far a rollout is, and what it waits for.
pub(super) fn rolling(facts: &Facts<'_>) -> Message {
    let name = |part: &Component| names::part(facts.cluster(), *part);
    let sets = facts.observed.sets.iter();
    let mut rolling = sets.filter_map(|(part, set)| Some((part, set, set.rolling?)));
    let follow = match facts.applied.held() {
        0 => String::new(),
        1 => "1 more StatefulSet follows.".to_owned(),
        held => format!("{held} more StatefulSets follow, one after the other."),
    };
    let unwell: Vec<String> = facts.plan.rollout.unwell.iter().map(name).collect();
    let now = match rolling.next() {
        Some((part, set, updated)) => format!(
            "{updated} of {} pods of {} are of the latest revision.",
            set.replicas,
            name(part)
        ),
        None if follow.is_empty() => return None,
        None if unwell.is_empty() => String::new(),
        None => format!(
            "The rollout waits until all pods of {} are ready, and all their nodes answer, vote and have caught up.",
            unwell.join(", ")
        ),
    };
    Some(joined(&[now, follow, facts.unready()]))
}

pub(super) fn rebalancing(facts: &Facts<'_>) -> Message {
    let view = facts.view()?;
    let moves = view.moving() > 0 || !behind(view).is_empty();
    when(moves, moving(facts))
}

/// Reports pods of new `StatefulSet`s that aren't ready: they start after the first pods, which already serve, or their
/// machine was lost early. The operator can't distinguish the two, so the message claims neither.
pub(super) fn starting(facts: &Facts<'_>) -> Message {
    let mut sets = facts.observed.sets.values();
    let starts = sets.any(|set| set.young && set.ready < set.replicas);
    when(starts, facts.unready())
}

pub(super) fn rolled(facts: &Facts<'_>) -> Message {
    when(
        facts.applied.rolled(),
        "StatefulSets have just been changed.",
    )
}

pub(super) fn stable(_: &Facts<'_>) -> Message {
    when(true, "All groups serve their shards.")
}

fn phases(facts: &Facts<'_>, wanted: &[GroupPhase]) -> Option<String> {
    let groups = facts.in_phase(wanted).into_iter();
    let groups: Vec<String> = groups
        .map(|(gid, phase)| format!("group {gid} is {phase:?}"))
        .collect();
    when(!groups.is_empty(), groups.join(", "))
}

fn moving(facts: &Facts<'_>) -> String {
    let Some(view) = facts.view() else {
        return "The controllers don't answer.".to_owned();
    };
    let behind = behind(view);
    if view.moving() == 0 && !behind.is_empty() {
        let groups = listed(behind.into_iter().map(Component::Group));
        return format!("All shards have arrived; {groups} tidies up.");
    }
    let unserved = match view.unserved {
        0 => String::new(),
        1 => "1 shard is on its way.".to_owned(),
        shards => format!("{shards} shards are on their way."),
    };
    joined(&[copying(facts, view.copying), unserved])
}

/// Describes the shards that are to be copied. Their owners serve them, so no key waits for a copy.
fn copying(facts: &Facts<'_>, shards: u32) -> String {
    let stalled = facts.observed.stalled.is_some();
    let (does, hint) = match (stalled, shards) {
        (_, 0) => return String::new(),
        (false, 1) => ("is being copied", ""),
        (false, _) => ("are being copied", ""),
        (true, 1) => ("waits to be copied", ": see `shardkv shards`"),
        (true, _) => ("wait to be copied", ": see `shardkv shards`"),
    };
    match shards {
        1 => format!("1 shard {does}; its group serves it meanwhile{hint}."),
        _ => format!("{shards} shards {does}; their groups serve them meanwhile{hint}."),
    }
}

/// Joins sentences, some of which may be empty.
fn joined(sentences: &[String]) -> String {
    let sentences = sentences.iter().map(String::as_str);
    let sentences: Vec<&str> = sentences.filter(|it| !it.is_empty()).collect();
    sentences.join(" ")
}

/// Describes the groups that are to stay but can't take over shards; empty if all can.
fn held_up(facts: &Facts<'_>) -> String {
    let stays = facts.in_phase(&[GroupPhase::Serving]).into_iter();
    let stays = stays.map(|(gid, _)| Component::Group(gid));
    let headless: Vec<Component> = stays.filter(|part| !facts.is_led(*part)).collect();
    if headless.is_empty() || facts.view().is_none() {
        return String::new();
    }
    let groups = listed(headless);
    format!(" No group is let go while no leader is seen in {groups}.")
}

/// Describes the event that a cluster that doesn't serve yet waits for.
fn waiting(facts: &Facts<'_>) -> String {
    let waits = facts.applied.waits();
    if !waits.is_empty() {
        return format!("{}.", waits.join(", "));
    }
    let message = match facts.view() {
        None if facts.set(Component::Controller).is_none() => {
            return "The controllers are being created.".to_owned();
        }
        None => "Waiting for the controllers to answer.",
        Some(View { plan, .. }) if plan.members.is_empty() => {
            "The controllers answer. Waiting for groups to elect leaders and join."
        }
        Some(_) => "Groups have joined. Waiting for them to serve their shards.",
    };
    trimmed(&format!("{message} {}", facts.unready()))
}

fn trimmed(message: &str) -> String {
    message.trim_end().to_owned()
}

// Degraded: something is wrong.

pub(super) fn lost(facts: &Facts<'_>) -> Message {
    if facts.plan.lost.is_empty() {
        return None;
    }
    let lost = || facts.plan.lost.iter().map(|gid| Component::Group(*gid));
    let (sets, volumes): (Vec<Component>, Vec<Component>) =
        lost().partition(|part| facts.set(*part).is_some());
    let named = |parts: Vec<Component>| {
        let names = parts.into_iter().map(|it| names::part(facts.cluster(), it));
        names.collect::<Vec<_>>().join(", ")
    };
    let instead = if volumes.is_empty() {
        format!("delete StatefulSet {}", named(sets))
    } else {
        format!("delete the volumes of the pods of {}", named(volumes))
    };
    Some(format!(
        "The controllers don't know {}, which were members: most likely the controllers have lost their volumes. Nothing is changed. \
         Give the controllers their volumes back, or, if these groups' data may go, {instead}.",
        listed(lost()),
    ))
}

pub(super) fn taken(facts: &Facts<'_>) -> Message {
    let objects = problems(facts, "NameTaken")?;
    Some(format!(
        "{objects}: what is there already under these names isn't this cluster's, and is left alone. \
         Delete it, or create the cluster under another name."
    ))
}

pub(super) fn outranked(facts: &Facts<'_>) -> Message {
    let objects = problems(facts, "NewerOperator")?;
    Some(format!(
        "{objects}: a newer operator than this one ({VERSION}) wrote this last, so this one doesn't change it: two operators would write it, and so replace \
         pods, by turns. Upgrade this operator, or let it take over by removing the annotation {VERSION_ANNOTATION}."
    ))
}

pub(super) fn apply_refused(facts: &Facts<'_>) -> Message {
    Some(format!("{}.", problems(facts, "ApplyRefused")?))
}

pub(super) fn change_refused(facts: &Facts<'_>) -> Message {
    Some(format!("{}.", problems(facts, "Refused")?))
}

fn problems(facts: &Facts<'_>, reason: &str) -> Option<String> {
    let problems = facts.applied.problems();
    let mut messages: Vec<&str> = problems
        .iter()
        .filter(|problem| problem.reason == reason)
        .map(|problem| problem.message.trim_end_matches('.'))
        .collect();
    messages.dedup();
    when(!messages.is_empty(), messages.join(", "))
}

pub(super) fn broken_pods(facts: &Facts<'_>) -> Message {
    let pods = facts.observed.pods.values().flatten();
    let all: Vec<String> = pods
        .map(|trouble| {
            let why = trouble.why.trim_end_matches('.');
            format!("Pod {}: {why}.", trouble.pod)
        })
        .collect();
    when(!all.is_empty() && !facts.is_deleting(), all.join(" "))
}

pub(super) fn unreachable(facts: &Facts<'_>) -> Message {
    let asked = facts.observed.view.as_ref();
    let asked = asked.and_then(|view| view.as_ref().err());
    let problems = facts.applied.problems();
    let in_vain = problems.iter().any(|it| it.reason == "StoreUnreachable");
    let message = match asked {
        Some(StoreError::Unreachable(_)) => "The controllers don't answer.".to_owned(),
        Some(error) => error.to_string(),
        None if in_vain => {
            "The controllers didn't answer when they were asked for a change; it is asked again."
                .to_owned()
        }
        None => return None,
    };
    let controllers = facts.set(Component::Controller);
    let quorum = controllers.is_some_and(|set| set.ready > set.replicas / 2);
    let hint = if quorum {
        " Their pods are ready: can the operator reach port 7400 of them?"
    } else {
        " Too few of their pods are ready."
    };
    // Controllers that are still starting don't answer; that isn't a problem.
    when(facts.was_known() || quorum, format!("{message}{hint}"))
}

pub(super) fn stalled(facts: &Facts<'_>) -> Message {
    let groups = facts.observed.stalled.as_ref()?;
    let groups = groups.iter().map(|gid| Component::Group(*gid));
    Some(format!(
        "No shard has moved for longer than is usual. Waiting for {}: look at the logs of their pods. It goes on by itself when they do.",
        listed(groups)
    ))
}

pub(super) fn troubled_nodes(facts: &Facts<'_>) -> Message {
    let health = facts.observed.health.values();
    let troubles = health.flat_map(|health| &health.troubles);
    let all: Vec<String> = troubles
        .map(|(pod, what)| format!("{pod}: {}.", what.trim_end_matches('.')))
        .collect();
    when(!all.is_empty(), all.join(" "))
}

/// Reports pods that should be ready and aren't, although no other problem explains it. Allows one pod of a
/// `StatefulSet` to be away while its pods are replaced, and ignores groups that have never served, because their pods
/// are still starting.
pub(super) fn missing_pods(facts: &Facts<'_>) -> Message {
    let counts = |part: Component, set: &ObservedSet| {
        let away = set.replicas - set.ready;
        let served = part.gid().is_none_or(|gid| {
            let phase = facts.plan.phases.get(&gid);
            matches!(phase, Some(GroupPhase::Serving | GroupPhase::Draining))
        });
        served && !set.young && away > i32::from(set.rolling.is_some())
    };
    let sets = facts.observed.sets.iter();
    let missing: Vec<String> = sets
        .filter(|(part, set)| counts(**part, set))
        .map(|(part, set)| facts.ready(*part, set))
        .collect();
    let message = format!("Pods ready: {}.", missing.join(", "));
    let counts = facts.was_known() && !facts.is_deleting();
    when(counts && !missing.is_empty(), message)
}

pub(super) fn as_expected(_: &Facts<'_>) -> Message {
    when(true, "Nothing is wrong.")
}
