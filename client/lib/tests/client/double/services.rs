//! The `Kv` and `Admin` services of a node.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use api::errors;
use api::v1::admin_server::Admin;
use api::v1::batch_item::Request as Item;
use api::v1::batch_result::Response as Outcome;
use api::v1::kv_server::Kv;
use api::v1::{
    AppendRequest, AppendResponse, BatchRequest, BatchResponse, ChangeMembershipRequest,
    ChangeMembershipResponse, CompareAndSwapRequest, CompareAndSwapResponse, DeleteRequest,
    DeleteResponse, GetRequest, GetResponse, GroupKind, MemberStatus, OpenSessionRequest,
    OpenSessionResponse, PutRequest, PutResponse, Role, ScanRequest, ScanResponse, ShardState,
    StatusRequest, StatusResponse, TransferLeadershipRequest, TransferLeadershipResponse,
};
use bytes::Bytes;
use futures::Stream;
use shardkv_client::ShardId;
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status, Streaming};

use super::controller::CLUSTER;
use super::{SHARDS, Served, World, shard_of, strikes};

/// The services of one node.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) index: usize,
    pub(super) world: Arc<Mutex<World>>,
    pub(super) frozen: watch::Receiver<bool>,
}

pub(super) type Pages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) fn pages<T: Send + 'static>(mut from: mpsc::Receiver<Result<T, Status>>) -> Pages<T> {
    Box::pin(futures::stream::poll_fn(move |cx| from.poll_recv(cx)))
}

impl Node {
    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(super) async fn thawed(&self) {
        let mut frozen = self.frozen.clone();
        frozen
            .wait_for(|frozen| !frozen)
            .await
            .expect("the cluster lives");
    }

    /// Records a violation unless the call forbids forwarding and names this node's cluster and group.
    fn direct<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let what = std::any::type_name::<T>();
        let said = |key| request.metadata().get(key).map(|it| it.to_str().unwrap());
        let mut world = self.world();
        if said(api::NO_FORWARD_METADATA_KEY).is_none() {
            world.violate(format!("{what} might be forwarded"));
        }
        let meant = (said(api::CLUSTER_METADATA_KEY), said(api::GID_METADATA_KEY));
        let gid = world.groups[self.index].0.to_string();
        let cluster = format!("{CLUSTER:016x}");
        let right = if world.older {
            meant == (None, None)
        } else {
            meant == (Some(cluster.as_str()), Some(gid.as_str()))
        };
        if !right {
            world.violate(format!("{what} is meant for {meant:?}"));
        }
        if world.strangers.contains(&self.index) {
            world.estranged += 1;
            let error = errors::wrong_cluster(&cluster, "another");
            return Err(api::error_status(&error));
        }
        Ok(())
    }

    fn must_own(&self, shards: &[ShardId]) -> Result<(), Status> {
        let mut world = self.world();
        for shard in shards {
            if let Some(error) = world.shard_error(self.index, *shard) {
                return Err(api::error_status(&error));
            }
        }
        Ok(())
    }

    fn must_lead(&self) -> Result<(), Status> {
        let world = self.world();
        let members = world.members.clone();
        match world.role_error(self.index, &members) {
            Some(error) => Err(api::error_status(&error)),
            None => Ok(()),
        }
    }

    fn received(&self, calls: usize) {
        let mut world = self.world();
        world.outstanding += calls;
        world.most_outstanding = world.most_outstanding.max(world.outstanding);
    }

    async fn direct_unary<T>(
        &self,
        request: Request<T>,
        item: impl Fn(T) -> Item,
    ) -> Result<Outcome, Status> {
        self.direct(&request)?;
        self.unary(item(request.into_inner())).await
    }

    async fn unary(&self, request: Item) -> Result<Outcome, Status> {
        self.received(1);
        self.thawed().await;
        let mut world = self.world();
        world.outstanding -= 1;
        let id = world.messages;
        let item = api::v1::BatchItem {
            id,
            request: Some(request),
        };
        match world.serve(self.index, BatchRequest { items: vec![item] }) {
            Served::Broken => Err(Status::unknown("connection reset")),
            Served::Answers(mut results) => match results.remove(0).response.unwrap() {
                Outcome::Error(detail) => Err(api::error_status(&detail)),
                outcome => Ok(outcome),
            },
        }
    }
}

#[tonic::async_trait]
impl Kv for Node {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let Outcome::Get(response) = self.direct_unary(request, Item::Get).await? else {
            panic!("the answer to another question");
        };
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let Outcome::Put(response) = self.direct_unary(request, Item::Put).await? else {
            panic!("the answer to another question");
        };
        Ok(Response::new(response))
    }

    async fn append(
        &self,
        request: Request<AppendRequest>,
    ) -> Result<Response<AppendResponse>, Status> {
        let Outcome::Append(response) = self.direct_unary(request, Item::Append).await? else {
            panic!("the answer to another question");
        };
        Ok(Response::new(response))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let Outcome::Delete(response) = self.direct_unary(request, Item::Delete).await? else {
            panic!("the answer to another question");
        };
        Ok(Response::new(response))
    }

    async fn compare_and_swap(
        &self,
        request: Request<CompareAndSwapRequest>,
    ) -> Result<Response<CompareAndSwapResponse>, Status> {
        let Outcome::CompareAndSwap(response) =
            self.direct_unary(request, Item::CompareAndSwap).await?
        else {
            panic!("the answer to another question");
        };
        Ok(Response::new(response))
    }

    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        self.direct(&request)?;
        self.thawed().await;
        self.must_lead()?;
        Ok(Response::new(self.world().open_session()))
    }

    type ExportStream = Pages<ScanResponse>;

    async fn export(
        &self,
        request: Request<api::v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        self.direct(&request)?;
        self.must_lead()?;
        let request = request.into_inner();
        let shard = ShardId(request.shard);
        self.must_own(&[shard])?;
        // Later writes are not part of this cut.
        let range = (request.start, request.end);
        let cut = self.world().range(&range, &[shard], usize::MAX);
        let (out, answers) = mpsc::channel(1);
        let node = self.clone();
        tokio::spawn(async move {
            for page in cut.chunks(7) {
                node.thawed().await;
                let broken = {
                    let mut world = node.world();
                    world.messages += 1;
                    world.exported += 1;
                    strikes(world.messages, world.faults.break_scan)
                };
                let page = if broken {
                    Err(Status::unknown("connection reset"))
                } else {
                    let pairs = page.to_vec();
                    let fine = node.must_lead().and_then(|()| node.must_own(&[shard]));
                    fine.map(|()| ScanResponse { pairs })
                };
                let over = page.is_err();
                if out.send(page).await.is_err() || over {
                    return;
                }
            }
        });
        Ok(Response::new(pages(answers)))
    }

    type ScanStream = Pages<ScanResponse>;

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        self.direct(&request)?;
        self.must_lead()?;
        let request = request.into_inner();
        let named = request.shards.iter();
        let mut shards: Vec<ShardId> = named
            .flat_map(|run| (run.first..run.first + run.count).map(ShardId))
            .collect();
        if shards.is_empty() {
            // Like a node that does not know groups: export everything.
            assert!(self.world().older, "shards are named");
            shards = (0..SHARDS).map(ShardId).collect();
        }
        let (out, answers) = mpsc::channel(1);
        let node = self.clone();
        tokio::spawn(async move {
            let mut range = (request.start, request.end);
            let mut left = match request.limit {
                0 => u64::MAX,
                limit => limit,
            };
            loop {
                node.thawed().await;
                let (broken, mut page) = {
                    let mut world = node.world();
                    world.messages += 1;
                    let broken = strikes(world.messages, world.faults.break_scan);
                    let most = usize::try_from(left.min(7)).unwrap();
                    (broken, world.range(&range, &shards, most))
                };
                let fine = node.must_lead().and_then(|()| node.must_own(&shards));
                if let (Err(status), _) | (Ok(()), Some(status)) =
                    (fine, broken.then(|| Status::unknown("connection reset")))
                {
                    let _ = out.send(Err(status)).await;
                    return;
                }
                let Some(last) = page.last() else { return };
                left -= page.len() as u64;
                range.0 = Bytes::from([&last.key[..], &[0]].concat());
                if request.keys_only {
                    for pair in &mut page {
                        pair.value.clear();
                    }
                }
                if out.send(Ok(ScanResponse { pairs: page })).await.is_err() || left == 0 {
                    return;
                }
            }
        });
        Ok(Response::new(pages(answers)))
    }

    type BatchStream = Pages<BatchResponse>;

    async fn batch(
        &self,
        request: Request<Streaming<BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        self.direct(&request)?;
        self.world().streams += 1;
        let mut incoming = request.into_inner();
        let (out, answers) = mpsc::channel(4);
        let node = self.clone();
        tokio::spawn(async move {
            let mut held = 0;
            while let Ok(Some(message)) = incoming.message().await {
                node.received(message.items.len());
                held += message.items.len();
                // A node reads the next messages while it handles one.
                let mut waiting = vec![message];
                let thawed = node.thawed();
                tokio::pin!(thawed);
                loop {
                    tokio::select! {
                        biased;
                        () = &mut thawed => break,
                        more = incoming.message() => {
                            let Ok(Some(more)) = more else {
                                node.world().outstanding -= held;
                                return;
                            };
                            node.received(more.items.len());
                            held += more.items.len();
                            waiting.push(more);
                        }
                    }
                }
                for message in waiting {
                    let calls = message.items.len();
                    held -= calls;
                    let served = {
                        let mut world = node.world();
                        world.outstanding -= calls;
                        world.serve(node.index, message)
                    };
                    let answer = match served {
                        Served::Answers(results) => Ok(BatchResponse { results }),
                        Served::Broken => Err(Status::unknown("connection reset")),
                    };
                    let broken = answer.is_err();
                    if out.send(answer).await.is_err() || broken {
                        node.world().outstanding -= held;
                        return;
                    }
                }
            }
        });
        Ok(Response::new(pages(answers)))
    }
}

#[tonic::async_trait]
impl Admin for Node {
    async fn shards(
        &self,
        _: Request<api::v1::ShardsRequest>,
    ) -> Result<Response<api::v1::ShardsResponse>, Status> {
        self.must_lead()?;
        let world = self.world();
        let gid = world.groups[self.index];
        let accepted = &world.accepted[&gid];
        let shard = |shard: ShardId| {
            let pulling = world.pulling.contains(&shard);
            let state = if pulling {
                ShardState::Pulling
            } else {
                ShardState::Serving
            };
            api::v1::ShardStatus {
                shard: shard.0,
                state: state.into(),
                config_num: accepted.num().0,
                keys: world
                    .data
                    .keys()
                    .filter(|key| shard_of(key) == shard)
                    .count() as u64,
                handoff_age_ms: u64::from(pulling) * 1_500,
                ..Default::default()
            }
        };
        Ok(Response::new(api::v1::ShardsResponse {
            gid: gid.0,
            config_num: accepted.num().0,
            settled: accepted.num().0,
            shards: accepted.owned_by(gid).shards().map(shard).collect(),
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.thawed().await;
        let mut world = self.world();
        world.asked += 1;
        let gid = world.groups[self.index];
        let leader = world.leaders.get(&gid).copied();
        let member = |(at, address): (usize, &String)| MemberStatus {
            node_id: at as u64 + 1,
            address: address.clone(),
            voter: true,
            match_index: 0,
            progress: String::new(),
        };
        let members = world.members.iter().enumerate();
        let own = members.filter(|(at, _)| world.groups[*at] == gid);
        let leads = leader == Some(self.index);
        Ok(Response::new(StatusResponse {
            node_id: self.index as u64 + 1,
            gid: if world.older { 0 } else { gid.0 },
            role: if leads { Role::Leader } else { Role::Follower }.into(),
            term: world.terms.get(&gid).copied().unwrap_or_default(),
            leader_id: leader.map_or(0, |it| it as u64 + 1),
            members: own.map(member).collect(),
            config_num: world.accepted[&gid].num().0,
            kind: GroupKind::Shards.into(),
            ..StatusResponse::default()
        }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipResponse>, Status> {
        self.must_lead()?;
        let leader_id = request.into_inner().node_id;
        self.world().transfers.push(leader_id);
        Ok(Response::new(TransferLeadershipResponse { leader_id }))
    }

    async fn change_membership(
        &self,
        _: Request<ChangeMembershipRequest>,
    ) -> Result<Response<ChangeMembershipResponse>, Status> {
        self.must_lead()?;
        let refused = errors::bad_request("promote", "no such learner");
        Err(api::error_status(&refused))
    }
}
