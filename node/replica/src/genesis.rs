//! The fixed settings of a group, chosen when it is created.

use std::fmt;

use bytes::Bytes;
use raft::StoreError;
use types::{DecodeError, MAX_SHARDS, Reader, Writer, known_version};

use crate::session::SessionLimits;
use crate::{StateReader, Table, WriteBatch};

/// The longest time by which a session's birth may lie ahead of log time, in milliseconds: a hundred years. No clock is so
/// wrong; a client that makes up its id is. Part of the format: replicas with other values would diverge.
pub const MAX_BIRTH_AHEAD_MS: u64 = 100 * 365 * 24 * 3_600_000;

/// The version byte of the stored record. It changes also if a state machine judges by other rules than before.
const RECORD_VERSION: u8 = 3;

/// The record's key, in `Meta`.
const KEY: &[u8] = b"shardkv/genesis";

/// The purpose of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupKind {
    /// The only group of a cluster without controllers; it owns all shards from the start.
    #[default]
    Standalone,
    /// A replica group that owns the shards that the controllers assign to it.
    Shards,
    /// The group of the controllers, which keeps the configurations.
    Controller,
}

impl GroupKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Standalone, Self::Shards, Self::Controller];

    /// Returns the name that files, options and messages use.
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

/// The settings that are chosen when a group is created and never change. The group's state holds them, because replicas
/// with other settings would diverge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// The purpose of the group.
    pub kind: GroupKind,
    /// The cluster's number of shards: 1 to 1,000,000.
    pub shards: u32,
    /// The time after which a silent session is forgotten, in milliseconds of log time: a second to a year. A client can
    /// repeat a write for half of it, less the distance between the leaders' clocks. So in production it should be many
    /// minutes.
    pub session_ttl_ms: u64,
    /// The most sessions that a shard remembers: 1 to 1,048,576.
    pub max_sessions_per_shard: u32,
    /// The most unacknowledged results that a session keeps in a shard: 1 to 65,536.
    pub max_results_per_session: u32,
}

/// A setting that is out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} must be {least} to {most}, not {value}")]
pub struct GenesisError {
    /// The name of the setting.
    pub field: &'static str,
    /// The value that was given.
    pub value: u64,
    /// The least allowed value.
    pub least: u64,
    /// The greatest allowed value.
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
    /// Refuses a setting that is out of range.
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

    /// Returns the first content of a group's state. The settings must be valid: [`Genesis::load`] refuses others.
    pub fn to_batch(&self) -> WriteBatch {
        let mut batch = WriteBatch::default();
        batch.put(Table::Meta, Bytes::from_static(KEY), self.encode());
        batch
    }

    /// Reads the settings from a group's state; `None` for an empty state.
    pub fn load(state: &dyn StateReader) -> Result<Option<Self>, StoreError> {
        let Some(record) = state.get(Table::Meta, KEY)? else {
            return Ok(None);
        };
        let genesis = Self::decode(record)
            .map_err(|error| StoreError::unreadable("the genesis record", &error))?;
        genesis
            .validate()
            .map_err(|error| StoreError::Damaged(format!("the genesis record: {error}")))?;
        Ok(Some(genesis))
    }

    /// Returns the bounds of every session table.
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
        known_version("genesis version", version, RECORD_VERSION)?;
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
