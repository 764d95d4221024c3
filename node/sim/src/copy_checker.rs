//! Checks that a shard arrives whole: what its new owner begins to serve is what its old owner fenced.
//!
//! | invariant | check |
//! |---|---|
//! | an installed shard equals the fenced shard | pairs, sessions and rows of keyspaces, row by row |
//! | the session clock moves along | the installed shard is behind the fenced shard in neither horizon nor time |
//! | a step out of turn changes nothing | a step of a hand-off that leaves the ownership as it was writes no row |
//! | sessions in memory are those on disk | their number, after each step of a hand-off |
//!
//! The first two compare final states: a fenced shard doesn't change, so the rows of the first replica that commits the fence are
//! those at the fence. A client rarely sees a row that a copy lost, so the history alone would not show most lost rows. Nor does it show
//! a session that is in one replica's memory and not on its disk, until another replica restarts and the session expires.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::Index;
use replica::Table;
use shardkv::{Ownership, SessionClock, Shard, ShardState, Step};
use types::{ConfigNum, Gid, ShardId};

use crate::disk::Disk;
use crate::mover::subject_of_step;
use crate::recorder::AppliedOperation;
use crate::violation::{Checked, Violation};

type HandOff = (ShardId, ConfigNum);
type Rows = BTreeMap<(Table, Bytes), Bytes>;

/// The contents of shards that are fenced.
#[derive(Debug, Default)]
pub struct CopyChecker {
    fenced: BTreeMap<HandOff, (SessionClock, Rows)>,
    compared: BTreeSet<HandOff>,
}

impl CopyChecker {
    /// Takes what a replica applied in one step of its process. `now` is its ownership after that, `sessions` the number of sessions
    /// that it has in memory, and `disk` has what it committed.
    pub fn applied(
        &mut self,
        gid: Gid,
        operations: &[AppliedOperation],
        (now, sessions): (&Ownership, usize),
        disk: &Disk,
    ) -> Checked {
        check_sessions(gid, operations, sessions, disk)?;
        for (at, operation) in operations.iter().enumerate() {
            check_idle(gid, operation)?;
            let Some(ownership) = &operation.ownership else {
                continue;
            };
            let step = Step::decode(operation.operation.clone());
            let brings_rows = |step: &Step| matches!(step, Step::Install(_) | Step::Copy(_));
            let arrived = step.ok().filter(brings_rows);
            let arrived = arrived.and_then(|step| subject_of_step(&step).shard);
            for (shard, it) in &ownership.shards {
                let stays = now.shards.get(shard).map(|it| &it.state) == Some(&it.state);
                if !stays || committed(disk) < operation.entry.index {
                    continue;
                }
                match it.state {
                    ShardState::Fenced { config, .. } => self.fence((*shard, config), it, disk),
                    // A write after the install may have changed a row, of this shard or, by expiry, of any other.
                    ShardState::Serving { config }
                        if arrived == Some(*shard) && !writes_follow(&operations[at..]) =>
                    {
                        self.install(gid, (*shard, config), it, disk)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn fence(&mut self, hand_off: HandOff, shard: &Shard, disk: &Disk) {
        if !self.compared.contains(&hand_off) {
            let fenced = self.fenced.entry(hand_off);
            let clock = disk.session_clock(hand_off.0, shard.since);
            fenced.or_insert_with(|| (clock, rows(hand_off.0, disk)));
        }
    }

    fn install(&mut self, gid: Gid, hand_off: HandOff, shard: &Shard, disk: &Disk) -> Checked {
        let Some((clock, expected)) = self.fenced.remove(&hand_off) else {
            return Ok(());
        };
        self.compared.insert(hand_off);
        let (number, config) = hand_off;
        let here = disk.session_clock(number, shard.since);
        if here.horizon < clock.horizon || here.time < clock.time {
            return Err(Violation::new(
                "the session clock moves along",
                format!(
                    "{gid} serves {number} of {config} with the clock {here:?}, fenced at {clock:?}"
                ),
            ));
        }
        let found = rows(number, disk);
        let mut places = expected.keys().chain(found.keys());
        let Some(place) = places.find(|place| expected.get(*place) != found.get(*place)) else {
            return Ok(());
        };
        Err(Violation::new(
            "an installed shard equals the fenced shard",
            format!(
                "{gid} serves {number} of {config}, with {:?} as {:?}, which was fenced as {:?}",
                place,
                found.get(place),
                expected.get(place)
            ),
        ))
    }

    /// Returns the number of shards that were compared.
    pub fn compared(&self) -> u64 {
        self.compared.len() as u64
    }
}

/// Checks, after a step that changed the ownership, that a restart would find as many sessions as the machine has.
fn check_sessions(
    gid: Gid,
    operations: &[AppliedOperation],
    sessions: usize,
    disk: &Disk,
) -> Checked {
    let Some(last) = operations.last() else {
        return Ok(());
    };
    let stepped = operations.iter().any(|it| it.ownership.is_some());
    // A commit that failed leaves the machine ahead of its disk, and its process stops.
    if !stepped || committed(disk) < last.entry.index {
        return Ok(());
    }
    let stored = disk.count(Table::Sessions);
    if stored == sessions {
        return Ok(());
    }
    Err(Violation::new(
        "sessions in memory are those on disk",
        format!(
            "{gid} has {sessions} sessions in memory and {stored} on disk at {}",
            last.entry
        ),
    ))
}

fn check_idle(gid: Gid, operation: &AppliedOperation) -> Checked {
    if operation.idle_writes == 0 {
        return Ok(());
    }
    Err(Violation::new(
        "a step out of turn changes nothing",
        format!(
            "{gid} wrote {} rows or ranges in {:?}",
            operation.idle_writes,
            Step::decode(operation.operation.clone())
        ),
    ))
}

fn writes_follow(operations: &[AppliedOperation]) -> bool {
    let mut later = operations.iter().skip(1);
    later.any(|it| Step::decode(it.operation.clone()).is_err())
}

fn committed(disk: &Disk) -> Index {
    disk.position().0.index
}

/// Returns the pairs, the sessions and the rows of keyspaces of a shard.
fn rows(shard: ShardId, disk: &Disk) -> Rows {
    let pairs = disk.pairs().into_iter();
    let (keyspaces, _) = keyspace::rows_of_shard(shard);
    let belongs = |((table, key), _): &((Table, Bytes), Bytes)| {
        let is_row = *table == Table::Data && key.starts_with(&keyspaces);
        let table = matches!(table, Table::Data | Table::Sessions);
        is_row || table && key.starts_with(&shard.0.to_be_bytes())
    };
    pairs.filter(belongs).collect()
}
