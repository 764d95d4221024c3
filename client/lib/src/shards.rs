//! The states of shards as their groups report them.

use std::time::Duration;

use api::v1;
use types::{ConfigNum, Gid, ShardId};

/// The shards of a group, as one of its nodes knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupShards {
    /// The group.
    pub gid: Gid,
    /// The configuration that the group has accepted; 0 without a controller.
    pub config_num: ConfigNum,
    /// The configuration up to which the group has done its part.
    pub settled: ConfigNum,
    /// The shards, in order.
    pub shards: Vec<ShardStatus>,
}

/// A shard of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// Its state.
    pub state: ShardState,
    /// The configuration of its latest step.
    pub config_num: ConfigNum,
    /// The other group of its move: the source or the destination.
    pub other_gid: Option<Gid>,
    /// The number of its keys; an estimate unless exact figures were asked for.
    pub keys: u64,
    /// The bytes of its keys and values; an estimate unless exact figures were asked for.
    pub bytes: u64,
    /// The time since its hand-off began.
    pub handoff_age: Option<Duration>,
    /// The reason why its hand-off waits, as text to show.
    pub waits_for: Option<String>,
    /// The bytes that have arrived of a shard that is being copied or pulled.
    pub pulled_bytes: u64,
    /// The source's estimate of the bytes of a shard that is being copied or pulled; 0 unless the answering node does it now.
    pub whole_bytes: u64,
    /// The bytes of it that arrive per second, on average.
    pub bytes_per_second: u64,
}

impl ShardStatus {
    /// Returns the time until the rest of a shard has arrived at the present pace, if it arrives.
    pub fn time_left(&self) -> Option<Duration> {
        let left = self.whole_bytes.saturating_sub(self.pulled_bytes);
        let ms = left
            .saturating_mul(1_000)
            .checked_div(self.bytes_per_second)?;
        (self.whole_bytes > 0).then(|| Duration::from_millis(ms))
    }
}

/// The state of a shard in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ShardState {
    /// The node sent a value that this client does not know.
    Unknown,
    /// The group serves it.
    Serving,
    /// The group copies it, or is to copy it, while its owner serves it.
    Copying,
    /// The group owns it, and what it lacks is on its way from the former owner.
    Pulling,
    /// The group has fenced it, until the new owner has it.
    Fenced,
    /// The group serves it, but the former owner has not confirmed its delete yet.
    Owed,
}

impl ShardState {
    /// Returns the state's name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Serving => "serving",
            Self::Copying => "copying",
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
            v1::ShardState::Copying => ShardState::Copying,
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
        pulled_bytes: it.pulled_bytes,
        whole_bytes: it.whole_bytes,
        bytes_per_second: it.bytes_per_second,
    }
}
