//! The known bugs that the simulator puts back: those of the crates under test, and its own.

use std::fmt;
use std::str::FromStr;

/// A known bug, in the crate that can make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// A bug of the consensus core.
    Raft(raft::Bug),
    /// A bug of the replicated log's runtime.
    Replica(replica::Bug),
    /// A bug of the controllers.
    Shardctrler(shardctrler::Bug),
    /// A bug of a replica group.
    Shardkv(shardkv::Bug),
    /// A bug of the request engine.
    Request(request::Bug),
    /// A bug of the process around the crates, which the simulator plays.
    Process(ProcessBug),
}

/// A mistake of the process around the crates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProcessBug {
    /// A wiped disk comes back under its old identity.
    WipedDiskKeepsIdentity,
    /// A write of a keyspace whose outcome is in doubt is proposed again. It has no session, so it takes effect twice.
    KeyspaceWriteRepeated,
    /// A node reads a keyspace before it has confirmed that it leads.
    KeyspaceReadUnconfirmed,
    /// Feeds of watches keep what they had when a snapshot replaces the state.
    FeedSurvivesSnapshot,
    /// Only leaders tell watches of changes.
    OnlyLeadersFeed,
    /// A watch that goes on at another node begins with what comes next there.
    WatchResumesNow,
    /// A watch whose next revision is compacted goes on at the compacted one.
    CompactedWatchGoesOn,
    /// A notice of progress names the newest revision, whatever was sent.
    ProgressAheadOfEvents,
}

impl ProcessBug {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::WipedDiskKeepsIdentity,
        Self::KeyspaceWriteRepeated,
        Self::KeyspaceReadUnconfirmed,
        Self::FeedSurvivesSnapshot,
        Self::OnlyLeadersFeed,
        Self::WatchResumesNow,
        Self::CompactedWatchGoesOn,
        Self::ProgressAheadOfEvents,
    ];
}

/// The simulator knows no bug of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no bug is named {name:?}; use one of {}", names().join(", "))]
pub struct UnknownBug {
    /// The name that was given.
    pub name: String,
}

impl Bug {
    /// Returns all bugs, each name once. The controllers' `RetryAppliedTwice` is put back together with that of the
    /// replica groups.
    pub fn all() -> Vec<Self> {
        let shardctrler = shardctrler::Bug::ALL
            .into_iter()
            .filter(|bug| *bug != shardctrler::Bug::RetryAppliedTwice);
        raft::Bug::ALL
            .into_iter()
            .map(Self::Raft)
            .chain(replica::Bug::ALL.into_iter().map(Self::Replica))
            .chain(ProcessBug::ALL.into_iter().map(Self::Process))
            .chain(shardkv::Bug::ALL.into_iter().map(Self::Shardkv))
            .chain(shardctrler.map(Self::Shardctrler))
            .chain(request::Bug::ALL.into_iter().map(Self::Request))
            .collect()
    }

    /// Returns the switches of the consensus core.
    pub fn raft(self) -> raft::Bugs {
        raft::Bugs::new(match self {
            Self::Raft(bug) => Some(bug),
            _ => None,
        })
    }

    /// Returns the switches of a replica.
    pub fn replica(self) -> replica::Bugs {
        replica::Bugs::new(match self {
            Self::Replica(bug) => Some(bug),
            _ => None,
        })
    }

    /// Returns true if only the replicas' own comparison of states is to find the bug, so the simulator doesn't compare states.
    pub(crate) fn is_left_to_replicas(self) -> bool {
        let of_digests = [
            replica::Bug::ApplyDependsOnReplica,
            replica::Bug::SnapshotWithoutDigest,
        ];
        of_digests.map(Self::Replica).contains(&self)
    }

    /// Returns the bug of the controllers, if this is one.
    pub fn shardctrler(self) -> Option<shardctrler::Bug> {
        match self {
            Self::Shardctrler(bug) => Some(bug),
            Self::Shardkv(shardkv::Bug::RetryAppliedTwice) => {
                Some(shardctrler::Bug::RetryAppliedTwice)
            }
            _ => None,
        }
    }

    /// Returns the bug of a replica group, if this is one.
    pub fn shardkv(self) -> Option<shardkv::Bug> {
        match self {
            Self::Shardkv(bug) => Some(bug),
            _ => None,
        }
    }
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Raft(bug) => format!("{bug:?}"),
            Self::Replica(bug) => format!("{bug:?}"),
            Self::Shardctrler(bug) => format!("{bug:?}"),
            Self::Shardkv(bug) => format!("{bug:?}"),
            Self::Request(bug) => format!("{bug:?}"),
            Self::Process(bug) => format!("{bug:?}"),
        };
        f.pad(&name)
    }
}

impl FromStr for Bug {
    type Err = UnknownBug;

    /// Parses a displayed name in any case, with or without hyphens.
    fn from_str(text: &str) -> Result<Self, UnknownBug> {
        let wanted = text.replace('-', "");
        Self::all()
            .into_iter()
            .find(|bug| bug.to_string().eq_ignore_ascii_case(&wanted))
            .ok_or_else(|| UnknownBug {
                name: text.to_owned(),
            })
    }
}

fn names() -> Vec<String> {
    Bug::all().iter().map(Bug::to_string).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test should panic")]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_name_their_bug() {
        let all = Bug::all();
        let names: BTreeSet<String> = all.iter().map(Bug::to_string).collect();
        assert_eq!(names.len(), all.len());
        for bug in all {
            assert_eq!(bug.to_string().parse::<Bug>().unwrap(), bug);
        }
        assert!("none-such".parse::<Bug>().is_err());
    }
}
