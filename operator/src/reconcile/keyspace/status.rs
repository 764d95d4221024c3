//! Computes the status of a keyspace, and the pause before its next round. Pure.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::apply::Applied;
use super::observe::Seen;
use super::plan::id;
use super::{AGAIN, IDLE, SOON, service};
use crate::crd::{ShardKvKeyspaceStatus, condition};
use crate::metrics::Outcome;

/// Computes the status. Figures of a store that doesn't answer keep their last values.
pub(super) fn status(seen: &Seen, applied: &Applied, now: &Time) -> ShardKvKeyspaceStatus {
    let before = seen.resource.status.clone().unwrap_or_default();
    let generation = seen.resource.metadata.generation;
    let verdicts = [applied.verdict.condition()];
    let status = ShardKvKeyspaceStatus {
        observed_generation: generation,
        conditions: condition::merge(&before.conditions, &verdicts, generation, now),
        keyspace: Some(seen.names.keyspace.clone()),
        endpoint: Some(service::endpoint(&seen.names)),
        ..before
    };
    let Some(keyspace) = &applied.keyspace else {
        return status;
    };
    ShardKvKeyspaceStatus {
        id: Some(id(keyspace)),
        group: Some(signed(keyspace.gid.0)),
        shard: Some(i64::from(keyspace.shard.0)),
        revision: Some(keyspace.revision),
        bytes: Some(signed(keyspace.bytes)),
        ..status
    }
}

/// Returns the outcome of the round, and the pause before the next.
pub(super) fn next(applied: &Applied, raced: bool) -> (Outcome, Option<Duration>) {
    let ready = applied.verdict.holds == Some(true);
    let (outcome, pause) = match (raced, ready) {
        (true, _) => (Outcome::Busy, AGAIN),
        (false, true) if applied.changed => (Outcome::Busy, IDLE),
        (false, true) => (Outcome::Idle, IDLE),
        (false, false) if applied.verdict.is_refusal() => (Outcome::Refused, SOON),
        (false, false) => (Outcome::Idle, SOON),
    };
    (outcome, Some(pause))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
