//! The values of rows. Each begins with a version byte.

use std::num::NonZeroU64;

use bytes::Bytes;
use raft::StoreError;
use types::{DecodeError, Reader, Writer};

use crate::{KeyValue, LeaseId};

const VERSION: u8 = 1;
const PUT: u8 = 0;
const DELETE: u8 = 1;

/// What a version is charged beside its key and value: the rows' keys and revisions.
pub(crate) const VERSION_BYTES: u64 = 128;
/// What a lease is charged.
pub(crate) const LEASE_BYTES: u64 = 64;

/// Returns the recorded size of a version.
pub(crate) fn size(key: &[u8], value: &[u8]) -> u64 {
    VERSION_BYTES + key.len() as u64 + value.len() as u64
}

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
        let mut out = Writer::with_capacity(24);
        out.byte(VERSION)
            .number(self.mod_revision.cast_unsigned())
            .number(self.create_revision.cast_unsigned())
            .number(self.version.cast_unsigned())
            .number(self.lease.0.cast_unsigned())
            .number(self.size);
        out.finish()
    }

    pub(crate) fn decode(row: Bytes) -> Result<Self, StoreError> {
        decode("a key's newest version", row, |input| {
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
    let mut out = Writer::with_capacity(24 + value.len());
    out.byte(VERSION)
        .number(meta.create_revision.cast_unsigned())
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
    let read = |row| {
        let mut input = begin(row)?;
        let create_revision = signed(&mut input, "create revision")?;
        let version = signed(&mut input, "version")?;
        let lease = LeaseId(signed(&mut input, "lease")?);
        let value = input.rest();
        let meta = Meta {
            mod_revision,
            create_revision,
            version,
            lease,
            size: size(key, &value),
        };
        Ok((meta, value))
    };
    read(row).map_err(|error: DecodeError| damaged("a version", &error))
}

/// A row of `Events`. Revision and position are in its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventRow {
    pub(crate) deleted: bool,
    /// The version before that clearing has still to remove: its mod revision and its size. 0 if there was none, or if it is
    /// removed already.
    pub(crate) prev_mod: i64,
    pub(crate) prev_size: u64,
    pub(crate) key: Bytes,
}

impl EventRow {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(24 + self.key.len());
        out.byte(VERSION)
            .byte(if self.deleted { DELETE } else { PUT })
            .number(self.prev_mod.cast_unsigned())
            .number(self.prev_size)
            .raw(&self.key);
        out.finish()
    }

    pub(crate) fn decode(row: Bytes) -> Result<Self, StoreError> {
        let read = |row| {
            let mut input = begin(row)?;
            let deleted = input.flag("event kind")?;
            Ok(Self {
                deleted,
                prev_mod: signed(&mut input, "previous revision")?,
                prev_size: input.number("previous size")?,
                key: input.rest(),
            })
        };
        read(row).map_err(|error: DecodeError| damaged("an event", &error))
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
        let mut out = Writer::with_capacity(24);
        out.byte(VERSION)
            .number(self.ttl.cast_unsigned())
            .number(self.grant)
            .number(self.keys.into())
            .number(self.key_bytes);
        out.finish()
    }

    pub(crate) fn decode(row: Bytes) -> Result<Self, StoreError> {
        decode("a lease", row, |input| {
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

fn begin(row: Bytes) -> Result<Reader, DecodeError> {
    let mut input = Reader::new(row);
    match input.byte("version")? {
        VERSION => Ok(input),
        value => Err(DecodeError::Unknown {
            what: "version",
            value: value.into(),
        }),
    }
}

/// Decodes a whole row that begins with the version byte.
pub(crate) fn decode<T>(
    what: &str,
    row: Bytes,
    fields: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<T, StoreError> {
    let read = |row| {
        let mut input = begin(row)?;
        let value = fields(&mut input)?;
        input.finish()?;
        Ok(value)
    };
    read(row).map_err(|error: DecodeError| damaged(what, &error))
}

/// Returns the error of a row that is not what this crate has written.
pub(crate) fn damaged(what: &str, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Damaged(format!("the row of {what} can't be read: {why}"))
}
