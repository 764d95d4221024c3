//! Clients of keyspaces, and processes that read keyspaces after their replica has confirmed that it leads.

use replica::{Answer, Request, RequestId};
use shardkv::{Query, Response, read_keyspaces};

use super::World;
use crate::bug::{Bug, ProcessBug};
use crate::event::Event;
use crate::keyspace_client::{KeyspaceClient, KeyspaceContext};
use crate::machine::{KeyspaceRead, Outcome, Question, Reply};
use crate::network::HostId;
use crate::queue::Micros;
use crate::rng::{Concern, SimRng};
use crate::scenario::Scenario;
use crate::violation::{Checked, Violation};
use crate::watcher::Watcher;

/// The most bytes of an answer.
const MAX_READ_BYTES: u64 = 1 << 20;

/// Creates the clients of keyspaces.
pub(super) fn clients(scenario: &Scenario) -> Vec<KeyspaceClient> {
    let Some(options) = &scenario.keyspaces else {
        return Vec::new();
    };
    let create = |number: usize| {
        let stream = u32::try_from(number).unwrap_or(0);
        let rng = SimRng::new(scenario.seed, Concern::KeyspaceClient(stream));
        KeyspaceClient::new(number as u64, options.clone(), rng)
    };
    (0..options.clients).map(create).collect()
}

/// Creates the watches of keyspaces, which watch nothing yet.
pub(super) fn watchers(scenario: &Scenario) -> Vec<Watcher> {
    let count = scenario.keyspaces.as_ref().map_or(0, |it| it.watches);
    (0..count).map(|_| Watcher::new()).collect()
}

impl World {
    pub(super) fn plan_keyspace_client(&mut self, number: usize) {
        let due = self.keyspace_clients[number].due();
        if due < self.keyspace_client_due[number] {
            let due = due.max(self.now + 1);
            self.keyspace_client_due[number] = due;
            self.queue.push(due, Event::KeyspaceClient { number });
        }
    }

    pub(super) fn wake_keyspace_client(&mut self, number: usize) {
        if self.keyspace_client_due[number] > self.now {
            return;
        }
        self.keyspace_client_due[number] = Micros::MAX;
        self.with_keyspace_client(number, KeyspaceClient::wake);
    }

    pub(super) fn keyspace_answered(
        &mut self,
        number: usize,
        id: RequestId,
        outcome: Outcome,
    ) -> Checked {
        self.with_keyspace_client(number, |client, context| {
            client.answered(id, outcome, context)
        })
    }

    /// Lets a client act, sends its requests, and schedules its next step.
    fn with_keyspace_client<R>(
        &mut self,
        number: usize,
        act: impl FnOnce(&mut KeyspaceClient, &mut KeyspaceContext<'_>) -> R,
    ) -> R {
        let mut out = Vec::new();
        let mut clients = std::mem::take(&mut self.keyspace_clients);
        let mut checker = std::mem::take(&mut self.keyspace_checker);
        let mut context = KeyspaceContext {
            now: self.now,
            checker: &mut checker,
            shards: self.scenario.genesis.shards,
            hosts: self.kv_hosts,
            leader: &|shard| self.leader_of(shard),
            out: &mut out,
        };
        let result = act(&mut clients[number], &mut context);
        self.keyspace_clients = clients;
        self.keyspace_checker = checker;
        for outgoing in out {
            self.send_request(outgoing);
        }
        self.plan_keyspace_client(number);
        result
    }

    /// Lets the clients start nothing more.
    pub(super) fn finish_keyspace_clients(&mut self) {
        for number in 0..self.keyspace_clients.len() {
            self.keyspace_clients[number].finish();
            self.plan_keyspace_client(number);
        }
    }

    /// Lets the first client read each keyspace as a whole.
    pub(super) fn read_all_keyspaces(&mut self) {
        let places = self.keyspace_checker.all().collect();
        if let Some(client) = self.keyspace_clients.first_mut() {
            client.read_all(places);
            self.plan_keyspace_client(0);
        }
    }

    /// Returns what the replica is asked before a keyspace is read.
    pub(super) fn confirm_keyspace_read(
        &mut self,
        number: HostId,
        id: RequestId,
        read: KeyspaceRead,
    ) -> Request<Question> {
        self.hosts[number].keyspace_reads.insert(id, read);
        let confirm = Question::Kv(Query::Confirm);
        if self.scenario.bug == Some(Bug::Process(ProcessBug::KeyspaceReadUnconfirmed)) {
            return Request::ReadLocal(confirm);
        }
        Request::Read(confirm)
    }

    /// Reads a keyspace from the state as of now, and answers the request.
    pub(super) fn read_keyspace(&mut self, number: HostId, id: RequestId) -> Checked {
        let host = &mut self.hosts[number];
        let Some(read) = host.keyspace_reads.remove(&id) else {
            return Ok(());
        };
        // No step happens between this read and its answer.
        host.owned = None;
        let (_, state) = host.disk.open();
        let (place, range) = (read.place, &read.range);
        let found = read_keyspaces(&state, place.shard, |reader| {
            keyspace::range(reader, place, range, MAX_READ_BYTES)
        });
        let found = found.map_err(|error| {
            Violation::new("keyspaces can be read", format!("host {number}: {error}"))
        })?;
        self.count("keyspaces read");
        let reply = match found {
            Ok(answer) => Reply::Keyspace(answer),
            Err(error) => Reply::Kv(Response::Refused(error)),
        };
        self.send_answer(number, 0, id, Ok(Answer::Machine(reply)))
    }
}
