//! Room for shards on the disks of a group, and the progress of a pull.

/// The space for shards on the voter that has the least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// The voter's address.
    pub node: String,
    /// The bytes that the voter can take before it refuses writes.
    pub bytes: u64,
}

/// The progress of a shard that is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The source's estimate of the bytes of the whole shard; 0 before the source's first answer.
    pub whole_bytes: u64,
    /// The bytes that arrived per second, on average since the shard got a slot.
    pub bytes_per_second: u64,
}

impl Room {
    /// Returns the reason, for display, that shards of `needed` bytes must not begin; `None` if they fit.
    pub(super) fn lacks(&self, needed: u64) -> Option<String> {
        let Self { node, bytes } = self;
        (needed > *bytes).then(|| {
            format!(
                "no room: the disk of {node} takes {bytes} more bytes of shards, {needed} are needed: enlarge it, or move \
                 fewer shards here"
            )
        })
    }
}
