//! Calls between groups that arrive a second time, late: requests, answers, and proposals to a mover's own log.

use replica::{Request, RequestId};
use types::ShardId;

use super::World;
use crate::caller::Caller;
use crate::event::Event;
use crate::late_calls::{LateCall, Subject};
use crate::machine::{Outcome, Question};
use crate::mover::{DROP_STEP, LAST_PAGE_STEP};
use crate::network::HostId;
use crate::queue::{MILLI, Micros, SECOND};

impl World {
    /// Keeps a call of a mover, in worlds with late calls.
    pub(super) fn keep_call(
        &mut self,
        id: RequestId,
        to: HostId,
        subject: Subject,
        request: &Request<Question>,
    ) {
        if self.scenario.faults.late_calls.is_some() {
            let call = LateCall {
                id,
                to,
                request: request.clone(),
                answer: None,
            };
            self.late_calls.keep(subject, call);
        }
    }

    /// Keeps the answer to a call of a mover.
    pub(super) fn keep_answer(&mut self, id: RequestId, outcome: &Outcome) {
        if self.scenario.faults.late_calls.is_some() {
            self.late_calls.answered(id, outcome);
        }
    }

    /// Delivers some call again, now.
    pub(super) fn repeat_any_call(&mut self) {
        self.repeat_call(None, 1);
    }

    /// Delivers a call again that concerns `shard`, within `within`: its request, to the same node or to the present leader of
    /// its group, or its answer.
    pub(super) fn repeat_call(&mut self, shard: Option<ShardId>, within: Micros) {
        let Some(call) = self.late_calls.draw(shard, &mut self.step_rng) else {
            return;
        };
        let at = self.now + self.step_rng.magnitude(1, within);
        if let Some(outcome) = call.answer.filter(|_| self.step_rng.chance(300_000)) {
            self.count("answers that came twice, late");
            let id = call.id;
            self.queue.push(at, Event::Answer { id, outcome });
            return;
        }
        self.count("requests that came twice, late");
        let leader = self.leader(self.hosts[call.to].group);
        let leader = leader.filter(|_| self.step_rng.coin());
        self.ask_again(call.id, leader.unwrap_or(call.to), call.request, at);
    }

    /// Delivers a request of a mover again. The answer belongs to the same call, as long as the mover remembers it.
    fn ask_again(&mut self, id: RequestId, to: HostId, request: Request<Question>, at: Micros) {
        let Caller::Mover(from) = Caller::of(id) else {
            return;
        };
        let Some(mover) = &mut self.hosts[from].mover else {
            return;
        };
        let id = mover.repeat_request(id);
        let host = to;
        self.queue.push(at, Event::Ask { host, id, request });
    }

    /// Lets a step that a mover proposes to its own log come late: a second time, or instead of now. Returns true if it comes now.
    pub(super) fn propose_late(
        &mut self,
        number: HostId,
        id: RequestId,
        Subject { kind, shard }: Subject,
        request: &Request<Question>,
    ) -> bool {
        let (repeated, mut lost) = match &self.scenario.cluster {
            Some(cluster) if self.faults_happen() => (cluster.repeated_steps, cluster.late_steps),
            _ => return true,
        };
        if lost > 0 && kind == DROP_STEP {
            // A drop is rare, and is dangerous if the shard is cut before it comes.
            lost = 500_000;
        }
        if lost > 0 && kind == LAST_PAGE_STEP {
            // Its generation is read again, after the seal of the next one.
            lost = lost.max(300_000);
        }
        let is_late = self.step_rng.chance(lost);
        if is_late || self.rng.chance(repeated) {
            // Before the mover gives the proposal up, or after that.
            let by = if self.rng.coin() {
                self.rng.magnitude(MILLI, SECOND)
            } else {
                self.rng.magnitude(SECOND, 60 * SECOND)
            };
            self.ask_again(id, number, request.clone(), self.now + by);
            if is_late && shard.is_some() {
                // What happens meanwhile is what the step may hit.
                for _ in 0..self.step_rng.between(0, 4) {
                    self.repeat_call(shard, by);
                }
            }
        }
        if is_late {
            self.count("steps that came late");
        }
        !is_late
    }
}
