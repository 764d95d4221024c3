//! Decides whether a node is ready, for `/readyz`.
//!
//! A node is ready when it votes in its group, knows the leader, and has applied the entries that the group has committed.
//! At first it must have applied an entry of the leader's own term: before that, a group that was restarted as a whole
//! doesn't know yet what it has committed. A controller that replaces the members of a group one by one, as Kubernetes
//! does, may continue with the next member when this one is ready.
//!
//! A ready node does not become unready for a short disturbance: a follower under load is always a little behind, and
//! during an election nobody leads for some milliseconds. If all members became unready then, clients would have no node to
//! send requests to.
//!
//! A node of a replica group also waits for the controllers' configuration, because it can't forward requests without it.
//! It waits only once and not for long: groups serve without controllers. Readiness does not depend on owned shards, or no
//! group would be ready before it joins.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use raft::{Index, MemberKind, Role};
use replica::Status;

use crate::lifecycle::{Lifecycle, Phase};
use crate::progress::{Progress, Stalled};
use crate::routing::Routing;

/// The maximum lag of a node that has caught up, in entries.
const NEAR: u64 = 64;
/// The lag at which a node that had caught up counts as behind again, in entries.
const FAR: u64 = 16_384;
/// The time without a leader after which a node is not ready any more.
const LEADERLESS: Duration = Duration::from_secs(2);
/// The maximum wait for the controllers. After it the node is ready without them.
const CONTROLLERS: Duration = Duration::from_secs(10);

/// The facts that readiness depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    phase: Phase,
    /// The node's place in the membership; `None` before the replica runs.
    place: Option<Place>,
    /// True if the node leads, or follows a leader that it has heard lately.
    led: bool,
    /// True if an entry of the present term is applied here.
    current: bool,
    applied: Index,
    /// The group's commit index, as far as the leader has told this node.
    committed: Option<Index>,
    /// True if the configuration is known or isn't needed.
    configured: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    NonMember,
    Learner,
    Voter,
}

/// The reason why a node isn't ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unready {
    #[error("looking for the group")]
    Starting,
    #[error("waiting to be added to the group")]
    NonMember,
    #[error("the node is a learner, which does not vote")]
    Learner,
    #[error("no leader is known")]
    Leaderless,
    #[error("the group's commit index is not known yet")]
    Uncertain,
    #[error("{0} entries behind the group")]
    Behind(u64),
    #[error("this node has not heard from the controllers yet")]
    Unconfigured,
    #[error("stopping")]
    Stopping,
    #[error(transparent)]
    Stalled(#[from] Stalled),
}

/// The memory that keeps readiness from flapping.
///
/// Invariant: `led_at` and `running_since` are no later than the last check.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    /// True once the node was near, and until it is far behind.
    caught_up: bool,
    /// The last time at which a leader was known.
    led_at: Option<Instant>,
    /// The time at which the replica was first seen running.
    running_since: Option<Instant>,
    /// True once the configuration was known, or the wait for it was over.
    configured: bool,
}

/// Decides whether this node is ready.
pub(crate) struct ReadinessProbe {
    lifecycle: Arc<Lifecycle>,
    routing: Arc<Routing>,
    progress: Arc<Progress>,
    memory: Mutex<Readiness>,
}

impl ReadinessProbe {
    pub(crate) fn new(
        lifecycle: Arc<Lifecycle>,
        routing: Arc<Routing>,
        progress: Arc<Progress>,
    ) -> Self {
        Self {
            lifecycle,
            routing,
            progress,
            memory: Mutex::default(),
        }
    }

    /// Returns an error if the node is not ready. It must be called after each change of the status, so that it sees each
    /// moment with a leader.
    pub(crate) fn check(&self) -> Result<(), Unready> {
        let configured = self.routing.is_configured();
        let facts = self
            .lifecycle
            .with_view(|view| Facts::of(view.phase, view.status.as_deref(), configured));
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.update(Instant::now(), &facts)?;
        // The facts are those of the last round. They say nothing about a thread that hangs.
        Ok(self.progress.check_ready()?)
    }
}

impl Facts {
    /// Collects the facts from the node's phase and status. `configured` is as in the field.
    pub(crate) fn of(phase: Phase, status: Option<&Status>, configured: bool) -> Self {
        let place = status.map(|status| match status.membership.get(status.node) {
            None => Place::NonMember,
            Some(member) if member.kind == MemberKind::Voter => Place::Voter,
            Some(_) => Place::Learner,
        });
        let led = |status: &Status| status.role == Role::Leader || status.leader.is_some();
        Self {
            phase,
            place,
            led: status.is_some_and(led),
            current: status.is_some_and(|status| status.applied_term == status.term),
            applied: status.map_or(Index(0), |status| status.last_applied),
            committed: status.and_then(|status| status.group_commit),
            configured,
        }
    }

    /// Returns the number of entries that are committed and not applied here.
    fn lag(&self) -> Option<u64> {
        self.committed.map(|it| it.since(self.applied))
    }
}

impl Readiness {
    /// Checks the facts. It must be called often: otherwise a short time without a leader looks like a long one.
    pub(crate) fn update(&mut self, now: Instant, facts: &Facts) -> Result<(), Unready> {
        match facts.phase {
            Phase::Starting => return Err(Unready::Starting),
            Phase::Running => {}
            Phase::Stopping | Phase::Draining | Phase::Stopped => return Err(Unready::Stopping),
        }
        let since = *self.running_since.get_or_insert(now);
        self.configured |= facts.configured || now.duration_since(since) >= CONTROLLERS;
        if facts.led {
            self.led_at = Some(now);
        }
        self.caught_up = match facts.place {
            Some(Place::Voter) => self.keeps_up(now, facts),
            _ => false,
        };
        if self.caught_up && self.configured {
            return Ok(());
        }
        Err(self.why(facts))
    }

    fn keeps_up(&self, now: Instant, facts: &Facts) -> bool {
        if !self.caught_up {
            return facts.led && facts.current && facts.lag().is_some_and(|lag| lag <= NEAR);
        }
        let led_lately = |at| now.duration_since(at) < LEADERLESS;
        self.led_at.is_some_and(led_lately) && facts.lag().is_none_or(|lag| lag <= FAR)
    }

    /// Returns the reason why the node is not ready. Called only if it is not.
    fn why(&self, facts: &Facts) -> Unready {
        match facts.place {
            None => Unready::Starting,
            Some(Place::NonMember) => Unready::NonMember,
            Some(Place::Learner) => Unready::Learner,
            Some(Place::Voter) if self.caught_up => Unready::Unconfigured,
            Some(Place::Voter) if !facts.led => Unready::Leaderless,
            Some(Place::Voter) => match facts.lag() {
                Some(lag) if lag > NEAR => Unready::Behind(lag),
                _ => Unready::Uncertain,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: Facts = Facts {
        phase: Phase::Running,
        place: Some(Place::Voter),
        led: true,
        current: true,
        applied: Index(1_000),
        committed: Some(Index(1_000)),
        configured: true,
    };

    fn behind(lag: u64) -> Facts {
        Facts {
            committed: Some(Index(READY.applied.0 + lag)),
            ..READY
        }
    }

    fn leaderless() -> Facts {
        Facts {
            led: false,
            committed: None,
            ..READY
        }
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn at_first_all_must_hold() {
        let case = |change: fn(&mut Facts)| {
            let mut facts = READY;
            change(&mut facts);
            facts
        };
        let table = [
            (READY, Ok(())),
            (behind(NEAR), Ok(())),
            (behind(NEAR + 1), Err(Unready::Behind(NEAR + 1))),
            (leaderless(), Err(Unready::Leaderless)),
            (case(|it| it.place = None), Err(Unready::Starting)),
            (
                case(|it| it.place = Some(Place::NonMember)),
                Err(Unready::NonMember),
            ),
            (
                case(|it| it.place = Some(Place::Learner)),
                Err(Unready::Learner),
            ),
            (case(|it| it.current = false), Err(Unready::Uncertain)),
            (case(|it| it.committed = None), Err(Unready::Uncertain)),
            (case(|it| it.configured = false), Err(Unready::Unconfigured)),
            (
                case(|it| it.phase = Phase::Starting),
                Err(Unready::Starting),
            ),
            (
                case(|it| it.phase = Phase::Stopping),
                Err(Unready::Stopping),
            ),
            (
                case(|it| it.phase = Phase::Draining),
                Err(Unready::Stopping),
            ),
        ];
        for (facts, expected) in table {
            let mut readiness = Readiness::default();
            assert_eq!(
                readiness.update(Instant::now(), &facts),
                expected,
                "{facts:?}"
            );
        }
    }

    /// Returns the results of a sequence of checks, each some milliseconds after the start.
    fn looks(steps: &[(u64, Facts)]) -> Vec<Result<(), Unready>> {
        let start = Instant::now();
        let mut readiness = Readiness::default();
        let looks = steps.iter();
        looks
            .map(|(ms, facts)| readiness.update(after(start, *ms), facts))
            .collect()
    }

    #[test]
    fn an_election_is_no_reason_and_a_lost_quorum_is_one() {
        let said = looks(&[
            (0, READY),
            (1_000, READY),
            (1_010, leaderless()),
            (2_999, leaderless()),
            (3_000, leaderless()),
            (3_010, READY),
        ]);
        let gone = Err(Unready::Leaderless);
        assert_eq!(said, [Ok(()), Ok(()), Ok(()), Ok(()), gone, Ok(())]);
    }

    #[test]
    fn one_who_was_near_may_lag_and_one_who_fell_far_behind_must_come_near_again() {
        let said = looks(&[
            (0, READY),
            (10, behind(FAR)),
            (20, behind(FAR + 1)),
            (30, behind(FAR)),
            (40, behind(NEAR)),
            // The first entry of a new term may take some time.
            (
                50,
                Facts {
                    current: false,
                    ..READY
                },
            ),
        ]);
        let far = |lag| Err(Unready::Behind(lag));
        assert_eq!(
            said,
            [Ok(()), Ok(()), far(FAR + 1), far(FAR), Ok(()), Ok(())]
        );
    }

    #[test]
    fn controllers_are_waited_for_once_and_not_for_ever() {
        let without = Facts {
            configured: false,
            ..READY
        };
        let said = looks(&[(0, without), (9_999, without), (10_000, without)]);
        let waits = || Err(Unready::Unconfigured);
        assert_eq!(said, [waits(), waits(), Ok(())]);
        assert_eq!(looks(&[(0, READY), (1, without)]), [Ok(()), Ok(())]);
    }
}
