//! [`Ownership`] as records: one for the group, one for each shard that isn't absent, one for each pending delete and one for
//! each group's addresses. A step writes the records that it changes; a start reads all.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use raft::StoreError;
use replica::{Bounds, GroupKind, Order, StateReader, Table, Transaction};
use types::{
    ClusterId, ConfigNum, DecodeError, Gid, Group, LogTime, Reader, ShardId, ShardSet, Writer,
};

use crate::change::Changed;
use crate::cursor::{decode_cursor, encode_cursor};
use crate::encoding::known;
use crate::part::{decode_copy_cursor, encode_copy_cursor};
use crate::{
    ConfigureParts, CopyCursor, CopyId, Genesis, Ownership, PlannedMove, Shard, ShardState, keys,
};

/// The version byte of each record but those of shards.
const VERSION: u8 = 1;
/// The version byte of a shard's record.
const SHARD_VERSION: u8 = 2;

const SERVING: u8 = 0;
const PULLING: u8 = 1;
const FENCED: u8 = 2;
const COPYING: u8 = 3;
const COMPLETING: u8 = 4;

/// Reads the ownership of a group from its records.
pub(crate) fn load(state: &dyn StateReader, genesis: &Genesis) -> Result<Ownership, StoreError> {
    match genesis.kind {
        GroupKind::Standalone => return Ok(Ownership::standalone(genesis.shards)),
        GroupKind::Shards => {}
        GroupKind::Controller => {
            return Err(StoreError::Damaged(
                "this state is a controller's, not a replica group's: start the node with the role that its \
                 directory was made for"
                    .to_owned(),
            ));
        }
    }
    let mut ownership = Ownership::default();
    if let Some(record) = state.get(Table::Meta, keys::GROUP)? {
        load_group(&mut ownership, record).map_err(|error| unreadable("the group's", &error))?;
    }
    each_with_prefix(state, keys::SHARDS, |key, record| {
        let shard = keys::split_shard_record(key).filter(|shard| shard.0 < genesis.shards);
        let shard = shard.ok_or_else(|| damaged("a shard's", "no such shard"))?;
        let record =
            decode_shard(record).map_err(|error| unreadable(&format!("{shard}'s"), &error))?;
        if !ownership.knows(&record) {
            let why = "it is of a configuration that the group doesn't know";
            return Err(damaged(&format!("{shard}'s"), why));
        }
        ownership.shards.insert(shard, Arc::new(record));
        Ok(())
    })?;
    load_planned(&mut ownership, state, genesis)?;
    load_parts(&mut ownership, state)?;
    each_with_prefix(state, keys::PENDING_DELETES, |key, record| {
        let pending = keys::split_pending_delete(key).filter(|(shard, _)| shard.0 < genesis.shards);
        let pending = pending.ok_or_else(|| damaged("a pending delete's", "no such shard"))?;
        let source = decode_pending_delete(record)
            .map_err(|error| unreadable("a pending delete's", &error))?;
        Arc::make_mut(&mut ownership.pending_deletes).insert(pending, source);
        Ok(())
    })?;
    each_with_prefix(state, keys::ADDRESSES, |key, record| {
        let gid = keys::split_address_record(key);
        let gid = gid.ok_or_else(|| damaged("an address", "no such group"))?;
        let group = decode_group(record)
            .map_err(|error| unreadable(&format!("{gid}'s address"), &error))?;
        Arc::make_mut(&mut ownership.groups).insert(gid, group);
        Ok(())
    })?;
    Ok(ownership)
}

/// Reads the planned moves from their records.
fn load_planned(
    ownership: &mut Ownership,
    state: &dyn StateReader,
    genesis: &Genesis,
) -> Result<(), StoreError> {
    let table = Arc::make_mut(&mut ownership.planned);
    each_with_prefix(state, keys::TARGETS, |key, record| {
        let shard = keys::split_prefixed(key, keys::TARGETS)
            .filter(|shard| shard.0 < genesis.shards)
            .ok_or_else(|| damaged("a planned move's", "no such shard"))?;
        let planned =
            PlannedMove::decode(record).map_err(|error| unreadable("a planned move's", &error))?;
        table.insert(shard, planned);
        Ok(())
    })
}

/// Reads the parts of a step that is too large for one entry.
fn load_parts(ownership: &mut Ownership, state: &dyn StateReader) -> Result<(), StoreError> {
    let Some(record) = state.get(Table::Meta, keys::PARTS)? else {
        return Ok(());
    };
    let head = ConfigureParts::decode_head(record)
        .map_err(|error| unreadable("an unfinished step's", &error))?;
    let (mut parts, arrived) = head;
    for index in 0..arrived {
        let share = state.get(Table::Meta, &keys::part(index))?;
        let share = share.ok_or_else(|| damaged("an unfinished step's", "a part is missing"))?;
        parts.shares.push(share);
    }
    ownership.parts = Some(Arc::new(parts));
    Ok(())
}

/// Writes the part that arrived last, or removes the parts that went.
fn store_parts(ownership: &Ownership, gone: u32, set: &mut impl FnMut(Bytes, Option<Bytes>)) {
    for index in 0..gone {
        set(keys::part(index), None);
    }
    let parts = ownership.parts.as_deref();
    let head = parts.map(ConfigureParts::encode_head);
    set(Bytes::from_static(keys::PARTS), head);
    if let Some(last) = parts.and_then(|parts| parts.shares.last()) {
        let index = parts.map_or(0, ConfigureParts::arrived).saturating_sub(1);
        set(keys::part(index), Some(last.clone()));
    }
}

/// Reads the part of a group's ownership that one shard needs: the group's record and the shard's.
pub(crate) fn load_shard(
    state: &dyn StateReader,
    genesis: &Genesis,
    shard: ShardId,
) -> Result<Ownership, StoreError> {
    if genesis.kind != GroupKind::Shards {
        return load(state, genesis);
    }
    let mut ownership = Ownership::default();
    if let Some(record) = state.get(Table::Meta, keys::GROUP)? {
        load_group(&mut ownership, record).map_err(|error| unreadable("the group's", &error))?;
    }
    if let Some(record) = state.get(Table::Meta, &keys::shard_record(shard))? {
        let record =
            decode_shard(record).map_err(|error| unreadable(&format!("{shard}'s"), &error))?;
        ownership.shards.insert(shard, Arc::new(record));
    }
    Ok(ownership)
}

/// Reads the part of a group's ownership that a read of shards needs: the group's record and those of `shards`, or of all shards.
pub(crate) fn load_shards(
    state: &dyn StateReader,
    genesis: &Genesis,
    shards: Option<&ShardSet>,
) -> Result<Ownership, StoreError> {
    if genesis.kind != GroupKind::Shards {
        return load(state, genesis);
    }
    let mut ownership = Ownership::default();
    if let Some(record) = state.get(Table::Meta, keys::GROUP)? {
        load_group(&mut ownership, record).map_err(|error| unreadable("the group's", &error))?;
    }
    let all = ShardSet::all(genesis.shards);
    for run in shards.unwrap_or(&all).runs() {
        let last = keys::shard_record(ShardId(run.end().0.saturating_sub(1)));
        let first = keys::shard_record(run.first);
        let bounds = (Bound::Included(&first[..]), Bound::Included(&last[..]));
        each_pair(state, Table::Meta, bounds, |key, record| {
            let shard = keys::split_shard_record(key);
            let shard = shard.ok_or_else(|| damaged("a shard's", "no such shard"))?;
            let record =
                decode_shard(record).map_err(|error| unreadable(&format!("{shard}'s"), &error))?;
            ownership.shards.insert(shard, Arc::new(record));
            Ok(())
        })?;
    }
    Ok(ownership)
}

/// Writes the records that a step changed.
pub(crate) fn store(ownership: &Ownership, changed: &Changed, state: &mut Transaction<'_>) {
    let mut set = |key, record: Option<Bytes>| match record {
        Some(record) => state.put(Table::Meta, key, record),
        None => state.remove(Table::Meta, key),
    };
    if changed.group {
        set(Bytes::from_static(keys::GROUP), encode_group(ownership));
    }
    for shard in &changed.shards {
        let record = ownership.shards.get(shard);
        let record = record.map(|shard| encode_shard(shard));
        set(keys::shard_record(*shard), record);
    }
    for shard in &changed.planned {
        let record = ownership.planned.get(shard).map(|planned| planned.encode());
        set(keys::target_record(*shard), record);
    }
    if changed.parts {
        store_parts(ownership, changed.parts_gone, &mut set);
    }
    for pending in &changed.pending_deletes {
        let record = ownership
            .pending_deletes
            .get(pending)
            .map(|source| encode_pending_delete(*source));
        set(keys::pending_delete(*pending), record);
    }
    for gid in &changed.groups {
        let record = ownership.groups.get(gid).map(encode_group_record);
        set(keys::address_record(*gid), record);
    }
}

/// Calls `each` with all pairs of a table that lie between two bounds, in order.
pub(crate) fn each_pair(
    state: &dyn StateReader,
    table: Table,
    bounds: Bounds<'_>,
    mut each: impl FnMut(&[u8], Bytes) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut pairs = state.cursor(table, bounds, Order::Ascending)?;
    while let Some((key, listed)) = pairs.next()? {
        each(&key, pairs.read(&key, listed)?)?;
    }
    Ok(())
}

pub(crate) fn each_with_prefix(
    state: &dyn StateReader,
    prefix: &'static [u8],
    each: impl FnMut(&[u8], Bytes) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let end = keys::prefix_end(prefix);
    let bounds = (Bound::Included(prefix), Bound::Excluded(end.as_ref()));
    each_pair(state, Table::Meta, bounds, each)
}

fn damaged(whose: &str, why: &str) -> StoreError {
    StoreError::Damaged(format!("{whose} record: {why}"))
}

fn unreadable(whose: &str, error: &DecodeError) -> StoreError {
    StoreError::unreadable(format_args!("{whose} record"), error)
}

fn encode_group(ownership: &Ownership) -> Option<Bytes> {
    let controller = ownership.controller?;
    let mut out = Writer::default();
    out.byte(VERSION)
        .number(ownership.gid.0)
        .number(controller.0)
        .number(ownership.config.0)
        .number(ownership.held.0)
        .byte(ownership.former.is_some().into());
    if let Some(former) = &ownership.former {
        former.encode(&mut out);
    }
    Some(out.finish())
}

fn load_group(ownership: &mut Ownership, record: Bytes) -> Result<(), DecodeError> {
    let mut input = versioned(record, VERSION)?;
    ownership.gid = Gid(input.number("gid")?);
    ownership.controller = Some(ClusterId(input.number("controller")?));
    ownership.config = ConfigNum(input.number("configuration number")?);
    ownership.held = ConfigNum(input.number("configuration number")?);
    if input.flag("former group")? {
        ownership.former = Some(Group::decode(&mut input)?);
    }
    if ownership.gid == Gid::NONE {
        return Err(DecodeError::OutOfRange("gid"));
    }
    input.finish()
}

fn encode_shard(shard: &Shard) -> Bytes {
    let mut out = Writer::default();
    out.byte(SHARD_VERSION);
    match &shard.state {
        ShardState::Serving { config } => {
            out.byte(SERVING).number(config.0);
        }
        ShardState::Pulling {
            config,
            source,
            after,
            bytes,
        } => {
            out.byte(PULLING).number(config.0).number(source.0);
            encode_cursor(&mut out, after);
            out.number(*bytes);
        }
        ShardState::Copying {
            source,
            copy,
            cursor,
            bytes,
        } => {
            // The number of the target is that of the state.
            out.byte(COPYING).number(copy.since.0).number(source.0);
            encode_copy(&mut out, *copy, cursor, *bytes);
        }
        ShardState::Completing {
            config,
            source,
            copy,
            cursor,
            bytes,
        } => {
            out.byte(COMPLETING).number(config.0).number(source.0);
            encode_copy(&mut out, *copy, cursor, *bytes);
        }
        ShardState::Fenced { config, to } => {
            out.byte(FENCED).number(config.0).number(to.0);
        }
    }
    out.number(shard.since.0);
    out.finish()
}

fn decode_shard(record: Bytes) -> Result<Shard, DecodeError> {
    let mut input = versioned(record, SHARD_VERSION)?;
    let kind = input.byte("shard state")?;
    let config = ConfigNum(input.number("configuration number")?);
    let state = match kind {
        SERVING => ShardState::Serving { config },
        PULLING => ShardState::Pulling {
            config,
            source: Gid(input.number("source")?),
            after: decode_cursor(&mut input)?,
            bytes: input.number("bytes")?,
        },
        COPYING => {
            let source = Gid(input.number("source")?);
            let (copy, cursor, bytes) = decode_copy(&mut input)?;
            if copy.since != config {
                return Err(DecodeError::OutOfRange("configuration number"));
            }
            ShardState::Copying {
                source,
                copy,
                cursor,
                bytes,
            }
        }
        COMPLETING => {
            let source = Gid(input.number("source")?);
            let (copy, cursor, bytes) = decode_copy(&mut input)?;
            ShardState::Completing {
                config,
                source,
                copy,
                cursor,
                bytes,
            }
        }
        FENCED => ShardState::Fenced {
            config,
            to: Gid(input.number("destination")?),
        },
        value => {
            return Err(DecodeError::Unknown {
                what: "shard state",
                value: value.into(),
            });
        }
    };
    let since = LogTime(input.number("time of the state")?);
    input.finish()?;
    Ok(Shard::new(state, since))
}

fn encode_copy(out: &mut Writer, copy: CopyId, cursor: &CopyCursor, bytes: u64) {
    copy.encode(out);
    encode_copy_cursor(out, cursor);
    out.number(bytes);
}

fn decode_copy(input: &mut Reader) -> Result<(CopyId, CopyCursor, u64), DecodeError> {
    let copy = CopyId::decode(input)?;
    let cursor = decode_copy_cursor(input)?;
    Ok((copy, cursor, input.number("bytes")?))
}

fn encode_pending_delete(source: Gid) -> Bytes {
    let mut out = Writer::default();
    out.byte(VERSION).number(source.0);
    out.finish()
}

fn decode_pending_delete(record: Bytes) -> Result<Gid, DecodeError> {
    let mut input = versioned(record, VERSION)?;
    let source = Gid(input.number("source")?);
    input.finish()?;
    Ok(source)
}

fn encode_group_record(group: &Group) -> Bytes {
    let mut out = Writer::default();
    group.encode(out.byte(VERSION));
    out.finish()
}

fn decode_group(record: Bytes) -> Result<Group, DecodeError> {
    let mut input = versioned(record, VERSION)?;
    let group = Group::decode(&mut input)?;
    input.finish()?;
    Ok(group)
}

fn versioned(record: Bytes, version: u8) -> Result<Reader, DecodeError> {
    let mut input = Reader::new(record);
    known("record version", input.byte("record version")?, version)?;
    Ok(input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::Index;

    #[test]
    fn records_of_copies_decode_to_what_was_encoded() {
        let copy = CopyId {
            since: ConfigNum(5),
            journal: Index(300),
        };
        let (source, cursor, bytes) = (Gid(7), CopyCursor::default(), 70_000);
        let copying = ShardState::Copying {
            source,
            copy,
            cursor: cursor.clone(),
            bytes,
        };
        let completing = ShardState::Completing {
            config: ConfigNum(6),
            source,
            copy,
            cursor,
            bytes,
        };
        for state in [copying, completing] {
            let shard = Shard::new(state, LogTime(1));
            assert_eq!(decode_shard(encode_shard(&shard)), Ok(shard));
        }
    }
}
