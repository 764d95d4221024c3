//! A cluster in which everything goes wrong, and its clients.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use replica::{StateReader, Table};
use shardkv::mover::{Action, ActionId};
use shardkv::{JOURNAL_TTL_MS, MoverOptions, Response, SessionRef, Write};
use types::{ClientId, Gid, LogTime, Sequence, ShardId, shard_of};

use crate::cluster::{Cluster, Counts, Member};
use crate::common::Random;
use crate::stage::failed;

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
        let gid = random.pick(&cluster.gids());
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
                let shard = shard_of(&key, cluster.config().shards());
                assert_eq!(
                    cluster.config().owner(shard),
                    *gid,
                    "{key:?} was left behind"
                );
                let expected = self.acknowledged[&key].iter();
                let expected: Vec<String> = expected.map(|it| format!("{};", it.0)).collect();
                assert_eq!(value, expected.concat(), "{key:?}");
                found.insert(key);
            }
            for (stored, _) in scan(Table::Sessions).unwrap() {
                let shard = ShardId(u32::from_be_bytes(stored[..4].try_into().unwrap()));
                assert_eq!(cluster.config().owner(shard), *gid, "a session of {shard}");
            }
        }
        assert!(self.acknowledged.keys().eq(&found), "keys are missing");
    }
}

/// The cluster with outcomes on their way, and what goes wrong with them.
pub(crate) struct Weather {
    pub(crate) cluster: Cluster,
    pub(crate) clients: Clients,
    pub(crate) random: Random,
    pub(crate) told: Vec<(Gid, ActionId, Action)>,
    pub(crate) trouble: bool,
}

impl Weather {
    pub(crate) fn new(cluster: Cluster, seed: u64) -> Self {
        Self {
            cluster,
            clients: Clients::default(),
            random: Random(seed),
            told: Vec::new(),
            trouble: true,
        }
    }

    /// A time of trouble, in which clients write all the time. `event` does the rest, at the beginning of each round.
    pub(crate) fn storm(&mut self, event: impl Fn(&mut Self, u32)) {
        for round in 0..2_000 {
            event(self, round);
            self.clients.write(&mut self.cluster, &mut self.random);
            self.step();
            if round % 50 == 49 {
                for member in self.cluster.members.values_mut() {
                    member.up = true;
                }
            }
        }
    }

    /// A time without trouble, in which everything must be done. Everything acknowledged is where it belongs then.
    pub(crate) fn calm(&mut self, limit_ms: u64) {
        self.trouble = false;
        let end = self.cluster.now + limit_ms;
        while !self.cluster.is_settled() {
            self.step();
            let members = self.cluster.members.iter();
            let lag = |member: &Member| {
                let ownership = member.replica.machine.ownership();
                (
                    ownership.config,
                    ownership.settled(),
                    member.mover.lags_because(self.cluster.now),
                )
            };
            assert!(
                self.cluster.now < end,
                "{} {:?} {:?}",
                self.cluster.config().num(),
                self.cluster.moving(),
                members.map(|(gid, it)| (gid, lag(it))).collect::<Vec<_>>()
            );
        }
        self.clients.check(&self.cluster);
        self.check_silence();
    }

    /// Checks that nobody does anything where there is nothing to do, but report now and then.
    fn check_silence(&mut self) {
        let (from, end) = (self.cluster.now, self.cluster.now + 1_000);
        while self.cluster.now < end {
            self.step();
            let mut told = self.told.iter();
            let idle = |action: &Action| {
                matches!(action, Action::FetchConfigs { .. } | Action::Report { .. })
            };
            assert!(
                told.all(|(_, _, action)| idle(action)),
                "{from} {:?}",
                self.told
            );
        }
    }

    /// Targets change: about one shard of `share` is to go anywhere.
    pub(crate) fn aim(&mut self, share: u64) {
        let members: Vec<Gid> = self.cluster.config().members().collect();
        let mut moves = Vec::new();
        for shard in (0..self.cluster.config().shards()).map(ShardId) {
            if self.random.one_in(share) {
                moves.push((shard, self.random.pick(&members)));
            }
        }
        self.cluster.controllers.aim(&moves);
    }

    pub(crate) fn step(&mut self) {
        self.cluster.now += 1 + self.random.below(5);
        for gid in self.cluster.gids() {
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

impl Random {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

/// The last group comes and goes. The others stay.
fn come_or_go(weather: &mut Weather, last: Gid) {
    let groups = weather.cluster.config().groups();
    let stays = groups.get(&last).is_some_and(|group| !group.leaving);
    if stays {
        let to = Gid(1 + weather.random.below(last.0 - 1));
        weather.cluster.controllers.leave(last, to);
    } else {
        weather.cluster.controllers.join(last);
        weather.aim(3);
    }
}

#[test]
fn groups_converge_whatever_happens() {
    let (mut counts, mut drained) = (Counts::default(), 0);
    for seed in 0..20 {
        println!("seed {seed}");
        let options = MoverOptions {
            chunk_bytes: 30,
            ..MoverOptions::default()
        };
        let groups = 4;
        let mut weather = Weather::new(Cluster::new(groups, 20, options), seed);
        weather.cluster.controllers.aim(&[]);
        weather.aim(1);
        weather.storm(|weather, round| {
            if round % 80 == 0 {
                weather.aim(3);
            }
            if round % 80 == 30 && weather.random.one_in(4) {
                come_or_go(weather, Gid(groups));
            }
            let is_late = round % 80 == 60 && weather.random.one_in(3);
            if is_late && weather.random.one_in(2) || weather.random.one_in(400) {
                weather.cluster.now += JOURNAL_TTL_MS + 1;
            }
            if is_late {
                weather.cluster.cut_late();
            }
        });
        weather.calm(15_000);
        let answers = weather.clients.answers.len();
        assert!(answers > 200, "{answers}");
        println!("{:?}", weather.cluster.counts);
        counts += weather.cluster.counts;
        drained += weather.cluster.controllers.drained;
    }
    assert!(drained > 10, "{drained}");
    let Counts {
        cuts,
        completed,
        restarted,
        pulled,
    } = counts;
    assert!(
        cuts > 200 && completed > 200 && restarted > 0 && pulled > 100,
        "{counts:?}"
    );
}
