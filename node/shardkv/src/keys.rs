//! The layout of keys in the state. No other module knows it.
//!
//! | table | key | value |
//! |---|---|---|
//! | `Meta` | `shardkv/genesis` | [`crate::Genesis`] |
//! | `Meta` | `shardkv/group` | the group's gid, its controller, and its accepted configuration |
//! | `Meta` | `shardkv/shard/`, shard (u32, big-endian) | a [`crate::Shard`]; none in a standalone group |
//! | `Meta` | `shardkv/owed/`, shard, configuration (u64, big-endian) | the source of a pending delete |
//! | `Meta` | `shardkv/address/`, gid (u64, big-endian) | a group's addresses |
//! | `Meta` | `shardkv/journal/`, shard | a [`crate::Journal`] |
//! | `Meta` | `shardkv/clock/`, shard | the clock of its session table, if it isn't log time alone |
//! | `Meta` | `shardkv/target/`, shard | a [`crate::Target`], if the shard is to go from here |
//! | `Meta` | `shardkv/configure` | the head of a step that is too large for one entry, while its parts arrive |
//! | `Meta` | `shardkv/configure/`, index (u32, big-endian) | a part of it |
//! | `Data` | shard (u32, big-endian), user's key | user's value |
//! | `Data` | shard with the highest bit set (u32, big-endian), the rest | a row of a keyspace |
//! | `Sessions` | shard (u32, big-endian), birth, nonce (u64 each, big-endian) | a session's record |
//! | `Journal` | shard (u32, big-endian), generation (u64, big-endian), name of a change | empty |
//!
//! A shard's pairs, its keyspaces' rows and its sessions are three ranges, each with a prefix of its own, so that they can be copied and
//! cleared as such. The rows stand after all pairs of all shards. What their keys and values mean, only the crate of keyspaces knows. In
//! `Meta`, names that start with `shardkv/` are this crate's.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use types::{ClientId, ConfigNum, Gid, LogTime, MAX_SHARDS, ShardId};

/// The key of the group's record, in `Meta`.
pub(crate) const GROUP: &[u8] = b"shardkv/group";

/// The key of the head of a step whose parts arrive, in `Meta`, and the prefix of the keys of the parts.
pub(crate) const PARTS: &[u8] = b"shardkv/configure";
const PART: &[u8] = b"shardkv/configure/";

/// The prefix of the keys of shards' records, in `Meta`. The next two are those of pending deletes and of addresses.
pub(crate) const SHARDS: &[u8] = b"shardkv/shard/";
pub(crate) const PENDING_DELETES: &[u8] = b"shardkv/owed/";
pub(crate) const ADDRESSES: &[u8] = b"shardkv/address/";

/// The prefixes of the keys of journals' and targets' records, in `Meta`.
pub(crate) const JOURNALS: &[u8] = b"shardkv/journal/";
pub(crate) const TARGETS: &[u8] = b"shardkv/target/";

/// The prefix of the keys of the records of session clocks, in `Meta`.
pub(crate) const CLOCKS: &[u8] = b"shardkv/clock/";

const SHARD_BYTES: usize = 4;

/// The bit of a stored key's shard number that tells a row of a keyspace from a user's pair.
const ROWS: u32 = 1 << 31;
const _: () = assert!(MAX_SHARDS < ROWS, "shard numbers leave the bit free");

/// The longest key of a row, in bytes, without the shard: more than a user's key of the largest request takes, whose bytes may
/// be doubled.
pub(crate) const MAX_ROW_KEY_BYTES: usize = 4 << 20;
const SESSION_BYTES: usize = SHARD_BYTES + 16;

/// Returns the key of a part of a step, in `Meta`.
pub(crate) fn part(index: u32) -> Bytes {
    [PART, &index.to_be_bytes()].concat().into()
}

/// Returns the stored key of a user's key, in `Data`.
pub(crate) fn data(shard: ShardId, key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(SHARD_BYTES + key.len());
    out.put_u32(shard.0);
    out.put_slice(key);
    out.freeze()
}

/// Returns the first key of a shard's range, in `Data` and in `Sessions`. The range ends where the next shard's begins.
pub(crate) fn shard_start(shard: ShardId) -> Bytes {
    Bytes::copy_from_slice(&shard.0.to_be_bytes())
}

/// Returns the range of stored keys of the users' keys of `[start, end)`; an empty `end` is the shard's end.
pub(crate) fn data_range(shard: ShardId, start: &[u8], end: &[u8]) -> (Bytes, Bytes) {
    let to = if end.is_empty() {
        shard_start(ShardId(shard.0 + 1))
    } else {
        data(shard, end)
    };
    (data(shard, start), to)
}

/// Splits a key of `Data` into shard and user's key, which shares its memory. `None` if the key is too short.
pub(crate) fn split_data(mut stored: Bytes) -> Option<(ShardId, Bytes)> {
    let shard = ShardId(stored.try_get_u32().ok()?);
    Some((shard, stored))
}

/// Returns the stored key of a row of a keyspace, in `Data`. `rest` is the key after the shard.
pub(crate) fn row(shard: ShardId, rest: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(SHARD_BYTES + rest.len());
    out.put_u32(shard.0 | ROWS);
    out.put_slice(rest);
    out.freeze()
}

/// Returns the first key of the range of a shard's rows, in `Data`. The range ends where the next shard's begins.
pub(crate) fn rows_start(shard: ShardId) -> Bytes {
    row(shard, &[])
}

/// Returns the range of the stored keys of a shard's rows whose rest begins with `prefix`.
pub(crate) fn rows_range(shard: ShardId, prefix: &[u8]) -> (Bytes, Bytes) {
    let mut end = prefix.to_vec();
    while end.pop_if(|last| *last == u8::MAX).is_some() {}
    let end = match end.last_mut() {
        Some(last) => {
            *last += 1;
            row(shard, &end)
        }
        None => rows_start(ShardId(shard.0 + 1)),
    };
    (row(shard, prefix), end)
}

/// Splits a [`row`] into shard and rest, which shares its memory. `None` for a pair's key.
pub(crate) fn split_row(stored: Bytes) -> Option<(ShardId, Bytes)> {
    let (shard, rest) = split_data(stored)?;
    Some((ShardId(shard.0.checked_sub(ROWS)?), rest))
}

/// Returns the ranges of a shard's pairs and of its rows, in `Data`.
pub(crate) fn ranges(shard: ShardId) -> [(Bytes, Bytes); 2] {
    let next = ShardId(shard.0.saturating_add(1));
    [
        (shard_start(shard), shard_start(next)),
        (rows_start(shard), rows_start(next)),
    ]
}

/// Returns the key of a session's record, in `Sessions`.
pub(crate) fn session(shard: ShardId, client: ClientId) -> Bytes {
    let mut out = BytesMut::with_capacity(SESSION_BYTES);
    out.put_u32(shard.0);
    out.put_u64(client.birth.0);
    out.put_u64(client.nonce);
    out.freeze()
}

/// Splits a key of `Sessions` into shard and client. `None` unless the key has exactly the right length.
pub(crate) fn split_session(mut stored: &[u8]) -> Option<(ShardId, ClientId)> {
    if stored.len() != SESSION_BYTES {
        return None;
    }
    let shard = ShardId(stored.get_u32());
    let client = ClientId {
        birth: LogTime(stored.get_u64()),
        nonce: stored.get_u64(),
    };
    Some((shard, client))
}

/// Returns the key of a shard's record, in `Meta`.
pub(crate) fn shard_record(shard: ShardId) -> Bytes {
    [SHARDS, &shard.0.to_be_bytes()].concat().into()
}

/// Returns the shard of a [`shard_record`].
pub(crate) fn split_shard_record(stored: &[u8]) -> Option<ShardId> {
    let shard = stored.strip_prefix(SHARDS)?.try_into().ok()?;
    Some(ShardId(u32::from_be_bytes(shard)))
}

/// Returns the key of the record of a shard's journal, in `Meta`.
pub(crate) fn journal_record(shard: ShardId) -> Bytes {
    [JOURNALS, &shard.0.to_be_bytes()].concat().into()
}

/// Returns the key of the record of a shard's target, in `Meta`.
pub(crate) fn target_record(shard: ShardId) -> Bytes {
    [TARGETS, &shard.0.to_be_bytes()].concat().into()
}

/// Returns the key of the record of a shard's session clock, in `Meta`.
pub(crate) fn clock_record(shard: ShardId) -> Bytes {
    [CLOCKS, &shard.0.to_be_bytes()].concat().into()
}

/// Returns the shard of a [`journal_record`], a [`target_record`] or a [`clock_record`], whose prefix is `prefix`.
pub(crate) fn split_prefixed(stored: &[u8], prefix: &[u8]) -> Option<ShardId> {
    let shard = stored.strip_prefix(prefix)?.try_into().ok()?;
    Some(ShardId(u32::from_be_bytes(shard)))
}

/// Returns the key of a name in a generation of a shard's journal, in `Journal`. The empty name gives the start of the
/// generation's range, which ends where the next generation's begins.
pub(crate) fn journal_name(shard: ShardId, generation: u64, name: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(SHARD_BYTES + 8 + name.len());
    out.put_u32(shard.0);
    out.put_u64(generation);
    out.put_slice(name);
    out.freeze()
}

/// Returns the name in a [`journal_name`], sharing its memory.
pub(crate) fn split_journal_name(mut stored: Bytes) -> Option<Bytes> {
    (stored.len() > SHARD_BYTES + 8).then(|| stored.split_off(SHARD_BYTES + 8))
}

/// Returns the key of a pending delete's record, in `Meta`.
pub(crate) fn pending_delete((shard, config): (ShardId, ConfigNum)) -> Bytes {
    [
        PENDING_DELETES,
        &shard.0.to_be_bytes(),
        &config.0.to_be_bytes(),
    ]
    .concat()
    .into()
}

/// Returns the shard and the configuration of an [`pending_delete`].
pub(crate) fn split_pending_delete(stored: &[u8]) -> Option<(ShardId, ConfigNum)> {
    let (shard, config) = stored.strip_prefix(PENDING_DELETES)?.split_first_chunk()?;
    let config = config.try_into().ok()?;
    Some((
        ShardId(u32::from_be_bytes(*shard)),
        ConfigNum(u64::from_be_bytes(config)),
    ))
}

/// Returns the key of the record of a group's addresses, in `Meta`.
pub(crate) fn address_record(gid: Gid) -> Bytes {
    [ADDRESSES, &gid.0.to_be_bytes()].concat().into()
}

/// Returns the group of an [`address_record`].
pub(crate) fn split_address_record(stored: &[u8]) -> Option<Gid> {
    let gid = stored.strip_prefix(ADDRESSES)?.try_into().ok()?;
    Some(Gid(u64::from_be_bytes(gid)))
}

/// Returns the end of the range of keys that begin with `prefix`. The prefix must end with a slash.
pub(crate) fn prefix_end(prefix: &[u8]) -> Bytes {
    let name = prefix.strip_suffix(b"/").unwrap_or(prefix);
    // In ASCII, `0` follows the slash.
    [name, b"0"].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_split_into_what_they_were_made_of() {
        let (shard, config, gid) = (ShardId(0x0102_0304), ConfigNum(u64::MAX - 1), Gid(9));
        let keys = [
            (shard_record(shard), SHARDS),
            (pending_delete((shard, config)), PENDING_DELETES),
            (address_record(gid), ADDRESSES),
        ];
        for (key, prefix) in &keys {
            assert!(key.as_ref() > *prefix && *key < prefix_end(prefix));
        }
        let [shards, deletes, addresses] = keys.map(|(key, _)| key);
        assert_eq!(split_shard_record(&shards), Some(shard));
        assert_eq!(split_pending_delete(&deletes), Some((shard, config)));
        assert_eq!(split_address_record(&addresses), Some(gid));
        for key in [&shards, &deletes, &addresses] {
            for length in 0..key.len() {
                let cut = &key[..length];
                assert_eq!(split_shard_record(cut), None);
                assert_eq!(split_pending_delete(cut), None);
                assert_eq!(split_address_record(cut), None);
            }
        }
    }

    #[test]
    fn keys_split_into_what_they_were_made_of() {
        let key = data(ShardId(0x0102_0304), b"user");
        assert_eq!(key.as_ref(), b"\x01\x02\x03\x04user");
        assert_eq!(
            split_data(key),
            Some((ShardId(0x0102_0304), Bytes::from_static(b"user")))
        );
        let client = ClientId {
            birth: LogTime(5),
            nonce: u64::MAX,
        };
        let key = session(ShardId(7), client);
        assert_eq!(split_session(&key), Some((ShardId(7), client)));
        assert_eq!(split_session(&key[1..]), None);
        assert_eq!(split_data(Bytes::from_static(b"abc")), None);
    }

    #[test]
    fn rows_stand_after_all_pairs() {
        let last = ShardId(MAX_SHARDS - 1);
        assert!(data(last, &[0xff; 40]) < rows_start(ShardId(0)));
        let key = row(last, b"\x01rest");
        assert_eq!(
            split_row(key.clone()),
            Some((last, Bytes::from_static(b"\x01rest")))
        );
        assert_eq!(split_row(data(last, b"user")), None);
        let [_, (start, end)] = ranges(last);
        for key in [key, row(last, b""), row(last, &[0xff; 40])] {
            assert!(start <= key && key < end);
        }
        let [_, (next, _)] = ranges(ShardId(MAX_SHARDS));
        assert_eq!(end, next);
        // The crate of keyspaces has the same range.
        let theirs = keyspace::rows_of_shard(last);
        assert_eq!(theirs, (start, std::ops::Bound::Excluded(end)));
    }

    #[test]
    fn a_range_of_rows_has_just_those_with_its_prefix() {
        let shard = ShardId(7);
        let rests: [&[u8]; 6] = [b"", b"a", b"a\xff", b"a\xff\xff", b"a\xff\xffb", b"b"];
        for prefix in [&b""[..], b"a", b"a\xff", b"a\xff\xff", b"\xff", b"\xff\xff"] {
            let (start, end) = rows_range(shard, prefix);
            for rest in rests
                .into_iter()
                .chain([&b"\xff"[..], b"\xff\xff", b"\xff\xff\x01"])
            {
                let key = row(shard, rest);
                let inside = start <= key && key < end;
                assert_eq!(inside, rest.starts_with(prefix), "{prefix:?} {rest:?}");
            }
            assert!(end <= rows_start(ShardId(8)));
        }
    }

    #[test]
    fn the_pairs_of_a_shard_are_one_range() {
        let shard = ShardId(255);
        let (start, end) = (shard_start(shard), shard_start(ShardId(256)));
        for key in [data(shard, b""), data(shard, &[0xff; 40])] {
            assert!(start <= key && key < end);
        }
        assert!(data(ShardId(254), &[0xff; 40]) < start);
        assert!(data(ShardId(256), b"") >= end);
    }
}
