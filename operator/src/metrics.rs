//! What the operator counts, for `/metrics`.

use std::time::Duration;

use crate::crd::ShardKvClusterStatus;

/// All figures. Cheap to update; read by scrapers.
#[derive(Debug, Default)]
pub struct Metrics {}

/// How a round of reconciliation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Nothing was to be done.
    Idle,
    /// Something was written, or is going on.
    Busy,
    /// The API server refused something.
    Refused,
    /// It was cut short by an error.
    Failed,
}

impl Metrics {
    /// A round for one cluster is over.
    pub fn round_ended(&self, outcome: Outcome, took: Duration) {
        let _ = (outcome, took);
    }

    /// An object was written: `verb` is one of `apply`, `patch`, `delete`, `status`.
    pub fn object_written(&self, verb: &'static str, kind: &str) {
        let _ = (verb, kind);
    }

    /// The controllers of a store didn't answer, or refused.
    pub fn store_failed(&self) {}

    /// What a cluster's status says from now on.
    pub fn cluster_seen(&self, namespace: &str, name: &str, status: &ShardKvClusterStatus) {
        let _ = (namespace, name, status);
    }

    /// A cluster is gone.
    pub fn cluster_gone(&self, namespace: &str, name: &str) {
        let _ = (namespace, name);
    }
}
