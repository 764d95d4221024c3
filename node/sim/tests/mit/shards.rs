//! Controllers, groups, and a model of the keys' values, for the tests of sharding.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use raft::Role;
use replica::{Answer, Request};
use shardctrler::{Change, CtrlError, Loss, Query, QueryAnswer, Response};
use shardkv::Write;
use shardkv_sim::client::ScriptedOperation;
use shardkv_sim::machine::Reply;
use shardkv_sim::queue::MILLI;
use shardkv_sim::scenario::Scenario;
use shardkv_sim::script::Script;
use types::{ConfigNum, Gid, ShardConfig, ShardId, shard_of};

use crate::cluster::Cluster;

/// The client that sends the tests' own requests. Other clients draw their operations.
pub(crate) const OWN: usize = 0;
/// The number of shards.
pub(crate) const SHARDS: u32 = 10;

/// Returns a scenario with three groups of three and three controllers.
pub(crate) fn setting(seed: u64) -> Scenario {
    let mut scenario = Scenario::quiet_cluster(seed, 3, 3);
    scenario.genesis.shards = SHARDS;
    scenario.replica.tick_ms = 10;
    scenario.replica.raft.election_ticks = 20;
    scenario.replica.raft.heartbeat_ticks = 5;
    scenario.client.patience = 200 * MILLI;
    scenario.client.deadline = 60_000 * MILLI;
    if let Some(cluster) = &mut scenario.cluster {
        cluster.joined = 0;
        cluster.mover.max_retry_ms = 200;
    }
    scenario
}

/// Makes the network lose, duplicate and reorder messages.
pub(crate) fn unreliable(mut scenario: Scenario) -> Scenario {
    scenario.links = Cluster::unreliable();
    scenario
}

/// Adds clients that draw their operations, beside the tests' own client.
pub(crate) fn busy(mut scenario: Scenario, clients: usize) -> Scenario {
    scenario.clients = 1 + clients;
    scenario.client.keys = 10;
    scenario.client.think = (MILLI, 30 * MILLI);
    scenario
}

/// Returns the gid for a group number in MIT's tests, which count from 0.
pub(crate) fn gid(number: u64) -> Gid {
    Gid(number + 1)
}

/// Groups with controllers, and the expected values of the keys.
pub(crate) struct Shards {
    pub(crate) script: Script,
    model: BTreeMap<Bytes, Vec<u8>>,
    written: u64,
}

impl Shards {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let mut script = Script::new(scenario).unwrap();
        script.tell(OWN, []);
        Self {
            script,
            model: BTreeMap::new(),
            written: 0,
        }
    }

    pub(crate) fn run_ms(&mut self, milliseconds: u64) {
        self.script.run_ms(milliseconds).unwrap();
    }

    #[track_caller]
    pub(crate) fn wait(&mut self, at_most_ms: u64, what: &str, done: impl FnMut(&Script) -> bool) {
        let came = self.script.run_until(at_most_ms, done).unwrap();
        assert!(came, "{what}; {:?}", self.script.unsettled());
    }

    // --- configurations ---

    /// Sends a change through config client 0, and waits for the answer.
    #[track_caller]
    pub(crate) fn change(&mut self, change: Change) -> Response {
        let before = self.script.changes(0).len();
        self.script.order(0, change);
        self.wait(10_000, "a change is answered", |script| {
            script.changes(0).len() > before
        });
        self.script.changes(0)[before].response.clone().unwrap()
    }

    #[track_caller]
    pub(crate) fn join(&mut self, numbers: &[u64]) {
        let gids: Vec<Gid> = numbers.iter().copied().map(gid).collect();
        let before = self.script.changes(0).len();
        self.script.join(0, &gids);
        self.wait(10_000, "a join is answered", |script| {
            script.changes(0).len() > before
        });
        let response = self.script.changes(0)[before].response.clone();
        assert!(
            matches!(response, Some(Response::Changed { .. })),
            "{response:?}"
        );
    }

    #[track_caller]
    pub(crate) fn leave(&mut self, numbers: &[u64]) {
        let gids = numbers.iter().copied().map(gid).collect();
        let response = self.change(Change::Leave { gids });
        assert!(matches!(response, Response::Changed { .. }), "{response:?}");
    }

    #[track_caller]
    pub(crate) fn move_shard(&mut self, shard: u32, number: u64) {
        let (shard, gid) = (ShardId(shard), gid(number));
        let response = self.change(Change::Move { shard, gid });
        assert!(matches!(response, Response::Changed { .. }), "{response:?}");
    }

    /// Forgets groups, and returns what is lost. From now on nothing is expected of the keys of shards that begin empty.
    #[track_caller]
    pub(crate) fn forget(&mut self, numbers: &[u64]) -> Loss {
        let gids: BTreeSet<Gid> = numbers.iter().copied().map(gid).collect();
        let refused = self.change(Change::Forget {
            gids: gids.clone(),
            accept_data_loss: false,
        });
        let accept_data_loss = true;
        let response = self.change(Change::Forget {
            gids,
            accept_data_loss,
        });
        let Response::Forgotten { loss, .. } = response else {
            panic!("{response:?}");
        };
        assert_eq!(
            refused,
            Response::Refused(CtrlError::DataLoss(loss.clone()))
        );
        let emptied = &loss.emptied.listed;
        self.model
            .retain(|key, _| !emptied.contains(shard_of(key, SHARDS)));
        loss
    }

    pub(crate) fn config(&self) -> Arc<ShardConfig> {
        self.script.config().unwrap()
    }

    /// Queries the controllers' leader for a configuration.
    #[track_caller]
    pub(crate) fn query(&mut self, num: Option<u64>) -> Result<QueryAnswer, Response> {
        let controllers = self.script.hosts_of(Gid::NONE);
        for _ in 0..100 {
            let leads = |host: &usize| {
                let status = self.script.status(*host);
                status.is_some_and(|status| status.role == Role::Leader)
            };
            let Some(leader) = controllers.iter().copied().find(leads) else {
                self.run_ms(50);
                continue;
            };
            let num = num.map(ConfigNum);
            let request = Request::Read(Query::Config { num });
            let id = self.script.ask_controller(leader, request);
            let answered = |script: &Script| script.answer(id).is_some();
            self.script.run_until(1_000, answered).unwrap();
            match self.script.answer(id) {
                Some(Ok(Answer::Machine(Reply::Ctrl(Response::Config(answer))))) => {
                    return Ok((**answer).clone());
                }
                Some(Ok(Answer::Machine(Reply::Ctrl(other)))) => return Err(other.clone()),
                _ => {}
            }
        }
        panic!("no controller answers");
    }

    /// Checks that the targets of shards are spread evenly over exactly these groups.
    #[track_caller]
    pub(crate) fn check_shares(&self, numbers: &[u64]) {
        let config = self.config();
        let gids: BTreeSet<Gid> = numbers.iter().copied().map(gid).collect();
        let joined: BTreeSet<Gid> = config.members().collect();
        assert_eq!(joined, gids);
        let targets = config.targets();
        let share = |gid: &Gid| targets.iter().filter(|target| *target == gid).count() as u64;
        let shares: Vec<u64> = gids.iter().map(share).collect();
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        assert!(most - least <= 1, "{shares:?}");
        assert_eq!(shares.iter().sum::<u64>(), u64::from(SHARDS));
    }

    /// Waits until all shards are at their owners and nothing is left behind.
    #[track_caller]
    pub(crate) fn settle(&mut self) {
        let settled = |script: &Script| script.changes_are_over() && script.unsettled().is_none();
        let came = self.script.run_until(10_000, settled).unwrap();
        assert!(came, "{:?}", self.script.unsettled());
    }

    pub(crate) fn stop_group(&mut self, number: u64) {
        self.script.stop_group(gid(number));
    }

    pub(crate) fn start_group(&mut self, number: u64) {
        self.script.start_group(gid(number)).unwrap();
    }

    // --- keys ---

    /// Runs operations on the own client, and waits until they finish.
    #[track_caller]
    pub(crate) fn run(&mut self, steps: Vec<ScriptedOperation>) {
        self.script.tell(OWN, steps);
        let idle = |script: &Script| script.is_idle(OWN);
        let served = self.script.run_until(30_000, idle).unwrap();
        let waits = self.script.describe_client(OWN);
        assert!(served, "{waits}; {:?}", self.script.unsettled());
    }

    /// Returns unique content of at least `bytes` bytes.
    fn content(&mut self, bytes: usize) -> Vec<u8> {
        self.written += 1;
        let mut content = format!("<{}>", self.written).into_bytes();
        content.resize(content.len().max(bytes), b'.');
        content
    }

    #[track_caller]
    pub(crate) fn put_all(&mut self, keys: usize, bytes: usize) {
        let mut steps = Vec::new();
        for key in (0..keys).map(key) {
            let value = self.content(bytes);
            self.model.insert(key.clone(), value.clone());
            let value = value.into();
            steps.push(ScriptedOperation::Write(Write::Put { key, value }));
        }
        self.run(steps);
    }

    #[track_caller]
    pub(crate) fn put(&mut self, number: usize) {
        let (key, value) = (key(number), self.content(10));
        self.model.insert(key.clone(), value.clone());
        let value = value.into();
        self.run(vec![ScriptedOperation::Write(Write::Put { key, value })]);
    }

    #[track_caller]
    pub(crate) fn append_all(&mut self, keys: usize) {
        let mut steps = Vec::new();
        for key in (0..keys).map(key) {
            let suffix = self.content(0);
            self.model.entry(key.clone()).or_default().extend(&suffix);
            let suffix = suffix.into();
            steps.push(ScriptedOperation::Write(Write::Append { key, suffix }));
        }
        self.run(steps);
    }

    /// Checks that every written key holds its expected value.
    #[track_caller]
    pub(crate) fn check_all(&mut self) {
        let keys: Vec<Bytes> = self.model.keys().cloned().collect();
        self.run(keys.iter().cloned().map(ScriptedOperation::Get).collect());
        for (key, value) in &self.model {
            let seen = self.script.seen(OWN, key);
            assert_eq!(seen.as_deref(), Some(&value[..]), "{key:?}");
        }
    }

    /// Reads the keys one by one, and returns true for each key that is answered within `within_ms`.
    pub(crate) fn readable(&mut self, keys: &[Bytes], within_ms: u64) -> Vec<bool> {
        let mut served = Vec::new();
        for key in keys {
            let shard = shard_of(key, SHARDS);
            let owner = self.config().owner(shard);
            let host = self.leader_of(owner);
            let query = shardkv::Query::Get { key: key.clone() };
            let id = host.map(|host| self.script.ask(host, Request::Read(query)));
            let answered = |script: &Script| id.is_some_and(|id| script.answer(id).is_some());
            self.script.run_until(within_ms, answered).unwrap();
            let answer = id.and_then(|id| self.script.answer(id));
            served.push(matches!(
                answer,
                Some(Ok(Answer::Machine(Reply::Kv(shardkv::Response::Value(_)))))
            ));
        }
        served
    }

    pub(crate) fn leader_of(&self, gid: Gid) -> Option<usize> {
        let hosts = self.script.hosts_of(gid);
        self.script.leader_among(&hosts)
    }

    /// Runs the simulator's liveness phase: heals the network, restarts hosts, and requires all groups to recover.
    pub(crate) fn finish(self) {
        self.script.finish().unwrap();
    }
}

/// Returns a key of the own client, which other clients don't use.
pub(crate) fn key(number: usize) -> Bytes {
    Bytes::from(format!("own{number}"))
}
