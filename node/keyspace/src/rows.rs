//! The values of rows. Each begins with a byte that tells the version of its format.

use std::num::NonZeroU64;

use bytes::Bytes;
use raft::StoreError;
use types::{DecodeError, Reader, Writer, known_version};

use crate::{KeyValue, LeaseId, sizes};

/// The format of a kind of rows. Each has a version of its own, so that one can change without the others.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    /// The subject of a row, for errors.
    what: &'static str,
    version: u8,
}

pub(crate) const RECORD: Format = Format::new("a keyspace", 1);
/// The record of a keyspace that has or had users or roles.
pub(crate) const RECORD_WITH_AUTH: Format = Format::new("a keyspace", 2);
pub(crate) const USER: Format = Format::new("a user", 1);
pub(crate) const ROLE: Format = Format::new("a role", 1);
pub(crate) const NAME: Format = Format::new("a keyspace's name", 1);
pub(crate) const SHARD: Format = Format::new("a shard's keyspaces", 1);
const CURRENT: Format = Format::new("a key's newest version", 1);
const VERSION: Format = Format::new("a version", 1);
const EVENT: Format = Format::new("an event", 1);
const LEASE: Format = Format::new("a lease", 1);

const PUT: u8 = 0;
const DELETE: u8 = 1;
/// A deletion after which the same write has put the key again: it left no marks.
const DELETE_UNMARKED: u8 = 2;

/// A version of a key without its value: a row of `Current`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mod_revision: i64,
    pub(crate) create_revision: i64,
    pub(crate) version: i64,
    pub(crate) lease: LeaseId,
    /// The recorded size of the version.
    pub(crate) size: u64,
}

impl Meta {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = CURRENT.begin(24);
        out.number(self.mod_revision.cast_unsigned())
            .number(self.create_revision.cast_unsigned())
            .number(self.version.cast_unsigned())
            .number(self.lease.0.cast_unsigned())
            .number(self.size);
        out.finish()
    }

    pub(crate) fn decode(row: Bytes) -> Result<Self, StoreError> {
        CURRENT.decode(row, |input| {
            Ok(Self {
                mod_revision: signed(input, "mod revision")?,
                create_revision: signed(input, "create revision")?,
                version: signed(input, "version")?,
                lease: LeaseId(signed(input, "lease")?),
                size: input.number("size")?,
            })
        })
    }

    /// Returns the pair of this version.
    pub(crate) fn pair(&self, key: Bytes, value: Bytes) -> KeyValue {
        KeyValue {
            key,
            value,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// Encodes a row of `Versions`. Key and mod revision are in its key.
pub(crate) fn encode_version(meta: &Meta, value: &[u8]) -> Bytes {
    let mut out = VERSION.begin(24 + value.len());
    out.number(meta.create_revision.cast_unsigned())
        .number(meta.version.cast_unsigned())
        .number(meta.lease.0.cast_unsigned())
        .raw(value);
    out.finish()
}

/// Decodes a row of `Versions` of a key of this length.
pub(crate) fn decode_version(
    row: Bytes,
    key: &[u8],
    mod_revision: i64,
) -> Result<(Meta, Bytes), StoreError> {
    VERSION.decode(row, |input| {
        let create_revision = signed(input, "create revision")?;
        let version = signed(input, "version")?;
        let lease = LeaseId(signed(input, "lease")?);
        let value = rest(input);
        let meta = Meta {
            mod_revision,
            create_revision,
            version,
            lease,
            size: sizes::version(key, &value),
        };
        Ok((meta, value))
    })
}

/// A row of `Events`. Revision and position are in its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventRow {
    pub(crate) deleted: bool,
    /// True if the deletion has left marks, in `Versions` and `Deletions`: the key was not put again in the same revision.
    pub(crate) marked: bool,
    /// The version before that clearing has still to remove: its mod revision and its size. 0 if there was none, or if it is
    /// removed already.
    pub(crate) prev_mod: i64,
    pub(crate) prev_size: u64,
    pub(crate) key: Bytes,
}

impl EventRow {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = EVENT.begin(24 + self.key.len());
        let kind = match (self.deleted, self.marked) {
            (false, _) => PUT,
            (true, true) => DELETE,
            (true, false) => DELETE_UNMARKED,
        };
        out.byte(kind)
            .number(self.prev_mod.cast_unsigned())
            .number(self.prev_size)
            .raw(&self.key);
        out.finish()
    }

    pub(crate) fn decode(row: Bytes) -> Result<Self, StoreError> {
        EVENT.decode(row, |input| {
            let kind = input.byte("event kind")?;
            if kind > DELETE_UNMARKED {
                return Err(DecodeError::Unknown {
                    what: "event kind",
                    value: kind.into(),
                });
            }
            Ok(Self {
                deleted: kind != PUT,
                marked: kind == DELETE,
                prev_mod: signed(input, "previous revision")?,
                prev_size: input.number("previous size")?,
                key: rest(input),
            })
        })
    }
}

/// A row of `Leases`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseRow {
    /// The granted time to live, in seconds.
    pub(crate) ttl: i64,
    /// The number of its grant.
    pub(crate) grant: u64,
    /// The number of its keys.
    pub(crate) keys: u32,
    /// The bytes of its keys.
    pub(crate) key_bytes: u64,
}

impl LeaseRow {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = LEASE.begin(24);
        out.number(self.ttl.cast_unsigned())
            .number(self.grant)
            .number(self.keys.into())
            .number(self.key_bytes);
        out.finish()
    }

    pub(crate) fn decode(row: Bytes) -> Result<Self, StoreError> {
        LEASE.decode(row, |input| {
            Ok(Self {
                ttl: signed(input, "ttl")?,
                grant: input.number("grant")?,
                keys: input.number_u32("keys")?,
                key_bytes: input.number("key bytes")?,
            })
        })
    }
}

/// Reads a number that may be negative.
pub(crate) fn signed(input: &mut Reader, what: &'static str) -> Result<i64, DecodeError> {
    Ok(input.number(what)?.cast_signed())
}

/// Reads a number that isn't 0.
pub(crate) fn nonzero(input: &mut Reader, what: &'static str) -> Result<NonZeroU64, DecodeError> {
    NonZeroU64::new(input.number(what)?).ok_or(DecodeError::OutOfRange(what))
}

/// Reads all that is left.
fn rest(input: &mut Reader) -> Bytes {
    std::mem::replace(input, Reader::new(Bytes::new())).rest()
}

impl Format {
    const fn new(what: &'static str, version: u8) -> Self {
        Self { what, version }
    }

    /// Returns true for a row of this version.
    pub(crate) fn is_of(self, row: &[u8]) -> bool {
        row.first() == Some(&self.version)
    }

    /// Begins a row.
    pub(crate) fn begin(self, capacity: usize) -> Writer {
        let mut out = Writer::with_capacity(capacity);
        out.byte(self.version);
        out
    }

    /// Decodes a row whose fields end with it.
    pub(crate) fn decode<T>(
        self,
        row: Bytes,
        fields: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
    ) -> Result<T, StoreError> {
        let read = |row| {
            let mut input = Reader::new(row);
            known_version("version", input.byte("version")?, self.version)?;
            let value = fields(&mut input)?;
            input.finish()?;
            Ok(value)
        };
        read(row).map_err(|error: DecodeError| {
            StoreError::unreadable(format_args!("the row of {}", self.what), &error)
        })
    }
}

/// Returns the error of a row that is not what this crate has written.
pub(crate) fn damaged(what: &str, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Damaged(format!("the row of {what} can't be read: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_only_by_the_version_of_its_kind() {
        let later = Format::new("a lease", 2);
        let row = |format: Format| {
            let mut out = format.begin(2);
            out.byte(7);
            out.finish()
        };
        for (writer, reader, known) in [
            (LEASE, LEASE, true),
            (later, later, true),
            (later, LEASE, false),
            (LEASE, later, false),
        ] {
            let read = reader.decode(row(writer), |input| input.byte("field"));
            assert_eq!(read.is_ok(), known);
            let is_other = matches!(read, Err(StoreError::OtherVersion(_)));
            assert_eq!(is_other, !known, "it isn't damaged");
        }
        let whole = LEASE.decode(row(LEASE), |_| Ok(()));
        assert!(whole.is_err(), "a byte is left");
    }
}
