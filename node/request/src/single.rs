//! One call that is made attempt by attempt, each a request of its own: a unary call of the client library, or a call that a
//! node forwards.
//!
//! The driver asks the node that a [`crate::LeaderTable`] or a search gives it, reports a failed attempt with
//! [`SingleCall::handle_refusal`], and follows the returned [`Next`].

use std::time::Duration;

use types::ConfigNum;

use crate::Time;
use crate::attempts::Attempts;
use crate::backoff::{Backoff, Jitter};
use crate::bug::{Bug, Bugs};
use crate::refusal::{Action, Failure, Refused, Repeat};

/// Hints that are followed without a pause. More may lead in a circle while an election goes on.
const MAX_HINTS: u32 = 2;

/// The rules by which two kinds of drivers differ.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The most attempts; the deadline is the driver's.
    pub max_attempts: u32,
    /// True if a busy node and an expired session are reported to the caller, who repeats the call by itself. False if they are
    /// retried here.
    pub reports_delays: bool,
    /// The shortest pause before a retry, other than none.
    pub min_backoff: Duration,
    /// The longest pause before a retry.
    pub max_backoff: Duration,
    /// True if pauses double, for callers with few attempts.
    pub doubling: bool,
    /// The bug that was put back, if any.
    pub bugs: Bugs,
}

/// The step after a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again after this pause.
    Retry {
        /// The pause.
        pause: Duration,
        /// True if the node that refused is no longer the assumed leader.
        leader_failed: bool,
    },
    /// Try again as soon as this configuration is known, or after the pause if it already is.
    AwaitConfig {
        /// The configuration by which the group refused.
        num: ConfigNum,
        /// The pause if it is known.
        pause: Duration,
        /// True if the node that refused is no longer the assumed leader: it hasn't heard of the configuration that is known
        /// here, or its address is another group's now.
        leader_failed: bool,
    },
    /// Report the refusal to the caller as it is.
    Report,
    /// Report this failure to the caller.
    Fail(Failure),
}

/// The attempts of one call.
#[derive(Debug)]
pub struct SingleCall {
    repeat: Repeat,
    policy: Policy,
    /// The memory of the attempts.
    pub attempts: Attempts,
    backoff: Backoff,
    failures: u32,
    hints: u32,
    /// True while an attempt is under way.
    on_wire: bool,
    outage: Option<Time>,
}

impl SingleCall {
    /// Creates a call that was not tried yet. `jitter` seeds its pauses.
    pub fn new(repeat: Repeat, policy: Policy, jitter: Jitter) -> Self {
        let backoff = Backoff::new(policy.min_backoff, policy.max_backoff, jitter);
        Self {
            repeat,
            policy,
            attempts: Attempts::default(),
            backoff: if policy.doubling {
                backoff.doubling()
            } else {
                backoff
            },
            failures: 0,
            hints: 0,
            on_wire: false,
            outage: None,
        }
    }

    /// Returns the number of failed attempts.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns the time since the first failed attempt.
    pub fn outage(&self, now: Time) -> Duration {
        let since = |since| now.saturating_sub(since);
        self.outage.map_or(Duration::ZERO, since)
    }

    /// Notes that the request leaves now: from here to its result, giving up leaves the call in doubt.
    pub fn handle_sent(&mut self) {
        self.on_wire = true;
    }

    /// Takes in a failed attempt, which leaves doubt only after [`SingleCall::handle_sent`]. `known` is the configuration that the driver routes by. `news` is true if the refusal names
    /// another leader than the node that was asked, and that hint is followed.
    pub fn handle_refusal(
        &mut self,
        now: Time,
        Refused { refusal, message }: Refused,
        known: Option<ConfigNum>,
        news: bool,
    ) -> Next {
        let sent = std::mem::take(&mut self.on_wire);
        self.failures += 1;
        self.outage.get_or_insert(now);
        let verdict = refusal.judge();
        let doubt = sent && verdict.doubt;
        self.attempts
            .failed(self.repeat, doubt, message, self.policy.bugs);
        let unrepeatable = self.repeat == Repeat::Never && self.attempts.doubt;
        if unrepeatable && !self.policy.bugs.has(Bug::RepeatsUnrepeatable) {
            return Next::Fail(Failure::Unrepeatable);
        }
        if let Action::Fail(rejection) = verdict.action {
            return Next::Fail(self.attempts.rejected(rejection));
        }
        let delays = matches!(verdict.action, Action::Wait(_) | Action::RenewSession);
        if delays && self.policy.reports_delays {
            return Next::Report;
        }
        if self.failures >= self.policy.max_attempts {
            return Next::Fail(self.timed_out());
        }
        self.retry(now, verdict.action, known, news)
    }

    fn retry(&mut self, now: Time, action: Action, known: Option<ConfigNum>, news: bool) -> Next {
        let pause = match action {
            Action::Reroute(_) => {
                let pause = if news && self.hints < MAX_HINTS {
                    self.hints += 1;
                    Duration::ZERO
                } else {
                    self.backoff.pause(now)
                };
                return Next::Retry {
                    pause,
                    leader_failed: true,
                };
            }
            Action::WrongGroup(num) => {
                let age = self.attempts.turn_away(now);
                return Next::AwaitConfig {
                    num,
                    pause: self.backoff.pause_of(age, Duration::ZERO),
                    leader_failed: known >= Some(num),
                };
            }
            Action::AwaitShard(asked) => {
                let age = self.attempts.turn_away(now);
                self.backoff.pause_of(age, asked)
            }
            Action::Wait(asked) => self.backoff.pause_at_least(now, asked),
            Action::RenewSession => match self.attempts.rename(self.policy.bugs) {
                Ok(()) => self.backoff.pause_at_least(now, Duration::ZERO),
                Err(failure) => return Next::Fail(failure),
            },
            Action::Fail(rejection) => return Next::Fail(self.attempts.rejected(rejection)),
        };
        Next::Retry {
            pause,
            leader_failed: false,
        }
    }

    /// Takes in that no attempt could be made, because no node could be found or reached. Returns the pause before the next,
    /// or the failure if the attempts are used up.
    pub fn handle_unreachable(&mut self, now: Time, why: String) -> Result<Duration, Failure> {
        self.failures += 1;
        self.outage.get_or_insert(now);
        self.attempts.last = Some(why);
        if self.failures >= self.policy.max_attempts {
            return Err(self.timed_out());
        }
        Ok(self.backoff.pause(now))
    }

    /// Returns the failure of a call whose deadline passed.
    pub fn handle_deadline(&mut self) -> Failure {
        self.attempts.doubt |= self.on_wire && self.repeat != Repeat::Freely;
        if self.repeat == Repeat::Never && self.attempts.doubt {
            return Failure::Unrepeatable;
        }
        self.timed_out()
    }

    fn timed_out(&mut self) -> Failure {
        Failure::TimedOut {
            doubt: self.attempts.doubt,
            last: self.attempts.last.take(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::refusal::Refusal;

    const NOW: Time = Duration::from_secs(10);

    fn policy(reports_delays: bool) -> Policy {
        Policy {
            max_attempts: 12,
            reports_delays,
            min_backoff: Duration::from_millis(5),
            max_backoff: Duration::from_millis(320),
            doubling: true,
            bugs: Bugs::default(),
        }
    }

    fn call(repeat: Repeat, reports_delays: bool) -> SingleCall {
        SingleCall::new(repeat, policy(reports_delays), Jitter::new(1))
    }

    fn refuse(call: &mut SingleCall, refusal: Refusal, news: bool) -> Next {
        call.handle_sent();
        let message = "said so".to_owned();
        call.handle_refusal(NOW, Refused { refusal, message }, Some(ConfigNum(3)), news)
    }

    fn not_leader() -> Refusal {
        let hint = Some(Arc::from("b:1"));
        Refusal::NotLeader { hint }
    }

    fn pause(next: &Next) -> Duration {
        match next {
            Next::Retry { pause, .. } | Next::AwaitConfig { pause, .. } => *pause,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn two_hints_are_followed_at_once_and_more_after_a_pause() {
        let mut call = call(Repeat::ByName, true);
        let pauses: Vec<Duration> = (0..5)
            .map(|_| pause(&refuse(&mut call, not_leader(), true)))
            .collect();
        assert_eq!(pauses[..3], [Duration::ZERO; 3], "and the first failure");
        assert!(pauses[3] > Duration::ZERO && pauses[4] > Duration::ZERO);
    }

    #[test]
    fn a_write_without_a_session_is_repeated_only_without_doubt() {
        for (refusal, repeated) in [
            (not_leader(), true),
            (Refusal::NotSent, true),
            (Refusal::WrongCluster, true),
            (Refusal::ConnectionLost, false),
            (Refusal::Unavailable, false),
            (Refusal::OutcomeUnknown { hint: None }, false),
        ] {
            let mut never = call(Repeat::Never, true);
            let next = refuse(&mut never, refusal.clone(), false);
            assert_eq!(
                next != Next::Fail(Failure::Unrepeatable),
                repeated,
                "{refusal:?}"
            );
            let mut named = call(Repeat::ByName, true);
            let next = refuse(&mut named, refusal, false);
            assert!(matches!(next, Next::Retry { .. }));
        }
    }

    #[test]
    fn a_forwarder_reports_a_busy_node_and_a_client_waits() {
        let retry_after = Duration::from_millis(20);
        let refusal = Refusal::Overloaded { retry_after };
        let mut forwarded = call(Repeat::ByName, true);
        assert_eq!(refuse(&mut forwarded, refusal.clone(), false), Next::Report);
        let mut own = call(Repeat::ByName, false);
        let next = refuse(&mut own, refusal, false);
        assert!(pause(&next) >= Duration::from_millis(15), "{next:?}");
    }

    #[test]
    fn a_shard_on_its_way_is_waited_for_by_all() {
        let retry_after = Duration::from_millis(20);
        for reports_delays in [true, false] {
            for repeat in [Repeat::Never, Repeat::Freely, Repeat::ByName] {
                let mut call = call(repeat, reports_delays);
                let next = refuse(&mut call, Refusal::ShardNotReady { retry_after }, false);
                assert!(pause(&next) >= Duration::from_millis(15), "{next:?}");
                assert!(!call.handle_deadline().maybe_applied(), "nothing was done");
            }
        }
    }

    #[test]
    fn a_later_refusal_does_not_hide_that_an_attempt_is_in_doubt() {
        let mut call = call(Repeat::ByName, false);
        refuse(&mut call, Refusal::ConnectionLost, false);
        let message = "full".to_owned();
        let full = crate::Rejection::DiskFull { message };
        let Next::Fail(failure) = refuse(&mut call, Refusal::Rejected(full), false) else {
            panic!("no retry cures it");
        };
        assert!(failure.maybe_applied());
    }

    #[test]
    fn a_node_with_an_older_configuration_is_not_believed() {
        let mut call = call(Repeat::Freely, true);
        for (num, failed) in [(2, true), (3, true), (4, false)] {
            let config_num = ConfigNum(num);
            let next = refuse(&mut call, Refusal::WrongGroup { config_num }, false);
            assert!(
                matches!(next, Next::AwaitConfig { num, leader_failed, .. }
                    if num == config_num && leader_failed == failed),
                "{next:?}"
            );
        }
    }

    #[test]
    fn attempts_are_bounded_and_a_deadline_leaves_what_is_sent_in_doubt() {
        let mut call = call(Repeat::ByName, true);
        let nexts: Vec<Next> = (0..12)
            .map(|_| refuse(&mut call, not_leader(), false))
            .collect();
        let failed = nexts.iter().filter(|it| matches!(it, Next::Fail(_)));
        assert_eq!(failed.count(), 1, "the last");
        let mut call = tests::call(Repeat::ByName, true);
        assert!(!call.handle_deadline().maybe_applied(), "never sent");
        call.handle_sent();
        assert!(call.handle_deadline().maybe_applied());
    }
}
