//! The mover by chance: sources that fail, answers that are lost or late, a log that refuses, leaders that change.
//!
//! A world has one group with its real machine, number 1. All else is made up: controllers whose configurations move
//! shards at rest to and fro between five groups, and what the others answer. After a time of trouble comes one of calm, in which
//! everything must be done.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use shardkv::mover::{Action, ActionId, Mover, Outcome as ActionOutcome};
use shardkv::{Chunk, Cursor, MoverOptions, ShardState, Step};
use types::{ConfigDelta, ConfigNum, Gid, Group, ShardConfig, ShardId};

use crate::common::Random;
use crate::stage::{SHARDS, Stage, configs, failed, group, key, part};

/// The number of chunks of a shard. Each has [`PART_BYTES`].
const PARTS: u64 = 3;
const PART_BYTES: usize = 10_000;
const GROUPS: u64 = 5;
const SLOTS: u32 = 3;
const RATE: u64 = 1_000_000;
const CHUNK: u32 = 20_000;
/// Milliseconds of trouble, and the most that may pass until all is done after it: a lost answer of the controllers is
/// waited for a minute.
const TROUBLE_MS: u64 = 20_000;
const CALM_MS: u64 = 90_000;

/// Faults, each as cases in a thousand.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    /// An outcome is never told.
    lost: u64,
    /// A proposal doesn't get into the log.
    refused: u64,
    /// A proposal is applied, but nobody knows.
    unknown: u64,
    /// Leadership is lost, at each event.
    deposed: u64,
    /// A source changes how it behaves, at each event.
    moods: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    Refuses,
    Silent,
}

struct World {
    stage: Stage,
    random: Random,
    trouble: Trouble,
    /// Each action's end is told to who asked for it, so that what is under way can be counted from outside.
    counts: bool,
    moods: BTreeMap<Gid, Mood>,
    config: ShardConfig,
    deltas: Vec<ConfigDelta>,
    /// Outcomes on their way.
    told: BTreeMap<(u64, ActionId), ActionOutcome>,
    log: VecDeque<(ActionId, Step)>,
    /// The times at which chunks arrived, and their sizes.
    came: Vec<(u64, u64)>,
    reported: ConfigNum,
    keys: BTreeMap<Bytes, u64>,
}

impl World {
    fn new(seed: u64, trouble: Trouble) -> Self {
        let options = MoverOptions {
            max_concurrent_pulls: SLOTS,
            max_bytes_per_second: RATE,
            chunk_bytes: CHUNK,
            ..MoverOptions::default()
        };
        let gids = (1..=GROUPS).map(Gid);
        Self {
            stage: Stage::with(Mover::new(Gid(1), SHARDS, options)),
            random: Random(seed),
            trouble,
            counts: trouble.lost == 0 && trouble.deposed == 0,
            moods: gids.map(|gid| (gid, Mood::Well)).collect(),
            config: ShardConfig::empty(SHARDS),
            deltas: Vec::new(),
            told: BTreeMap::new(),
            log: VecDeque::new(),
            came: Vec::new(),
            reported: ConfigNum(0),
            keys: BTreeMap::new(),
        }
    }

    fn chance(&mut self, thousandth: u64) -> bool {
        self.random.below(1_000) < thousandth
    }

    /// The next configuration: a few shards at rest go somewhere else, more often than not to this group or away from it.
    fn reconfigure(&mut self) {
        let share = if self.deltas.is_empty() { 1 } else { 20 };
        let mut owners = self.config.owners().to_vec();
        for shard in 0..SHARDS {
            let home = self.random.one_in(2);
            let to = Gid(if home {
                1
            } else {
                1 + self.random.below(GROUPS)
            });
            if self.random.one_in(share) && self.is_at_rest(ShardId(shard)) {
                owners[shard as usize] = to;
            }
        }
        self.push(&owners);
    }

    /// The next configuration, in which shards have these owners and targets.
    fn push(&mut self, owners: &[Gid]) {
        let groups: BTreeMap<Gid, Group> = (1..=GROUPS).map(|gid| (Gid(gid), group(gid))).collect();
        let delta = ConfigDelta::new(&self.config, &groups, owners, owners);
        self.config.apply(&delta).unwrap();
        self.deltas.push(delta);
    }

    /// Returns true if the last change of the shard's owner is settled.
    fn is_at_rest(&self, shard: ShardId) -> bool {
        let row = self.config.row(shard);
        let ownership = self.stage.group.machine.ownership();
        let mut deletes = ownership.pending_deletes.keys();
        let config = row.owner_since;
        match (row.owner, row.previous) {
            (Gid(1), _) => {
                ownership.state(shard) == Some(&ShardState::Serving { config })
                    && deletes.all(|(of, _)| *of != shard)
            }
            (_, Gid(1)) => ownership.config >= config && ownership.state(shard).is_none(),
            _ => true,
        }
    }

    /// The controllers' answer to a fetch.
    fn answer_fetch(&self, after: ConfigNum) -> ActionOutcome {
        let full = (after == ConfigNum(0)).then(|| self.config.clone());
        let deltas = self.deltas.iter().filter(|it| it.num > after);
        let deltas: Vec<ConfigDelta> = match full {
            Some(_) => Vec::new(),
            None => deltas.take(5).cloned().collect(),
        };
        configs(full, &deltas)
    }

    /// One event, then a turn.
    fn step(&mut self) {
        let now = self.stage.now;
        let next = self.told.keys().next().map(|(at, _)| *at);
        let due = self.stage.mover.next_due();
        // Something happens here without the mover in any case now and then.
        let own = now + 1 + self.random.below(30);
        let at = [next, due].into_iter().flatten().fold(own, u64::min);
        self.stage.now = now.max(at);
        while let Some(((at, id), _)) = self.told.first_key_value() {
            let (at, id) = (*at, *id);
            if at > self.stage.now {
                break;
            }
            let outcome = self.told.remove(&(at, id)).unwrap();
            self.tell(id, outcome);
        }
        self.commit_some();
        self.delete_some();
        if self.chance(self.trouble.moods) {
            let gid = Gid(1 + self.random.below(GROUPS));
            let moods = [Mood::Well, Mood::Refuses, Mood::Silent];
            let mood = moods[usize::try_from(self.random.below(3)).unwrap()];
            self.moods.insert(gid, mood);
        }
        if self.chance(self.trouble.deposed) {
            self.depose();
        }
        self.turn();
    }

    fn tell(&mut self, id: ActionId, outcome: ActionOutcome) {
        if let ActionOutcome::Pulled(chunk) = &outcome {
            self.came.push((self.stage.now, chunk.content_bytes()));
        }
        if let (Some(Action::Report { settled, .. }), ActionOutcome::Done) =
            (self.stage.open.get(&id), &outcome)
        {
            self.reported = *settled;
        }
        self.stage.open.remove(&id);
        self.stage.mover.ended(id, outcome);
    }

    /// Entries are committed in order. Who proposed them may never learn of it.
    fn commit_some(&mut self) {
        for _ in 0..self.random.below(4) {
            let Some((id, step)) = self.log.pop_front() else {
                return;
            };
            let response = self.stage.apply(&step);
            assert_eq!(response, shardkv::Response::Stepped, "{step:?}");
            if self.chance(self.trouble.unknown) {
                self.tell(id, failed("its end is not known"));
            } else if !self.chance(self.trouble.lost) {
                self.tell(id, ActionOutcome::Done);
            }
        }
    }

    /// The others take what was fenced for them.
    fn delete_some(&mut self) {
        let ownership = self.stage.group.machine.ownership();
        for (shard, it) in &ownership.shards {
            if let ShardState::Fenced { config, .. } = it.state
                && self.random.one_in(5)
            {
                let shard = *shard;
                self.stage.apply(&Step::Delete { shard, config });
            }
        }
    }

    /// Another leads for a moment. Of what was proposed a part is in its log.
    fn depose(&mut self) {
        for _ in 0..self.random.below(self.log.len() as u64 + 1) {
            let (_, step) = self.log.pop_front().unwrap();
            self.stage.apply(&step);
        }
        self.log.clear();
        self.stage.leads = false;
        assert!(self.stage.turn().is_empty());
        assert_eq!(self.stage.mover.next_due(), None);
        self.stage.leads = true;
        if self.random.one_in(2) {
            self.stage.open.clear();
        }
        // The rest ends late, which is not to matter.
    }

    fn turn(&mut self) {
        let before: Vec<ActionId> = self.stage.open.keys().copied().collect();
        self.stage.turn();
        assert_eq!(self.stage.mover.fatal(), None);
        let new = self
            .stage
            .open
            .iter()
            .filter(|(id, _)| !before.contains(id));
        let new: Vec<(ActionId, Action)> = new.map(|(id, it)| (*id, it.clone())).collect();
        for (id, action) in new {
            self.start(id, action);
        }
        self.check();
    }

    fn start(&mut self, id: ActionId, action: Action) {
        let (delay, outcome) = match action {
            Action::Propose(step) => {
                if self.chance(self.trouble.refused) {
                    (1, failed("overloaded"))
                } else {
                    self.log.push_back((id, step));
                    return;
                }
            }
            Action::FetchConfigs { after } => {
                let is_quiet = after == self.config.num();
                let wait = if is_quiet { 200 } else { 2 };
                (wait, self.answer_fetch(after))
            }
            Action::Report { .. } => (3, ActionOutcome::Done),
            Action::Pull {
                shard,
                config,
                source,
                after,
                max_bytes,
                ..
            } => {
                assert_eq!(max_bytes, CHUNK);
                let chunk = self.cut(shard, config, &after);
                self.answer(source, ActionOutcome::Pulled(chunk))
            }
            Action::Delete { source, .. } => self.answer(source, ActionOutcome::Done),
            Action::Copy { .. } | Action::Journal { .. } | Action::ReportCut { .. } => {
                panic!("no move is planned")
            }
        };
        if !self.chance(self.trouble.lost) {
            let at = self.stage.now + delay + self.random.below(10);
            self.told.insert((at, id), outcome);
        }
    }

    fn answer(&self, source: Gid, outcome: ActionOutcome) -> (u64, ActionOutcome) {
        match self.moods[&source] {
            Mood::Well => (5, outcome),
            Mood::Refuses => (2, failed("connection refused")),
            Mood::Silent => (3_000, failed("timeout")),
        }
    }

    fn cut(&mut self, shard: ShardId, config: ConfigNum, after: &Cursor) -> Chunk {
        let number = match after {
            Cursor::Data(key) if key.is_empty() => 0,
            Cursor::Data(key) => self.keys[key] + 1,
            Cursor::Sessions(_) | Cursor::Rows(_) => panic!("there are only pairs"),
        };
        self.keys.insert(key(shard.0, number), number);
        part(shard.0, config.0, number, PARTS, PART_BYTES)
    }

    /// Checks the invariants that hold at every moment.
    fn check(&mut self) {
        let open = self.stage.open.values();
        let count = |wanted: fn(&Action) -> bool| open.clone().filter(|it| wanted(it)).count();
        if self.counts {
            assert!(count(|it| matches!(it, Action::FetchConfigs { .. })) <= 1);
            assert!(count(|it| matches!(it, Action::Report { .. })) <= 1);
            assert!(count(|it| matches!(it, Action::Propose(Step::Configure(_)))) <= 1);
            for gid in (1..=GROUPS).map(Gid) {
                let from = |action: &&Action| matches!(action, Action::Pull { source, .. } if *source == gid);
                let pulls = open.clone().filter(from).count();
                assert!(pulls <= SLOTS as usize, "{pulls} of {gid}");
                let of = |action: &&Action| matches!(action, Action::Delete { source, .. } if *source == gid);
                let deletes = open.clone().filter(of).count();
                assert!(deletes <= 16, "{deletes} of {gid}");
            }
        }
        if self.random.one_in(50) {
            self.check_reasons();
        }
    }

    /// Checks that each shard without progress has a reason.
    fn check_reasons(&self) {
        let ownership = self.stage.group.machine.ownership();
        for (shard, it) in &ownership.shards {
            let waits = self.stage.waits_for(shard.0).is_some();
            match it.state {
                ShardState::Fenced { .. } => assert!(waits, "{shard}"),
                ShardState::Pulling { .. } => {
                    let open = self.stage.open.values().any(|action| match action {
                        Action::Pull { shard: of, .. } => of == shard,
                        Action::Propose(Step::Install(chunk)) => chunk.shard == *shard,
                        _ => false,
                    });
                    assert!(waits || open || !self.counts, "{shard}: {it:?}");
                }
                ShardState::Serving { .. }
                | ShardState::Copying { .. }
                | ShardState::Completing { .. } => {}
            }
        }
    }

    /// In no stretch of time did more come in than the pace allows. What is asked for is paced, and what comes is at most
    /// what was asked for, but may come later, together.
    fn check_pace(&self) {
        let together = u64::from(CHUNK) * u64::from(SLOTS) * GROUPS;
        let size = (RATE / 10 + together) * 1_000;
        let (mut level, mut last) = (size, 0);
        for (at, bytes) in &self.came {
            level = (level + (at - last) * RATE).min(size);
            last = *at;
            assert!(level >= bytes * 1_000, "too fast");
            level -= bytes * 1_000;
        }
    }

    fn is_done(&self) -> bool {
        let ownership = self.stage.group.machine.ownership();
        let latest = self.config.num();
        ownership.settled() == latest && self.reported == latest
    }

    fn run(&mut self) {
        let begin = self.stage.now;
        while self.stage.now < begin + TROUBLE_MS {
            if self.random.one_in(60) {
                self.reconfigure();
            }
            self.step();
        }
        self.trouble = Trouble::default();
        for mood in self.moods.values_mut() {
            *mood = Mood::Well;
        }
        let calm = self.stage.now;
        while !self.is_done() {
            self.step();
            assert!(
                self.stage.now < calm + CALM_MS,
                "not done: {:?}, under way {:?}",
                self.stage.group.machine.ownership(),
                self.stage.open
            );
        }
        for (shard, owner) in (0..).zip(self.config.owners()) {
            assert_eq!(self.stage.serves(shard), *owner == Gid(1), "s{shard}");
        }
        self.check_pace();
    }
}

#[test]
fn all_gets_done_whatever_happens() {
    for seed in 0..30 {
        let mut random = Random(seed);
        let mut some = |most| {
            if random.one_in(2) {
                random.below(most)
            } else {
                0
            }
        };
        let trouble = Trouble {
            lost: some(50),
            refused: some(200),
            unknown: some(200),
            deposed: some(10),
            moods: some(100),
        };
        println!("seed {seed}: {trouble:?}");
        World::new(seed, trouble).run();
    }
}

/// Group 2 is well all the time, the others are dead: its shards are here as fast as if it were alone.
#[test]
fn dead_sources_starve_nobody() {
    for seed in 0..10 {
        for mood in [Mood::Refuses, Mood::Silent] {
            let mut world = World::new(seed, Trouble::default());
            for gid in 3..=GROUPS {
                world.moods.insert(Gid(gid), mood);
            }
            let mut owners = Vec::new();
            for _ in 0..SHARDS {
                owners.push(Gid(2 + world.random.below(GROUPS - 1)));
            }
            world.push(&owners);
            world.push(&vec![Gid(1); owners.len()]);
            let mine = owners.iter().filter(|owner| **owner == Gid(2)).count();
            let begin = world.stage.now;
            let served = |world: &World| (0..SHARDS).filter(|it| world.stage.serves(*it)).count();
            while served(&world) < mine {
                world.step();
                let took = world.stage.now - begin;
                // Their parts at the pace that is set, twice.
                let bytes = mine as u64 * PARTS * PART_BYTES as u64;
                assert!(took < 2 * bytes * 1_000 / RATE, "{took} ms");
            }
        }
    }
}
