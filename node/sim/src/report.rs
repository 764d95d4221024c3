//! The results of a world.

use std::collections::BTreeMap;

use crate::queue::Micros;
use crate::violation::Violation;

/// The result of a world that violated no invariant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The number of occurrences of each kind of event.
    pub counts: BTreeMap<&'static str, u64>,
    /// A digest of the times of all events, in order. It is equal for equal worlds.
    pub fingerprint: u64,
}

/// A violated invariant, and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The virtual time in microseconds.
    pub at: Micros,
    /// The violation.
    pub violation: Violation,
}
