//! Identifiers as newtypes, so that the compiler refuses a node's id where a group's is meant.

use std::fmt;

use crate::{DecodeError, Reader, Writer};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

id!(
    /// The id of a Raft member: a random number made when its data directory is initialised and stored there.
    ///
    /// A pod's ordinal or DNS name is its *address*; a node with a wiped disk gets another `NodeId`.
    /// Zero is never a node's id.
    NodeId(u64), "n{:x}"
);
id!(
    /// The id of a replica group. Zero is never a replica group's id: in a configuration it means that no group
    /// owns a shard, and between the controllers it names their own Raft group.
    Gid(u64), "g{}"
);
id!(
    /// The number of a configuration: 0 is the empty configuration that every cluster begins with.
    ConfigNum(u64), "{}"
);
id!(
    /// Tells a group from earlier groups with the same gid: the number of the configuration in which it joined. A group that
    /// joins again while it is leaving stays the same; one that joins after it was drained is another. So no incarnation of
    /// a gid is ever used twice. Zero is no incarnation.
    Incarnation(u64), "i{}"
);
id!(
    /// The id of the journal of a moving shard: the index of the source's log entry that began it. Zero is no journal.
    JournalId(u64), "j{}"
);
id!(
    /// The id of a shard: a number below the cluster's number of shards, which is fixed at creation.
    ShardId(u32), "s{}"
);
id!(
    /// The id of a cluster incarnation: random, made once at bootstrap, carried by every connection.
    ClusterId(u64), "c{:016x}"
);
id!(
    /// The number of a client's write. A client counts from 1 across all shards; 0 is never used.
    Sequence(u64), "#{}"
);
id!(
    /// Milliseconds since the Unix epoch, stamped by a leader into its log. The time never runs backwards
    /// within a log, even if the leaders' clocks do.
    LogTime(u64), "{}ms"
);

impl Sequence {
    /// Returns the number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Gid {
    /// No owner; also the controllers' own Raft group.
    pub const NONE: Self = Self(0);
}

impl ConfigNum {
    /// Returns the number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl LogTime {
    /// Returns the milliseconds from `earlier` to `self`, zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The identity of a client session: the log time of its birth and a random number.
///
/// The birth makes "this shard never saw the session" and "this shard forgot the session"
/// distinguishable: a session that is absent from a shard's table is new if it was born within the
/// session's time to live, and expired otherwise (see `replica::session` for the argument).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId {
    /// The leader's log time when the session was opened.
    pub birth: LogTime,
    /// A random number, so that two sessions opened in the same millisecond differ.
    pub nonce: u64,
}

impl ClientId {
    /// Encodes the id as a part of a record.
    pub fn encode(self, out: &mut Writer) {
        out.number(self.birth.0).number(self.nonce);
    }

    /// Decodes the output of [`ClientId::encode`].
    pub fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            birth: LogTime(input.number("session birth")?),
            nonce: input.number("session nonce")?,
        })
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:016x}", self.birth.0, self.nonce)
    }
}
