//! The calls, as the leader of the group that owns the shard answers them.

use std::num::NonZeroU64;

use api::errors;
use api::v1::keyspaces_client::KeyspacesClient;
use api::v1::{
    CreateKeyspaceRequest, DeleteKeyspaceRequest, DeleteKeyspaceResponse, ErrorDetail,
    GetKeyspaceRequest, Keyspace, ListKeyspacesRequest, ListKeyspacesResponse,
    SetKeyspaceOptionsRequest,
};
use keyspace::{Action, KeyspaceId, Record, Refusal, Write, check_name};
use raft::StoreError;
use replica::StateReader;
use shardkv::{KvError, read_keyspaces};
use tonic::transport::Channel;
use tonic::{Request, Status};
use types::{Gid, ShardId};

use super::{Call, Subject, convert};
use crate::convert::kv;
use crate::forward::Repeat;
use crate::random;
use crate::services::etcd::store::{Found, Freshness, Keyspaces};

/// The most keyspaces of a page.
const MAX_PAGE: u32 = 1_000;
/// The most shards that a page looks at.
const MAX_PAGE_SHARDS: u32 = 4_096;

/// Returns the number that names a creation. If the caller has none, it is drawn for each attempt, so none has it twice.
fn nonce(cluster_id: u64) -> Result<NonZeroU64, ErrorDetail> {
    if let Some(nonce) = NonZeroU64::new(cluster_id) {
        return Ok(nonce);
    }
    let failed = |why: &dyn std::fmt::Display| {
        errors::unavailable(format!("no random number: {why}"), 1_000)
    };
    let drawn = random::number().map_err(|error| failed(&error))?;
    NonZeroU64::new(drawn).ok_or_else(|| failed(&"it is 0"))
}

/// Finds a keyspace by its name, and by its cluster id unless that is 0.
async fn find(keyspaces: &Keyspaces, name: &str, cluster_id: u64) -> Result<Found, ErrorDetail> {
    let refused = |refusal| convert::refused(refusal, name);
    check_name(name).map_err(refused)?;
    let found = keyspaces.read(name, Freshness::Linearizable, |_, _| Ok(Ok(())));
    let (found, ()) = found.await.map_err(|it| convert::failed(it, name))?;
    if cluster_id != 0 && found.record.cluster_id() != cluster_id {
        return Err(refused(Refusal::KeyspaceNotFound));
    }
    Ok(found)
}

/// Changes a keyspace. Returns it as it was before.
async fn change(
    keyspaces: &Keyspaces,
    (name, cluster_id): (&str, u64),
    write: Write,
) -> Result<Found, ErrorDetail> {
    let found = find(keyspaces, name, cluster_id).await?;
    let done = keyspaces.write_in(found.place, write).await;
    done.map_err(|it| convert::failed(it, name))?;
    Ok(found)
}

fn told(keyspaces: &Keyspaces, found: &Found) -> Keyspace {
    convert::keyspace(found.place.shard, keyspaces.routing.gid(), &found.record)
}

impl Call for CreateKeyspaceRequest {
    type Answer = Keyspace;

    fn subject(&self) -> Subject<'_> {
        Subject::Name(&self.name)
    }

    /// A creation in doubt may have succeeded, and another client may have deleted the keyspace since. Made again, it would give the
    /// same cluster id to a second keyspace.
    fn repeat(&self) -> Repeat {
        Repeat::Never
    }

    async fn here(self, keyspaces: &Keyspaces) -> Result<Keyspace, ErrorDetail> {
        let name = &self.name;
        check_name(name).map_err(|refusal| convert::refused(refusal, name))?;
        let (options, nonce) = (convert::options(self.options), nonce(self.cluster_id)?);
        let action = Action::Create {
            name: name.clone(),
            options,
            nonce,
        };
        let shard = keyspaces.shard(name)?;
        let outcome = keyspaces.propose(shard, action).await;
        let outcome = outcome.map_err(|it| convert::failed(it, name))?;
        match outcome.answer {
            // It is told as it was made: a look at it could fail, and the caller would make it again.
            Ok(_) => {
                let made = Record::new(self.name, options, nonce);
                Ok(convert::keyspace(shard, keyspaces.routing.gid(), &made))
            }
            // An earlier attempt of this call may have made it. This one has changed nothing, so any error may be told.
            Err(Refusal::KeyspaceExists) => {
                let found = find(keyspaces, name, 0).await?;
                if found.record.cluster_id() != nonce.get() {
                    return Err(convert::refused(Refusal::KeyspaceExists, name));
                }
                Ok(told(keyspaces, &found))
            }
            Err(refusal) => Err(convert::refused(refusal, name)),
        }
    }

    async fn there(
        request: Request<Self>,
        mut client: KeyspacesClient<Channel>,
    ) -> Result<Keyspace, Status> {
        Ok(client.create(request).await?.into_inner())
    }
}

impl Call for GetKeyspaceRequest {
    type Answer = Keyspace;

    fn subject(&self) -> Subject<'_> {
        Subject::Name(&self.name)
    }

    fn repeat(&self) -> Repeat {
        Repeat::Freely
    }

    async fn here(self, keyspaces: &Keyspaces) -> Result<Keyspace, ErrorDetail> {
        let found = find(keyspaces, &self.name, 0).await?;
        Ok(told(keyspaces, &found))
    }

    async fn there(
        request: Request<Self>,
        mut client: KeyspacesClient<Channel>,
    ) -> Result<Keyspace, Status> {
        Ok(client.get(request).await?.into_inner())
    }
}

impl Call for SetKeyspaceOptionsRequest {
    type Answer = Keyspace;

    fn subject(&self) -> Subject<'_> {
        Subject::Name(&self.name)
    }

    /// One in doubt may have been carried out, and another client may have set other options since. Made again, it would replace them.
    fn repeat(&self) -> Repeat {
        Repeat::Never
    }

    async fn here(self, keyspaces: &Keyspaces) -> Result<Keyspace, ErrorDetail> {
        let options = convert::options(self.options);
        let write = Write::SetOptions(options);
        let target = (&*self.name, self.cluster_id);
        let mut changed = change(keyspaces, target, write).await?;
        // The change is done, so no error may be told from here on: the caller would make it again. The state here has the change. If
        // the keyspace has left it since, the rest of the answer is as it was before the change.
        let now = keyspaces.read(&self.name, Freshness::Serializable, |_, _| Ok(Ok(())));
        let now = now.await.ok().map(|(found, ())| found);
        changed.record.options = options;
        let found = now.filter(|now| now.identity() == changed.identity());
        Ok(told(keyspaces, &found.unwrap_or(changed)))
    }

    async fn there(
        request: Request<Self>,
        mut client: KeyspacesClient<Channel>,
    ) -> Result<Keyspace, Status> {
        Ok(client.set_options(request).await?.into_inner())
    }
}

impl Call for DeleteKeyspaceRequest {
    type Answer = DeleteKeyspaceResponse;

    fn subject(&self) -> Subject<'_> {
        Subject::Name(&self.name)
    }

    /// The cluster id names one keyspace, which is deleted once.
    fn repeat(&self) -> Repeat {
        match self.cluster_id {
            0 => Repeat::Never,
            _ => Repeat::ByName,
        }
    }

    async fn here(self, keyspaces: &Keyspaces) -> Result<DeleteKeyspaceResponse, ErrorDetail> {
        let target = (&*self.name, self.cluster_id);
        change(keyspaces, target, Write::Delete).await?;
        Ok(DeleteKeyspaceResponse {})
    }

    async fn there(
        request: Request<Self>,
        mut client: KeyspacesClient<Channel>,
    ) -> Result<DeleteKeyspaceResponse, Status> {
        Ok(client.delete(request).await?.into_inner())
    }
}

impl Call for ListKeyspacesRequest {
    type Answer = ListKeyspacesResponse;

    fn subject(&self) -> Subject<'_> {
        Subject::Shard(ShardId(self.shard))
    }

    fn repeat(&self) -> Repeat {
        Repeat::Freely
    }

    async fn here(self, keyspaces: &Keyspaces) -> Result<ListKeyspacesResponse, ErrorDetail> {
        let shards = keyspaces.shards()?;
        let first = Place {
            shard: self.shard,
            after: self.after,
        };
        let limit = match self.limit {
            0 => MAX_PAGE,
            limit => limit.min(MAX_PAGE),
        };
        keyspaces.replica.confirm().await?;
        let read = move |state: &dyn StateReader| page(state, first, shards, limit as usize);
        let page = keyspaces.range_readers.read(read).await?;
        let page = page.map_err(|error| kv::kv_error(&error))?;
        Ok(page.told(keyspaces.routing.gid(), shards))
    }

    async fn there(
        request: Request<Self>,
        mut client: KeyspacesClient<Channel>,
    ) -> Result<ListKeyspacesResponse, Status> {
        Ok(client.list(request).await?.into_inner())
    }
}

/// A place in the list of all keyspaces: behind a keyspace of a shard.
#[derive(Clone, Copy, Debug)]
struct Place {
    shard: u32,
    after: u64,
}

/// A page, and the place behind it.
struct Page {
    found: Vec<(ShardId, Record)>,
    next: Place,
}

impl Page {
    fn told(self, gid: Gid, shards: u32) -> ListKeyspacesResponse {
        let last = self.next.shard >= shards;
        let listed = self.found.iter();
        ListKeyspacesResponse {
            keyspaces: listed
                .map(|(shard, record)| convert::keyspace(*shard, gid, record))
                .collect(),
            next_shard: self.next.shard,
            next_after: self.next.after,
            last,
        }
    }
}

/// Reads the next keyspaces of the shards that are served here, up to the first that is not. It is refused if that is the first of
/// all.
fn page(
    state: &dyn StateReader,
    first: Place,
    shards: u32,
    limit: usize,
) -> Result<Result<Page, KvError>, StoreError> {
    let mut page = Page {
        found: Vec::new(),
        next: first,
    };
    let end = shards.min(first.shard.saturating_add(MAX_PAGE_SHARDS));
    for number in first.shard..end.max(first.shard.saturating_add(1)) {
        let shard = ShardId(number);
        let left = limit - page.found.len();
        let after = Some(page.next.after).filter(|it| *it > 0).map(KeyspaceId);
        let listed = read_keyspaces(state, shard, |reader| {
            keyspace::list(reader, shard, after, left)
        });
        let listed = match listed? {
            Ok(listed) => listed,
            Err(error) if number == first.shard => return Ok(Err(error)),
            Err(_) => break,
        };
        let full = listed.len() == left;
        let last = listed.last().map(|(id, _)| id.0);
        let live = listed.into_iter().filter(|(_, record)| !record.deleted);
        page.found.extend(live.map(|(_, record)| (shard, record)));
        if let Some(last) = last.filter(|_| full) {
            page.next.after = last;
            break;
        }
        page.next = Place {
            shard: number.saturating_add(1),
            after: 0,
        };
    }
    Ok(Ok(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_doubt_only_a_deletion_is_made_again_and_only_by_the_cluster_id() {
        for cluster_id in [0, 7] {
            let create = CreateKeyspaceRequest {
                cluster_id,
                ..CreateKeyspaceRequest::default()
            };
            assert_eq!(create.repeat(), Repeat::Never);
            let set = SetKeyspaceOptionsRequest {
                cluster_id,
                ..SetKeyspaceOptionsRequest::default()
            };
            let delete = DeleteKeyspaceRequest {
                cluster_id,
                ..DeleteKeyspaceRequest::default()
            };
            let expected = if cluster_id == 0 {
                Repeat::Never
            } else {
                Repeat::ByName
            };
            assert_eq!((set.repeat(), delete.repeat()), (Repeat::Never, expected));
        }
    }

    #[test]
    fn each_attempt_without_a_cluster_id_draws_one() {
        assert_eq!(nonce(7).unwrap().get(), 7);
        assert_ne!(nonce(0).unwrap(), nonce(0).unwrap());
    }
}
