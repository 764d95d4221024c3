//! The movers of a world: carries out their proposals and calls over the simulated network.
//!
//! Requests and answers of movers are lost, delayed, duplicated and cut off like all others.

use raft::Role;
use replica::{RequestId, Status};
use shardkv::mover::Effect;

use super::World;
use crate::event::Event;
use crate::host::Input;
use crate::machine::Outcome;
use crate::mover::{
    SEAL, convert_outcome, convert_request, describe_step, step_request, subject_of_request,
    subject_of_step,
};
use crate::network::{HostId, host_at};
use crate::violation::Checked;

impl World {
    /// Polls a host's mover, and carries out the effects.
    pub(super) fn run_mover(&mut self, number: HostId, status: &Status) -> Checked {
        let group = self.groups[self.hosts[number].group].hosts.clone();
        let has_room = !self.hosts[group].iter().any(|host| host.disk_low);
        let host = &mut self.hosts[number];
        let (Some(mover), Some(process)) = (&mut host.mover, &host.process) else {
            return Ok(());
        };
        mover.set_room(has_room);
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
                let Some(mover) = &mut self.hosts[number].mover else {
                    return;
                };
                let id = mover.request_of(id);
                let subject = subject_of_step(&step);
                self.keep_call(id, number, subject, &request);
                if self.propose_late(number, id, subject, &request) {
                    // The host's own process takes the request in its next step.
                    let inbox = &mut self.hosts[number].inbox;
                    inbox.push_back(Input::Request(id, request));
                    self.plan_work(number);
                }
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
                let subject = subject_of_request(&request);
                let request = convert_request(request, &mut self.rng);
                let (Some(to), Some(mover)) = (host_at(&address), &mut self.hosts[number].mover)
                else {
                    return;
                };
                let first = mover.request_of(id);
                let ids = [first, mover.request_of(id)];
                self.keep_call(first, to, subject, &request);
                if subject.kind == SEAL {
                    self.strike_seal(number);
                }
                let arrivals = self.network.arrivals(number, to, self.now);
                for (id, at) in ids.into_iter().zip(arrivals) {
                    let Some(at) = at else { continue };
                    let (host, request) = (to, request.clone());
                    self.queue.push(at, Event::Ask { host, id, request });
                }
            }
            Effect::Failed(why) => self.trace(number, || format!("mover: failed: {why}")),
        }
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
