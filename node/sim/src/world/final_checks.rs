//! The checks after the liveness phase: equal states, nothing left behind, each write once, and a linearizable history.

use std::collections::BTreeSet;

use replica::Table;
use types::ShardId;

use super::World;
use crate::bug::Bug;
use crate::client::key;
use crate::invariants::InvariantChecker;
use crate::queue::MILLI;
use crate::violation::{Checked, Violation};

/// The most search steps for the history of one key.
const CHECK_BUDGET: u64 = 300_000;
/// The bit of a stored key's shard that tells a row of a keyspace from a pair.
const OF_KEYSPACES: u32 = 1 << 31;

impl World {
    /// Runs the last checks: equal states in each group, nothing left behind, and a linearizable history.
    pub(super) fn check_end(&mut self) -> Checked {
        let left_to_replicas = self.scenario.bug.is_some_and(Bug::is_left_to_replicas);
        for group in &self.groups {
            let mut first = None;
            for host in &self.hosts[group.hosts.clone()] {
                let position = host.disk.position();
                let (number, expected) = *first.get_or_insert((host.number, position));
                if position != expected && !left_to_replicas {
                    return Err(Violation::new(
                        "equal state at the end",
                        format!(
                            "host {number} is at {expected:x?}, host {} at {position:x?}",
                            host.number
                        ),
                    ));
                }
            }
        }
        for group in &self.groups {
            group.invariants.check_changed(&group.changed)?;
        }
        self.check_watches()?;
        self.check_stray_data()?;
        self.check_unique_marks()?;
        let checked = self.check_history();
        if self.tracing && checked.is_err() {
            for number in 0..self.scenario.client.keys {
                for line in self.history.describe(&key(number)) {
                    println!("{:?} {line}", key(number));
                }
            }
        }
        checked?;
        let sum = |count: fn(&InvariantChecker) -> u64| -> u64 {
            self.groups
                .iter()
                .map(|group| count(&group.invariants))
                .sum()
        };
        let totals = [
            ("elections", sum(InvariantChecker::elections)),
            ("operations", self.history.len() as u64),
            (
                "operations with known outcome",
                self.history.returned() as u64,
            ),
            ("session writes applied", self.write_checker.outcomes()),
            (
                "entries committed",
                sum(|invariants| invariants.last_committed().index.0),
            ),
            ("simulated milliseconds", self.now / MILLI),
            ("messages", self.traffic.messages),
            ("configurations", self.shard_checker.latest().0),
            ("shards handed over", self.shard_checker.hand_offs()),
            ("shards compared", self.copy_checker.compared()),
        ];
        for (what, count) in totals.into_iter().chain(self.keyspace_checker.counts()) {
            *self.report.counts.entry(what).or_default() += count;
        }
        Ok(())
    }

    /// Checks that no replica holds data or sessions of a shard that isn't its group's.
    fn check_stray_data(&self) -> Checked {
        for host in &self.hosts[..self.kv_hosts] {
            let gid = self.groups[host.group].gid;
            let Some(ownership) = self.shard_checker.group(gid) else {
                continue;
            };
            for ((table, key), _) in host.disk.pairs() {
                // Rows of keyspaces have the highest bit set.
                let shard = key
                    .first_chunk::<4>()
                    .map(|it| ShardId(u32::from_be_bytes(*it) & !OF_KEYSPACES));
                let stray = shard.is_none_or(|shard| !ownership.shards.contains_key(&shard));
                if table != Table::Meta && stray {
                    return Err(Violation::new(
                        "nothing is left behind",
                        format!("host {} of {gid} keeps {table:?} {key:?}", host.number),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks that no mark is twice in a host's data. Each write of a client carries a unique mark.
    fn check_unique_marks(&self) -> Checked {
        for host in &self.hosts[..self.kv_hosts] {
            let data = host.disk.pairs();
            let is_pair = |table, key: &[u8]| {
                table == Table::Data
                    && key
                        .first_chunk()
                        .is_some_and(|it| u32::from_be_bytes(*it) < OF_KEYSPACES)
            };
            let data = data.iter().filter(|((table, key), _)| is_pair(*table, key));
            let mut marks = BTreeSet::new();
            for ((_, key), value) in data {
                let starts = value.split_inclusive(|byte| *byte == b'>');
                let twice = starts
                    .filter(|mark| mark.starts_with(b"<") && mark.ends_with(b">"))
                    .find(|mark| !marks.insert(mark.to_vec()));
                if let Some(mark) = twice {
                    let mark = String::from_utf8_lossy(mark);
                    return Err(Violation::new(
                        "exactly once",
                        format!("host {} has {mark} twice, last in {key:?}", host.number),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks the clients' history so far.
    pub(super) fn check_history(&self) -> Result<(), Violation> {
        self.history
            .check(CHECK_BUDGET, |name| self.write_checker.position(name))
    }
}
