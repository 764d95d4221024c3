//! The movers of a world: carries out their proposals and calls over the simulated network.
//!
//! Requests and answers of movers are lost, delayed, duplicated and cut off like all others.

use raft::Role;
use replica::{Request, RequestId, Status};
use shardkv::mover::Effect;

use super::World;
use crate::event::Event;
use crate::host::Input;
use crate::machine::{Outcome, Question};
use crate::mover::{convert_outcome, convert_request, describe_step, step_request};
use crate::network::{HostId, host_at};
use crate::queue::MILLI;
use crate::violation::Checked;

impl World {
    /// Polls a host's mover, and carries out the effects.
    pub(super) fn run_mover(&mut self, number: HostId, status: &Status) -> Checked {
        let host = &mut self.hosts[number];
        let (Some(mover), Some(process)) = (&mut host.mover, &host.process) else {
            return Ok(());
        };
        let leads = status.role == Role::Leader;
        let ownership = process.machine().machine().ownership().filter(|_| leads);
        for effect in mover.poll(self.now, ownership.as_ref())? {
            self.carry_out(number, effect);
        }
        self.plan_mover(number);
        Ok(())
    }

    fn carry_out(&mut self, number: HostId, effect: Effect) {
        match effect {
            Effect::Propose { id, step, .. } => {
                self.trace(number, || {
                    format!("mover {id:?}: proposes {}", describe_step(&step))
                });
                let request = step_request(&step);
                self.repeat_later(number, &request);
                let host = &mut self.hosts[number];
                if let Some(mover) = &mut host.mover {
                    // The host's own process takes the request in its next step.
                    let id = mover.request_of(id);
                    host.inbox.push_back(Input::Request(id, request));
                }
                self.plan_work(number);
            }
            Effect::Call {
                id,
                address,
                request,
                ..
            } => {
                self.trace(number, || {
                    format!("mover {id:?}: asks {address}: {request:?}")
                });
                let request = convert_request(request, &mut self.rng);
                let (Some(to), Some(mover)) = (host_at(&address), &mut self.hosts[number].mover)
                else {
                    return;
                };
                let arrivals = self.network.arrivals(number, to, self.now);
                for at in arrivals.into_iter().flatten() {
                    let ask = Event::Ask {
                        host: to,
                        id: mover.request_of(id),
                        request: request.clone(),
                    };
                    self.queue.push(at, ask);
                }
            }
            Effect::Failed(why) => self.trace(number, || format!("mover: failed: {why}")),
        }
    }

    /// Sends some requests to the host a second time, late, because steps must be idempotent. No action waits for the
    /// second answer.
    fn repeat_later(&mut self, number: HostId, request: &Request<Question>) {
        let cluster = self.scenario.cluster.as_ref();
        let repeated = cluster.map_or(0, |cluster| cluster.repeated_steps);
        if !self.rng.chance(repeated) || !self.faults_happen() {
            return;
        }
        let Some(mover) = &mut self.hosts[number].mover else {
            return;
        };
        let ask = Event::Ask {
            host: number,
            id: mover.next_request(),
            request: request.clone(),
        };
        let at = self.now + self.rng.magnitude(MILLI, 2_000 * MILLI);
        self.queue.push(at, ask);
    }

    /// Passes an answer to a host's mover.
    pub(super) fn mover_answered(
        &mut self,
        number: HostId,
        id: RequestId,
        outcome: Outcome,
    ) -> Checked {
        let answer = convert_outcome(outcome, &self.nodes, self.scenario.genesis.shards);
        let mover = self.hosts[number].mover.as_mut();
        if mover.is_some_and(|mover| mover.handle_answer(id, answer)) {
            return self.poll_mover(number);
        }
        Ok(())
    }

    /// Polls a mover whose time has come.
    pub(super) fn mover_due(&mut self, number: HostId) -> Checked {
        if let Some(mover) = &mut self.hosts[number].mover {
            mover.forget_schedule();
        }
        self.poll_mover(number)
    }

    /// Schedules a mover anew after a pause, in which its events were dropped.
    pub(super) fn wake_mover(&mut self, number: HostId) {
        if let Some(mover) = &mut self.hosts[number].mover {
            mover.forget_schedule();
        }
        self.plan_mover(number);
    }

    fn poll_mover(&mut self, number: HostId) -> Checked {
        match self.status(number).filter(|_| !self.hosts[number].paused) {
            Some(status) => self.run_mover(number, &status),
            None => Ok(()),
        }
    }

    fn plan_mover(&mut self, number: HostId) {
        let host = &mut self.hosts[number];
        let Some(mover) = &mut host.mover else {
            return;
        };
        if let Some(due) = mover.schedule(self.now) {
            let event = Event::Mover {
                host: number,
                incarnation: host.incarnation,
            };
            self.queue.push(due, event);
        }
    }
}
