//! Measures the rebalance: its time, and the bytes of the delta that it makes, by scale.
//!
//! `cargo run --release -p shardctrler --example rebalance -- [--output json]`
//!
//! The changes are made one after the other on a cluster that has lived: groups left and joined before, and all shards arrived, so that
//! groups own pieces here and there. `rebalance` is its time alone, the median of several runs; `apply` is the time of the whole change
//! in one controller, without the log.

// A benchmark reads the clock, prints, and may stop where it stands.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft::{EntryId, Index, Term};
use replica::memory::MemoryState;
use replica::{Applied, Applying, StateMachine, StateStore, Transaction};
use shardctrler::{
    Change, Command, Genesis, GroupKind, MAX_CUTS, Response, Shardctrler, rebalance,
};
use types::{ConfigDelta, Gid, JournalId, LogTime, ShardId};

/// Shards and groups.
const SCALES: [(u32, u64); 6] = [
    (64, 3),
    (4_096, 32),
    (100_000, 300),
    (100_000, 3_000),
    (1_000_000, 3_000),
    (1_000_000, 9_900),
];

const RUNS: usize = 7;

struct Measured {
    shards: u32,
    groups: usize,
    change: &'static str,
    moved: u32,
    runs: usize,
    delta_bytes: usize,
    rebalance: Duration,
    apply: Duration,
}

/// A machine over a store in memory.
struct Controller {
    machine: Shardctrler,
    state: MemoryState,
}

impl Controller {
    fn new(shards: u32) -> Self {
        let genesis = Genesis {
            kind: GroupKind::Controller,
            shards,
            ..Genesis::default()
        };
        let mut state = MemoryState::new();
        state
            .commit(genesis.to_batch(), Applied::default())
            .unwrap();
        let mut machine = Shardctrler::new();
        machine.reload(&state).unwrap();
        Self { machine, state }
    }

    fn apply(&mut self, change: Change) -> Duration {
        let session = None;
        let operation = Command { session, change }.encode();
        let started = Instant::now();
        let response = self.apply_bytes(operation);
        let took = started.elapsed();
        assert!(!matches!(response, Response::Refused(_)), "{response:?}");
        took
    }

    /// Lets all shards arrive at their targets.
    fn cut(&mut self) {
        let config = self.machine.latest();
        let rows = (0..).map(ShardId).zip(config.rows());
        let moving = rows.filter(|(_, row)| row.is_moving());
        let cut = |shard| config.cut_of(shard, JournalId(1)).unwrap();
        let cuts: Vec<_> = moving.map(|(shard, _)| (shard, cut(shard))).collect();
        for cuts in cuts.chunks(MAX_CUTS) {
            let cuts = cuts.iter().copied().collect();
            self.apply(Change::Cut { cuts });
        }
        assert_eq!(self.machine.latest().moving(), 0);
    }

    fn settle(&mut self) {
        let settled = self.machine.latest().num();
        let gids: Vec<Gid> = self.machine.progress().keys().copied().collect();
        for gid in gids {
            self.apply(Change::Report {
                gid,
                settled,
                held: settled,
            });
        }
    }

    fn apply_bytes(&mut self, operation: Bytes) -> Response {
        let mut applied = self.state.applied();
        let entry = EntryId::new(Term(1), Index(applied.last.index.0 + 1));
        let at = Applying {
            entry,
            time: LogTime(1),
            feature_level: 0,
            max_value_bytes: 0,
            awaited: true,
        };
        applied.last = entry;
        let mut transaction = Transaction::new(&self.state);
        let response = self.machine.apply(at, operation, &mut transaction).unwrap();
        self.machine.finish_batch(&mut transaction).unwrap();
        let batch = transaction.into_batch();
        self.state.commit(batch, applied).unwrap();
        response
    }

    /// A cluster of `groups` groups to which many came and from which many went.
    fn lived(shards: u32, groups: u64) -> Self {
        let mut controller = Self::new(shards);
        controller.apply(join(1..=groups));
        controller.settle();
        for round in 0..3 {
            let some: BTreeSet<Gid> = (0..groups.div_ceil(10).min(groups - 1))
                .map(|n| Gid(1 + (round * 7 + n * 9) % groups))
                .collect();
            let back = some.iter().map(|gid| gid.0).collect::<Vec<_>>();
            controller.apply(Change::Leave { gids: some });
            controller.cut();
            controller.apply(join(back));
            controller.settle();
            controller.cut();
            controller.settle();
        }
        controller
    }
}

fn join(gids: impl IntoIterator<Item = u64>) -> Change {
    let group = |gid| {
        let node = |node| format!("shardkv-{gid}-{node}.shardkv-{gid}.production.svc:7000");
        (Gid(gid), (0..3).map(node).collect())
    };
    let groups: BTreeMap<Gid, Vec<String>> = gids.into_iter().map(group).collect();
    Change::Join { groups }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn measure(controller: &mut Controller, change: &'static str, command: Change) -> Measured {
    let before = controller.machine.latest();
    let (shards, groups) = (before.shards(), before.groups().len());
    let mut gids: BTreeSet<Gid> = before.groups().keys().copied().collect();
    match &command {
        Change::Join { groups } => gids.extend(groups.keys()),
        Change::Leave { gids: left } => gids.retain(|gid| !left.contains(gid)),
        Change::Move { .. }
        | Change::Forget { .. }
        | Change::Retire { .. }
        | Change::Report { .. }
        | Change::Cut { .. } => {}
    }
    let moved = BTreeSet::new();
    let times = (0..RUNS).map(|_| {
        let started = Instant::now();
        let after = rebalance(
            before.targets(),
            before.owners(),
            gids.iter().copied(),
            &moved,
        );
        let took = started.elapsed();
        assert_eq!(after.len(), shards as usize);
        took
    });
    let rebalance = median(times.collect());
    let apply = controller.apply(command);
    let after = controller.machine.latest();
    let delta = ConfigDelta::new(&before, after.groups(), after.targets(), after.owners());
    Measured {
        shards,
        groups,
        change,
        moved: delta.targets.iter().map(|step| step.run.count).sum(),
        runs: delta.targets.len(),
        delta_bytes: delta.encode().len(),
        rebalance,
        apply,
    }
}

fn print(json: bool, it: &Measured) {
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    if json {
        println!(
            "{{\"bench\":\"rebalance\",\"shards\":{},\"groups\":{},\"change\":\"{}\",\"moved_shards\":{},\"moved_runs\":{},\
             \"delta_bytes\":{},\"rebalance_us\":{:.0},\"apply_us\":{:.0}}}",
            it.shards,
            it.groups,
            it.change,
            it.moved,
            it.runs,
            it.delta_bytes,
            micros(it.rebalance),
            micros(it.apply)
        );
    } else {
        println!(
            "{:>9} {:>7}  {:<9} {:>9} {:>9} {:>12} {:>13.2} {:>10.2}",
            it.shards,
            it.groups,
            it.change,
            it.moved,
            it.runs,
            it.delta_bytes,
            micros(it.rebalance) / 1e3,
            micros(it.apply) / 1e3
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let json = match arguments.as_slice() {
        [] => false,
        ["--output", "json"] | ["--output=json"] => true,
        _ => {
            eprintln!("usage: rebalance [--output json]");
            std::process::exit(2);
        }
    };
    if !json {
        println!(
            "{:>9} {:>7}  {:<9} {:>9} {:>9} {:>12} {:>13} {:>10}",
            "shards",
            "groups",
            "change",
            "shards",
            "runs",
            "delta bytes",
            "rebalance ms",
            "apply ms"
        );
    }
    for (shards, groups) in SCALES {
        let leave = Change::Leave {
            gids: BTreeSet::from([Gid(1 + groups / 2)]),
        };
        let changes = [
            ("join one", join([groups + 1])),
            ("leave one", leave),
            ("join ten", join(groups + 2..=groups + 11)),
        ];
        let mut controller = Controller::lived(shards, groups);
        for (name, change) in changes {
            print(json, &measure(&mut controller, name, change));
            controller.cut();
            controller.settle();
        }
    }
}
