//! The results of calls: answers, refusals, and their consequences for the connection.

use std::time::Duration;

use super::{Call, Consequence, Pending, PendingCalls, Reroute};
use crate::Time;
use crate::bug::Bug;
use crate::refusal::{Action, Failure, Refused, Repeat};

impl<C: Call> PendingCalls<C> {
    /// Takes in a batch of results. Returns the answered calls with their answers, and the consequences for the connection.
    /// An answer to an earlier attempt is as good as one to the latest, because both carry the same name; a refusal of an
    /// earlier attempt says nothing about the later one, and is ignored.
    pub fn handle_results<A>(
        &mut self,
        now: Time,
        results: impl IntoIterator<Item = (u64, Result<A, Refused>)>,
    ) -> (Vec<(C, A)>, Consequence) {
        let mut consequence = Consequence::default();
        let mut answered = Vec::new();
        for (id, result) in results {
            match result {
                Ok(answer) => {
                    if let Some(call) = self.answered(id, &mut consequence) {
                        answered.push((call, answer));
                    }
                }
                Err(refused) if self.is_on_wire(id) => {
                    self.refused(now, id, refused, &mut consequence);
                }
                Err(_) => {}
            }
        }
        self.check_invariants();
        (answered, consequence)
    }

    fn is_on_wire(&self, id: u64) -> bool {
        self.pending.get(&id).is_some_and(|it| it.on_wire)
    }

    fn answered(&mut self, id: u64, consequence: &mut Consequence) -> Option<C> {
        // An answer without an attempt, or to a call that was given up, is of no use.
        if !self.pending.get(&id)?.sent {
            return None;
        }
        consequence.served = true;
        self.busy.reset();
        let late = !self.is_on_wire(id);
        self.probe_served(id);
        let it = self.take(id)?;
        if late {
            self.forget_ended();
            if self.bugs.has(Bug::DropsLateAnswer) {
                return None;
            }
        }
        Some(it.call)
    }

    /// Acts on the refusal of one call.
    fn refused(
        &mut self,
        now: Time,
        id: u64,
        Refused { refusal, message }: Refused,
        consequence: &mut Consequence,
    ) {
        let Some(Pending { it, on_wire, .. }) = self.pending.get_mut(&id) else {
            return;
        };
        self.on_wire -= usize::from(*on_wire);
        *on_wire = false;
        let verdict = refusal.judge();
        let repeat = it.call.repeat();
        it.attempts
            .failed(repeat, verdict.doubt, message, self.bugs);
        consequence.served |= !matches!(verdict.action, Action::Reroute(_));
        if let Action::Reroute(hint) = &verdict.action
            && (hint.is_some() || consequence.reroute.is_none())
        {
            consequence.reroute = Some(Reroute(hint.clone()));
        }
        if repeat == Repeat::Never && it.attempts.doubt && self.may_not_repeat() {
            self.end(id, |_| Failure::Unrepeatable);
            return;
        }
        match verdict.action {
            Action::Reroute(_) => {
                if self.stays(id) {
                    self.ready.push_back(id);
                }
            }
            Action::WrongGroup(num) => {
                if num > self.config.num() {
                    consequence.behind = consequence.behind.max(Some(num));
                }
                self.turned_away(now, id, Duration::ZERO);
            }
            Action::AwaitShard(pause) => self.turned_away(now, id, pause),
            Action::Wait(pause) if self.probes(id) => self.probe_met_busy_node(now, id, pause),
            Action::Wait(pause) => {
                let pause = self.busy.pause_at_least(now, pause);
                self.delay(now + pause, id);
            }
            Action::RenewSession => {
                self.probe_served(id);
                self.session_expired(now, id);
            }
            Action::Fail(rejection) => self.end(id, |attempts| attempts.rejected(rejection)),
        }
    }

    fn may_not_repeat(&self) -> bool {
        !self.bugs.has(Bug::RepeatsUnrepeatable)
    }

    /// Schedules another attempt at `at`, or moves the call if another group owns its shard.
    fn delay(&mut self, at: Time, id: u64) {
        if self.stays(id) {
            self.delayed.insert((at, id));
        }
    }

    /// Moves a refused call away if another group owns its shard. Returns true if the call stays.
    pub(super) fn stays(&mut self, id: u64) -> bool {
        let ours = |it: &Pending<C>| self.is_ours(&it.it.call);
        if self.pending.get(&id).is_some_and(ours) {
            return true;
        }
        let it = self.take(id);
        self.moved.extend(it);
        false
    }

    fn session_expired(&mut self, now: Time, id: u64) {
        let Some(Pending { it, .. }) = self.pending.get_mut(&id) else {
            return;
        };
        if let Err(failure) = it.attempts.rename(self.bugs) {
            self.end(id, |_| failure);
        } else {
            // The pause keeps the client from asking a node that refuses every session without end.
            let pause = self.busy.pause_at_least(now, Duration::ZERO);
            self.delay(now + pause, id);
        }
    }
}
