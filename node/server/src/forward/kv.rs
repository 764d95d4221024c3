//! Forwarding of clients' requests for keys to the group that owns them.

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

use super::{Destination, Repeat, call, once_for, repeat_of_write};
use crate::hub::Hub;

/// Forwards an item to the owner of its key.
pub(crate) async fn item(hub: &Hub, item: Item) -> Result<ItemResponse, ErrorDetail> {
    let _permit = hub.budget.take(size(&item))?;
    let repeat = repeat(&item);
    let route = || owner_of_key(hub, key(&item));
    let limit = answer_limit(hub);
    call(hub, route, repeat, |channel, gid| {
        let item = item.clone();
        let mut client = KvClient::new(channel).max_decoding_message_size(limit);
        async move {
            Ok(match item {
                Item::Get(it) => {
                    ItemResponse::Get(client.get(once_for(hub, gid, it)).await?.into_inner())
                }
                Item::Put(it) => {
                    ItemResponse::Put(client.put(once_for(hub, gid, it)).await?.into_inner())
                }
                Item::Append(it) => {
                    ItemResponse::Append(client.append(once_for(hub, gid, it)).await?.into_inner())
                }
                Item::Delete(it) => {
                    ItemResponse::Delete(client.delete(once_for(hub, gid, it)).await?.into_inner())
                }
                Item::CompareAndSwap(it) => {
                    let answer = client.compare_and_swap(once_for(hub, gid, it)).await?;
                    ItemResponse::CompareAndSwap(answer.into_inner())
                }
            })
        }
    })
    .await
}

/// Forwards the request for a session to a leader: this group's, or from a controller any group's.
pub(crate) async fn open_session(hub: &Hub) -> Result<OpenSessionResponse, ErrorDetail> {
    let route = || {
        if hub.kind() != GroupKind::Controller {
            return Ok(own_group(hub));
        }
        let known = hub.configs.known();
        let groups = known
            .as_ref()
            .and_then(|it| it.config.groups().iter().next());
        match groups {
            Some((gid, addresses)) => Ok(Destination {
                gid: *gid,
                addresses: addresses.clone(),
            }),
            None => Err(errors::unavailable("no group has joined yet", 1_000)),
        }
    };
    call(hub, route, Repeat::Freely, |channel, gid| {
        let mut client = KvClient::new(channel);
        async move {
            let answer = client
                .open_session(once_for(hub, gid, OpenSessionRequest {}))
                .await?;
            Ok(answer.into_inner())
        }
    })
    .await
}

/// Forwards an export to the owner of its shard.
pub(crate) async fn export(
    hub: &Hub,
    request: ExportRequest,
) -> Result<Streaming<ScanResponse>, ErrorDetail> {
    let route = || owner(hub, ShardId(request.shard));
    pages(hub, route, |mut client, gid| {
        let request = once_for(hub, gid, request.clone());
        async move { Ok(client.export(request).await?.into_inner()) }
    })
    .await
}

/// Forwards a scan to this group's leader.
pub(crate) async fn scan(
    hub: &Hub,
    request: ScanRequest,
) -> Result<Streaming<ScanResponse>, ErrorDetail> {
    pages(
        hub,
        || Ok(own_group(hub)),
        |mut client, gid| {
            let request = once_for(hub, gid, request.clone());
            async move { Ok(client.scan(request).await?.into_inner()) }
        },
    )
    .await
}

async fn pages<F>(
    hub: &Hub,
    route: impl Fn() -> Result<Destination, ErrorDetail>,
    ask: impl Fn(KvClient<Channel>, Gid) -> F,
) -> Result<Streaming<ScanResponse>, ErrorDetail>
where
    F: Future<Output = Result<Streaming<ScanResponse>, tonic::Status>>,
{
    call(hub, route, Repeat::Freely, |channel, gid| {
        let client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
        ask(client, gid)
    })
    .await
}

fn owner_of_key(hub: &Hub, key: &[u8]) -> Result<Destination, ErrorDetail> {
    if hub.kind() == GroupKind::Standalone {
        return Ok(own_group(hub));
    }
    let known = hub.configs.known().ok_or_else(no_config)?;
    owner(hub, shard_of(key, known.config.shards()))
}

/// Returns the group that owns a shard, as far as this node knows.
fn owner(hub: &Hub, shard: ShardId) -> Result<Destination, ErrorDetail> {
    if hub.kind() == GroupKind::Standalone {
        return Ok(own_group(hub));
    }
    let config = hub.configs.known().ok_or_else(no_config)?.config;
    let gid = config.owner(shard);
    if gid != Gid::NONE && gid == hub.identity.gid() {
        return Ok(own_group(hub));
    }
    match config.groups().get(&gid) {
        Some(addresses) => Ok(Destination {
            gid,
            addresses: addresses.clone(),
        }),
        // No group owns it yet.
        None => Err(errors::wrong_group(config.num().0)),
    }
}

/// Returns the other members of this node's own group, and makes its leader the first to be asked if it is known.
pub(crate) fn own_group(hub: &Hub) -> Destination {
    let gid = hub.identity.gid();
    let Some(status) = hub.view().status else {
        let addresses = hub.options.peers.clone();
        return Destination { gid, addresses };
    };
    if let Some(leader) = status.leader.and_then(|leader| hub.address_of(leader)) {
        hub.forwarding.leaders.found(gid, &leader);
    }
    let others = status
        .membership
        .voters()
        .filter(|node| *node != status.node);
    Destination {
        gid,
        addresses: others.filter_map(|node| hub.address_of(node)).collect(),
    }
}

fn no_config() -> ErrorDetail {
    errors::unavailable("the controllers have not been heard yet", 100)
}

/// Returns the bound of an answer from a group whose nodes may have other options: a value and some room.
fn answer_limit(hub: &Hub) -> usize {
    hub.options.limits.max_request_bytes.max(16 << 20)
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

fn size(item: &Item) -> usize {
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
