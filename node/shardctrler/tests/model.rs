//! Random histories against a model: duplicates, restarts at any point, groups that lag, bounds that are reached; and the
//! same history in other batches gives the same bytes.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{GENESIS, Random, Replica, addresses, assert_balanced};
use shardctrler::{Change, Command, CtrlError, HistoryLimits, Query, Response, SessionRef};
use types::{ClientId, ConfigNum, Gid, LogTime, Sequence, ShardConfig, ShardId};

const LIMITS: HistoryLimits = HistoryLimits {
    keep: 3,
    step: 2,
    max: 12,
    max_bytes: 100_000,
};

/// The specification of the controllers, written as plainly as possible: nothing is ever forgotten.
struct Model {
    configs: Vec<Arc<ShardConfig>>,
    /// Of members, and of those that left and aren't drained: how far they are, and when they left.
    waited: BTreeMap<Gid, (u64, Option<u64>)>,
    /// Each change of a session that was carried out, and its answer.
    answered: BTreeMap<(ClientId, Sequence), Response>,
}

impl Model {
    fn new() -> Self {
        Self {
            configs: vec![Arc::new(ShardConfig::empty(GENESIS.shards))],
            waited: BTreeMap::new(),
            answered: BTreeMap::new(),
        }
    }

    fn latest(&self) -> &ShardConfig {
        self.configs.last().unwrap()
    }

    fn num(&self) -> u64 {
        self.latest().num().0
    }

    /// The groups that a change leads to, or why it isn't allowed. All generated addresses are well formed.
    fn groups_after(&self, change: &Change) -> Result<BTreeMap<Gid, Vec<String>>, CtrlError> {
        let mut groups = self.latest().groups().clone();
        match change {
            Change::Join { groups: joining } => {
                if joining.is_empty() {
                    return Err(CtrlError::NoGroups);
                }
                if joining.contains_key(&Gid::NONE) {
                    return Err(CtrlError::GidZero);
                }
                for (gid, addresses) in joining {
                    for (other, theirs) in joining.range(..gid) {
                        refuse_common(*other, theirs, addresses)?;
                    }
                }
                groups.extend(joining.clone());
                for (other, theirs) in &groups {
                    if !joining.contains_key(other) {
                        for addresses in joining.values() {
                            refuse_common(*other, theirs, addresses)?;
                        }
                    }
                }
            }
            Change::Leave { gids } => {
                if gids.is_empty() {
                    return Err(CtrlError::NoGroups);
                }
                if gids.contains(&Gid::NONE) {
                    return Err(CtrlError::GidZero);
                }
                for gid in gids {
                    groups.remove(gid).ok_or(CtrlError::UnknownGroup(*gid))?;
                }
                if groups.is_empty() {
                    return Err(CtrlError::LastGroup);
                }
            }
            Change::Move { shard, gid } => {
                if *gid == Gid::NONE {
                    return Err(CtrlError::GidZero);
                }
                if shard.0 >= GENESIS.shards {
                    let (shard, shards) = (*shard, GENESIS.shards);
                    return Err(CtrlError::NoShard { shard, shards });
                }
                if !groups.contains_key(gid) {
                    return Err(CtrlError::UnknownGroup(*gid));
                }
            }
            Change::Report { .. } => {}
        }
        Ok(groups)
    }

    /// Checks the answer to a change that is carried out now, and takes it in. `now` is the configuration after it.
    fn carry_out(
        &mut self,
        change: &Change,
        response: &Response,
        now: Arc<ShardConfig>,
        oldest: u64,
    ) {
        let before = Arc::clone(self.configs.last().unwrap());
        let groups = match self.groups_after(change) {
            Ok(groups) => groups,
            Err(error) => {
                assert_eq!(*response, Response::Refused(error), "{change:?}");
                assert_eq!(now, before);
                return;
            }
        };
        let owner_changes =
            matches!(change, Change::Move { shard, gid } if before.owner(*shard) != *gid);
        if groups == *before.groups() && !owner_changes {
            let same = Response::Changed {
                num: before.num(),
                changed: false,
                moved_shards: 0,
            };
            assert_eq!(*response, same, "{change:?}");
            assert_eq!(now, before);
            return;
        }
        if let Response::Refused(CtrlError::HistoryFull {
            limit,
            waits_for,
            settled,
        }) = response
        {
            // Only if someone is so far behind.
            let furthest = self.waited.values().map(|(settled, _)| *settled).min();
            assert_eq!(furthest, Some(settled.0));
            assert_eq!(self.waited[waits_for].0, settled.0);
            assert_eq!((oldest, *limit), (settled.0, LIMITS.max));
            assert_eq!(self.num() - oldest, LIMITS.max);
            assert_eq!(now, before);
            return;
        }
        let moved = common::moves(before.owners(), now.owners());
        let changed = Response::Changed {
            num: before.num().next(),
            changed: true,
            moved_shards: moved as u32,
        };
        assert_eq!(*response, changed, "{change:?}");
        assert_eq!(now.num(), before.num().next());
        assert_eq!(*now.groups(), groups);
        match change {
            Change::Move { shard, gid } => {
                assert_eq!(now.owner(*shard), *gid);
                assert_eq!(moved, 1);
            }
            _ if groups.keys().eq(before.groups().keys()) => assert_eq!(moved, 0),
            _ => assert_balanced(&now),
        }
        self.configs.push(now);
        self.track(&groups, &before);
    }

    fn track(&mut self, groups: &BTreeMap<Gid, Vec<String>>, before: &ShardConfig) {
        let num = self.num();
        for gid in groups.keys() {
            self.waited.entry(*gid).or_insert((num - 1, None)).1 = None;
        }
        for gid in before.groups().keys() {
            if !groups.contains_key(gid) {
                self.waited.get_mut(gid).unwrap().1 = Some(num);
            }
        }
    }

    fn report(&mut self, gid: Gid, settled: u64, response: &Response) {
        if gid == Gid::NONE {
            assert_eq!(*response, Response::Refused(CtrlError::GidZero));
            return;
        }
        if settled > self.num() {
            let (num, latest) = (ConfigNum(settled), self.latest().num());
            let future = CtrlError::Future { num, latest };
            assert_eq!(*response, Response::Refused(future));
            return;
        }
        assert_eq!(*response, Response::Reported);
        if let Some((known, left)) = self.waited.get_mut(&gid) {
            *known = settled.max(*known);
            if left.is_some_and(|left| *known >= left) {
                self.waited.remove(&gid);
            }
        }
    }

    /// Checks an answer, and takes the change in if it was carried out now.
    fn check(&mut self, command: &Command, response: &Response, replica: &Replica) -> &'static str {
        let now = replica.machine.latest();
        if let Change::Report { gid, settled } = command.change {
            self.report(gid, settled.0, response);
            return "reported";
        }
        // Carried out before the history was let go: what it was then doesn't matter, only that it was full.
        let oldest = replica.machine.oldest().0;
        let Some(session) = command.session else {
            self.carry_out(&command.change, response, now, oldest);
            return "executed";
        };
        let name = (session.client, session.sequence);
        match response {
            Response::Refused(CtrlError::SessionExpired) => {
                let age = LogTime(replica.time).since(session.client.birth);
                assert!(age > GENESIS.session_ttl_ms);
                return "expired";
            }
            Response::Refused(CtrlError::StaleSequence { .. }) => return "stale",
            Response::Refused(CtrlError::SessionLimit { .. }) => return "limit",
            _ => {}
        }
        if let Some(first) = self.answered.get(&name) {
            assert_eq!(first, response, "{command:?}");
            assert_eq!(now.as_ref(), self.latest());
            return "replayed";
        }
        self.carry_out(&command.change, response, now, oldest);
        self.answered.insert(name, response.clone());
        match response {
            Response::Refused(CtrlError::HistoryFull { .. }) => "full",
            Response::Refused(_) => "refused",
            _ => "executed",
        }
    }

    /// Checks that the kept state is correct, that it is all that is needed, and that it isn't more.
    fn check_state(&self, replica: &Replica) {
        let found = replica.machine.progress().iter();
        let found: Vec<_> = found
            .map(|(gid, it)| (*gid, (it.settled.0, it.left_in.map(|num| num.0))))
            .collect();
        let waited: Vec<_> = self.waited.iter().map(|(gid, it)| (*gid, *it)).collect();
        assert_eq!(found, waited);
        let (latest, oldest) = (self.num(), replica.machine.oldest().0);
        let furthest = self.waited.values().map(|(settled, _)| *settled).min();
        let furthest = furthest.unwrap_or(latest);
        assert!(oldest <= furthest, "{oldest} is kept, {furthest} is needed");
        let needless = furthest.min(latest.saturating_sub(LIMITS.keep));
        assert!(needless < oldest + LIMITS.step);
        assert!(latest - oldest <= LIMITS.max);
        for num in 0..=latest + 1 {
            let query = Query::Config {
                num: Some(ConfigNum(num)),
            };
            let response = replica.query(&query);
            match response {
                Response::Config(answer) => {
                    assert!((oldest..=latest).contains(&num));
                    assert_eq!(answer.config, self.configs[num as usize]);
                }
                Response::Refused(CtrlError::Compacted { .. }) => assert!(num < oldest),
                Response::Refused(CtrlError::Future { .. }) => assert!(num > latest),
                other => panic!("{other:?}"),
            }
        }
        for (gid, (settled, _)) in &self.waited {
            self.check_after(replica, *settled, Some(*gid));
            self.check_after(replica, 0, Some(*gid));
        }
        self.check_after(replica, 0, Some(Gid(99)));
        for num in 0..=latest {
            self.check_after(replica, num, None);
        }
    }

    /// One who has a configuration gets to the latest.
    fn check_after(&self, replica: &Replica, num: u64, gid: Option<Gid>) {
        let waited = gid.and_then(|gid| self.waited.get(&gid));
        let mut mine = ShardConfig::clone(&self.configs[num as usize]);
        for round in 0.. {
            let at = mine.num().0;
            if at == self.num() {
                return;
            }
            let configs = replica.after(at, 2, gid.map(|gid| gid.0));
            assert_eq!(configs.latest.0, self.num());
            if let Some(full) = configs.full {
                assert_eq!(round, 0);
                assert_eq!(full, self.configs[full.num().0 as usize]);
                mine = (*full).clone();
                match (gid, waited) {
                    (Some(_), Some((settled, _))) => assert_eq!(full.num().0, *settled),
                    (Some(_), None) => assert_eq!(full.num().0, self.num()),
                    (None, _) => assert_eq!(full.num(), replica.machine.oldest()),
                }
            } else {
                assert!(!configs.deltas.is_empty());
            }
            for delta in &configs.deltas {
                mine.apply(delta).unwrap();
                assert_eq!(mine, *self.configs[delta.num.0 as usize]);
            }
        }
    }
}

fn refuse_common(owner: Gid, theirs: &[String], addresses: &[String]) -> Result<(), CtrlError> {
    match theirs.iter().find(|it| addresses.contains(it)) {
        Some(address) => Err(CtrlError::AddressTaken {
            address: address.clone(),
            owner,
        }),
        None => Ok(()),
    }
}

/// Draws commands as people and groups with unreliable networks would send them.
struct Source {
    random: Random,
    clients: Vec<(ClientId, u64)>,
    sent: Vec<Command>,
    /// A group that isn't heard of for a while.
    silent: Gid,
}

impl Source {
    fn command(&mut self, time: u64, model: &Model) -> Command {
        if !self.sent.is_empty() && self.random.one_in(5) {
            let at = self.random.below(self.sent.len() as u64) as usize;
            return self.sent[at].clone();
        }
        if self.random.one_in(40) {
            self.silent = Gid(self.random.below(8));
        }
        let change = self.change(model);
        let session = match change {
            Change::Report { .. } => None,
            _ if self.random.one_in(4) => None,
            _ => Some(self.session(time)),
        };
        let command = Command { session, change };
        self.sent.push(command.clone());
        if self.sent.len() > 20 {
            self.sent.remove(0);
        }
        command
    }

    fn change(&mut self, model: &Model) -> Change {
        let gid = Gid(self.random.below(8));
        match self.random.below(12) {
            0 | 1 => {
                let count = self.random.below(3) + u64::from(!self.random.one_in(8));
                let groups = (0..count).map(|_| self.group()).collect();
                Change::Join { groups }
            }
            2 | 3 => {
                let gids: BTreeSet<Gid> = (0..self.random.below(3))
                    .map(|_| Gid(self.random.below(8)))
                    .collect();
                Change::Leave { gids }
            }
            4 | 5 => Change::Move {
                shard: ShardId(self.random.below(u64::from(GENESIS.shards) + 1) as u32),
                gid,
            },
            _ => {
                let settled = match self.random.below(10) {
                    0 => model.num() + 1,
                    1 | 2 => self.random.below(model.num() + 1),
                    _ => model.num(),
                };
                // News of a silent group is news of another.
                let gid = if gid == self.silent { Gid(9) } else { gid };
                let settled = ConfigNum(settled);
                Change::Report { gid, settled }
            }
        }
    }

    /// A group with its usual addresses, rarely others, and rarely those of another group.
    fn group(&mut self) -> (Gid, Vec<String>) {
        let gid = 1 + self.random.below(7);
        let gid = if self.random.one_in(30) { 0 } else { gid };
        let addresses = match self.random.below(10) {
            0 => vec![format!("moved-{gid}-{}:1", self.random.below(2))],
            1 => addresses(1 + self.random.below(7)),
            _ => addresses(gid),
        };
        (Gid(gid), addresses)
    }

    fn session(&mut self, time: u64) -> SessionRef {
        if self.clients.len() < 3 || self.random.one_in(30) {
            let client = ClientId {
                birth: LogTime(time),
                nonce: self.random.next(),
            };
            self.clients.push((client, 0));
        }
        let at = self.random.below(self.clients.len().min(5) as u64) as usize;
        let at = self.clients.len() - 1 - at;
        let (client, sequence) = &mut self.clients[at];
        *sequence += 1;
        let acked_below = sequence.saturating_sub(self.random.below(4)).max(1);
        SessionRef {
            client: *client,
            sequence: Sequence(*sequence),
            acked_below: Sequence(acked_below),
        }
    }
}

#[test]
fn random_histories_are_what_the_model_says() {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    let mut most_forgotten = 0;
    for seed in 0..100 {
        let mut replica = Replica::with_limits(GENESIS, LIMITS);
        let mut others = [
            Replica::with_limits(GENESIS, LIMITS),
            Replica::with_limits(GENESIS, LIMITS),
        ];
        let mut model = Model::new();
        let mut source = Source {
            random: Random(seed),
            clients: Vec::new(),
            sent: Vec::new(),
            silent: Gid(8),
        };
        let mut waiting: Vec<Vec<bytes::Bytes>> = vec![Vec::new(), Vec::new()];
        for _ in 0..300 {
            if source.random.one_in(20) {
                replica.time += source.random.below(4_000);
                for (other, waiting) in others.iter_mut().zip(&mut waiting) {
                    other.batch(waiting);
                    waiting.clear();
                    other.time = replica.time;
                }
            }
            let command = source.command(replica.time, &model);
            let response = replica.apply_bytes(command.encode());
            let kind = model.check(&command, &response, &replica);
            *seen.entry(kind).or_default() += 1;
            if source.random.one_in(10) {
                replica.restart();
            }
            if source.random.one_in(30) {
                model.check_state(&replica);
            }
            for (other, waiting) in others.iter_mut().zip(&mut waiting) {
                waiting.push(command.encode());
                if source.random.one_in(12) {
                    other.batch(waiting);
                    waiting.clear();
                    if source.random.one_in(3) {
                        other.restart();
                    }
                }
            }
        }
        model.check_state(&replica);
        for (other, waiting) in others.iter_mut().zip(&waiting) {
            other.batch(waiting);
            assert_eq!(other.stored(), replica.stored(), "seed {seed}");
        }
        most_forgotten = most_forgotten.max(replica.machine.oldest().0);
    }
    for kind in [
        "executed", "replayed", "refused", "reported", "full", "stale", "expired",
    ] {
        assert!(seen.get(kind).is_some_and(|count| *count > 50), "{seen:?}");
    }
    assert!(most_forgotten > 20, "{most_forgotten}");
}
