//! What is chosen when a group is created.

use std::fmt;

use bytes::Bytes;
use raft::StoreError;
use types::{DecodeError, MAX_SHARDS, Reader, Writer};

use crate::session::SessionLimits;
use crate::{StateReader, Table, WriteBatch};

/// How far in the future a session's birth may lie, in milliseconds, before it is refused. Part of the
/// format: replicas that disagreed would diverge.
pub const MAX_BIRTH_AHEAD_MS: u64 = 60_000;

/// The version byte of the stored record.
const RECORD_VERSION: u8 = 2;

/// The record's key, in `Meta`.
const KEY: &[u8] = b"shardkv/genesis";

/// What a group is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupKind {
    /// A store of one group, without a controller: it owns all shards from the start.
    #[default]
    Standalone,
    /// A replica group among others: it owns what the controller gives it.
    Shards,
    /// The controllers' own group: it keeps the configurations.
    Controller,
}

impl GroupKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Standalone, Self::Shards, Self::Controller];

    /// Its name, in files, options and messages for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Shards => "shards",
            Self::Controller => "controller",
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Standalone => 0,
            Self::Shards => 1,
            Self::Controller => 2,
        }
    }
}

impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is chosen when a group is created, kept in its state, and never changed: replicas that disagreed on
/// it would diverge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// What the group is for.
    pub kind: GroupKind,
    /// The cluster's number of shards: 1 to 1,000,000.
    pub shards: u32,
    /// A session that was silent for this long is forgotten, in milliseconds of log time: a second to a
    /// year. A client can repeat a write for half of it less [`MAX_BIRTH_AHEAD_MS`] (if the groups' clocks
    /// are that far apart), so in production it is many minutes.
    pub session_ttl_ms: u64,
    /// The most sessions that a shard remembers: 1 to 1,048,576.
    pub max_sessions_per_shard: u32,
    /// The most unacknowledged results that a session keeps in a shard: 1 to 65,536.
    pub max_results_per_session: u32,
}

/// A choice that is out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} must be {least} to {most}, not {value}")]
pub struct GenesisError {
    /// Which one.
    pub field: &'static str,
    /// What was given.
    pub value: u64,
    /// The least that is allowed.
    pub least: u64,
    /// The most that is allowed.
    pub most: u64,
}

impl Default for Genesis {
    fn default() -> Self {
        Self {
            kind: GroupKind::Standalone,
            shards: 64,
            session_ttl_ms: 600_000,
            max_sessions_per_shard: 65_536,
            max_results_per_session: 1_024,
        }
    }
}

impl Genesis {
    /// Refuses what is out of range.
    pub fn validate(&self) -> Result<(), GenesisError> {
        let ranges = [
            ("shards", u64::from(self.shards), 1, u64::from(MAX_SHARDS)),
            (
                "session_ttl_ms",
                self.session_ttl_ms,
                1_000,
                365 * 86_400_000,
            ),
            (
                "max_sessions_per_shard",
                u64::from(self.max_sessions_per_shard),
                1,
                1 << 20,
            ),
            (
                "max_results_per_session",
                u64::from(self.max_results_per_session),
                1,
                1 << 16,
            ),
        ];
        for (field, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(GenesisError {
                    field,
                    value,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }

    /// The first content of a group's state. What it holds must be valid: [`Genesis::load`] refuses it
    /// otherwise.
    pub fn to_batch(&self) -> WriteBatch {
        let mut batch = WriteBatch::default();
        batch.put(Table::Meta, Bytes::from_static(KEY), self.encode());
        batch
    }

    /// What a group's state was created with; `None` for an empty state.
    pub fn load(state: &dyn StateReader) -> Result<Option<Self>, StoreError> {
        let Some(record) = state.get(Table::Meta, KEY)? else {
            return Ok(None);
        };
        let genesis = Self::decode(record)
            .map_err(|error| StoreError::Damaged(format!("the genesis record: {error}")))?;
        genesis
            .validate()
            .map_err(|error| StoreError::Damaged(format!("the genesis record: {error}")))?;
        Ok(Some(genesis))
    }

    /// The bounds of every session table.
    pub fn session_limits(&self) -> SessionLimits {
        SessionLimits {
            ttl_ms: self.session_ttl_ms,
            max_birth_ahead_ms: MAX_BIRTH_AHEAD_MS,
            max_sessions: self.max_sessions_per_shard,
            max_results: self.max_results_per_session,
        }
    }

    fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(24);
        out.byte(RECORD_VERSION)
            .byte(self.kind.number())
            .number(self.shards.into())
            .number(self.session_ttl_ms)
            .number(self.max_sessions_per_shard.into())
            .number(self.max_results_per_session.into());
        out.finish()
    }

    fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(record);
        let version = input.byte("genesis version")?;
        if version != RECORD_VERSION {
            return Err(DecodeError::Unknown {
                what: "genesis version",
                value: version.into(),
            });
        }
        let kind = input.byte("group kind")?;
        let kind = GroupKind::ALL.into_iter().find(|it| it.number() == kind);
        let genesis = Self {
            kind: kind.ok_or(DecodeError::OutOfRange("group kind"))?,
            shards: input.number_u32("shards")?,
            session_ttl_ms: input.number("session_ttl_ms")?,
            max_sessions_per_shard: input.number_u32("max_sessions_per_shard")?,
            max_results_per_session: input.number_u32("max_results_per_session")?,
        };
        input.finish()?;
        Ok(genesis)
    }
}
