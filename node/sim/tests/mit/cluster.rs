//! A cluster for the tests, with method names close to those of MIT's tester.

use bytes::Bytes;
use raft::{Index, Role};
use replica::{Answer, Request, RequestId};
use shardkv::{Command, Query, Response, Write, Written};
use shardkv_sim::machine::Reply;
use shardkv_sim::network::LinkOptions;
use shardkv_sim::scenario::Scenario;
use shardkv_sim::script::Script;

/// The key to which all commands append. Its value is the list of commands that took effect.
pub(crate) const LOG: &[u8] = b"log";

/// A cluster that turns the simulator's failures into panics.
pub(crate) struct Cluster {
    script: Script,
    commands: u64,
}

/// A quiet scenario with election timeouts of 200 to 400 ms and heartbeats of 50 ms.
pub(crate) fn scenario(seed: u64, hosts: usize) -> Scenario {
    let mut scenario = Scenario::quiet(seed, hosts);
    scenario.replica.tick_ms = 10;
    scenario.replica.raft.election_ticks = 20;
    scenario.replica.raft.heartbeat_ticks = 5;
    scenario.clients = 0;
    scenario
}

impl Cluster {
    pub(crate) fn new(hosts: usize) -> Self {
        Self::with(scenario(1, hosts))
    }

    pub(crate) fn with(scenario: Scenario) -> Self {
        Self {
            script: Script::new(scenario).unwrap(),
            commands: 0,
        }
    }

    pub(crate) fn script(&mut self) -> &mut Script {
        &mut self.script
    }

    pub(crate) fn hosts(&self) -> Vec<usize> {
        (0..self.script.hosts()).collect()
    }

    pub(crate) fn others(&self, host: usize) -> Vec<usize> {
        let mut hosts = self.hosts();
        hosts.retain(|other| *other != host);
        hosts
    }

    pub(crate) fn run_ms(&mut self, milliseconds: u64) {
        self.script.run_ms(milliseconds).unwrap();
    }

    /// Waits until `done` returns true, and fails the test if the time runs out.
    #[track_caller]
    pub(crate) fn wait(&mut self, at_most_ms: u64, what: &str, done: impl FnMut(&Script) -> bool) {
        assert!(self.script.run_until(at_most_ms, done).unwrap(), "{what}");
    }

    pub(crate) fn disconnect(&mut self, host: usize) {
        self.script.set_connected(host, false);
    }

    pub(crate) fn connect(&mut self, host: usize) {
        self.script.set_connected(host, true);
    }

    pub(crate) fn crash(&mut self, host: usize) {
        self.script.crash(host);
    }

    pub(crate) fn start(&mut self, host: usize) {
        self.script.start(host).unwrap();
    }

    /// Returns links as unreliable as MIT's labrpc: delays up to 27 ms, a tenth of the requests and of the answers
    /// lost, and long reorderings.
    pub(crate) fn unreliable() -> LinkOptions {
        LinkOptions {
            delay: (100, 27_000),
            late: 60_000,
            late_by: 2_000_000,
            loss: 100_000,
            duplication: 50_000,
            duplicate_late_by: 500_000,
            reordering: true,
            snapshot_bytes_per_second: None,
        }
    }

    /// Returns the leader among these hosts, and waits for it up to five simulated seconds.
    #[track_caller]
    pub(crate) fn leader_of(&mut self, hosts: &[usize]) -> usize {
        self.wait(5_000, "a leader is elected", |script| {
            settled_leader(script, hosts).is_some()
        });
        settled_leader(&self.script, hosts).unwrap()
    }

    #[track_caller]
    pub(crate) fn leader(&mut self) -> usize {
        let hosts = self.hosts();
        self.leader_of(&hosts)
    }

    /// Creates a new, unique command.
    pub(crate) fn command(&mut self) -> Write {
        self.commands += 1;
        Write::Append {
            key: Bytes::from_static(LOG),
            suffix: Bytes::from(format!("<{}>", self.commands)),
        }
    }

    /// Sends a new command to `host`, without waiting.
    pub(crate) fn ask(&mut self, host: usize) -> RequestId {
        let write = self.command();
        self.ask_write(host, write)
    }

    pub(crate) fn ask_write(&mut self, host: usize, write: Write) -> RequestId {
        let operation = Command {
            session: None,
            write,
        };
        let operation = operation.encode();
        self.script.ask(
            host,
            Request::Write {
                operation,
                frees_space: false,
            },
        )
    }

    /// Returns the length after an append, if it was acknowledged.
    pub(crate) fn acknowledged(&self, id: RequestId) -> Option<u64> {
        match self.script.answer(id)? {
            Ok(Answer::Machine(Reply::Kv(Response::Written(Written::Append { length })))) => {
                Some(*length)
            }
            _ => None,
        }
    }

    /// Sends commands to the leader among `hosts`, for up to ten simulated seconds, until one is applied by at least
    /// `servers` of them. Returns the applied index.
    #[track_caller]
    pub(crate) fn one_of(&mut self, hosts: &[usize], servers: usize) -> Index {
        let end = self.script.now() + 10_000_000;
        while self.script.now() < end {
            let Some(leader) = settled_leader(&self.script, hosts) else {
                self.run_ms(10);
                continue;
            };
            let id = self.ask(leader);
            let answered = |script: &Script| script.answer(id).is_some();
            self.script.run_until(2_000, answered).unwrap();
            if self.acknowledged(id).is_some()
                && let Some(status) = self.script.status(leader)
            {
                let index = status.last_applied;
                self.wait(2_000, "all that are expected apply a command", |script| {
                    let has = |host: &&usize| {
                        script
                            .status(**host)
                            .is_some_and(|status| status.last_applied >= index)
                    };
                    hosts.iter().filter(has).count() >= servers
                });
                return index;
            }
        }
        panic!("no agreement among {hosts:?} in ten seconds");
    }

    /// Commits a command and waits until every host has applied it.
    #[track_caller]
    pub(crate) fn one(&mut self) -> Index {
        let hosts = self.hosts();
        self.one_of(&hosts, hosts.len())
    }

    /// Reads the list of commands from the leader among `hosts`.
    #[track_caller]
    pub(crate) fn read(&mut self, hosts: &[usize]) -> String {
        let leader = self.leader_of(hosts);
        let key = Bytes::from_static(LOG);
        let id = self.script.ask(leader, Request::Read(Query::Get { key }));
        self.wait(5_000, "a read is answered", |script| {
            script.answer(id).is_some()
        });
        match self.script.answer(id) {
            Some(Ok(Answer::Machine(Reply::Kv(Response::Value(value))))) => {
                String::from_utf8(value.clone().unwrap_or_default().to_vec()).unwrap()
            }
            other => panic!("a read was answered {other:?}"),
        }
    }

    /// Runs the simulator's liveness phase: heals the network, restarts hosts, and requires recovery within ten
    /// seconds.
    pub(crate) fn finish(self) {
        self.script.finish().unwrap();
    }
}

/// Returns the leader among `hosts`, unless another of them leads in a higher term.
fn settled_leader(script: &Script, hosts: &[usize]) -> Option<usize> {
    let leader = script.leader_among(hosts)?;
    let term = script.status(leader)?.term;
    let newer = |host: &usize| {
        script
            .status(*host)
            .is_some_and(|status| status.term > term && status.role == Role::Leader)
    };
    (!hosts.iter().any(newer)).then_some(leader)
}
