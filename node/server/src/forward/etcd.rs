//! Forwarding of calls of etcd's clients to the group that owns the keyspace.

use std::time::Instant;

use api::v1::ErrorDetail;
use tonic::Status;
use tonic::transport::Channel;
use types::{Gid, ShardId};

use super::kv::owner;
use super::{Forwarder, Repeat, StreamKind, StreamSlot, Terms, call, open_stream};
use crate::services::etcd::status::is_final;

/// Passes a call, which arrived at this time and takes so many bytes, to the leader of the group that owns a shard. The refusal
/// of the keyspace there is an answer, too.
pub(crate) async fn keyspace<T, F>(
    forwarder: &Forwarder,
    shard: ShardId,
    (repeat, bytes): (Repeat, usize),
    arrived: Instant,
    ask: impl Fn(Channel, Gid) -> F,
) -> Result<Result<T, Status>, ErrorDetail>
where
    F: Future<Output = Result<T, Status>>,
{
    let terms = Terms {
        repeat,
        bytes,
        deadline: forwarder.deadline(arrived),
    };
    let route = || owner(forwarder, shard);
    call(forwarder, route, terms, |channel, gid| {
        let asked = ask(channel, gid);
        async move { told(asked.await) }
    })
    .await
}

/// Opens a stream at the leader of the group that owns a shard, over connections for streams of its kind. It keeps its slot while it
/// is open.
pub(crate) async fn keyspace_stream<T, F>(
    forwarder: &Forwarder,
    shard: ShardId,
    kind: StreamKind,
    ask: impl Fn(Channel, Gid) -> F,
) -> Result<(Result<T, Status>, Option<StreamSlot>), ErrorDetail>
where
    F: Future<Output = Result<T, Status>>,
{
    let route = || owner(forwarder, shard);
    open_stream(forwarder, kind, route, |channel, gid| {
        let asked = ask(channel, gid);
        async move { told(asked.await) }
    })
    .await
}

/// Returns the refusal of a keyspace as an answer.
fn told<T>(answer: Result<T, Status>) -> Result<Result<T, Status>, Status> {
    match answer {
        Err(status) if is_final(&status) => Ok(Err(status)),
        answer => answer.map(Ok),
    }
}
