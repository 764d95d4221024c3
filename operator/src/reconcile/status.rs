//! The last step: computes the status, and the pause before the next round. Pure: its inputs are the observed state,
//! the plan and the result of apply.
//!
//! The status claims only known facts. Figures of a store that doesn't answer keep their last values, because they
//! still help users; the cluster's availability is then unknown.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::applied::{Applied, Written};
use super::conditions;
use super::context::Pace;
use super::facts::Facts;
use super::wanted::VERSION;
use crate::build::{CLIENT_PORT, names};
use crate::crd::condition::{self, AVAILABLE, DEGRADED, PROGRESSING};
use crate::crd::{GroupStatus, ShardKvClusterStatus};
use crate::metrics::Outcome;
use crate::parts::Component;

/// Computes the new status. For an invalid resource only the conditions change: one describes the error.
pub(super) fn status(facts: &Facts<'_>, now: &Time) -> ShardKvClusterStatus {
    let before = facts.observed.status();
    let generation = facts.observed.resource.metadata.generation;
    let verdicts = conditions::verdicts(facts);
    let status = ShardKvClusterStatus {
        observed_generation: generation,
        operator_version: Some(VERSION.to_owned()),
        conditions: condition::merge(&before.conditions, &verdicts, generation, now),
        ..before
    };
    if facts.desired.invalid.is_some() {
        return status;
    }
    let view = facts.view();
    let cluster = facts.cluster();
    let client = names::client(cluster);
    ShardKvClusterStatus {
        groups: groups(facts, &status.groups),
        last_gid: status.last_gid.max(facts.plan.recorded_gid().map(signed)),
        config_num: view.map_or(status.config_num, |view| Some(signed(view.plan.num))),
        shards_moving: view.map_or(status.shards_moving, |view| Some(small(view.moving()))),
        replicas: view.map_or(status.replicas.or(Some(0)), |view| {
            Some(small(view.plan.members.len()))
        }),
        selector: Some(names::formatted(&names::scale_selector(cluster))),
        endpoint: Some(format!("{client}.{}.svc:{CLIENT_PORT}", cluster.namespace)),
        ..status
    }
}

fn groups(facts: &Facts<'_>, before: &[GroupStatus]) -> Vec<GroupStatus> {
    let known = |gid: u64| before.iter().find(|group| group.gid == signed(gid));
    let shards = |gid: u64| match facts.view() {
        Some(view) => small(view.shards.get(&gid).copied().unwrap_or(0)),
        None => known(gid).map_or(0, |group| group.shards),
    };
    let phases = facts.plan.phases.iter();
    let groups = phases.map(|(gid, phase)| {
        let part = Component::Group(*gid);
        let health = facts.observed.health.get(&part);
        GroupStatus {
            gid: signed(*gid),
            phase: *phase,
            ready_replicas: facts.set(part).map_or(0, |set| set.ready),
            leader: health.and_then(|health| health.leader.clone()),
            shards: shards(*gid),
        }
    });
    groups.collect()
}

/// Returns true if all that is going on is a rollout in which parts wait for others.
pub(super) fn is_held(status: &ShardKvClusterStatus, applied: &Applied) -> bool {
    let mut conditions = status.conditions.iter();
    let rolls = conditions.any(|it| it.type_ == PROGRESSING && it.reason == "RollingOut");
    rolls && applied.held() > 0 && !applied.changed() && !applied.outdated()
}

/// Returns the outcome of the round and the pause before the next. `written` is the result of writing the status, `held` the number of
/// rounds before this one in which parts waited for others ([`is_held`]): the longer, the rarer the operator looks. A change of a
/// `StatefulSet`'s pods starts a round anyway. Refused changes are retried at the idle pace: only a person can resolve them.
pub(super) fn next(
    status: &ShardKvClusterStatus,
    applied: &Applied,
    written: &Written,
    held: u32,
    pace: Pace,
) -> (Outcome, Duration) {
    let is = |type_: &str, holds: &str| {
        let mut conditions = status.conditions.iter();
        conditions.any(|it| it.type_ == type_ && it.status == holds)
    };
    let soon = pace.idle.min(pace.busy * 5);
    let changing = applied.changed() || applied.outdated();
    let progressing = is(PROGRESSING, "True");
    let problems = applied.problems();
    let refused = problems.iter().any(|it| it.reason != "StoreUnreachable");
    let idle = is(AVAILABLE, "True") && is(DEGRADED, "False");
    match (changing, progressing) {
        // Somebody else has written the resource since.
        _ if *written == Written::Raced => (Outcome::Busy, pace.busy),
        (true, _) if refused => (Outcome::Refused, pace.busy),
        (false, true) if refused => (Outcome::Refused, soon),
        (false, false) if refused => (Outcome::Refused, pace.idle),
        (false, true) if is_held(status, applied) => {
            let longer = pace.busy.saturating_mul(1 << held.min(16));
            (Outcome::Busy, longer.min(pace.idle.max(pace.busy)))
        }
        (true, _) | (_, true) => (Outcome::Busy, pace.busy),
        (false, false) if idle => (Outcome::Idle, pace.idle),
        // The store may recover without a change of any object.
        (false, false) => (Outcome::Idle, soon),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn small(number: impl TryInto<i32>) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}
