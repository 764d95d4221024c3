//! The one owner of the layout of keys in the controllers' state.
//!
//! | table | key | value |
//! |---|---|---|
//! | `Meta` | `shardkv/genesis` | [`crate::Genesis`], written by `replica` |
//! | `Meta` | `shardctrler/oldest` | the oldest configuration that is kept; none: configuration 0 |
//! | `Meta` | `shardctrler/delta/`, number (u64, big-endian) | what leads to that configuration |
//! | `Meta` | `shardctrler/group/`, gid (u64, big-endian) | how far the group is |
//! | `Meta` | `shardctrler/drained/`, gid (u64, big-endian) | the last incarnation that was drained or forgotten, and whether the gid is retired |
//! | `Meta` | `shardctrler/moved/`, shard (u32, big-endian) | nothing: the shard's target is where a `Move` put it |
//! | `Meta` | `shardctrler/horizon` | the horizon of the session table (u64, big-endian), once it has forgotten a session |
//! | `Sessions` | 0 (u32), birth, nonce (u64 each, big-endian) | a session's record |
//!
//! There is one session table for all. Its records stand under shard 0, so that the table `Sessions` looks the same in
//! every kind of group. `Data` is empty.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use types::{ClientId, ConfigNum, Gid, LogTime, ShardId};

/// The oldest configuration, in `Meta`.
pub(crate) const OLDEST: &[u8] = b"shardctrler/oldest";
/// The prefix of the keys of deltas.
pub(crate) const DELTAS: &[u8] = b"shardctrler/delta/";
/// The prefix of the keys of groups' progress.
pub(crate) const GROUPS: &[u8] = b"shardctrler/group/";
/// The prefix of the keys of drained groups.
pub(crate) const DRAINED: &[u8] = b"shardctrler/drained/";
/// The prefix of the keys of moved shards.
pub(crate) const MOVED: &[u8] = b"shardctrler/moved/";

/// The horizon of the session table, in `Meta`.
pub(crate) const HORIZON: &[u8] = b"shardctrler/horizon";

const SESSION_BYTES: usize = 20;

/// The delta that leads to `num`, in `Meta`.
pub(crate) fn delta(num: ConfigNum) -> Bytes {
    prefixed(DELTAS, &num.0.to_be_bytes())
}

/// Returns the key of a group's progress, in `Meta`.
pub(crate) fn group(gid: Gid) -> Bytes {
    prefixed(GROUPS, &gid.0.to_be_bytes())
}

/// Returns the key of the last drained incarnation of a group, in `Meta`.
pub(crate) fn drained(gid: Gid) -> Bytes {
    prefixed(DRAINED, &gid.0.to_be_bytes())
}

/// Returns the key of the record that a shard was moved, in `Meta`.
pub(crate) fn moved(shard: ShardId) -> Bytes {
    prefixed(MOVED, &shard.0.to_be_bytes())
}

/// The u64 of a key whose prefix was taken off. `None` unless it has exactly the right length.
pub(crate) fn split_u64(rest: &[u8]) -> Option<u64> {
    rest.try_into().ok().map(u64::from_be_bytes)
}

/// The u32 of a key whose prefix was taken off. `None` unless it has exactly the right length.
pub(crate) fn split_u32(rest: &[u8]) -> Option<u32> {
    rest.try_into().ok().map(u32::from_be_bytes)
}

/// A session's record, in `Sessions`.
pub(crate) fn session(client: ClientId) -> Bytes {
    let mut out = BytesMut::with_capacity(SESSION_BYTES);
    out.put_u32(0);
    out.put_u64(client.birth.0);
    out.put_u64(client.nonce);
    out.freeze()
}

/// The client of a key in `Sessions`. `None` if it isn't one of ours.
pub(crate) fn split_session(mut stored: &[u8]) -> Option<ClientId> {
    if stored.len() != SESSION_BYTES || stored.get_u32() != 0 {
        return None;
    }
    Some(ClientId {
        birth: LogTime(stored.get_u64()),
        nonce: stored.get_u64(),
    })
}

fn prefixed(prefix: &[u8], rest: &[u8]) -> Bytes {
    [prefix, rest].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_split_into_what_they_were_made_of() {
        let client = ClientId {
            birth: LogTime(5),
            nonce: u64::MAX,
        };
        let key = session(client);
        assert_eq!(split_session(&key), Some(client));
        assert_eq!(split_session(&key[1..]), None);
        let mut other_shard = key.to_vec();
        other_shard[3] = 1;
        assert_eq!(split_session(&other_shard), None);
        let key = delta(ConfigNum(0x0102));
        let rest = key.strip_prefix(DELTAS).unwrap();
        assert_eq!(split_u64(rest), Some(0x0102));
        assert_eq!(split_u32(rest), None);
    }

    #[test]
    fn deltas_lie_in_the_order_of_their_numbers() {
        let numbers = [0, 1, 255, 256, 65_536, u64::MAX];
        let keys: Vec<Bytes> = numbers.map(|num| delta(ConfigNum(num))).to_vec();
        assert!(keys.is_sorted());
    }
}
