//! The inputs and outputs of a client.

use std::collections::BTreeMap;
use std::ops::Range;

use replica::{Request, RequestId};
use types::NodeId;

use crate::history::History;
use crate::machine::Question;
use crate::network::HostId;
use crate::queue::Micros;

/// A request on its way to a host.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The destination.
    pub to: HostId,
    /// The id of the request, which names the client.
    pub id: RequestId,
    /// The request.
    pub request: Request<Question>,
    /// The delay before it leaves.
    pub delay: Micros,
}

/// The inputs and outputs of a client: what it may read of the world, and its requests.
pub struct ClientContext<'a> {
    /// The time.
    pub now: Micros,
    /// The history of all operations.
    pub history: &'a mut History,
    /// The host of each node.
    pub addresses: &'a BTreeMap<NodeId, HostId>,
    /// The number of hosts of replica groups, which come first.
    pub hosts: usize,
    /// The controllers' hosts; empty in a world of one group.
    pub controllers: Range<HostId>,
    /// The number of shards.
    pub shards: u32,
    /// The requests that leave the client.
    pub out: &'a mut Vec<Outgoing>,
}
