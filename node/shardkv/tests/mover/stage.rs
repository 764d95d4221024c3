//! One group's real machine and its mover. The test plays the log, the controllers and the other groups.

use std::collections::BTreeMap;

use bytes::Bytes;
use shardkv::mover::{Action, ActionId, Mover, Outcome as ActionOutcome};
use shardkv::{
    Chunk, Configure, Cursor, Genesis, MoverOptions, Next, Response, SessionClock, ShardState, Step,
};
use types::{
    Assignment, ClusterId, ConfigDelta, ConfigNum, Gid, Group, LogTime, ShardConfig, ShardId,
    ShardMove, ShardRun, shard_of,
};

use crate::common::{Replica, SHARDS_GENESIS};
use crate::show;

pub(crate) const CONTROLLER: ClusterId = ClusterId(0xc0);
pub(crate) const SHARDS: u32 = 100;
const GENESIS: Genesis = Genesis {
    shards: SHARDS,
    ..SHARDS_GENESIS
};

/// A mover as any.
pub(crate) fn mover() -> Mover {
    Mover::new(Gid(1), SHARDS, MoverOptions::default())
}

/// The group is number 1.
pub(crate) struct Stage {
    pub(crate) mover: Mover,
    pub(crate) group: Replica,
    pub(crate) now: u64,
    pub(crate) leads: bool,
    /// The configuration that the group accepted last by [`Stage::configure`].
    pub(crate) config: ShardConfig,
    /// Pending actions.
    pub(crate) open: BTreeMap<ActionId, Action>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(mover())
    }

    pub(crate) fn with(mover: Mover) -> Self {
        Self {
            mover,
            group: Replica::new(GENESIS),
            now: 1_000,
            leads: true,
            config: ShardConfig::empty(SHARDS),
            open: BTreeMap::new(),
        }
    }

    /// A stage whose group has accepted configuration 0 and these deltas, with nothing under way but the next fetch.
    pub(crate) fn after(mover: Mover, deltas: &[ConfigDelta]) -> Self {
        let mut stage = Self::with(mover);
        stage.take_up(ShardConfig::empty(SHARDS));
        for delta in deltas {
            stage.configure(delta);
        }
        stage
    }

    /// The group accepts the next configuration.
    pub(crate) fn configure(&mut self, delta: &ConfigDelta) {
        self.take_up(after_delta(&self.config, delta));
    }

    /// The group accepts any later configuration.
    pub(crate) fn take_up(&mut self, config: ShardConfig) {
        let ownership = self.group.machine.ownership();
        let step = Configure::to(&config, Gid(1), CONTROLLER, &ownership);
        let response = self.apply(&Step::Configure(step));
        assert_eq!(response, Response::Stepped);
        self.config = config;
    }

    /// The controllers answer the first fetch of a mover: the group's configuration is the latest.
    pub(crate) fn no_news(&mut self) {
        let latest = self.config.clone();
        self.end("fetch configurations after 0", configs(Some(latest), &[]));
    }

    /// An entry of the group's log.
    pub(crate) fn apply(&mut self, step: &Step) -> Response {
        self.group.apply_bytes(self.now, 1 << 20, step.encode())
    }

    /// One turn: what the mover asks for, as text.
    pub(crate) fn turn(&mut self) -> Vec<String> {
        let ownership = self.leads.then(|| self.group.machine.ownership());
        let actions = self.mover.poll(self.now, ownership.as_ref());
        let shown = actions.iter().map(|(_, action)| show::action(action));
        let shown = shown.collect();
        for (id, action) in actions {
            assert!(self.open.insert(id, action).is_none(), "{id:?} twice");
        }
        shown
    }

    /// As [`Stage::turn`], without what almost every turn has.
    pub(crate) fn moves(&mut self) -> Vec<String> {
        let mut shown = self.turn();
        shown.retain(|action| !action.starts_with("fetch") && !action.starts_with("report"));
        shown
    }

    /// Lets time go by, with a turn whenever the mover wants one. What it asked for.
    pub(crate) fn pass(&mut self, ms: u64) -> Vec<String> {
        let end = self.now + ms;
        let mut shown = Vec::new();
        while let Some(due) = self.mover.next_due().filter(|due| *due <= end) {
            let before = self.now;
            self.now = self.now.max(due);
            shown.extend(self.turn());
            let next = self.mover.next_due();
            assert!(
                self.now > before || next.is_none_or(|due| due > self.now),
                "spins"
            );
        }
        self.now = end;
        shown
    }

    /// The action under way that is shown so.
    fn find(&self, what: &str) -> ActionId {
        let found = self.open.iter().find(|(_, it)| show::action(it) == what);
        let Some((id, _)) = found else {
            let open: Vec<String> = self.open.values().map(show::action).collect();
            panic!("nobody asked `{what}`, but {open:?}");
        };
        *id
    }

    pub(crate) fn end(&mut self, what: &str, outcome: ActionOutcome) {
        let id = self.find(what);
        self.open.remove(&id);
        self.mover.ended(id, outcome);
    }

    pub(crate) fn done(&mut self, what: &str) {
        self.end(what, ActionOutcome::Done);
    }

    pub(crate) fn fail(&mut self, what: &str) {
        self.end(what, failed("connection refused"));
    }

    /// A proposal gets into the log.
    pub(crate) fn commit(&mut self, what: &str) {
        let id = self.find(what);
        let Some(Action::Propose(step)) = self.open.remove(&id) else {
            panic!("`{what}` is no proposal");
        };
        let outcome = match self.apply(&step) {
            Response::Stepped => ActionOutcome::Done,
            other => failed(&format!("{other:?}")),
        };
        self.mover.ended(id, outcome);
    }

    pub(crate) fn serves(&self, shard: u32) -> bool {
        let ownership = self.group.machine.ownership();
        matches!(
            ownership.state(ShardId(shard)),
            Some(ShardState::Serving { .. })
        )
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.group.machine.ownership().config.0
    }

    pub(crate) fn waits_for(&self, shard: u32) -> Option<String> {
        self.mover.waits_for(self.now, ShardId(shard))
    }
}

pub(crate) fn failed(why: &str) -> ActionOutcome {
    ActionOutcome::Failed(why.to_owned())
}

/// An answer of the controllers, who know of nothing that the group has settled.
pub(crate) fn configs(full: Option<ShardConfig>, deltas: &[ConfigDelta]) -> ActionOutcome {
    settled_configs((0, 0), full, deltas)
}

/// An answer of the controllers, who know that the group has settled configuration `settled` and has served a shard by `held`.
pub(crate) fn settled_configs(
    (settled, held): (u64, u64),
    full: Option<ShardConfig>,
    deltas: &[ConfigDelta],
) -> ActionOutcome {
    ActionOutcome::Configs {
        controller: CONTROLLER,
        shards: SHARDS,
        settled: ConfigNum(settled),
        held: ConfigNum(held),
        full,
        deltas: deltas.to_vec(),
    }
}

/// A group of one node.
pub(crate) fn group(gid: u64) -> Group {
    vec![format!("g{gid}:7000")].into()
}

/// Returns the configuration after a delta. A shard may come from any group, as if an earlier configuration had made it the owner.
pub(crate) fn after_delta(before: &ShardConfig, delta: &ConfigDelta) -> ShardConfig {
    let mut groups = before.groups().clone();
    for (gid, group) in &delta.groups {
        match group {
            Some(group) => groups.insert(*gid, group.clone()),
            None => groups.remove(gid),
        };
    }
    let mut rows: Vec<Assignment> = before.rows().collect();
    let each = |moves: &[ShardMove]| -> Vec<(usize, ShardMove)> {
        let shards = moves.iter();
        let shards = shards.flat_map(|step| step.run.shards().map(|it| (it.0 as usize, *step)));
        shards.collect()
    };
    for (at, step) in each(&delta.moves) {
        rows[at].owner = step.to;
        rows[at].previous = step.from;
        rows[at].owner_since = delta.num;
    }
    for (at, step) in each(&delta.targets) {
        rows[at].target = step.to;
        rows[at].target_since = delta.num;
    }
    let rows = rows.into_iter().map(|row| (1, row));
    ShardConfig::from_rows(delta.num, groups, rows).unwrap()
}

/// A configuration in which some shards change targets and owners at once, each `(first, count, from, to)`. Whoever gets or gives one
/// is a group.
pub(crate) fn delta(num: u64, moves: &[(u32, u32, u64, u64)]) -> ConfigDelta {
    let delta = plan(num, moves);
    ConfigDelta {
        moves: delta.targets.clone(),
        ..delta
    }
}

/// A configuration in which some shards change targets alone, each `(first, count, from, to)`. Whoever gets or gives one is a group.
pub(crate) fn plan(num: u64, moves: &[(u32, u32, u64, u64)]) -> ConfigDelta {
    let gids = moves.iter().flat_map(|(_, _, from, to)| [*from, *to]);
    let gids = gids.filter(|gid| *gid != 0);
    let groups = gids.map(|gid| (Gid(gid), Some(group(gid))));
    let targets = moves.iter().map(|(first, count, from, to)| ShardMove {
        run: ShardRun {
            first: ShardId(*first),
            count: *count,
        },
        from: Gid(*from),
        to: Gid(*to),
    });
    ConfigDelta {
        num: ConfigNum(num),
        groups: groups.collect(),
        targets: targets.collect(),
        ..ConfigDelta::default()
    }
}

/// The `number`th of a shard's keys, which are in order.
pub(crate) fn key(shard: u32, number: u64) -> Bytes {
    let keys = (0..).map(|salt| Bytes::from(format!("k{number:04}-{salt}")));
    let mut keys = keys.filter(|key| shard_of(key, SHARDS) == ShardId(shard));
    keys.next().unwrap()
}

/// Part `number` of the `count` that a shard has, counted from 0: one pair with a value of `bytes`.
pub(crate) fn part(shard: u32, config: u64, number: u64, count: u64, bytes: usize) -> Chunk {
    let key_of = |number| key(shard, number);
    let after = match number {
        0 => Cursor::default(),
        _ => Cursor::Data(key_of(number - 1)),
    };
    let next = if number + 1 < count {
        Next::Chunk(Cursor::Data(key_of(number)))
    } else {
        let clock = SessionClock {
            horizon: LogTime(5),
            time: LogTime(5),
        };
        let ttl_ms = GENESIS.session_ttl_ms;
        Next::Done { clock, ttl_ms }
    };
    Chunk {
        shard: ShardId(shard),
        config: ConfigNum(config),
        after,
        pairs: vec![(key_of(number), Bytes::from(vec![b'v'; bytes]))],
        sessions: Vec::new(),
        rows: Vec::new(),
        next,
    }
}

/// A shard in one part.
pub(crate) fn whole(shard: u32, config: u64) -> ActionOutcome {
    ActionOutcome::Pulled(part(shard, config, 0, 1, 10))
}
