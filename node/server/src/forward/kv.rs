//! Forwarding of clients' requests for keys to the group that owns them.

use std::time::Instant;

use api::errors;
use api::v1::batch_item::Request as Item;
use api::v1::batch_result::Response as ItemResponse;
use api::v1::kv_client::KvClient;
use api::v1::{
    ErrorDetail, ExportRequest, OpenSessionRequest, OpenSessionResponse, ScanRequest, ScanResponse,
};
use shardctrler::GroupKind;
use tonic::Streaming;
use tonic::transport::Channel;
use types::{Gid, ShardId, shard_of};

use super::{Destination, Forwarder, Repeat, Terms, call, once_for, open, repeat_of_write};

/// Forwards an item, which arrived at this time, to the owner of its key.
pub(crate) async fn item(
    forwarder: &Forwarder,
    arrived: Instant,
    item: Item,
) -> Result<ItemResponse, ErrorDetail> {
    let terms = Terms {
        repeat: repeat(&item),
        bytes: size(&item),
        deadline: forwarder.deadline(arrived),
    };
    let route = || owner_of_key(forwarder, key(&item));
    let limit = answer_limit(forwarder);
    call(forwarder, route, terms, |channel, gid| {
        let item = item.clone();
        let mut client = KvClient::new(channel).max_decoding_message_size(limit);
        async move {
            Ok(match item {
                Item::Get(it) => {
                    ItemResponse::Get(client.get(once_for(forwarder, gid, it)).await?.into_inner())
                }
                Item::Put(it) => {
                    ItemResponse::Put(client.put(once_for(forwarder, gid, it)).await?.into_inner())
                }
                Item::Append(it) => ItemResponse::Append(
                    client
                        .append(once_for(forwarder, gid, it))
                        .await?
                        .into_inner(),
                ),
                Item::Delete(it) => ItemResponse::Delete(
                    client
                        .delete(once_for(forwarder, gid, it))
                        .await?
                        .into_inner(),
                ),
                Item::CompareAndSwap(it) => {
                    let answer = client
                        .compare_and_swap(once_for(forwarder, gid, it))
                        .await?;
                    ItemResponse::CompareAndSwap(answer.into_inner())
                }
            })
        }
    })
    .await
}

/// Forwards the request for a session to a leader: this group's, or from a controller any group's.
pub(crate) async fn open_session(
    forwarder: &Forwarder,
    asked: OpenSessionRequest,
) -> Result<OpenSessionResponse, ErrorDetail> {
    let route = || {
        if forwarder.routing.kind() != GroupKind::Controller {
            return Ok(own_group(forwarder));
        }
        let known = forwarder.routing.configs().known();
        let groups = known
            .as_ref()
            .and_then(|it| it.config.groups().iter().next());
        match groups {
            Some((gid, group)) => Ok(Destination {
                gid: *gid,
                addresses: group.addresses.clone(),
            }),
            None => Err(errors::unavailable("no group has joined yet", 1_000)),
        }
    };
    let terms = Terms::new(forwarder, Repeat::Freely);
    call(forwarder, route, terms, |channel, gid| {
        let mut client = KvClient::new(channel);
        let min_birth = forwarder.births.least(asked.min_birth).0;
        async move {
            let request = OpenSessionRequest { min_birth };
            let answer = client
                .open_session(once_for(forwarder, gid, request))
                .await?;
            Ok(answer.into_inner())
        }
    })
    .await
}

/// Forwards an export to the owner of its shard.
pub(crate) async fn export(
    forwarder: &Forwarder,
    request: ExportRequest,
) -> Result<Streaming<ScanResponse>, ErrorDetail> {
    let route = || owner(forwarder, ShardId(request.shard));
    pages(forwarder, route, |mut client, gid| {
        let request = once_for(forwarder, gid, request.clone());
        async move { Ok(client.export(request).await?.into_inner()) }
    })
    .await
}

/// Forwards a scan to this group's leader.
pub(crate) async fn scan(
    forwarder: &Forwarder,
    request: ScanRequest,
) -> Result<Streaming<ScanResponse>, ErrorDetail> {
    pages(
        forwarder,
        || Ok(own_group(forwarder)),
        |mut client, gid| {
            let request = once_for(forwarder, gid, request.clone());
            async move { Ok(client.scan(request).await?.into_inner()) }
        },
    )
    .await
}

async fn pages<F>(
    forwarder: &Forwarder,
    route: impl Fn() -> Result<Destination, ErrorDetail>,
    ask: impl Fn(KvClient<Channel>, Gid) -> F,
) -> Result<Streaming<ScanResponse>, ErrorDetail>
where
    F: Future<Output = Result<Streaming<ScanResponse>, tonic::Status>>,
{
    open(forwarder, route, |channel, gid| {
        let client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
        ask(client, gid)
    })
    .await
}

fn owner_of_key(forwarder: &Forwarder, key: &[u8]) -> Result<Destination, ErrorDetail> {
    if forwarder.routing.kind() == GroupKind::Standalone {
        return Ok(own_group(forwarder));
    }
    let known = forwarder.routing.configs().known().ok_or_else(no_config)?;
    owner(forwarder, shard_of(key, known.config.shards()))
}

/// Returns the group that owns a shard, as far as this node knows.
pub(super) fn owner(forwarder: &Forwarder, shard: ShardId) -> Result<Destination, ErrorDetail> {
    if forwarder.routing.kind() == GroupKind::Standalone {
        return Ok(own_group(forwarder));
    }
    let config = forwarder
        .routing
        .configs()
        .known()
        .ok_or_else(no_config)?
        .config;
    let gid = config.owner(shard);
    if gid != Gid::NONE && gid == forwarder.routing.gid() {
        return Ok(own_group(forwarder));
    }
    match config.groups().get(&gid) {
        Some(group) => Ok(Destination {
            gid,
            addresses: group.addresses.clone(),
        }),
        // No group owns it yet.
        None => Err(errors::wrong_group(config.num().0)),
    }
}

/// Returns the other members of this node's own group, and makes its leader the first to be asked if it is known.
pub(crate) fn own_group(forwarder: &Forwarder) -> Destination {
    let gid = forwarder.routing.gid();
    let Some(status) = forwarder.lifecycle.view().status else {
        let addresses = forwarder.peers.configured().to_vec();
        return Destination { gid, addresses };
    };
    if let Some(leader) = status
        .leader
        .and_then(|leader| forwarder.peers.address_of(leader))
    {
        forwarder.leaders.found(gid, &leader);
    }
    let others = status
        .membership
        .voters()
        .filter(|node| *node != status.node);
    Destination {
        gid,
        addresses: others
            .filter_map(|node| forwarder.peers.address_of(node))
            .collect(),
    }
}

/// Returns the error of a request that can't be routed, because this node knows no configuration.
pub(crate) fn no_config() -> ErrorDetail {
    errors::unavailable("this node has not heard from the controllers yet", 100)
}

/// Returns the bound of an answer from a group whose nodes may have other options: a value and some room.
fn answer_limit(forwarder: &Forwarder) -> usize {
    forwarder.max_request_bytes.max(16 << 20)
}

/// Returns the key of an item.
fn key(item: &Item) -> &[u8] {
    match item {
        Item::Get(it) => &it.key,
        Item::Put(it) => &it.key,
        Item::Append(it) => &it.key,
        Item::Delete(it) => &it.key,
        Item::CompareAndSwap(it) => &it.key,
    }
}

fn repeat(item: &Item) -> Repeat {
    let session = match item {
        Item::Get(_) => return Repeat::Freely,
        Item::Put(it) => &it.session,
        Item::Append(it) => &it.session,
        Item::Delete(it) => &it.session,
        Item::CompareAndSwap(it) => &it.session,
    };
    repeat_of_write(session.as_ref())
}

/// Returns the memory that an item takes while it is forwarded or waits.
pub(crate) fn size(item: &Item) -> usize {
    let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    128 + match item {
        Item::Get(it) => it.key.len(),
        Item::Put(it) => it.key.len() + it.value.len(),
        Item::Append(it) => it.key.len() + it.suffix.len(),
        Item::Delete(it) => it.key.len(),
        Item::CompareAndSwap(it) => it.key.len() + length(&it.expected) + length(&it.new),
    }
}

#[cfg(test)]
mod tests {
    use api::v1::{AppendRequest, GetRequest, PutRequest, Session};

    use super::*;

    #[test]
    fn writes_without_a_session_are_not_repeated() {
        let get = Item::Get(GetRequest { key: "k".into() });
        assert_eq!(repeat(&get), Repeat::Freely);
        let put = |session| {
            Item::Put(PutRequest {
                key: "k".into(),
                value: "v".into(),
                session,
            })
        };
        assert_eq!(repeat(&put(None)), Repeat::Never);
        assert_eq!(repeat(&put(Some(Session::default()))), Repeat::ByName);
    }

    #[test]
    fn an_item_takes_room_for_its_bytes() {
        let append = Item::Append(AppendRequest {
            key: "key".into(),
            suffix: vec![1; 1_000].into(),
            session: None,
        });
        assert_eq!(key(&append), b"key");
        assert!(size(&append) >= 1_003);
    }
}
