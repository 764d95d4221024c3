//! Steps change a shard as the table says, and what else a step changes.

mod stories;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use raft::Index;
use types::{Assignment, ClusterId, ConfigNum, Gid, Group, Incarnation, ShardId, ShardRun};

use super::*;
use crate::{
    Configure, CopyCursor, CopyId, CopyStep, Cursor, GroupKind, Part, PartNext, PlannedMove,
    Position, Shard, Target,
};

use table::{assert_recorded, step};

/// This group, another, and a third.
const OWN: Gid = Gid(1);
const OTHER: Gid = Gid(2);
const THIRD: Gid = Gid(3);

const CONTROLLER: ClusterId = ClusterId(7);
/// The configuration that the group has accepted.
const ACCEPTED: ConfigNum = ConfigNum(9);
/// The shard that it is about.
const SHARD: ShardId = ShardId(2);
/// A part of it has arrived already.
const ARRIVED: Cursor = Cursor::Data(Bytes::from_static(b"arrived"));

const GENESIS: Genesis = Genesis {
    kind: GroupKind::Shards,
    shards: 4,
    session_ttl_ms: 10_000,
    max_sessions_per_shard: 6,
    max_results_per_session: 4,
};

fn group(gid: Gid) -> Group {
    vec![format!("{gid}:1")].into()
}

/// Another group with the same gid.
fn again(gid: Gid) -> Group {
    Group {
        incarnation: Incarnation(10),
        ..group(gid)
    }
}

fn all_groups() -> BTreeMap<Gid, Group> {
    [OWN, OTHER, THIRD]
        .into_iter()
        .map(|gid| (gid, group(gid)))
        .collect()
}

fn plan(owner: Gid, target: Gid, since: u64) -> PlannedMove {
    PlannedMove {
        owner,
        owner_since: ConfigNum(5),
        target: Target {
            to: target,
            since: ConfigNum(since),
        },
    }
}

fn copy(since: u64, journal: u64) -> CopyId {
    CopyId {
        since: ConfigNum(since),
        journal: Index(journal),
    }
}

/// The cursor of a copy of which the base and some generations have arrived.
fn page(generation: u64) -> CopyCursor {
    CopyCursor::Page {
        generation,
        after: Position::default(),
    }
}

/// The ownership that [`name`] names: the state, and the target of a planned move.
fn ownership_of(name: &str) -> Ownership {
    let mut ownership = Ownership {
        gid: OWN,
        controller: Some(CONTROLLER),
        config: ACCEPTED,
        groups: Arc::new(all_groups()),
        ..Ownership::default()
    };
    let (state, target) = name.split_once(',').unwrap_or((name, ""));
    let planned = match target {
        "to1@6" => Some(plan(OTHER, OWN, 6)),
        "to3@8" => Some(plan(OWN, THIRD, 8)),
        _ => None,
    };
    ownership.planned = Arc::new(planned.map(|it| (SHARD, it)).into_iter().collect());
    let config = ConfigNum(5);
    let (source, copy, cursor, bytes) = (OTHER, copy(6, 40), page(3), 100);
    let state = match state {
        "serving5" => ShardState::Serving { config },
        "pulling5" => ShardState::Pulling {
            config,
            source,
            after: ARRIVED,
            bytes,
        },
        "fenced5" => ShardState::Fenced { config, to: OTHER },
        "copying6" => ShardState::Copying {
            source,
            copy,
            cursor,
            bytes,
        },
        "completing7" => ShardState::Completing {
            config: ConfigNum(7),
            source,
            copy,
            cursor,
            bytes,
        },
        _ => return ownership,
    };
    let shard = Shard::new(state, LogTime(1));
    ownership.shards.insert(SHARD, Arc::new(shard));
    ownership
}

/// The name of an ownership. After `!` nothing of the shard has arrived, after `+` more than before.
fn name(ownership: &Ownership) -> String {
    let of_cursor = |cursor: &CopyCursor| match cursor {
        cursor if *cursor == page(3) => "",
        cursor if *cursor == CopyCursor::default() => "!",
        _ => "+",
    };
    let mut name = match ownership.state(SHARD) {
        None => "absent".to_owned(),
        Some(ShardState::Serving { config }) => format!("serving{config}"),
        Some(ShardState::Pulling { config, after, .. }) => match after {
            after if *after == ARRIVED => format!("pulling{config}"),
            after if *after == Cursor::default() => format!("pulling{config}!"),
            _ => format!("pulling{config}+"),
        },
        Some(ShardState::Fenced { config, .. }) => format!("fenced{config}"),
        Some(ShardState::Copying { copy, cursor, .. }) => {
            format!("copying{}{}", copy.since, of_cursor(cursor))
        }
        Some(ShardState::Completing { config, cursor, .. }) => {
            format!("completing{config}{}", of_cursor(cursor))
        }
    };
    if let Some(planned) = ownership.planned.get(&SHARD) {
        let Target { to, since } = planned.target;
        name = format!("{name},to{}@{since}", to.0);
    }
    name
}

/// A row: the owner and since when, the owner before, the target and since when.
fn row(owner: (Gid, u64), previous: Gid, target: (Gid, u64)) -> Assignment {
    Assignment {
        owner: owner.0,
        owner_since: ConfigNum(owner.1),
        previous,
        target: target.0,
        target_since: ConfigNum(target.1),
    }
}

/// The step from the accepted configuration to `num`, with rows of runs of shards.
fn configure_rows(num: u64, rows: &[(u32, u32, Assignment)]) -> Configure {
    let rows = rows.iter().map(|(first, count, row)| {
        let (first, count) = (ShardId(*first), *count);
        (ShardRun { first, count }, *row)
    });
    Configure {
        gid: OWN,
        controller: CONTROLLER,
        after: ACCEPTED,
        num: ConfigNum(num),
        groups: BTreeMap::new(),
        rows: rows.collect(),
    }
}

fn configure(num: u64, row: Assignment) -> Configure {
    configure_rows(num, &[(SHARD.0, 1, row)])
}

fn install(config: u64, after: Cursor, next: Next) -> Step {
    Step::Install(Chunk {
        shard: SHARD,
        config: ConfigNum(config),
        after,
        pairs: Vec::new(),
        sessions: Vec::new(),
        rows: Vec::new(),
        next,
    })
}

fn part(copy: CopyId, next: PartNext) -> Step {
    Step::Copy(CopyStep::Take(Part {
        shard: SHARD,
        copy,
        after: page(3),
        changes: Vec::new(),
        next,
    }))
}

fn judge(ownership: &Ownership, step: Configure) -> Verdict {
    ownership.judge(&Step::Configure(step), &GENESIS, Bugs::default())
}

/// Returns the reason of a refusal.
fn refusal(ownership: &Ownership, step: Configure) -> String {
    match judge(ownership, step) {
        Verdict::Refused(KvError::Malformed(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn take(ownership: &mut Ownership, step: &Step, time: u64) -> Changed {
    let verdict = ownership.judge(step, &GENESIS, Bugs::default());
    assert_eq!(verdict, Verdict::Due, "{step:?}");
    let before = ownership.clone();
    let changed = ownership.take(step, LogTime(time), Bugs::default());
    assert_recorded(&before, ownership, &changed);
    changed
}
