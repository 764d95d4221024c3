//! The layout of keys in the store. No other module knows it.
//!
//! All rows are in one table of the state. A stored key begins with the shard's prefix (u32, the shard's number with the highest
//! bit set) and the number of one of this crate's tables (u8). The flat map's pairs begin with the shard's number, whose highest
//! bit is not set, so the two never meet.
//!
//! | table | rest of the key | value |
//! |---|---|---|
//! | `Keyspaces` | 0 | the last id that was given, and the number of records |
//! | `Keyspaces` | 1, name | the id of the keyspace with this name |
//! | `Keyspaces` | 2, id | a [`crate::Record`] |
//! | `Current` | id, user key | revisions, version, lease and size of the newest version |
//! | `Versions` | id, escaped user key, mod revision | a version with its value |
//! | `Versions` | id, escaped user key, revision, 1 | empty: the key was deleted in this revision, and not put after that in it |
//! | `Deletions` | id, escaped user key, revision | empty: there is such a mark in `Versions` |
//! | `Events` | id, revision, position in the transaction (u32) | kind, previous version, user key |
//! | `Leases` | id, lease id | TTL, number of the grant, and the number and bytes of the lease's keys |
//! | `LeaseKeys` | id, lease id, user key | empty |
//! | `Auth` | id, 1, name | a [`crate::User`] |
//! | `Auth` | id, 2, name | a [`crate::Role`] |
//!
//! An id is the keyspace's (u64). All numbers are big-endian. So all rows of a shard are one range, which is copied and cleared with
//! the shard ([`rows_of_shard`]), and all rows of a keyspace in a table are one, too.
//!
//! In `Versions` and `Deletions` something follows the user key, so its end must be marked, and in a way that keeps the order of keys: a zero
//! byte becomes `00 ff`, and `00 00` ends the key.

use std::ops::Bound;

use bytes::{BufMut, Bytes, BytesMut};
use types::ShardId;

use crate::{KeyspaceId, LeaseId};

const OF_SHARD: u8 = 0;
const NAME: u8 = 1;
const RECORD: u8 = 2;

/// The bit that tells the prefix of a shard's rows from the prefix of its pairs in the flat map.
const OF_KEYSPACES: u32 = 1 << 31;
/// The bytes of a shard's prefix and of the number of a table.
const TABLE_BYTES: usize = 5;
/// The bytes before what follows a keyspace's id.
const PLACE_BYTES: usize = TABLE_BYTES + 8;
const ESCAPED_ZERO: [u8; 2] = [0, 0xff];
const END: [u8; 2] = [0, 0];
const DELETED: u8 = 1;
const USER: u8 = 1;
const ROLE: u8 = 2;

/// A set of rows. Its number is the part of a stored key after the shard's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Records of keyspaces, their names, and the last id of each shard.
    Keyspaces,
    /// The newest version of each key that exists, without its value.
    Current,
    /// All versions that are not compacted, with their values, and marks of deletions.
    Versions,
    /// The keys and revisions of all deletions that are not compacted.
    Deletions,
    /// All changes that are not compacted, in the order of revisions.
    Events,
    /// Leases.
    Leases,
    /// The keys of each lease.
    LeaseKeys,
    /// Users and roles.
    Auth,
}

impl Table {
    /// The tables that hold a keyspace's rows: all but the one with its record.
    pub const ROWS: [Self; 7] = [
        Self::Current,
        Self::Versions,
        Self::Deletions,
        Self::Events,
        Self::Leases,
        Self::LeaseKeys,
        Self::Auth,
    ];

    /// Returns the number of the table in stored keys and rows.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Keyspaces => 0,
            Self::Current => 1,
            Self::Versions => 2,
            Self::Deletions => 3,
            Self::Events => 4,
            Self::Leases => 5,
            Self::LeaseKeys => 6,
            Self::Auth => 7,
        }
    }
}

/// The place of a keyspace's rows: its shard and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The shard that holds the keyspace.
    pub shard: ShardId,
    /// The keyspace's id, which is never reused in the shard.
    pub id: KeyspaceId,
}

impl Place {
    fn begin(self, table: Table, more: usize) -> BytesMut {
        let mut out = begin(self.shard, table, 8 + more);
        out.put_u64(self.id.0);
        out
    }

    /// Returns the prefix of all rows of the keyspace in a table that isn't `Keyspaces`.
    pub(crate) fn prefix(self, table: Table) -> Bytes {
        self.begin(table, 0).freeze()
    }

    /// Returns the key of the keyspace's record, in `Keyspaces`.
    pub(crate) fn record(self) -> Bytes {
        of_shard(self.shard, RECORD, &self.id.0.to_be_bytes())
    }

    /// Returns the key of a user's key, in `Current`.
    pub(crate) fn current(self, key: &[u8]) -> Bytes {
        let mut out = self.begin(Table::Current, key.len());
        out.put_slice(key);
        out.freeze()
    }

    fn escaped(self, table: Table, key: &[u8]) -> BytesMut {
        let mut out = self.begin(table, key.len() + END.len() + 9);
        for byte in key {
            match byte {
                0 => out.put_slice(&ESCAPED_ZERO),
                byte => out.put_u8(*byte),
            }
        }
        out.put_slice(&END);
        out
    }

    /// Returns the key of a version, in `Versions`.
    pub(crate) fn version(self, key: &[u8], mod_revision: i64) -> Bytes {
        self.revised(Table::Versions, key, mod_revision).freeze()
    }

    /// Returns the key of the mark of a deletion, in `Versions`. It sorts after the version of the same revision.
    pub(crate) fn deleted(self, key: &[u8], revision: i64) -> Bytes {
        let mut out = self.revised(Table::Versions, key, revision);
        out.put_u8(DELETED);
        out.freeze()
    }

    /// Returns the key of a deletion, in `Deletions`.
    pub(crate) fn deletion(self, key: &[u8], revision: i64) -> Bytes {
        self.revised(Table::Deletions, key, revision).freeze()
    }

    fn revised(self, table: Table, key: &[u8], revision: i64) -> BytesMut {
        let mut out = self.escaped(table, key);
        out.put_i64(revision);
        out
    }

    /// Returns the key before the first row of a user's key, in `Versions`.
    pub(crate) fn first_version(self, key: &[u8]) -> Bytes {
        self.escaped(Table::Versions, key).freeze()
    }

    /// Returns the key before the first row of a user's key, in `Deletions`.
    pub(crate) fn first_deletion(self, key: &[u8]) -> Bytes {
        self.escaped(Table::Deletions, key).freeze()
    }

    /// Returns the key of an event, in `Events`.
    pub(crate) fn event(self, revision: i64, position: u32) -> Bytes {
        let mut out = self.begin(Table::Events, 12);
        out.put_i64(revision);
        out.put_u32(position);
        out.freeze()
    }

    /// Returns the key of a lease, in `Leases`.
    pub(crate) fn lease(self, lease: LeaseId) -> Bytes {
        let mut out = self.begin(Table::Leases, 8);
        out.put_i64(lease.0);
        out.freeze()
    }

    /// Returns the prefix of the keys of a lease's keys, in `LeaseKeys`.
    pub(crate) fn lease_keys(self, lease: LeaseId) -> Bytes {
        self.lease_key(lease, &[])
    }

    /// Returns the key of a key of a lease, in `LeaseKeys`.
    pub(crate) fn lease_key(self, lease: LeaseId, key: &[u8]) -> Bytes {
        let mut out = self.begin(Table::LeaseKeys, 8 + key.len());
        out.put_i64(lease.0);
        out.put_slice(key);
        out.freeze()
    }

    /// Returns the key of a user, in `Auth`.
    pub(crate) fn user(self, name: &str) -> Bytes {
        self.auth(USER, name)
    }

    /// Returns the key of a role, in `Auth`.
    pub(crate) fn role(self, name: &str) -> Bytes {
        self.auth(ROLE, name)
    }

    /// Returns the prefix of all users, in `Auth`.
    pub(crate) fn users(self) -> Bytes {
        self.auth(USER, "")
    }

    /// Returns the prefix of all roles, in `Auth`.
    pub(crate) fn roles(self) -> Bytes {
        self.auth(ROLE, "")
    }

    fn auth(self, kind: u8, name: &str) -> Bytes {
        let mut out = self.begin(Table::Auth, 1 + name.len());
        out.put_u8(kind);
        out.put_slice(name.as_bytes());
        out.freeze()
    }
}

/// Returns true for a row that only members from feature level 3 on can read: a user, a role, or the record of a keyspace that had some.
/// `key` is the row's key after the shard.
pub fn is_auth_row(key: &[u8], value: Option<&[u8]>) -> bool {
    let is_record = key.starts_with(&[Table::Keyspaces.number(), RECORD]);
    let of_auth = key.first() == Some(&Table::Auth.number());
    of_auth || (is_record && value.is_some_and(crate::record::has_auth))
}

/// Returns the bounds of all rows of a shard: the least key, and the end. A copy of these rows is a copy of the shard's keyspaces, in
/// every respect; without them, the shard has none.
pub fn rows_of_shard(shard: ShardId) -> (Bytes, Bound<Bytes>) {
    let prefix = Bytes::copy_from_slice(&prefix(shard).to_be_bytes());
    let end = end_of(&prefix);
    (prefix, end)
}

fn prefix(shard: ShardId) -> u32 {
    shard.0 | OF_KEYSPACES
}

fn begin(shard: ShardId, table: Table, more: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(TABLE_BYTES + more);
    out.put_u32(prefix(shard));
    out.put_u8(table.number());
    out
}

fn of_shard(shard: ShardId, kind: u8, rest: &[u8]) -> Bytes {
    let mut out = begin(shard, Table::Keyspaces, 1 + rest.len());
    out.put_u8(kind);
    out.put_slice(rest);
    out.freeze()
}

/// Returns the key of a keyspace's name, in `Keyspaces`.
pub(crate) fn name(shard: ShardId, name: &str) -> Bytes {
    of_shard(shard, NAME, name.as_bytes())
}

/// Returns the key of the row of a shard's keyspaces, in `Keyspaces`.
pub(crate) fn shard(shard: ShardId) -> Bytes {
    of_shard(shard, OF_SHARD, &[])
}

/// Returns the prefix of the records of a shard's keyspaces, in `Keyspaces`.
pub(crate) fn records(shard: ShardId) -> Bytes {
    of_shard(shard, RECORD, &[])
}

/// Returns the number of the table of a stored key.
pub(crate) fn table_number(stored: &[u8]) -> Option<u8> {
    stored.get(TABLE_BYTES - 1).copied()
}

/// Returns the place of a [`Place::record`].
pub(crate) fn split_record(stored: &[u8]) -> Option<Place> {
    let (shard, rest) = stored.split_first_chunk()?;
    let id = rest.strip_prefix(&[Table::Keyspaces.number(), RECORD])?;
    Some(Place {
        shard: ShardId(u32::from_be_bytes(*shard) & !OF_KEYSPACES),
        id: KeyspaceId(u64::from_be_bytes(id.try_into().ok()?)),
    })
}

/// Removes the place from a stored key. What remains shares its memory: the user's key, of `Current`.
pub(crate) fn without_place(stored: &Bytes) -> Option<Bytes> {
    (stored.len() >= PLACE_BYTES).then(|| stored.slice(PLACE_BYTES..))
}

/// Returns revision and position of a [`Place::event`].
pub(crate) fn split_event(stored: &[u8]) -> Option<(i64, u32)> {
    let rest: [u8; 12] = stored.get(PLACE_BYTES..)?.try_into().ok()?;
    let (revision, position) = rest.split_at(8);
    Some((
        i64::from_be_bytes(revision.try_into().ok()?),
        u32::from_be_bytes(position.try_into().ok()?),
    ))
}

/// Returns the lease of a [`Place::lease`].
pub(crate) fn split_lease(stored: &[u8]) -> Option<LeaseId> {
    let id = stored.get(PLACE_BYTES..)?.try_into().ok()?;
    Some(LeaseId(i64::from_be_bytes(id)))
}

/// Returns the user's key of a [`Place::lease_key`], which shares its memory.
pub(crate) fn split_lease_key(stored: &Bytes) -> Option<Bytes> {
    (stored.len() >= PLACE_BYTES + 8).then(|| stored.slice(PLACE_BYTES + 8..))
}

/// Returns the name of a [`Place::user`] or a [`Place::role`].
pub(crate) fn split_auth(stored: &[u8]) -> Option<String> {
    let name = stored.get(PLACE_BYTES + 1..)?;
    String::from_utf8(name.to_vec()).ok()
}

/// A stored key of `Versions`: a version or the mark of a deletion.
pub(crate) struct VersionKey {
    /// The place and the escaped user's key.
    pub(crate) key: Bytes,
    pub(crate) revision: i64,
    pub(crate) deleted: bool,
}

/// Splits a [`Place::version`] or a [`Place::deleted`].
pub(crate) fn split_version(stored: &Bytes) -> Option<VersionKey> {
    // The escaped key ends at the first `00 00`, and only a zero byte is followed by `ff`.
    let rest = stored.get(PLACE_BYTES..)?;
    let end = rest.windows(2).position(|pair| pair == END)?;
    let at = PLACE_BYTES + end + END.len();
    let (revision, mark) = stored.get(at..)?.split_at_checked(8)?;
    let deleted = match mark {
        [] => false,
        [DELETED] => true,
        _ => return None,
    };
    Some(VersionKey {
        key: stored.slice(..at),
        revision: i64::from_be_bytes(revision.try_into().ok()?),
        deleted,
    })
}

/// Returns the user's key and the revision of a [`Place::deletion`].
pub(crate) fn split_deletion(stored: &Bytes) -> Option<(Bytes, i64)> {
    let split = split_version(stored).filter(|split| !split.deleted)?;
    let escaped = split.key.slice(PLACE_BYTES..split.key.len() - END.len());
    Some((unescape(&escaped), split.revision))
}

fn unescape(escaped: &Bytes) -> Bytes {
    if !escaped.contains(&0) {
        return escaped.clone();
    }
    let mut key = BytesMut::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(byte) = bytes.next() {
        key.put_u8(*byte);
        if *byte == 0 {
            bytes.next();
        }
    }
    key.freeze()
}

/// Returns the end of the keys with this prefix.
pub(crate) fn end_of(prefix: &[u8]) -> Bound<Bytes> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return Bound::Excluded(end.into());
        }
    }
    Bound::Unbounded
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        shard: ShardId(7),
        id: KeyspaceId(u64::MAX),
    };

    #[test]
    fn versions_sort_by_key_then_revision_then_deletion() {
        let keys: [&[u8]; 9] = [
            b"\0",
            b"\0\0",
            b"\0\x01",
            b"\0\xff",
            b"a",
            b"a\0",
            b"a\0\0\0\0\0\0\0\0\0\x01",
            b"a\x01",
            b"b",
        ];
        let mut sorted = Vec::new();
        for key in keys {
            sorted.push(PLACE.first_version(key));
            for revision in [1, 255, 256, i64::MAX] {
                sorted.push(PLACE.version(key, revision));
                sorted.push(PLACE.deleted(key, revision));
            }
        }
        assert!(sorted.is_sorted());
        for key in keys {
            for (stored, deleted) in [
                (PLACE.version(key, 9), false),
                (PLACE.deleted(key, 9), true),
            ] {
                let split = split_version(&stored).unwrap();
                assert_eq!(split.key, PLACE.first_version(key), "{key:?}");
                assert_eq!((split.revision, split.deleted), (9, deleted));
            }
            let stored = PLACE.deletion(key, 9);
            assert_eq!(
                split_deletion(&stored),
                Some((Bytes::copy_from_slice(key), 9))
            );
            assert_eq!(split_deletion(&PLACE.deleted(key, 9)), None);
        }
    }

    #[test]
    fn a_place_ends_where_the_next_begins() {
        let next = Place {
            shard: ShardId(8),
            id: KeyspaceId(0),
        };
        let Bound::Excluded(end) = end_of(&PLACE.prefix(Table::Current)) else {
            panic!("bounded");
        };
        assert!(end <= next.prefix(Table::Current) && end > PLACE.current(&[0xff; 40]));
        let (start, end) = rows_of_shard(PLACE.shard);
        let Bound::Excluded(end) = end else {
            panic!("bounded");
        };
        for stored in [
            shard(PLACE.shard),
            name(PLACE.shard, "z"),
            PLACE.record(),
            PLACE.lease_key(LeaseId(-1), &[0xff; 40]),
            PLACE.role("z"),
        ] {
            assert!(start <= stored && stored < end);
        }
        assert!(end <= shard(next.shard));
        assert_eq!(end_of(&[0xff, 0xff]), Bound::Unbounded);
    }

    #[test]
    fn keys_split_into_what_they_were_made_of() {
        assert_eq!(split_record(&PLACE.record()), Some(PLACE));
        assert_eq!(split_event(&PLACE.event(5, 6)), Some((5, 6)));
        assert_eq!(split_lease(&PLACE.lease(LeaseId(-3))), Some(LeaseId(-3)));
        let key = PLACE.lease_key(LeaseId(-3), b"k");
        assert_eq!(split_lease_key(&key).unwrap(), b"k"[..]);
        assert_eq!(without_place(&PLACE.current(b"k")).unwrap(), b"k"[..]);
        assert_eq!(split_auth(&PLACE.user("u")).as_deref(), Some("u"));
        assert!(PLACE.user("z") < PLACE.role("a"));
        assert!(is_auth_row(&PLACE.role("a")[4..], None));
        assert!(!is_auth_row(&PLACE.lease(LeaseId(1))[4..], None));
        assert!(is_auth_row(&PLACE.record()[4..], Some(&[2])));
        assert!(!is_auth_row(&PLACE.record()[4..], Some(&[1])));
        assert!(!is_auth_row(&name(PLACE.shard, "n")[4..], Some(&[2])));
        for damaged in [&b""[..], &PLACE.record()[..5], b"short", &[0; 13]] {
            let stored = Bytes::copy_from_slice(damaged);
            assert_eq!(split_record(damaged), None);
            assert_eq!(split_event(damaged), None);
            assert_eq!(split_lease(damaged), None);
            assert!(split_version(&stored).is_none());
            assert!(split_deletion(&stored).is_none());
        }
    }
}
