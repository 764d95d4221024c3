//! A cluster that misbehaves on demand: real gRPC servers over one state in memory.
//!
//! It keeps the rules of the real one that the client relies on (who leads, sessions, the birth rule), and counts
//! what a client must never do: it panics in [`Cluster::check`] if a bound was broken or a name was used for two
//! different writes.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use api::errors;
use api::v1::admin_server::{Admin, AdminServer};
use api::v1::batch_item::Request as Item;
use api::v1::batch_result::Response as Outcome;
use api::v1::kv_server::{Kv, KvServer};
use api::v1::{
    AppendRequest, AppendResponse, BatchRequest, BatchResponse, BatchResult,
    ChangeMembershipRequest, ChangeMembershipResponse, CompareAndSwapRequest,
    CompareAndSwapResponse, DeleteRequest, DeleteResponse, ErrorDetail, GetRequest, GetResponse,
    MemberStatus, OpenSessionRequest, OpenSessionResponse, Pair, PutRequest, PutResponse, Role,
    ScanRequest, ScanResponse, Session, StatusRequest, StatusResponse, TransferLeadershipRequest,
    TransferLeadershipResponse,
};
use bytes::Bytes;
use client::ClientOptions;
use futures::Stream;
use tokio::sync::{mpsc, watch};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// Faults, each struck by every n-th message; 0 is never.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Applied, but the stream breaks before the answer.
    pub(crate) lose_answer: u64,
    /// Not applied, and the stream breaks.
    pub(crate) lose_request: u64,
    /// Applied or not, by turns, and answered with `OutcomeUnknown`.
    pub(crate) outcome_unknown: u64,
    /// Refused with `Overloaded`.
    pub(crate) overloaded: u64,
    /// A scan's stream breaks before this page.
    pub(crate) break_scan: u64,
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) data: BTreeMap<Bytes, Bytes>,
    sessions: HashMap<Bytes, Table>,
    pub(crate) leader: Option<usize>,
    pub(crate) term: u64,
    /// Whether nodes that don't lead tell who does.
    pub(crate) hints: bool,
    pub(crate) faults: Faults,
    pub(crate) ttl: Option<Duration>,
    messages: u64,
    pub(crate) applied: u64,
    /// Writes that came again and were answered from a table.
    pub(crate) repeated: u64,
    pub(crate) refused_sessions: u64,
    /// Calls received and not answered, now and at most.
    pub(crate) outstanding: usize,
    pub(crate) most_outstanding: usize,
    pub(crate) largest_batch: usize,
    pub(crate) streams: u64,
    /// How often a node was asked for its status.
    pub(crate) asked: u64,
    pub(crate) transfers: Vec<u64>,
    members: Vec<String>,
    violations: Vec<String>,
}

struct Table {
    born: Instant,
    acked_below: u64,
    results: BTreeMap<u64, (Item, Outcome)>,
}

pub(crate) struct Cluster {
    pub(crate) world: Arc<Mutex<World>>,
    pub(crate) addresses: Vec<String>,
    nodes: Vec<Option<tokio::runtime::Runtime>>,
    frozen: Vec<watch::Sender<bool>>,
}

impl Cluster {
    pub(crate) fn start(count: usize) -> Self {
        let mut cluster = Self {
            world: Arc::default(),
            addresses: Vec::new(),
            nodes: Vec::new(),
            frozen: Vec::new(),
        };
        for node in 0..count {
            cluster.addresses.push("127.0.0.1:0".to_owned());
            cluster.nodes.push(None);
            cluster.frozen.push(watch::Sender::new(false));
            cluster.restart(node);
        }
        let mut world = cluster.world();
        world.hints = true;
        world.members.clone_from(&cluster.addresses);
        drop(world);
        cluster.elect(0);
        cluster
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(crate) fn options(&self) -> ClientOptions {
        ClientOptions::new(self.addresses.clone())
    }

    /// From now on `node` leads, in a new term.
    pub(crate) fn elect(&self, node: usize) {
        let mut world = self.world();
        world.leader = Some(node);
        world.term += 1;
    }

    pub(crate) fn depose(&self) {
        self.world().leader = None;
    }

    /// Ends a node at once: its connections break, and what it was doing is lost.
    pub(crate) fn kill(&mut self, node: usize) {
        if let Some(runtime) = self.nodes[node].take() {
            // Elsewhere, because a runtime can't wait for another; joined, because it must be over on return.
            let over = move || runtime.shutdown_timeout(Duration::from_secs(5));
            std::thread::spawn(over).join().unwrap();
        }
    }

    pub(crate) fn restart(&mut self, node: usize) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let address: SocketAddr = self.addresses[node].parse().unwrap();
        let incoming = {
            let _within = runtime.enter();
            // A killed node's socket may take a moment to go away.
            let start = Instant::now();
            loop {
                match TcpIncoming::bind(address) {
                    Ok(incoming) => break incoming.with_nodelay(Some(true)),
                    Err(error) => assert!(start.elapsed() < Duration::from_secs(5), "{error}"),
                }
                std::thread::yield_now();
            }
        };
        self.addresses[node] = incoming.local_addr().unwrap().to_string();
        let service = Node {
            index: node,
            world: Arc::clone(&self.world),
            frozen: self.frozen[node].subscribe(),
        };
        runtime.spawn(
            Server::builder()
                .add_service(KvServer::new(service.clone()))
                .add_service(AdminServer::new(service))
                .serve_with_incoming(incoming),
        );
        self.nodes[node] = Some(runtime);
    }

    /// The node keeps its connections and says nothing.
    pub(crate) fn freeze(&self, node: usize) {
        self.frozen[node].send_replace(true);
    }

    pub(crate) fn thaw(&self, node: usize) {
        self.frozen[node].send_replace(false);
    }

    /// Forgets all sessions, as a cluster does after their time.
    pub(crate) fn forget_sessions(&self) {
        self.world().sessions.clear();
    }

    pub(crate) fn sessions(&self) -> usize {
        self.world().sessions.len()
    }

    pub(crate) fn check(&self) {
        assert_eq!(self.world().violations, Vec::<String>::new());
    }

    pub(crate) fn value(&self, key: &str) -> Bytes {
        let world = self.world();
        world.data.get(key.as_bytes()).cloned().unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..self.nodes.len() {
            self.kill(node);
        }
    }
}

/// Waits for a condition that another task or thread brings about.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn strikes(message: u64, every: u64) -> bool {
    every != 0 && message.is_multiple_of(every)
}

/// What became of a message.
enum Served {
    Answers(Vec<BatchResult>),
    Broken,
}

impl World {
    fn role_error(&self, node: usize, addresses: &[String]) -> Option<ErrorDetail> {
        if self.leader == Some(node) {
            return None;
        }
        let leader = self.leader.filter(|_| self.hints);
        Some(errors::not_leader(leader.map_or("", |it| &addresses[it])))
    }

    fn serve(&mut self, node: usize, request: BatchRequest) -> Served {
        self.messages += 1;
        let message = self.messages;
        self.largest_batch = self.largest_batch.max(request.items.len());
        let faults = self.faults;
        if strikes(message, faults.lose_request) {
            return Served::Broken;
        }
        let members = self.members.clone();
        let mut results = Vec::new();
        for item in request.items {
            let asked = item.request.expect("an item has a request");
            let outcome = if let Some(error) = self.role_error(node, &members) {
                Outcome::Error(error)
            } else if strikes(message, faults.overloaded) {
                Outcome::Error(errors::overloaded("test", 1, 1))
            } else if strikes(message, faults.outcome_unknown) {
                if item.id.is_multiple_of(2) {
                    self.apply(asked);
                }
                Outcome::Error(errors::outcome_unknown(""))
            } else {
                self.apply(asked)
            };
            results.push(BatchResult {
                id: item.id,
                response: Some(outcome),
            });
        }
        if strikes(message, faults.lose_answer) {
            return Served::Broken;
        }
        // Answers come in any order.
        results.reverse();
        Served::Answers(results)
    }

    fn apply(&mut self, item: Item) -> Outcome {
        let session = match &item {
            Item::Get(it) => {
                let value = self.data.get(&it.key).cloned();
                return Outcome::Get(GetResponse {
                    found: value.is_some(),
                    value: value.unwrap_or_default(),
                });
            }
            Item::Put(it) => it.session.clone(),
            Item::Append(it) => it.session.clone(),
            Item::Delete(it) => it.session.clone(),
            Item::CompareAndSwap(it) => it.session.clone(),
        };
        let Some(session) = session else {
            self.violations
                .push(format!("a write without a name: {item:?}"));
            return Outcome::Error(errors::bad_request("session", "is missing"));
        };
        if let Err(answered) = self.named(&session, &item) {
            return answered;
        }
        let outcome = self.write(&item);
        let table = self.sessions.get_mut(&session.client_id).unwrap();
        table
            .results
            .insert(session.sequence, (item, outcome.clone()));
        outcome
    }

    /// `Err`: the answer, without applying.
    fn named(&mut self, session: &Session, item: &Item) -> Result<(), Outcome> {
        let ttl = self.ttl;
        let known = self.sessions.get_mut(&session.client_id);
        let alive = known.filter(|it| ttl.is_none_or(|ttl| it.born.elapsed() < ttl));
        let Some(table) = alive else {
            self.refused_sessions += 1;
            return Err(Outcome::Error(errors::session_expired()));
        };
        let Session {
            sequence,
            acked_below,
            ..
        } = *session;
        if sequence == 0 || acked_below > sequence || acked_below < 1 {
            self.violations
                .push(format!("bad numbers {sequence}, {acked_below}"));
        }
        table.acked_below = table.acked_below.max(acked_below);
        let acked_below = table.acked_below;
        table.results.retain(|number, _| *number >= acked_below);
        if sequence < acked_below {
            let stale = errors::bad_request("session", "the sequence was acknowledged");
            return Err(Outcome::Error(stale));
        }
        if sequence - acked_below >= 512 {
            self.violations
                .push(format!("window: {sequence} over {acked_below}"));
        }
        if let Some((first, outcome)) = table.results.get(&sequence) {
            self.repeated += 1;
            if !same_write(first, item) {
                self.violations
                    .push(format!("one name for {first:?} and {item:?}"));
            }
            return Err(outcome.clone());
        }
        Ok(())
    }

    fn write(&mut self, item: &Item) -> Outcome {
        self.applied += 1;
        match item {
            Item::Get(_) => unreachable!("not a write"),
            Item::Put(it) if it.value.len() > 1_000_000 => {
                let size = it.value.len() as u64;
                Outcome::Error(errors::too_large("value", size, 1_000_000))
            }
            Item::Put(it) => {
                self.data.insert(it.key.clone(), it.value.clone());
                Outcome::Put(PutResponse {})
            }
            Item::Append(it) => {
                let old = self.data.get(&it.key).cloned().unwrap_or_default();
                let new = Bytes::from([old, it.suffix.clone()].concat());
                let length = new.len() as u64;
                self.data.insert(it.key.clone(), new);
                Outcome::Append(AppendResponse { length })
            }
            Item::Delete(it) => {
                let existed = self.data.remove(&it.key).is_some();
                Outcome::Delete(DeleteResponse { existed })
            }
            Item::CompareAndSwap(it) => {
                let swapped = self.data.get(&it.key) == it.expected.as_ref();
                match (swapped, it.new.clone()) {
                    (true, Some(new)) => drop(self.data.insert(it.key.clone(), new)),
                    (true, None) => drop(self.data.remove(&it.key)),
                    (false, _) => {}
                }
                Outcome::CompareAndSwap(CompareAndSwapResponse { swapped })
            }
        }
    }
}

/// The same write, whatever it acknowledges this time.
fn same_write(one: &Item, other: &Item) -> bool {
    match (one, other) {
        (Item::Put(a), Item::Put(b)) => a.key == b.key && a.value == b.value,
        (Item::Append(a), Item::Append(b)) => a.key == b.key && a.suffix == b.suffix,
        (Item::Delete(a), Item::Delete(b)) => a.key == b.key,
        (Item::CompareAndSwap(a), Item::CompareAndSwap(b)) => {
            a.key == b.key && a.expected == b.expected && a.new == b.new
        }
        _ => false,
    }
}

#[derive(Clone)]
struct Node {
    index: usize,
    world: Arc<Mutex<World>>,
    frozen: watch::Receiver<bool>,
}

type Pages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn pages<T: Send + 'static>(mut from: mpsc::Receiver<Result<T, Status>>) -> Pages<T> {
    Box::pin(futures::stream::poll_fn(move |cx| from.poll_recv(cx)))
}

impl Node {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    async fn thawed(&self) {
        let mut frozen = self.frozen.clone();
        frozen
            .wait_for(|frozen| !frozen)
            .await
            .expect("the cluster lives");
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
        let Outcome::Get(response) = self.unary(Item::Get(request.into_inner())).await? else {
            panic!("the answer to another question");
        };
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let Outcome::Put(response) = self.unary(Item::Put(request.into_inner())).await? else {
            panic!("the answer to another question");
        };
        Ok(Response::new(response))
    }

    async fn append(
        &self,
        request: Request<AppendRequest>,
    ) -> Result<Response<AppendResponse>, Status> {
        let Outcome::Append(response) = self.unary(Item::Append(request.into_inner())).await?
        else {
            panic!("the answer to another question");
        };
        Ok(Response::new(response))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let Outcome::Delete(response) = self.unary(Item::Delete(request.into_inner())).await?
        else {
            panic!("the answer to another question");
        };
        Ok(Response::new(response))
    }

    async fn compare_and_swap(
        &self,
        request: Request<CompareAndSwapRequest>,
    ) -> Result<Response<CompareAndSwapResponse>, Status> {
        let Outcome::CompareAndSwap(response) = self
            .unary(Item::CompareAndSwap(request.into_inner()))
            .await?
        else {
            panic!("the answer to another question");
        };
        Ok(Response::new(response))
    }

    async fn open_session(
        &self,
        _: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        self.thawed().await;
        self.must_lead()?;
        let mut world = self.world();
        let client_id = Bytes::from(format!("session-{:08}", world.sessions.len()));
        let table = Table {
            born: Instant::now(),
            acked_below: 1,
            results: BTreeMap::new(),
        };
        world.sessions.insert(client_id.clone(), table);
        let ttl = world.ttl.unwrap_or(Duration::from_mins(10));
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap();
        Ok(Response::new(OpenSessionResponse { client_id, ttl_ms }))
    }

    type ExportStream = Pages<ScanResponse>;

    async fn export(
        &self,
        _: Request<api::v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        Err(Status::unimplemented("not asked for by these tests"))
    }

    type ScanStream = Pages<ScanResponse>;

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        self.must_lead()?;
        let request = request.into_inner();
        let (out, answers) = mpsc::channel(1);
        let node = self.clone();
        tokio::spawn(async move {
            let mut start = request.start;
            let mut left = if request.limit == 0 {
                u64::MAX
            } else {
                request.limit
            };
            loop {
                node.thawed().await;
                let page = {
                    let mut world = node.world();
                    world.messages += 1;
                    let broken = strikes(world.messages, world.faults.break_scan);
                    let in_range = |key: &Bytes| request.end.is_empty() || *key < request.end;
                    let pairs: Vec<Pair> = world
                        .data
                        .range(start.clone()..)
                        .take_while(|(key, _)| in_range(key))
                        .take(usize::try_from(left.min(7)).unwrap())
                        .map(|(key, value)| Pair {
                            key: key.clone(),
                            value: if request.keys_only {
                                Bytes::new()
                            } else {
                                value.clone()
                            },
                        })
                        .collect();
                    if broken {
                        Err(Status::unknown("connection reset"))
                    } else {
                        Ok(pairs)
                    }
                };
                let page = match (node.must_lead(), page) {
                    (Err(status), _) | (Ok(()), Err(status)) => {
                        let _ = out.send(Err(status)).await;
                        return;
                    }
                    (Ok(()), Ok(page)) => page,
                };
                let Some(last) = page.last() else { return };
                left -= page.len() as u64;
                start = Bytes::from([&last.key[..], &[0]].concat());
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
        self.world().streams += 1;
        let mut incoming = request.into_inner();
        let (out, answers) = mpsc::channel(4);
        let node = self.clone();
        tokio::spawn(async move {
            let mut held = 0;
            while let Ok(Some(message)) = incoming.message().await {
                node.received(message.items.len());
                held += message.items.len();
                // A node reads on while it thinks.
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
        Err(Status::unimplemented("not asked for by these tests"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.thawed().await;
        let mut world = self.world();
        world.asked += 1;
        let leads = world.leader == Some(self.index);
        let member = |(at, address): (usize, &String)| MemberStatus {
            node_id: at as u64 + 1,
            address: address.clone(),
            voter: true,
            match_index: 0,
            progress: String::new(),
        };
        Ok(Response::new(StatusResponse {
            node_id: self.index as u64 + 1,
            role: if leads { Role::Leader } else { Role::Follower }.into(),
            term: world.term,
            leader_id: world.leader.map_or(0, |it| it as u64 + 1),
            members: world.members.iter().enumerate().map(member).collect(),
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
