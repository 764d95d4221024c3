//! What a host knows of its group before its replica starts, and the volumes that it had before.

use replica::{Introduction, NodeRecord};

use crate::disk::Disk;
use crate::network::HostId;
use crate::queue::Micros;

/// A disk, with what it says of its node.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) record: NodeRecord,
    pub(crate) disk: Disk,
}

/// A host that asks its peers how it is to start.
#[derive(Clone, Debug)]
pub(crate) struct Looking {
    /// The number of the present round of questions, so that a late answer matches no later round.
    pub(crate) round: u64,
    /// True between the end of the round and the next one.
    pub(crate) ended: bool,
    /// The answers of this round, each at the position of its peer.
    pub(crate) answers: Vec<Introduction>,
    /// True once a member of a group has called this node by its id.
    pub(crate) invited: bool,
    /// The time of the last request to join.
    pub(crate) asked_to_join: Option<Micros>,
}

/// A fault of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeFault {
    /// The host restarts.
    Restart,
    /// The host gets an empty volume.
    Lose,
    /// The host's volume of before comes back instead of the present one.
    Return,
    /// Two hosts of a group get each other's volumes.
    Swap,
}

/// An event of the first start of a host.
#[derive(Clone, Debug)]
pub(crate) enum FirstEvent {
    /// A question of a host that looks for its group arrives.
    Question { from: HostId, round: u64 },
    /// The answer to such a question arrives.
    Introduced {
        peer: HostId,
        round: u64,
        answer: Introduction,
    },
    /// The time for the answers of a round is over.
    EndRound { round: u64 },
    /// The host asks again.
    AskAgain { round: u64 },
    /// Something happens to the host's volume.
    Volume(VolumeFault),
}
