//! The last step: computes the status. Pure: its inputs are the observed state, the plan and the result of apply.
//!
//! The status claims only known facts. Figures of a store that doesn't answer keep their last values, because they
//! still help users; the cluster's availability is then unknown.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::apply::Applied;
use super::conditions;
use super::dereference::{Snapshot, gid, selector};
use crate::build::{CLIENT_PORT, Component, names};
use crate::crd::condition::{self, DEGRADED, PAUSED, Verdict};
use crate::crd::{GroupStatus, ShardKvClusterStatus};
use crate::plan::{Intent, Plan};
use crate::store::View;
use crate::validate::{Cluster, Invalid};

/// Inputs of a status.
pub(super) struct Facts<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) intent: Intent,
    /// Generation of the spec that this round acted on.
    pub(super) generation: Option<i64>,
    /// Previous status.
    pub(super) before: &'a ShardKvClusterStatus,
    /// Observed state before any action of this round.
    pub(super) snapshot: &'a Snapshot,
    pub(super) plan: &'a Plan,
    pub(super) applied: &'a Applied,
    /// Groups without movement, if that lasts too long.
    pub(super) stalled: Option<BTreeSet<u64>>,
}

impl Facts<'_> {
    /// Returns the controllers' answer, if there is one.
    pub(super) fn view(&self) -> Option<&View> {
        self.snapshot
            .view
            .as_ref()
            .and_then(|view| view.as_ref().ok())
    }

    /// Returns true if the controllers have ever answered.
    pub(super) fn was_known(&self) -> bool {
        self.before.config_num.is_some()
    }
}

/// Computes the new status.
pub(super) fn status(facts: &Facts<'_>, now: &Time) -> ShardKvClusterStatus {
    let Facts {
        cluster, before, ..
    } = facts;
    let view = facts.view();
    let verdicts = conditions::verdicts(facts);
    ShardKvClusterStatus {
        observed_generation: facts.generation,
        conditions: condition::merge(&before.conditions, &verdicts, facts.generation, now),
        groups: groups(facts),
        last_gid: before.last_gid,
        config_num: view.map_or(before.config_num, |view| Some(signed(view.plan.num))),
        shards_moving: view.map_or(before.shards_moving, |view| Some(small(view.moving))),
        replicas: view.map_or(before.replicas.or(Some(0)), |view| {
            Some(small(view.plan.members.len()))
        }),
        selector: Some(selector(&names::groups_selector(cluster))),
        endpoint: Some(format!(
            "{}.{}.svc:{CLIENT_PORT}",
            names::client(cluster),
            cluster.namespace
        )),
    }
}

/// Computes the status of an invalid resource: the previous status stays, and a condition describes the error.
pub(super) fn invalid(
    before: &ShardKvClusterStatus,
    generation: Option<i64>,
    why: &Invalid,
    now: &Time,
) -> ShardKvClusterStatus {
    let message = format!("{why}. Nothing is changed until it is corrected.");
    let verdict = |of, holds| Verdict {
        of,
        holds,
        reason: "InvalidSpec",
        message: message.clone(),
    };
    let verdicts = [
        verdict(condition::AVAILABLE, None),
        verdict(condition::PROGRESSING, Some(false)),
        verdict(DEGRADED, Some(true)),
        Verdict {
            of: PAUSED,
            holds: Some(false),
            reason: "Running",
            message: String::new(),
        },
    ];
    ShardKvClusterStatus {
        observed_generation: generation,
        conditions: condition::merge(&before.conditions, &verdicts, generation, now),
        ..before.clone()
    }
}

fn groups(facts: &Facts<'_>) -> Vec<GroupStatus> {
    let known = |gid: u64| {
        let mut groups = facts.before.groups.iter();
        groups.find(|group| group.gid == signed(gid))
    };
    let shards = |gid: u64| match facts.view() {
        Some(view) => small(view.shards.get(&gid).copied().unwrap_or(0)),
        None => known(gid).map_or(0, |group| group.shards),
    };
    let phases = facts.plan.phases.iter();
    let groups = phases.map(|(gid, phase)| {
        let part = Component::Group(*gid);
        GroupStatus {
            gid: signed(*gid),
            phase: *phase,
            ready_replicas: facts.snapshot.sets.get(&part).map_or(0, |set| set.ready),
            leader: facts
                .snapshot
                .health
                .get(&part)
                .and_then(|it| it.leader.clone()),
            shards: shards(*gid),
        }
    });
    groups.collect()
}

/// Returns the groups that own shards, by the latest configuration.
pub(super) fn owners(view: &View) -> impl Iterator<Item = u64> {
    let owners = view.shards.iter().filter(|(_, shards)| **shards > 0);
    owners.map(|(gid, _)| *gid)
}

/// Formats parts as text, such as `controllers, group 1`.
pub(super) fn listed(parts: impl Iterator<Item = Component>) -> String {
    let name = |part| match gid(part) {
        None => "controllers".to_owned(),
        Some(gid) => format!("group {gid}"),
    };
    parts.map(name).collect::<Vec<_>>().join(", ")
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn small(number: impl TryInto<i32>) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}
