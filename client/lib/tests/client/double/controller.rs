//! The controller service, as any node serves it.

use std::collections::BTreeMap;
use std::time::Instant;

use api::errors;
use api::v1::shardctrler_server::Shardctrler;
use api::v1::{
    ConfigChanged, CutRequest, CutResponse, ForgetRequest, ForgetResponse, GroupProgress,
    JoinRequest, LeaveRequest, MoveRequest, OpenSessionRequest, OpenSessionResponse, Pair,
    QueryRequest, QueryResponse, ReportRequest, ReportResponse, RetireRequest, RetireResponse,
    Session, WatchRequest, WatchResponse,
};
use bytes::Bytes;
use shardkv_client::{ConfigNum, Gid, ShardId};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::services::{Node, Pages, pages};
use super::{SHARDS, Table, World, shard_of, strikes};

pub(super) const CLUSTER: u64 = 77;

impl World {
    pub(super) fn open_session(&mut self) -> OpenSessionResponse {
        let client_id = Bytes::from(format!("session-{:08}", self.sessions.len()));
        let table = Table {
            born: Instant::now(),
            acked_below: 1,
            results: BTreeMap::new(),
        };
        self.sessions.insert(client_id.clone(), table);
        let ttl = self.ttl.unwrap_or(std::time::Duration::from_mins(10));
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap();
        OpenSessionResponse { client_id, ttl_ms }
    }

    /// Returns at most `most` pairs of some shards.
    pub(super) fn range(
        &self,
        (start, end): &(Bytes, Bytes),
        shards: &[ShardId],
        most: usize,
    ) -> Vec<Pair> {
        let pairs = self.data.range(start.clone()..);
        let pairs = pairs.take_while(|(key, _)| end.is_empty() || *key < end);
        let pairs = pairs.filter(|(key, _)| shards.contains(&shard_of(key)));
        let pair = |(key, value): (&Bytes, &Bytes)| Pair {
            key: key.clone(),
            value: value.clone(),
        };
        pairs.map(pair).take(most).collect()
    }

    /// Returns the configurations that a watcher lacks, as far as `node` knows.
    fn lacks(&self, node: usize, after: ConfigNum) -> WatchResponse {
        let last = self.stuck.get(&node).copied().unwrap_or(self.config.num());
        let behind = after < self.oldest.num();
        let from = after.max(self.oldest.num());
        let deltas = self.deltas.iter();
        WatchResponse {
            full: behind.then(|| api::config_to_wire(&self.oldest)),
            deltas: deltas
                .filter(|delta| delta.num > from && delta.num <= last)
                .map(api::delta_to_wire)
                .collect(),
            cluster_id: CLUSTER,
            shards: SHARDS,
            latest: last.0,
            settled: last.0,
            held: 0,
        }
    }

    /// Drops all configurations before the latest.
    pub(crate) fn compact(&mut self) {
        self.oldest = self.config.clone();
        self.deltas.clear();
    }

    /// Makes a named change, once.
    fn change(
        &mut self,
        session: Option<Session>,
        make: impl FnOnce(&mut Self) -> Result<(), Status>,
    ) -> Result<Response<ConfigChanged>, Status> {
        self.messages += 1;
        let Some(session) = session else {
            self.violate("a change without a name".to_owned());
            return Err(Status::internal("no name"));
        };
        let name = (session.client_id, session.sequence);
        if !self.sessions.contains_key(&name.0) {
            return Err(api::error_status(&errors::session_expired()));
        }
        if let Some(done) = self.changes.get(&name) {
            self.repeated += 1;
            return Ok(Response::new(*done));
        }
        let before = self.config.clone();
        make(self)?;
        self.applied += 1;
        let moved = before.owners().iter().zip(self.config.owners());
        let done = ConfigChanged {
            num: self.config.num().0,
            changed: before.num() != self.config.num(),
            moved_shards: u32::try_from(moved.filter(|(a, b)| a != b).count()).unwrap(),
        };
        self.changes.insert(name, done);
        if strikes(self.messages, self.faults.lose_change) {
            return Err(Status::unknown("connection reset"));
        }
        Ok(Response::new(done))
    }

    /// Gives the shards to the groups in turn.
    fn spread(&mut self, groups: &BTreeMap<Gid, Vec<String>>) {
        let gids: Vec<Gid> = groups.keys().copied().collect();
        let owners = gids.repeat(SHARDS as usize);
        self.reconfigure(groups, &owners[..SHARDS as usize]);
    }
}

impl Node {
    fn known(&self) -> Result<(), Status> {
        if self.world().older {
            return Err(Status::unimplemented(""));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Shardctrler for Node {
    async fn query(
        &self,
        request: Request<QueryRequest>,
    ) -> Result<Response<QueryResponse>, Status> {
        self.thawed().await;
        self.known()?;
        let world = self.world();
        let latest = world.config.num();
        let num = request.into_inner().num;
        if num != -1 && num != i64::try_from(latest.0).unwrap() {
            let missing = errors::not_found(format!("configuration {num}"));
            return Err(api::error_status(&missing));
        }
        let progress = |gid: &Gid| GroupProgress {
            gid: gid.0,
            settled: world.settled.get(gid).copied().unwrap_or(latest).0,
            due: 0,
        };
        Ok(Response::new(QueryResponse {
            config: Some(api::config_to_wire(&world.config)),
            latest: latest.0,
            oldest: world.oldest.num().0,
            cluster_id: CLUSTER,
            progress: world.config.groups().keys().map(progress).collect(),
            drained: Vec::new(),
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<ConfigChanged>, Status> {
        self.thawed().await;
        let JoinRequest {
            groups, session, ..
        } = request.into_inner();
        self.world().change(session, |world| {
            let mut all = world.config.member_addresses();
            all.extend(groups.into_iter().map(|it| (Gid(it.gid), it.addresses)));
            world.spread(&all);
            Ok(())
        })
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<ConfigChanged>, Status> {
        self.thawed().await;
        let LeaveRequest { gids, session } = request.into_inner();
        self.world().change(session, |world| {
            let mut all = world.config.member_addresses();
            all.retain(|gid, _| !gids.contains(&gid.0));
            if all.is_empty() {
                return Err(api::error_status(&errors::conflict("the last group")));
            }
            world.spread(&all);
            Ok(())
        })
    }

    async fn r#move(
        &self,
        request: Request<MoveRequest>,
    ) -> Result<Response<ConfigChanged>, Status> {
        self.thawed().await;
        let MoveRequest {
            shard,
            gid,
            session,
        } = request.into_inner();
        self.world().change(session, |world| {
            let groups = world.config.member_addresses();
            if !groups.contains_key(&Gid(gid)) {
                return Err(api::error_status(&errors::not_found(Gid(gid))));
            }
            let mut owners = world.config.owners().to_vec();
            owners[shard as usize] = Gid(gid);
            world.reconfigure(&groups, &owners);
            Ok(())
        })
    }

    async fn forget(&self, _: Request<ForgetRequest>) -> Result<Response<ForgetResponse>, Status> {
        Err(Status::unimplemented("the double forgets no group"))
    }

    async fn retire(&self, _: Request<RetireRequest>) -> Result<Response<RetireResponse>, Status> {
        Err(Status::unimplemented("the double retires no gid"))
    }

    type WatchStream = Pages<WatchResponse>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.thawed().await;
        self.known()?;
        let mut news = self.world().news.subscribe();
        self.world().watches += 1;
        let mut after = ConfigNum(request.into_inner().after);
        let (out, answers) = mpsc::channel(1);
        let node = self.clone();
        tokio::spawn(async move {
            let mut first = true;
            loop {
                news.borrow_and_update();
                node.thawed().await;
                let message = node.world().lacks(node.index, after);
                let last = message.deltas.last().map(|it| it.num);
                let last = last.or(message.full.as_ref().map(|it| it.num));
                if first || last.is_some() {
                    first = false;
                    after = last.map_or(after, ConfigNum);
                    if out.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = news.changed() => changed.expect("the world lives"),
                    () = out.closed() => return,
                }
            }
        });
        Ok(Response::new(pages(answers)))
    }

    async fn report(&self, _: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        Err(Status::unimplemented("not for clients"))
    }

    async fn cut(&self, _: Request<CutRequest>) -> Result<Response<CutResponse>, Status> {
        Err(Status::unimplemented("not for clients"))
    }

    async fn open_session(
        &self,
        _: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        self.thawed().await;
        Ok(Response::new(self.world().open_session()))
    }
}
