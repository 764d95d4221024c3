//! The session tables of a group's shards, and the number of their sessions.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::StoreError;
use replica::session::SessionTable;
use types::{ClientId, DecodeError, LogTime, ShardId};

use crate::outcome::Outcome;

/// The session tables by shard. A shard without sessions has no table between batches.
///
/// Invariant: `count` is the number of sessions of all tables. It is kept up to date, because metrics ask for it many times a second and
/// there may be very many tables.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    by_shard: BTreeMap<ShardId, SessionTable<Outcome>>,
    count: usize,
}

impl Tables {
    /// Returns the number of sessions of all shards.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Changes a shard's table, which is created if it is absent. It gets the shard's horizon, because an empty table is dropped and
    /// later created again.
    pub(crate) fn change<T>(
        &mut self,
        shard: ShardId,
        horizon: LogTime,
        change: impl FnOnce(&mut SessionTable<Outcome>) -> T,
    ) -> T {
        let table = self.by_shard.entry(shard).or_default();
        table.raise_horizon(horizon);
        counted(&mut self.count, table, change)
    }

    /// Changes a shard's table if there is one.
    pub(crate) fn change_present<T>(
        &mut self,
        shard: ShardId,
        change: impl FnOnce(&mut SessionTable<Outcome>) -> T,
    ) -> Option<T> {
        let table = self.by_shard.get_mut(&shard)?;
        Some(counted(&mut self.count, table, change))
    }

    /// Returns at most `at_most` tables from shard `from` on, and the shard from which to go on: the first one after the last table.
    pub(crate) fn some_from(
        &self,
        from: ShardId,
        at_most: usize,
    ) -> (Vec<(ShardId, &SessionTable<Outcome>)>, ShardId) {
        let tables = self.by_shard.range(from..).take(at_most);
        let tables: Vec<_> = tables.map(|(shard, table)| (*shard, table)).collect();
        let last = tables.last().filter(|_| tables.len() == at_most);
        let next = last.map_or(ShardId(0), |(shard, _)| ShardId(shard.0.saturating_add(1)));
        (tables, next)
    }

    /// Loads a session's record into a shard's table.
    pub(crate) fn load(
        &mut self,
        shard: ShardId,
        client: ClientId,
        record: Bytes,
    ) -> Result<(), StoreError> {
        let loaded = self.change(shard, LogTime(0), |table| table.load(client, record));
        loaded.map_err(|error| bad_record(shard, client, &error))
    }

    /// Takes the sessions that changed in a shard's table, as [`SessionTable::drain_dirty`] does, and drops the table if it is empty.
    pub(crate) fn drain_dirty(&mut self, shard: ShardId) -> Vec<(ClientId, Option<Bytes>)> {
        let table = self.by_shard.get_mut(&shard);
        let dirty = table.map(SessionTable::drain_dirty).unwrap_or_default();
        self.drop_if_empty(shard);
        dirty
    }

    /// Drops a shard's table if it is empty. Its removed sessions must have been written.
    pub(crate) fn drop_if_empty(&mut self, shard: ShardId) {
        if self
            .by_shard
            .get(&shard)
            .is_some_and(SessionTable::is_empty)
        {
            self.by_shard.remove(&shard);
        }
    }

    /// Drops a shard's table with its sessions.
    pub(crate) fn remove(&mut self, shard: ShardId) {
        if let Some(table) = self.by_shard.remove(&shard) {
            self.count -= table.len();
        }
    }
}

fn counted<T>(
    count: &mut usize,
    table: &mut SessionTable<Outcome>,
    change: impl FnOnce(&mut SessionTable<Outcome>) -> T,
) -> T {
    let before = table.len();
    let result = change(table);
    *count = *count + table.len() - before;
    result
}

pub(crate) fn bad_record(shard: ShardId, client: ClientId, error: &DecodeError) -> StoreError {
    let what = format_args!("the record of session {client} in {shard}");
    StoreError::unreadable(what, error)
}
