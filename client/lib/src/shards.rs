//! What groups say of their shards.

use std::time::Duration;

use api::v1;
use types::{ConfigNum, Gid, ShardId};

/// What a group has to do with which shard, as its node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupShards {
    /// The group.
    pub gid: Gid,
    /// The configuration that it has accepted; 0 without a controller.
    pub config_num: ConfigNum,
    /// The configuration up to which it has done everything.
    pub settled: ConfigNum,
    /// The shards, in order.
    pub shards: Vec<ShardStatus>,
}

/// A shard of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Which.
    pub shard: ShardId,
    /// How it stands.
    pub state: ShardState,
    /// The configuration of its latest step.
    pub config_num: ConfigNum,
    /// With whom it is being handed off: where it comes from or goes to.
    pub other_gid: Option<Gid>,
    /// How many keys it has; an estimate unless exact figures were asked for.
    pub keys: u64,
    /// Bytes of its keys and values; likewise.
    pub bytes: u64,
    /// How long its hand-off takes already.
    pub handoff_age: Option<Duration>,
    /// Why it waits, for people.
    pub waits_for: Option<String>,
    /// Configurations whose steps wait behind the present one.
    pub queued: Vec<ConfigNum>,
    /// Of a shard on its way here: bytes that have arrived.
    pub pulled_bytes: u64,
}

/// How a shard stands in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ShardState {
    /// The node said nothing that this client knows.
    Unknown,
    /// Served here.
    Serving,
    /// On its way here.
    Pulling,
    /// Fenced here, until the new owner has it.
    Fenced,
    /// Gone from here; the old owner has not confirmed its delete yet.
    Owed,
}

impl ShardState {
    /// The state's name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Serving => "serving",
            Self::Pulling => "pulling",
            Self::Fenced => "fenced",
            Self::Owed => "owed",
        }
    }
}

impl std::fmt::Display for ShardState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

pub(crate) fn group_shards(it: v1::ShardsResponse) -> GroupShards {
    GroupShards {
        gid: Gid(it.gid),
        config_num: ConfigNum(it.config_num),
        settled: ConfigNum(it.settled),
        shards: it.shards.into_iter().map(shard_status).collect(),
    }
}

fn shard_status(it: v1::ShardStatus) -> ShardStatus {
    ShardStatus {
        state: match it.state() {
            v1::ShardState::Unspecified => ShardState::Unknown,
            v1::ShardState::Serving => ShardState::Serving,
            v1::ShardState::Pulling => ShardState::Pulling,
            v1::ShardState::Fenced => ShardState::Fenced,
            v1::ShardState::Owed => ShardState::Owed,
        },
        shard: ShardId(it.shard),
        config_num: ConfigNum(it.config_num),
        other_gid: (it.other_gid != 0).then_some(Gid(it.other_gid)),
        keys: it.keys,
        bytes: it.bytes,
        handoff_age: (it.handoff_age_ms != 0).then(|| Duration::from_millis(it.handoff_age_ms)),
        waits_for: (!it.waits_for.is_empty()).then_some(it.waits_for),
        queued: it.queued.into_iter().map(ConfigNum).collect(),
        pulled_bytes: it.pulled_bytes,
    }
}
