//! Requests for shards that were cut for this group and are about to be served wait here, at the leader, until the shard is
//! there. A refusal would send each client into a pause, which is often longer than the wait.
//!
//! A parked request was not submitted: it holds its share of the node's budget, and nothing else knows of it. After
//! [`PARK_FOR`], or when the node no longer leads, it is submitted and refused as if it had just come.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::inbox::Submission;
use crate::machine::{self, Machine, Published};

/// The longest time that a request is parked.
pub(super) const PARK_FOR: Duration = Duration::from_millis(500);
/// The most bytes of parked requests: a small part of the node's budget, which requests for other shards need.
pub(super) const MAX_PARKED_BYTES: usize = 8 << 20;
/// The most parked requests. Further ones are refused at once.
pub(super) const MAX_PARKED: usize = 4_096;

/// The parked requests, in order of arrival.
#[derive(Default)]
pub(super) struct Parking {
    /// True while a shard is on its way, so that requests are looked at only then.
    expects_shards: bool,
    waiting: VecDeque<(Instant, Submission)>,
    bytes: usize,
}

impl Parking {
    /// Takes note of the state of the machine when it has changed.
    pub(super) fn note(&mut self, published: &Published) {
        self.expects_shards = match published {
            Published::Ownership(ownership) => ownership.shards.unfinished().is_some(),
            Published::Config(_) => false,
        };
    }

    /// Parks the request if the node leads and the shard of the request is about to be served here. Otherwise returns it.
    pub(super) fn park(
        &mut self,
        machine: &Machine,
        leads: bool,
        now: Instant,
        submission: Submission,
    ) -> Option<Submission> {
        let bytes = machine::size(&submission.request);
        let has_room = self.waiting.len() < MAX_PARKED && self.bytes + bytes <= MAX_PARKED_BYTES;
        let may_wait = leads && self.expects_shards && has_room;
        if !may_wait || !machine.awaits(&submission.request) {
            return Some(submission);
        }
        self.bytes += bytes;
        self.waiting.push_back((now + PARK_FOR, submission));
        None
    }

    /// Returns the requests to submit now, in order of arrival: all unless the node leads, otherwise those whose shards have
    /// arrived or that have waited for long enough.
    pub(super) fn release(
        &mut self,
        machine: &Machine,
        leads: bool,
        now: Instant,
    ) -> Vec<Submission> {
        let mut released = Vec::new();
        for (until, submission) in std::mem::take(&mut self.waiting) {
            if leads && now < until && machine.awaits(&submission.request) {
                self.waiting.push_back((until, submission));
            } else {
                self.bytes -= machine::size(&submission.request);
                released.push(submission);
            }
        }
        released
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
