//! Reads the machine's caches from the stored records.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;
use replica::session::SessionTable;
use replica::{Order, StateReader, Table};
use types::{ConfigDelta, DecodeError, Gid, LogTime, ShardConfig, ShardId};

use crate::history::History;
use crate::outcome::Outcome;
use crate::{Drained, GroupProgress, keys};

pub(crate) fn load_history(state: &dyn StateReader, shards: u32) -> Result<History, StoreError> {
    let oldest = match state.get(Table::Meta, keys::OLDEST)? {
        Some(record) => ShardConfig::decode(record)
            .map_err(|error| unreadable("the oldest configuration", &error))?,
        None if shards == 0 => return Ok(History::empty(0)),
        None => ShardConfig::empty(shards),
    };
    if oldest.shards() != shards {
        let what = format!(
            "the oldest configuration has {} shards, the genesis {shards}",
            oldest.shards()
        );
        return Err(StoreError::Damaged(what));
    }
    let mut deltas = Vec::new();
    each(state, Table::Meta, keys::DELTAS, |key, record| {
        let bytes = record.len();
        let delta = ConfigDelta::decode(record).map_err(|error| unreadable("a delta", &error))?;
        if keys::split_u64(key) != Some(delta.num.0) {
            return Err(malformed("a delta's"));
        }
        deltas.push((delta, bytes));
        Ok(())
    })?;
    History::new(oldest, deltas)
        .map_err(|error| StoreError::Damaged(format!("the configurations: {error}")))
}

pub(crate) fn load_progress(
    state: &dyn StateReader,
) -> Result<BTreeMap<Gid, GroupProgress>, StoreError> {
    let mut progress = BTreeMap::new();
    each(state, Table::Meta, keys::GROUPS, |key, record| {
        let gid = keys::split_u64(key).ok_or_else(|| malformed("a group's"))?;
        let record = GroupProgress::decode(record)
            .map_err(|error| unreadable("a group's progress", &error))?;
        progress.insert(Gid(gid), record);
        Ok(())
    })?;
    Ok(progress)
}

pub(crate) fn load_drained(state: &dyn StateReader) -> Result<BTreeMap<Gid, Drained>, StoreError> {
    let mut drained = BTreeMap::new();
    each(state, Table::Meta, keys::DRAINED, |key, record| {
        let gid = keys::split_u64(key).ok_or_else(|| malformed("a drained group's"))?;
        let record =
            Drained::decode(record).map_err(|error| unreadable("a drained group", &error))?;
        drained.insert(Gid(gid), record);
        Ok(())
    })?;
    Ok(drained)
}

pub(crate) fn load_moved(state: &dyn StateReader) -> Result<BTreeSet<ShardId>, StoreError> {
    let mut moved = BTreeSet::new();
    each(state, Table::Meta, keys::MOVED, |key, _| {
        let shard = keys::split_u32(key).ok_or_else(|| malformed("a moved shard's"))?;
        moved.insert(ShardId(shard));
        Ok(())
    })?;
    Ok(moved)
}

pub(crate) fn load_sessions(state: &dyn StateReader) -> Result<SessionTable<Outcome>, StoreError> {
    let mut sessions = SessionTable::default();
    each(state, Table::Sessions, &[], |key, record| {
        let client = keys::split_session(key).ok_or_else(|| malformed("a session's"))?;
        sessions
            .load(client, record)
            .map_err(|error| unreadable("a session", &error))
    })?;
    if let Some(record) = state.get(Table::Meta, keys::HORIZON)? {
        let horizon = record.as_ref().try_into().map(u64::from_be_bytes);
        let horizon =
            horizon.map_err(|_| unreadable("the sessions", &DecodeError::OutOfRange("horizon")))?;
        sessions.raise_horizon(LogTime(horizon));
    }
    Ok(sessions)
}

/// Reads all pairs whose keys start with `prefix`; the keys come without it.
fn each(
    state: &dyn StateReader,
    table: Table,
    prefix: &[u8],
    mut take: impl FnMut(&[u8], Bytes) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let bounds = (Bound::Included(prefix), Bound::Unbounded);
    let mut pairs = state.cursor(table, bounds, Order::Ascending)?;
    while let Some((key, listed)) = pairs.next()? {
        let Some(rest) = key.strip_prefix(prefix) else {
            break;
        };
        take(rest, pairs.read(&key, listed)?)?;
    }
    Ok(())
}

fn unreadable(what: &str, error: &DecodeError) -> StoreError {
    StoreError::unreadable(format_args!("the record of {what}"), error)
}

fn malformed(whose: &str) -> StoreError {
    StoreError::Damaged(format!("{whose} key is malformed"))
}
