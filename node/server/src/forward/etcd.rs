//! Forwarding of calls of etcd's clients to the group that owns the keyspace.

use std::time::Instant;

use api::errors;
use api::v1::ErrorDetail;
use api::v1::error_detail::Kind;
use tokio::time::timeout_at;
use tonic::Status;
use tonic::transport::Channel;
use types::{Gid, ShardId};

use super::kv::owner;
use super::{Destination, Forwarder, Repeat, StreamKind, StreamSlot, Terms, call, open_stream};
use crate::services::etcd::status::is_final;

/// The reason why a shard has no owner: groups own all shards from the first join on.
const NO_OWNER: &str = "no group has joined the store yet, as far as this node knows";

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
    await_owner(forwarder, shard, terms).await?;
    let route = || owner_of(forwarder, shard);
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
    await_owner(forwarder, shard, Terms::new(forwarder, Repeat::Freely)).await?;
    let route = || owner_of(forwarder, shard);
    open_stream(forwarder, kind, route, |channel, gid| {
        let asked = ask(channel, gid);
        async move { told(asked.await) }
    })
    .await
}

/// Waits until a group owns a shard, as far as this node knows. A node that has just started, in a store that has just been made,
/// hears of the first group a little later, and etcd's clients don't repeat a write.
async fn await_owner(
    forwarder: &Forwarder,
    shard: ShardId,
    terms: Terms,
) -> Result<(), ErrorDetail> {
    let mut configs = forwarder.routing.configs().watch();
    let mut waiting = None;
    loop {
        configs.mark_unchanged();
        let Err(error) = owner_of(forwarder, shard) else {
            return Ok(());
        };
        // The call waits unless too many do.
        if waiting.is_none() {
            waiting = forwarder.wait_here(terms.bytes);
        }
        if waiting.is_none() {
            return Err(error);
        }
        let changed = forwarder.lifecycle.unless_draining(configs.changed());
        if !matches!(timeout_at(terms.deadline, changed).await, Ok(Some(_))) {
            return Err(error);
        }
    }
}

/// Returns the group that owns a shard, as far as this node knows.
fn owner_of(forwarder: &Forwarder, shard: ShardId) -> Result<Destination, ErrorDetail> {
    owner(forwarder, shard).map_err(|error| match error.kind {
        Some(Kind::WrongGroup(_)) => errors::unavailable(NO_OWNER, 100),
        _ => error,
    })
}

/// Returns the refusal of a keyspace as an answer.
fn told<T>(answer: Result<T, Status>) -> Result<Result<T, Status>, Status> {
    match answer {
        Err(status) if is_final(&status) => Ok(Err(status)),
        answer => answer.map(Ok),
    }
}
