//! Several real machines with real movers, no replication, and a list of configurations in place of controllers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use replica::{StateMachine, StateReader, StateStore, Table, Transaction};
use shardkv::mover::{Action, ActionId, Mover, Outcome as ActionOutcome};
use shardkv::{
    CopyStep, Genesis, KvError, MoverOptions, PartNext, PlannedMove, Query, Response, SessionRef,
    Step, Target, Write,
};
use types::{
    ClientId, ClusterId, ConfigDelta, ConfigNum, Gid, LogTime, Sequence, ShardConfig, ShardId,
    shard_of,
};

use crate::common::{Random, Replica, SHARDS_GENESIS};
use crate::stage::failed;

const GENESIS: Genesis = Genesis {
    session_ttl_ms: 3_600_000,
    max_results_per_session: 65_536,
    ..SHARDS_GENESIS
};

pub(crate) struct Member {
    pub(crate) replica: Replica,
    pub(crate) mover: Mover,
    pub(crate) up: bool,
}

pub(crate) struct Cluster {
    pub(crate) now: u64,
    pub(crate) config: ShardConfig,
    pub(crate) deltas: Vec<ConfigDelta>,
    pub(crate) members: BTreeMap<Gid, Member>,
    pub(crate) settled: BTreeMap<Gid, ConfigNum>,
    /// The present plans, and those that each configuration changes.
    pub(crate) planned: BTreeMap<ShardId, PlannedMove>,
    plans: BTreeMap<ConfigNum, BTreeMap<ShardId, Option<PlannedMove>>>,
    owner_since: BTreeMap<ShardId, ConfigNum>,
    /// The cuts that a report made.
    pub(crate) cuts: u64,
    /// The copies that were completed, and those that were useless at the cut.
    pub(crate) completed: u64,
    pub(crate) restarted: u64,
}

impl Cluster {
    pub(crate) fn new(groups: u64, shards: u32, options: MoverOptions) -> Self {
        let genesis = Genesis { shards, ..GENESIS };
        let member = |gid| Member {
            replica: Replica::new(genesis),
            mover: Mover::new(gid, shards, options),
            up: true,
        };
        Self {
            now: 1_000,
            config: ShardConfig::empty(shards),
            deltas: Vec::new(),
            members: (1..=groups).map(|it| (Gid(it), member(Gid(it)))).collect(),
            settled: BTreeMap::new(),
            planned: BTreeMap::new(),
            plans: BTreeMap::new(),
            owner_since: BTreeMap::new(),
            cuts: 0,
            completed: 0,
            restarted: 0,
        }
    }

    /// The next configuration, which plans moves. A shard whose target is its owner isn't planned to move.
    pub(crate) fn aim(&mut self, shards: &[(ShardId, Gid)]) {
        self.give(&[]);
        let num = self.config.num();
        for (shard, to) in shards {
            let planned = PlannedMove {
                owner: self.config.owner(*shard),
                owner_since: self.owner_since[shard],
                target: Target {
                    to: *to,
                    since: num,
                },
            };
            let planned = (planned.owner != *to).then_some(planned);
            self.plan(*shard, planned);
        }
    }

    fn plan(&mut self, shard: ShardId, planned: Option<PlannedMove>) {
        match planned {
            Some(planned) => self.planned.insert(shard, planned),
            None => self.planned.remove(&shard),
        };
        let plans = self.plans.entry(self.config.num()).or_default();
        plans.insert(shard, planned);
    }

    /// The controllers apply a report.
    fn report_cut(&mut self, shard: ShardId, planned: &PlannedMove) {
        if self.planned.get(&shard) == Some(planned) {
            self.give(&[(shard, planned.target.to)]);
            self.cuts += 1;
        }
    }

    /// The next configuration, which changes owners.
    pub(crate) fn give(&mut self, shards: &[(ShardId, Gid)]) {
        let address = |gid: Gid| (gid, vec![format!("{gid}:7000")]);
        let groups = self.members.keys().map(|gid| address(*gid)).collect();
        let mut owners = self.config.owners().to_vec();
        for (shard, gid) in shards {
            owners[shard.0 as usize] = *gid;
        }
        let delta = ConfigDelta::between(&self.config, &groups, &owners);
        self.config.apply(&delta).unwrap();
        self.deltas.push(delta);
        for (shard, _) in shards {
            self.owner_since.insert(*shard, self.config.num());
            self.plan(*shard, None);
        }
    }

    /// Polls a group's mover and returns its actions.
    pub(crate) fn poll(&mut self, gid: Gid) -> Vec<(ActionId, Action)> {
        let member = self.members.get_mut(&gid).unwrap();
        let ownership = member.up.then(|| member.replica.machine.ownership());
        let actions = member.mover.poll(self.now, ownership.as_ref());
        assert_eq!(member.mover.fatal(), None, "{gid}");
        actions
    }

    /// Does what group `gid`'s mover asked for. `None`: there are no news of the controllers yet.
    pub(crate) fn carry_out(&mut self, gid: Gid, action: &Action) -> Option<ActionOutcome> {
        let outcome = match action {
            Action::FetchConfigs { after } => {
                let deltas = self.deltas.iter().filter(|delta| delta.num > *after);
                let deltas: Vec<ConfigDelta> = deltas.take(3).cloned().collect();
                if deltas.is_empty() {
                    return None;
                }
                ActionOutcome::Configs {
                    controller: ClusterId(0xc0),
                    shards: self.config.shards(),
                    full: None,
                    deltas,
                }
            }
            Action::Pull {
                shard,
                config,
                source,
                after,
                max_bytes,
                ..
            } => {
                let query = Query::Pull {
                    shard: *shard,
                    config: *config,
                    after: after.clone(),
                    max_bytes: *max_bytes,
                };
                match self.up(*source).map(|source| source.query(&query)) {
                    Some(Response::Chunk(chunk)) => ActionOutcome::Pulled(*chunk),
                    response => refusal(response),
                }
            }
            Action::Delete {
                shard,
                config,
                source,
                ..
            } => {
                let (shard, config) = (*shard, *config);
                self.apply(*source, &Step::Delete { shard, config })
            }
            Action::Copy {
                source, request, ..
            } => {
                let query = Query::Copy(request.clone());
                match self.up(*source).map(|source| source.query(&query)) {
                    Some(Response::Part(part)) => ActionOutcome::Part(*part),
                    Some(Response::Refused(KvError::Journal { error, .. })) => {
                        ActionOutcome::Refused(error)
                    }
                    response => refusal(response),
                }
            }
            Action::Journal { source, step, .. } => {
                let (now, step) = (self.now, step.encode());
                let source = self.up(*source);
                match source.map(|source| source.apply_bytes(now, 1 << 20, step)) {
                    Some(Response::Begun { journal }) => ActionOutcome::Begun(journal),
                    Some(Response::Stepped) => ActionOutcome::Done,
                    Some(Response::Refused(KvError::Journal { error, .. })) => {
                        ActionOutcome::Refused(error)
                    }
                    response => refusal(response),
                }
            }
            Action::ReportCut { shard, planned, .. } => {
                self.report_cut(*shard, planned);
                ActionOutcome::Done
            }
            Action::Propose(step) => self.apply(gid, step),
            Action::Report { settled } => {
                self.settled.insert(gid, *settled);
                ActionOutcome::Done
            }
        };
        Some(outcome)
    }

    fn up(&mut self, gid: Gid) -> Option<&mut Replica> {
        let member = self.members.get_mut(&gid)?;
        member.up.then_some(&mut member.replica)
    }

    fn apply(&mut self, gid: Gid, step: &Step) -> ActionOutcome {
        let now = self.now;
        if let Step::Configure { delta, .. } = step {
            return self.configure(gid, delta.num, step);
        }
        match step {
            Step::Copy(CopyStep::Take(part)) if matches!(part.next, PartNext::Done { .. }) => {
                self.completed += 1;
            }
            Step::Copy(CopyStep::Restart { .. }) => self.restarted += 1,
            _ => {}
        }
        match self.up(gid).map(|group| group.step(now, step)) {
            Some(Response::Stepped) => ActionOutcome::Done,
            response => refusal(response),
        }
    }

    /// A configuration and the plans that it changes are one entry.
    fn configure(&mut self, gid: Gid, num: ConfigNum, step: &Step) -> ActionOutcome {
        let (now, plans) = (self.now, self.plans.get(&num).cloned());
        let Some(group) = self.up(gid) else {
            return refusal(None);
        };
        let is_next = group.machine.ownership().config.next() == num;
        let response = group.step(now, step);
        if is_next && response == Response::Stepped {
            let mut transaction = Transaction::new(&group.state);
            for (shard, planned) in plans.into_iter().flatten() {
                let own = |planned: &PlannedMove| planned.owner == gid || planned.target.to == gid;
                let planned = planned.filter(own);
                group.machine.plan(shard, planned, &mut transaction);
            }
            group.machine.finish_batch(&mut transaction).unwrap();
            let (batch, applied) = (transaction.into_batch(), group.state.applied());
            group.state.commit(batch, applied).unwrap();
        }
        match response {
            Response::Stepped => ActionOutcome::Done,
            other => refusal(Some(other)),
        }
    }

    pub(crate) fn ended(&mut self, gid: Gid, id: ActionId, outcome: ActionOutcome) {
        self.members.get_mut(&gid).unwrap().mover.ended(id, outcome);
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.members.values().all(|member| {
            let ownership = member.replica.machine.ownership();
            ownership.settled() == self.config.num()
        })
    }
}

fn refusal(response: Option<Response>) -> ActionOutcome {
    match response {
        Some(Response::Refused(error)) => failed(&error.to_string()),
        Some(other) => panic!("{other:?}"),
        None => failed("connection refused"),
    }
}

/// Writes of clients, some of which are sent again and again, to whomever.
#[derive(Default)]
pub(crate) struct Clients {
    sent: VecDeque<(SessionRef, Bytes)>,
    acknowledged: BTreeMap<Bytes, Vec<Sequence>>,
    /// The groups' answers, each of which must be the first one's.
    answers: BTreeMap<Sequence, Response>,
    sequence: u64,
}

impl Clients {
    pub(crate) fn write(&mut self, cluster: &mut Cluster, random: &mut Random) {
        let (session, key) = if random.one_in(3) && !self.sent.is_empty() {
            let at = random.below(self.sent.len() as u64);
            self.sent[usize::try_from(at).unwrap()].clone()
        } else {
            self.sequence += 1;
            let session = SessionRef {
                client: ClientId {
                    birth: LogTime(1_000),
                    nonce: 7,
                },
                sequence: Sequence(self.sequence),
                acked_below: Sequence(1),
            };
            let key = Bytes::from(format!("key {}", random.below(200)));
            self.sent.push_back((session, key.clone()));
            (session, key)
        };
        if self.sent.len() > 50 {
            self.sent.pop_front();
        }
        let write = Write::Append {
            key: key.clone(),
            suffix: Bytes::from(format!("{};", session.sequence.0)),
        };
        let gids: Vec<Gid> = cluster.members.keys().copied().collect();
        let gid = gids[usize::try_from(random.below(gids.len() as u64)).unwrap()];
        let now = cluster.now;
        let command = shardkv::Command {
            session: Some(session),
            write,
        };
        let group = &mut cluster.members.get_mut(&gid).unwrap().replica;
        let response = group.apply_bytes(now, 1 << 20, command.encode());
        match response {
            Response::Written(_) => {
                let first = self.answers.entry(session.sequence).or_insert_with(|| {
                    self.acknowledged
                        .entry(key)
                        .or_default()
                        .push(session.sequence);
                    response.clone()
                });
                assert_eq!(*first, response, "{session:?}");
            }
            Response::Refused(_) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Everything acknowledged is there once, where it belongs, and nowhere else.
    pub(crate) fn check(&self, cluster: &Cluster) {
        let mut found = BTreeSet::new();
        for (gid, member) in &cluster.members {
            let all = (Bound::Unbounded, Bound::Unbounded);
            let scan = |table| member.replica.state.scan(table, all, 1 << 20, 1 << 30);
            for (stored, value) in scan(Table::Data).unwrap() {
                let key = shardkv::user_key(stored);
                let shard = shard_of(&key, cluster.config.shards());
                assert_eq!(cluster.config.owner(shard), *gid, "{key:?} was left behind");
                let expected = self.acknowledged[&key].iter();
                let expected: Vec<String> = expected.map(|it| format!("{};", it.0)).collect();
                assert_eq!(value, expected.concat(), "{key:?}");
                found.insert(key);
            }
            for (stored, _) in scan(Table::Sessions).unwrap() {
                let shard = ShardId(u32::from_be_bytes(stored[..4].try_into().unwrap()));
                assert_eq!(cluster.config.owner(shard), *gid, "a session of {shard}");
            }
        }
        assert!(self.acknowledged.keys().eq(&found), "keys are missing");
    }
}

/// The cluster with outcomes on their way, and what goes wrong with them.
pub(crate) struct Weather {
    pub(crate) cluster: Cluster,
    pub(crate) random: Random,
    pub(crate) told: Vec<(Gid, ActionId, Action)>,
    pub(crate) trouble: bool,
}

impl Weather {
    pub(crate) fn step(&mut self) {
        self.cluster.now += 1 + self.random.below(5);
        let gids: Vec<Gid> = self.cluster.members.keys().copied().collect();
        for gid in gids {
            if self.trouble && self.random.one_in(100) {
                self.fail_over(gid);
            }
            for (id, action) in self.cluster.poll(gid) {
                if matches!(action, Action::Propose(_)) {
                    self.propose(gid, id, &action);
                } else {
                    self.told.push((gid, id, action));
                }
            }
        }
        let news = self.told.len().div_ceil(2);
        for _ in 0..news {
            let at = self.random.below(self.told.len() as u64);
            let (gid, id, action) = self.told.swap_remove(usize::try_from(at).unwrap());
            let lost = self.trouble && self.random.one_in(10);
            if lost && self.random.one_in(2) {
                self.cluster.ended(gid, id, failed("the question was lost"));
                continue;
            }
            match self.cluster.carry_out(gid, &action) {
                Some(_) if lost => self.cluster.ended(gid, id, failed("the answer was lost")),
                Some(outcome) => self.cluster.ended(gid, id, outcome),
                None => self.told.push((gid, id, action)),
            }
        }
    }

    /// Proposals are applied at once and in order, or not at all.
    fn propose(&mut self, gid: Gid, id: ActionId, action: &Action) {
        if self.trouble && self.random.one_in(20) {
            self.cluster.ended(gid, id, failed("overloaded"));
            return;
        }
        let outcome = self.cluster.carry_out(gid, action).unwrap();
        if self.trouble && self.random.one_in(20) {
            self.cluster.ended(gid, id, failed("its end is not known"));
        } else {
            self.cluster.ended(gid, id, outcome);
        }
    }

    /// Another node of the group leads, after a restart of the state machine; or the whole group is away for a while.
    fn fail_over(&mut self, gid: Gid) {
        let away = self.random.one_in(2);
        let member = self.cluster.members.get_mut(&gid).unwrap();
        member.replica.restart();
        assert!(member.mover.poll(self.cluster.now, None).is_empty());
        member.up = !away;
    }
}

#[test]
fn groups_converge_whatever_happens() {
    for seed in 0..20 {
        println!("seed {seed}");
        let shards = 20;
        let options = MoverOptions {
            chunk_bytes: 30,
            ..MoverOptions::default()
        };
        let mut weather = Weather {
            cluster: Cluster::new(3, shards, options),
            random: Random(seed),
            told: Vec::new(),
            trouble: true,
        };
        let mut clients = Clients::default();
        for round in 0..2_000 {
            if round % 80 == 0 {
                let random = &mut weather.random;
                let mut moves = Vec::new();
                for shard in (0..shards).map(ShardId) {
                    if round == 0 || random.one_in(3) {
                        moves.push((shard, Gid(1 + random.below(3))));
                    }
                }
                weather.cluster.give(&moves);
            }
            clients.write(&mut weather.cluster, &mut weather.random);
            weather.step();
            if round % 50 == 49 {
                for member in weather.cluster.members.values_mut() {
                    member.up = true;
                }
            }
        }
        weather.trouble = false;
        let calm = weather.cluster.now;
        let latest = weather.cluster.config.num();
        let told = |cluster: &Cluster| {
            let reports = cluster.settled.values().filter(|it| **it == latest);
            reports.count() == cluster.members.len()
        };
        while !weather.cluster.is_settled() || !told(&weather.cluster) {
            weather.step();
            assert!(weather.cluster.now < calm + 15_000, "seed {seed}");
        }
        clients.check(&weather.cluster);
        assert!(clients.answers.len() > 200, "{}", clients.answers.len());
    }
}
