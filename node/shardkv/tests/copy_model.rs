//! Two groups that copy a shard from each other while clients write, targets change, the controllers cut at any time, groups skip
//! configurations, replicas cut the logs differently, restart and restore snapshots, and old steps arrive late. What a group
//! serves must begin as the shard at the fence.
//!
//! Chance finds most mistakes. Beside that, one move is repeated with one disturbance before each of its steps.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::Random;
use common::clients::Source;
use common::replicas::{
    BYSTANDER, Group, Operation, Rows, SHARD, check_seen, configuration, pass_time, target,
};
use raft::Index;
use shardkv::{
    Bug, CopyCursor, CopyId, CopyRequest, CopyStep, JournalError, JournalStep, KEYSPACE_LEVEL,
    KvError, Next, PartNext, PlannedMove, Query, Response, SessionClock, ShardState, Step,
};
use types::{ConfigNum, Gid, ShardConfig, ShardId};

/// The groups. The shard that doesn't move stays with the second one, whose writes forget sessions of both.
const GIDS: [Gid; 2] = [Gid(1), Gid(2)];

struct World {
    random: Random,
    /// Draws changes of rows of keyspaces, and the groups' feature levels.
    rows: Random,
    /// True if there are keyspaces. They hide what some bugs do to sessions, because copies take longer.
    has_rows: bool,
    clients: Source,
    groups: [Group; 2],
    config: ShardConfig,
    /// The shard at each fence: its rows and its clock.
    fences: BTreeMap<ConfigNum, (Rows, SessionClock)>,
    /// Steps of each group that may arrive again.
    sent: [Vec<(Bytes, bool)>; 2],
    /// The most bytes that are asked for at once.
    part_bytes: u64,
    /// True if the destination drops a copy now and then.
    drops: bool,
    seen: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = Random(seed);
        let groups = GIDS.map(|gid| Group::new(gid, random.below(20_000), bug));
        let owner = random.below(2) as usize;
        let mut world = Self {
            random,
            rows: Random(seed + 2_000_000),
            has_rows: seed.is_multiple_of(3),
            clients: Source::new(seed + 1_000_000),
            groups,
            config: ShardConfig::empty(2),
            fences: BTreeMap::new(),
            sent: [Vec::new(), Vec::new()],
            part_bytes: 200,
            drops: true,
            seen: BTreeMap::new(),
        };
        world.configure(GIDS[owner], GIDS[owner]);
        for group in &mut world.groups {
            if world.rows.one_in(3) {
                group.level = 1;
            }
        }
        world
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn log(&mut self, at: usize, operation: Operation, may_serve: bool) {
        let time = self.clients.time;
        self.groups[at].log(&mut self.random, time, operation, may_serve);
    }

    fn propose(&mut self, at: usize, bytes: Bytes) {
        self.log(at, Operation::Encoded(bytes), false);
    }

    /// Proposes a step, which may arrive again later.
    fn step(&mut self, at: usize, step: &Step) {
        let may_serve = match step {
            Step::Configure(_) | Step::Copy(CopyStep::Restart { .. }) => true,
            Step::Install(chunk) => matches!(chunk.next, Next::Done { .. }),
            Step::Copy(CopyStep::Take(part)) => matches!(part.next, PartNext::Done { .. }),
            _ => false,
        };
        let bytes = step.encode();
        if self.random.one_in(3) {
            self.sent[at].push((bytes.clone(), may_serve));
        }
        self.log(at, Operation::Encoded(bytes), may_serve);
    }

    fn owner(&self) -> usize {
        usize::from(self.config.owner(SHARD) == GIDS[1])
    }

    fn is_planned(&self) -> bool {
        target(&self.config).to == GIDS[1 - self.owner()]
    }

    /// The controllers make a configuration. The groups hear of it later.
    fn configure(&mut self, target: Gid, owner: Gid) {
        self.config = configuration(&self.config, GIDS[1], target, owner);
    }

    /// The target becomes the other group, the owner, or a group that doesn't copy.
    fn retarget(&mut self, to: Gid) {
        if target(&self.config).to != to {
            self.configure(to, GIDS[self.owner()]);
        }
    }

    /// Returns true if the target may have reported a copy: the owner serves the shard, and the target has deleted what it had of an
    /// earlier stay.
    fn may_cut(&self) -> bool {
        let state = |group: usize| {
            let ownership = self.groups[group].newest().machine().ownership();
            ownership.state(SHARD).cloned()
        };
        let is_served = matches!(state(self.owner()), Some(ShardState::Serving { .. }));
        let is_fenced = matches!(state(1 - self.owner()), Some(ShardState::Fenced { .. }));
        self.is_planned() && is_served && !is_fenced
    }

    /// The controllers cut, without regard to the copy's progress.
    fn cut(&mut self) {
        if self.may_cut() {
            let to = target(&self.config).to;
            self.configure(to, to);
            self.count("cut");
        }
    }

    fn act(&mut self) {
        match self.rows.below(200) {
            0 => self.raise_levels(),
            1..=20 if self.has_rows => self.change_row(),
            _ => {}
        }
        match self.random.below(200) {
            0..=59 => self.write(),
            60 => {
                let clear = Operation::clear(&mut self.random, &mut self.clients);
                self.log(self.owner(), clear, false);
            }
            61 if !self.is_planned() => self.retarget(GIDS[1 - self.owner()]),
            62 if self.random.one_in(4) => {
                let (owner, next) = (self.owner(), self.random.below(3));
                self.retarget([GIDS[owner], BYSTANDER, GIDS[1 - owner]][next as usize]);
                if self.random.one_in(2) {
                    self.retarget(GIDS[1 - owner]);
                }
            }
            63 if self.random.one_in(3) => self.cut(),
            64..=119 => self.advance_some(),
            120 | 121 => self.disturb(),
            122..=126 => self.repeat(),
            127..=133 => {
                let (at, node) = self.any();
                self.take_up(at, node);
            }
            _ => {
                let (at, node) = self.any();
                self.drive(at, node);
            }
        }
    }

    /// All members of both groups support keyspaces.
    fn raise_levels(&mut self) {
        for group in &mut self.groups {
            group.level = KEYSPACE_LEVEL;
        }
    }

    fn change_row(&mut self) {
        let (at, time) = (self.owner(), self.clients.time);
        let operation = Operation::keyspace(&mut self.rows);
        self.groups[at].log(&mut self.rows, time, operation, false);
    }

    /// Draws a replica of a group.
    fn any(&mut self) -> (usize, usize) {
        (self.random.below(2) as usize, self.random.below(2) as usize)
    }

    fn write(&mut self) {
        pass_time(&mut self.random, &mut self.clients);
        let command = self.clients.command().encode();
        // Clients may be behind the configurations.
        let at = if self.random.one_in(5) {
            self.random.below(2) as usize
        } else {
            self.owner()
        };
        self.propose(at, command);
    }

    /// A leader proposes to take up the latest configuration.
    fn take_up(&mut self, at: usize, node: usize) {
        let accepted = self.groups[at].nodes[node].machine().ownership().config;
        let Some(step) = self.groups[at].take_up(node, &self.config) else {
            return;
        };
        if accepted > ConfigNum(0) && accepted.next() < self.config.num() {
            self.count("skipped");
        }
        self.step(at, &step);
    }

    fn advance_some(&mut self) {
        let (at, node) = self.any();
        let count = 1 + self.random.below(9);
        self.advance(at, node, count as usize);
    }

    /// A replica applies operations as one batch, after which the shard must be right.
    fn advance(&mut self, at: usize, node: usize, count: usize) {
        let before = self.groups[at].nodes[node].state();
        self.groups[at].advance(node, count);
        self.groups[at].check_equal();
        let here = &self.groups[at].nodes[node];
        let now = here.state();
        match (&now, here.clock()) {
            (Some(ShardState::Fenced { config, .. }), Some(clock)) => {
                let fenced = (here.rows(), clock);
                let known = self.fences.entry(*config).or_insert_with(|| fenced.clone());
                assert_eq!(*known, fenced, "the fenced shard differs");
            }
            (Some(ShardState::Serving { config }), Some(clock))
                if *config > ConfigNum(1)
                    && !matches!(before, Some(ShardState::Serving { .. })) =>
            {
                let (rows, fenced_at) = &self.fences[config];
                assert_eq!(here.rows(), *rows, "the shard differs from the fenced one");
                assert_eq!(clock, *fenced_at);
                for (key, value) in &rows[0] {
                    let (key, value) = (key.clone(), Some(value.clone()));
                    let answer = here.replica.query(&Query::Get { key });
                    assert_eq!(answer, Response::Value(value), "it isn't served");
                }
                if !rows[2].is_empty() {
                    self.count("served with rows");
                }
                self.count("served");
            }
            (None, _) => {
                assert_eq!(here.rows(), Rows::default(), "an absent shard has rows");
                if matches!(before, Some(ShardState::Copying { .. })) {
                    self.count("emptied");
                }
            }
            _ => {}
        }
    }

    fn disturb(&mut self) {
        let at = self.random.below(2) as usize;
        if self.groups[at].disturb(&mut self.random) {
            self.count("restored");
        }
    }

    /// A step arrives again, late.
    fn repeat(&mut self) {
        let at = self.random.below(2) as usize;
        let sent = &mut self.sent[at];
        if sent.is_empty() {
            return;
        }
        let chosen = self.random.below(sent.len() as u64) as usize;
        let (bytes, may_serve) = sent.swap_remove(chosen);
        self.log(at, Operation::Encoded(bytes), may_serve);
    }

    /// A leader of a group does something for the shard, by a state that may be old.
    fn drive(&mut self, at: usize, node: usize) {
        let ownership = self.groups[at].nodes[node].machine().ownership();
        if let Some(((shard, config), _)) = ownership.pending_deletes.iter().next() {
            self.delete(at, *shard, *config);
        }
        let planned = ownership.planned.get(&SHARD).copied();
        let planned = planned.filter(|planned| planned.target.to == GIDS[at]);
        match (ownership.state(SHARD), planned) {
            (None, Some(planned)) => self.begin(at, planned),
            // The shard has to be deleted first, here and at the source. The machines must know that.
            (Some(ShardState::Fenced { .. }), Some(planned)) if self.random.one_in(8) => {
                if self.random.one_in(2) {
                    self.begin(at, planned);
                } else {
                    let invented = Index(self.random.below(200));
                    self.start(at, planned, invented);
                }
            }
            (Some(ShardState::Copying { copy, cursor, .. }), _) => {
                self.steer(at, *copy, cursor);
                self.copy(at, *copy, None);
            }
            (Some(ShardState::Completing { copy, config, .. }), _) => {
                self.copy(at, *copy, Some(*config));
            }
            (Some(ShardState::Pulling { config, after, .. }), _) => {
                let query = Query::Pull {
                    shard: SHARD,
                    config: *config,
                    after: after.clone(),
                    max_bytes: 1 + self.random.below(self.part_bytes) as u32,
                };
                let source = &self.groups[1 - at].nodes[node];
                if let Response::Chunk(chunk) = source.replica.query(&query) {
                    self.step(at, &Step::Install(*chunk));
                    self.count("chunk");
                }
            }
            _ => {}
        }
    }

    fn delete(&mut self, at: usize, shard: ShardId, config: ConfigNum) {
        if self.random.one_in(12) {
            self.propose(1 - at, Step::Delete { shard, config }.encode());
        }
        // The source's leader has applied the delete if the shard's fence is over there.
        let source = self.groups[1 - at].newest().machine().ownership();
        let fenced = |state: &ShardState| matches!(state, ShardState::Fenced { config: by, .. } if *by == config);
        if source.config >= config && !source.state(shard).is_some_and(fenced) {
            self.propose(at, Step::Deleted { shard, config }.encode());
        }
    }

    /// Begins a journal at the source, or the copy of a journal that the source's leader has.
    fn begin(&mut self, at: usize, planned: PlannedMove) {
        let (shard, target) = (SHARD, planned.target);
        let newest = self.groups[1 - at].newest().machine().journals().get(shard);
        match newest.filter(|journal| journal.target == target) {
            Some(journal) => {
                let journal = journal.id;
                self.start(at, planned, journal);
                self.count("started");
            }
            None => self.propose(1 - at, JournalStep::Begin { shard, target }.encode()),
        }
    }

    fn start(&mut self, at: usize, planned: PlannedMove, journal: Index) {
        let since = planned.target.since;
        let start = CopyStep::Start {
            shard: SHARD,
            source: planned.owner,
            copy: CopyId { since, journal },
        };
        self.step(at, &Step::Copy(start));
    }

    /// Seals, drops and renews at the source, or drops the copy.
    fn steer(&mut self, at: usize, copy: CopyId, cursor: &CopyCursor) {
        let (shard, journal) = (SHARD, copy.journal);
        let source = &self.groups[1 - at];
        let step = match (self.random.below(40), cursor) {
            (0..=6, _) => source.seal(journal),
            (7..=10, CopyCursor::Page { generation, .. }) => JournalStep::Drop {
                shard,
                journal,
                generation: generation - 1,
            },
            (11, _) => JournalStep::Renew { shard, journal },
            (12, _) if self.drops => {
                return self.step(at, &Step::Copy(CopyStep::Drop { shard, copy }));
            }
            _ => return,
        };
        self.propose(1 - at, step.encode());
    }

    /// Asks a replica of the source for the copy's next part.
    fn copy(&mut self, at: usize, copy: CopyId, fence: Option<ConfigNum>) {
        let shard = SHARD;
        let state = self.groups[at].newest().state();
        let Some(ShardState::Copying { cursor, .. } | ShardState::Completing { cursor, .. }) =
            state
        else {
            return;
        };
        let request = CopyRequest {
            shard,
            copy,
            fence,
            after: cursor,
            max_bytes: 1 + self.random.below(self.part_bytes) as u32,
        };
        let source = &self.groups[1 - at];
        let node = &source.nodes[self.random.below(2) as usize];
        let leads = node.applied == source.newest().applied;
        match node.replica.query(&Query::Copy(request)) {
            Response::Part(part) => {
                let done = matches!(part.next, PartNext::Done { .. });
                self.count(if done { "done" } else { "part" });
                self.step(at, &Step::Copy(CopyStep::Take(*part)));
            }
            Response::Refused(KvError::Journal { error, .. }) => match (error, fence) {
                (JournalError::NotSealed { .. }, None) => self.count("not sealed"),
                (JournalError::Ended { .. }, Some(config)) => {
                    self.count("restarted");
                    let restart = CopyStep::Restart {
                        shard,
                        config,
                        copy,
                    };
                    self.step(at, &Step::Copy(restart));
                }
                (JournalError::Ended { .. } | JournalError::Unknown { .. }, None) if leads => {
                    self.count("dropped");
                    self.step(at, &Step::Copy(CopyStep::Drop { shard, copy }));
                }
                // A replica that is behind; or the request has one copy's name and another's cursor.
                (JournalError::Ended { .. } | JournalError::Unknown { .. }, None)
                | (JournalError::Dropped { .. } | JournalError::BadCursor, _) => {}
                other => panic!("{other:?}"),
            },
            Response::Refused(KvError::ShardNotReady { .. } | KvError::ShardGone { .. }) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Everything ends: the shard is served by its target, and nothing is owed.
    fn finish(&mut self) {
        self.raise_levels();
        for _ in 0..100_000 {
            if self.is_planned() {
                self.cut();
            } else if self
                .groups
                .iter()
                .all(|it| it.is_settled(self.config.num()))
            {
                let state = self.groups[self.owner()].newest().state();
                let serves = matches!(state, Some(ShardState::Serving { .. }));
                assert!(serves, "not served: {state:?}");
                return;
            }
            let (at, node) = self.any();
            match self.random.below(10) {
                0..=3 => self.advance_some(),
                4 => self.take_up(at, node),
                5 => self.disturb(),
                _ => self.drive(at, node),
            }
        }
        let states = self.groups.each_ref().map(|group| group.newest().state());
        panic!("the move doesn't end: {states:?}");
    }
}

fn run(seed: u64, bug: Option<Bug>) -> BTreeMap<&'static str, u64> {
    let mut world = World::new(seed, bug);
    let count = 200 + world.random.below(1_500);
    for _ in 0..count {
        world.act();
    }
    world.finish();
    world.seen
}

#[test]
fn what_is_served_begins_as_the_shard_at_its_fence() {
    let expected = [
        "chunk",
        "cut",
        "done",
        "dropped",
        "emptied",
        "not sealed",
        "part",
        "restarted",
        "restored",
        "served",
        "served with rows",
        "skipped",
        "started",
    ];
    check_seen(300, &expected, |seed| run(seed, None));
}

#[cfg(feature = "bugs")]
#[test]
fn known_bugs_are_found() {
    let bugs = Bug::OF_COPIES.into_iter();
    common::replicas::check_found(bugs, |seed, bug| {
        run(seed, Some(bug));
    });
}

/// A disturbance before a step of a move that runs straight on otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    /// The target becomes the owner, and the destination again.
    TargetBack,
    /// The target becomes a third group, and the destination again.
    TargetElsewhere,
    /// The same, but both groups hear only of the last configuration.
    TargetUnheard,
    /// All replicas restart before this step and each later one.
    Restarts,
    /// A replica of the source goes on with a snapshot of the other's.
    SourceSnapshot,
    /// A replica of the destination goes on with a snapshot of the other's.
    DestinationSnapshot,
    /// The controllers cut.
    Cut,
}

impl World {
    /// Both groups take up the latest configuration, and all replicas apply their logs.
    fn apply_all(&mut self) {
        for at in 0..2 {
            self.take_up(at, 0);
            self.catch_up(at, 0);
            self.catch_up(at, 1);
        }
    }

    fn catch_up(&mut self, at: usize, node: usize) {
        while !self.groups[at].is_current(node) {
            self.advance(at, node, 3);
        }
    }

    /// The target changes twice before the cut, so that a copy is useless.
    fn retarget_twice(&mut self, first: Gid, unheard: bool) {
        let (source, destination) = (self.owner(), 1 - self.owner());
        self.retarget(first);
        if !unheard {
            self.apply_all();
            for node in &self.groups[source].nodes {
                assert_eq!(node.machine().journals().get(SHARD), None);
            }
        }
        self.retarget(GIDS[destination]);
        self.apply_all();
        for node in &self.groups[destination].nodes {
            assert_eq!((node.state(), node.rows()), (None, Rows::default()));
        }
    }

    fn snapshot(&mut self, at: usize) {
        let command = self.clients.command().encode();
        self.propose(at, command);
        self.catch_up(at, 0);
        assert!(self.groups[at].restore());
    }

    fn upset(&mut self, disturbance: Disturbance, (source, destination): (usize, usize)) {
        let is_cut = self.owner() == destination;
        match disturbance {
            Disturbance::TargetBack if !is_cut => self.retarget_twice(GIDS[source], false),
            Disturbance::TargetElsewhere if !is_cut => self.retarget_twice(BYSTANDER, false),
            Disturbance::TargetUnheard if !is_cut => self.retarget_twice(BYSTANDER, true),
            Disturbance::Cut if !is_cut => self.cut(),
            Disturbance::Restarts => {
                let nodes = self.groups.iter_mut().flat_map(|group| &mut group.nodes);
                nodes.for_each(|node| node.replica.restart());
            }
            Disturbance::SourceSnapshot => self.snapshot(source),
            Disturbance::DestinationSnapshot => self.snapshot(destination),
            _ => {}
        }
    }
}

/// Moves the shard once, with a disturbance before the step `upset_at`. Returns true if the move ended before that step.
fn move_once(seed: u64, disturbance: Disturbance, upset_at: u64) -> bool {
    let mut world = World::new(seed, None);
    world.part_bytes = 40;
    // Many small parts must arrive in a row.
    world.drops = false;
    let (source, destination) = (world.owner(), 1 - world.owner());
    world.apply_all();
    world.raise_levels();
    for _ in 0..100 {
        world.write();
        if world.has_rows && world.rows.one_in(8) {
            world.change_row();
        }
    }
    world.retarget(GIDS[destination]);
    for step in 0..10_000 {
        world.apply_all();
        let repeats = disturbance == Disturbance::Restarts && step > upset_at;
        if step == upset_at || repeats {
            world.upset(disturbance, (source, destination));
            world.apply_all();
        }
        match world.groups[destination].newest().state() {
            Some(ShardState::Serving { .. }) => {
                world.finish();
                assert_eq!(world.owner(), destination);
                return step < upset_at;
            }
            Some(ShardState::Copying {
                cursor: CopyCursor::Page {
                    generation: 3.., ..
                },
                ..
            }) => world.cut(),
            _ => {}
        }
        world.write();
        world.drive(destination, 0);
    }
    panic!("the move doesn't end");
}

#[test]
fn a_disturbance_before_any_step_of_a_move_does_no_harm() {
    for disturbance in [
        Disturbance::TargetBack,
        Disturbance::TargetElsewhere,
        Disturbance::TargetUnheard,
        Disturbance::Restarts,
        Disturbance::SourceSnapshot,
        Disturbance::DestinationSnapshot,
        Disturbance::Cut,
    ] {
        let steps = |seed| (0..1_000).find(|step| move_once(seed, disturbance, *step));
        let steps: u64 = (0..6).filter_map(steps).sum();
        assert!(steps > 100, "{disturbance:?}: only {steps} steps");
    }
}
