//! The record of a keyspace.

use std::num::NonZeroU64;

use bytes::Bytes;
use raft::StoreError;
use replica::PairReader;
use types::{DecodeError, Reader, Writer};

use crate::auth::AuthState;
use crate::draft::Growth;
use crate::failure::Failure;
use crate::keys::Table;
use crate::rows::{RECORD, RECORD_WITH_AUTH, damaged, nonzero, signed};
use crate::store::{Store, get};
use crate::{Place, Refusal};

/// The most bytes of a name.
pub const MAX_NAME_BYTES: usize = 128;

/// The number of no table.
const NONE: u8 = u8::MAX;

const NO_COMPACTION: u8 = 0;
const PERIODIC: u8 = 1;
const BY_REVISIONS: u8 = 2;

/// The way in which a keyspace is compacted without a request. The server carries it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Not at all.
    #[default]
    None,
    /// Keeps the revisions of this many seconds.
    Periodic {
        /// The seconds.
        retention_secs: u64,
    },
    /// Keeps this many revisions.
    Revisions {
        /// The number.
        retained: u64,
    },
}

/// The options of a keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyspaceOptions {
    /// The most bytes of keys, values and versions that are not compacted.
    pub quota_bytes: u64,
    /// The automatic compaction.
    pub auto_compaction: AutoCompaction,
}

impl Default for KeyspaceOptions {
    /// etcd's default quota of 2 GiB, and no automatic compaction.
    fn default() -> Self {
        Self {
            quota_bytes: 2 << 30,
            auto_compaction: AutoCompaction::None,
        }
    }
}

impl KeyspaceOptions {
    /// Checks that the options are in range.
    pub fn check(&self) -> Result<(), Refusal> {
        let retention = match self.auto_compaction {
            AutoCompaction::None => 1,
            AutoCompaction::Periodic { retention_secs } => retention_secs,
            AutoCompaction::Revisions { retained } => retained,
        };
        if self.quota_bytes == 0 || retention == 0 {
            return Err(Refusal::InvalidOption);
        }
        Ok(())
    }

    pub(crate) fn encode(&self, out: &mut Writer) {
        out.number(self.quota_bytes);
        let (kind, value) = match self.auto_compaction {
            AutoCompaction::None => (NO_COMPACTION, 0),
            AutoCompaction::Periodic { retention_secs } => (PERIODIC, retention_secs),
            AutoCompaction::Revisions { retained } => (BY_REVISIONS, retained),
        };
        out.byte(kind).number(value);
    }

    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let quota_bytes = input.number("quota")?;
        let kind = input.byte("compaction")?;
        let value = input.number("retention")?;
        let auto_compaction = match kind {
            NO_COMPACTION => AutoCompaction::None,
            PERIODIC => AutoCompaction::Periodic {
                retention_secs: value,
            },
            BY_REVISIONS => AutoCompaction::Revisions { retained: value },
            value => {
                return Err(DecodeError::Unknown {
                    what: "compaction",
                    value: value.into(),
                });
            }
        };
        Ok(Self {
            quota_bytes,
            auto_compaction,
        })
    }
}

/// Checks that a name is one of a keyspace: `[a-z0-9]([-a-z0-9.]{0,126}[a-z0-9])?`.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let end = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let ends = bytes.first().is_some_and(end) && bytes.last().is_some_and(end);
    let inner = |byte: &u8| end(byte) || *byte == b'-' || *byte == b'.';
    if ends && bytes.len() <= MAX_NAME_BYTES && bytes.iter().all(inner) {
        Ok(())
    } else {
        Err(Refusal::InvalidName)
    }
}

/// The record of a keyspace: all that is not a row of a key, an event or a lease.
///
/// Invariants: `compacted <= revision`; `bytes` is the sum of the sizes of all rows, by the module `sizes`; no event before `clear_at` is left; `clear_at` isn't after the events at `compacted`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The name.
    pub name: String,
    /// The options.
    pub options: KeyspaceOptions,
    /// The number that was drawn for this incarnation.
    pub(crate) nonce: NonZeroU64,
    /// True if the keyspace was deleted and its rows are being cleared.
    pub deleted: bool,
    /// The newest revision. It begins at 1.
    pub revision: i64,
    /// The compacted revision: the oldest that can be read. As in etcd, it is -1 before the first compaction.
    pub compacted: i64,
    /// True if events up to the compacted revision have still to be cleared.
    pub clearing: bool,
    /// The bytes that count against the quota.
    pub bytes: u64,
    /// The number of leases that were ever granted, which is the number of the last grant.
    pub(crate) grants: u64,
    /// The number of leases.
    pub(crate) leases: u64,
    /// The place of the next event that clearing visits: a revision and a position in it.
    pub(crate) clear_at: (i64, u32),
    /// The last row that clearing has removed, once the keyspace is deleted: its table and its key.
    pub(crate) cleared: Option<(Table, Bytes)>,
    /// The bytes that a refused write would have added, or 0.
    pub(crate) refused_bytes: u64,
    /// The state of authentication.
    pub auth: AuthState,
}

impl Record {
    /// Returns the record of a keyspace that was just created.
    pub fn new(name: String, options: KeyspaceOptions, nonce: NonZeroU64) -> Self {
        Self {
            name,
            options,
            nonce,
            deleted: false,
            revision: 1,
            compacted: -1,
            clearing: false,
            bytes: 0,
            grants: 0,
            leases: 0,
            clear_at: (0, 0),
            cleared: None,
            refused_bytes: 0,
            auth: AuthState::default(),
        }
    }

    /// Returns the cluster id of the headers of all answers. It stays while the keyspace exists, wherever it moves, unless writes are
    /// lost ([`crate::renew`]). No other keyspace has it: not the next with its name, and not one that gets its id after the shard was
    /// restored.
    pub fn cluster_id(&self) -> u64 {
        self.nonce.get()
    }

    /// Returns true if the alarm NOSPACE is raised: a write was refused for the quota, and there is no room for it yet.
    pub fn no_space(&self) -> bool {
        self.refused_bytes > 0
    }

    /// Counts the rows that a write adds and removes, or refuses the write and raises the alarm. Only what puts keys or grants a lease is
    /// refused: deletions add rows, too, until they are compacted, and are what makes room.
    pub(crate) fn grow(&mut self, growth: Growth) -> Result<(), Failure> {
        let sum = self.bytes.saturating_add(growth.added);
        let sum = sum.checked_sub(growth.removed).ok_or_else(too_few)?;
        if growth.puts && sum > self.bytes && sum > self.options.quota_bytes {
            let bytes = sum - self.bytes;
            // One huge write doesn't hold the alarm in a keyspace that has room for all others.
            let most = (self.options.quota_bytes / 8).max(1);
            self.refused_bytes = self.refused_bytes.max(bytes.min(most));
            self.end_alarm();
            return Err(Refusal::NoSpace.into());
        }
        self.bytes = sum;
        self.end_alarm();
        Ok(())
    }

    /// Counts bytes that were removed.
    pub(crate) fn release(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(too_few)?;
        self.end_alarm();
        Ok(())
    }

    /// Ends the alarm if there is room.
    pub(crate) fn end_alarm(&mut self) {
        if self.bytes.saturating_add(self.refused_bytes) <= self.options.quota_bytes {
            self.refused_bytes = 0;
        }
    }

    fn encode(&self) -> Bytes {
        let has_auth = self.auth != AuthState::default();
        let format = if has_auth { RECORD_WITH_AUTH } else { RECORD };
        let mut out = format.begin(64 + self.name.len());
        out.bytes(self.name.as_bytes());
        self.options.encode(&mut out);
        out.number(self.nonce.get())
            .byte(self.deleted.into())
            .number(self.revision.cast_unsigned())
            .number(self.compacted.cast_unsigned())
            .byte(self.clearing.into())
            .number(self.clear_at.0.cast_unsigned())
            .number(self.clear_at.1.into())
            .number(self.bytes)
            .number(self.refused_bytes)
            .number(self.grants)
            .number(self.leases);
        if let Some((table, key)) = &self.cleared {
            out.byte(table.number()).bytes(key);
        } else {
            out.byte(NONE);
        }
        if has_auth {
            self.auth.encode(&mut out);
        }
        out.finish()
    }

    pub(crate) fn decode(row: Bytes) -> Result<Self, StoreError> {
        let with_auth = has_auth(&row);
        let format = if with_auth { RECORD_WITH_AUTH } else { RECORD };
        format.decode(row, |input| {
            let name = input.bytes("name")?;
            let name = String::from_utf8(name.to_vec());
            Ok(Self {
                name: name.map_err(|_| DecodeError::OutOfRange("name"))?,
                options: KeyspaceOptions::decode(input)?,
                nonce: nonzero(input, "nonce")?,
                deleted: input.flag("deleted")?,
                revision: signed(input, "revision")?,
                compacted: signed(input, "compacted revision")?,
                clearing: input.flag("clearing")?,
                clear_at: (signed(input, "cursor")?, input.number_u32("cursor")?),
                bytes: input.number("bytes")?,
                refused_bytes: input.number("refused bytes")?,
                grants: input.number("grants")?,
                leases: input.number("leases")?,
                cleared: decode_cleared(input)?,
                auth: if with_auth {
                    AuthState::decode(input)?
                } else {
                    AuthState::default()
                },
            })
        })
    }

    /// Writes the record.
    pub(crate) fn store(&self, place: Place, store: &mut dyn Store) {
        store.put(place.record(), self.encode());
    }
}

/// Returns true for the row of a record with the state of authentication.
pub(crate) fn has_auth(row: &[u8]) -> bool {
    RECORD_WITH_AUTH.is_of(row)
}

fn too_few() -> StoreError {
    damaged("a keyspace", &"it counts fewer bytes than its rows have")
}

fn decode_cleared(input: &mut Reader) -> Result<Option<(Table, Bytes)>, DecodeError> {
    let number = input.byte("table")?;
    if number == NONE {
        return Ok(None);
    }
    let table = Table::ROWS
        .into_iter()
        .find(|table| table.number() == number);
    let table = table.ok_or(DecodeError::OutOfRange("table"))?;
    Ok(Some((table, input.bytes("key")?)))
}

/// Reads the record of a keyspace, a deleted one too.
pub(crate) fn read_record(
    reader: &dyn PairReader,
    place: Place,
) -> Result<Option<Record>, StoreError> {
    let row = get(reader, &place.record())?;
    let record = row.map(Record::decode).transpose()?;
    if let Some(record) = &record
        && record.compacted > record.revision
    {
        return Err(damaged(
            "a keyspace",
            &"it is compacted beyond its revision",
        ));
    }
    Ok(record)
}
