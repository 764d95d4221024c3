//! Requests and answers that arrive, and the clients that are due.

use replica::{Refusal, Request, RequestId};

use super::World;
use crate::caller::Caller;
use crate::client::{Client, ClientContext};
use crate::config_client::ConfigClient;
use crate::event::Event;
use crate::host::Input;
use crate::machine::{Outcome, Question};
use crate::network::HostId;
use crate::queue::Micros;
use crate::violation::Checked;

impl World {
    pub(super) fn request_arrived(
        &mut self,
        number: HostId,
        id: RequestId,
        request: Request<Question>,
    ) -> Checked {
        if self.forward_elsewhere(number, id, &request) {
            return Ok(());
        }
        let number = self.spread_read(number, &request);
        self.take_request(number, id, request)
    }

    /// Passes a request to the process at a host, which serves it or refuses.
    pub(super) fn take_request(
        &mut self,
        number: HostId,
        id: RequestId,
        request: Request<Question>,
    ) -> Checked {
        if self.hosts[number].process.is_none() {
            // No process runs: the caller learns at once that the request had no effect.
            let outcome = Err(Refusal::NotLeader { leader: None });
            if let Caller::Mover(_) = Caller::of(id) {
                self.transmit_answer(number, 0, id, outcome);
                return Ok(());
            }
            let at = self.now + self.network.delay();
            self.queue.push(at, Event::Answer { id, outcome });
            return Ok(());
        }
        self.trace(number, || format!("receives request {id:x?}: {request:?}"));
        self.note_read(number, id, &request);
        let request = self.confirm_first(number, id, request);
        let request = self.read_here(request);
        self.deliver(number, Input::Request(id, request))
    }

    pub(super) fn answer_arrived(&mut self, id: RequestId, outcome: Outcome) -> Checked {
        let number = match Caller::of(id) {
            Caller::Client(number) => number,
            Caller::Administrator => return self.admin_answered(id, outcome),
            Caller::Mover(host) => return self.mover_answered(host, id, outcome),
            Caller::Leases(host) => {
                self.expiry_answered(host, id, &outcome);
                return Ok(());
            }
            Caller::Keyspace(number) => {
                let number = usize::try_from(number).unwrap_or(usize::MAX);
                return self.keyspace_answered(number, id, outcome);
            }
            Caller::ConfigClient(number) => {
                let number = usize::try_from(number).unwrap_or(usize::MAX);
                return self.config_client_answered(number, id, outcome);
            }
        };
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        self.with_client(number, |client, context| {
            client.answered(id, outcome, context)
        })
    }

    pub(super) fn wake_client(&mut self, number: usize) {
        if self.client_due[number] > self.now {
            return;
        }
        self.client_due[number] = Micros::MAX;
        self.with_client(number, Client::wake);
    }

    /// Lets a client act, sends its requests, and schedules its next step.
    fn with_client<R>(
        &mut self,
        number: usize,
        act: impl FnOnce(&mut Client, &mut ClientContext<'_>) -> R,
    ) -> R {
        let mut out = Vec::new();
        let mut context = ClientContext {
            now: self.now,
            history: &mut self.history,
            addresses: &self.nodes,
            hosts: self.kv_hosts,
            controllers: self.kv_hosts..self.hosts.len(),
            shards: self.scenario.genesis.shards,
            out: &mut out,
        };
        let result = act(&mut self.clients[number], &mut context);
        for outgoing in out {
            self.send_request(outgoing);
        }
        self.plan_client(number);
        result
    }

    pub(super) fn wake_config_client(&mut self, number: usize) {
        if self.config_client_due[number] > self.now {
            return;
        }
        self.config_client_due[number] = Micros::MAX;
        self.with_config_client(number, ConfigClient::wake);
    }

    fn config_client_answered(
        &mut self,
        number: usize,
        id: RequestId,
        outcome: Outcome,
    ) -> Checked {
        let before = self.config_clients[number].finished.len();
        self.with_config_client(number, |config_client, context| {
            config_client.answered(id, outcome, context)
        })?;
        if self.tracing
            && let Some(over) = self.config_clients[number].finished.get(before)
        {
            self.print(&format!("config client {number}: {over:?}"));
        }
        Ok(())
    }

    /// Lets a config client act, sends its requests, and schedules its next step.
    fn with_config_client<R>(
        &mut self,
        number: usize,
        act: impl FnOnce(&mut ConfigClient, &mut ClientContext<'_>) -> R,
    ) -> R {
        let mut out = Vec::new();
        let mut context = ClientContext {
            now: self.now,
            history: &mut self.history,
            addresses: &self.nodes,
            hosts: self.kv_hosts,
            controllers: self.kv_hosts..self.hosts.len(),
            shards: self.scenario.genesis.shards,
            out: &mut out,
        };
        let result = act(&mut self.config_clients[number], &mut context);
        for outgoing in out {
            self.send_request(outgoing);
        }
        self.plan_config_client(number);
        result
    }
}
