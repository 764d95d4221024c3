//! The handle that applications hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::backoff::Backoff;
use crate::call::{Answer, Call, Request, Trial, mismatch};
use crate::controller::{Centre, Controller};
use crate::gates::{Gate, Gates};
use crate::options::parse_address;
use crate::route::{Router, short};
use crate::unary::Unary;
use crate::verdict;
use crate::{
    Admin, ClientOptions, ConnectError, Error, Export, ExportOptions, Gid, GroupShards, Mode,
    NodeId, NodeStatus, Scan, ScanOptions, ShardConfig, ShardSet,
};

/// How many leaders are asked for their shards at the same time.
const MAX_ASKED: usize = 16;

/// How many nodes are asked for their status at the same time.
const MAX_STATUSES: usize = 64;

/// A cluster, as an application uses it: cheap to clone, shared by any number of tasks.
///
/// Calls from several tasks travel together and may take effect in any order; a call that was
/// awaited took effect before one that is made after it. Dropping a call's future gives it up: a
/// write may then take effect or not.
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
    timeout: Duration,
}

struct Core {
    router: Router,
    gates: Arc<Gates>,
    /// In unary mode.
    unary: Option<Unary>,
    centre: Arc<Centre>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("options", self.core.router.options())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Checks the options and that at least one node accepts a connection. Must be called within a tokio runtime,
    /// on which the client's tasks then live.
    ///
    /// ```no_run
    /// use shardkv_client::{Client, ClientOptions};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = Client::connect(ClientOptions::new(["127.0.0.1:7001"])).await?;
    /// client.put("greeting", "hello").await?;
    /// assert_eq!(client.get("greeting").await?.as_deref(), Some(&b"hello"[..]));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(options: ClientOptions) -> Result<Self, ConnectError> {
        let client = Self::lazy(options)?;
        client.core.router.reachable().await?;
        Ok(client)
    }

    /// Like [`Client::connect`], but reaches no node before the first call.
    pub fn lazy(options: ClientOptions) -> Result<Self, ConnectError> {
        let router = Router::watch(options)?;
        let runtime = Handle::try_current().map_err(|_| ConnectError::NoRuntime)?;
        let gates = Gates::new(router.clone(), runtime);
        let unary = (router.options().mode == Mode::Unary)
            .then(|| Unary::new(router.clone(), Arc::clone(&gates)));
        let timeout = router.options().request_timeout;
        let centre = Centre::new(router.clone());
        let core = Arc::new(Core {
            router,
            gates,
            unary,
            centre,
        });
        Ok(Self { core, timeout })
    }

    /// The same client with another deadline for its calls.
    #[must_use]
    pub fn with_timeout(&self, request_timeout: Duration) -> Self {
        Self {
            core: Arc::clone(&self.core),
            timeout: request_timeout,
        }
    }

    /// The value of `key`, or `None` if there is no such key. Linearizable: it sees each write that was
    /// acknowledged, to anyone, before the call.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>, Error> {
        let key = key.into();
        match self.call(Request::Get { key }).await? {
            Answer::Value(value) => Ok(value),
            _ => Err(mismatch(false)),
        }
    }

    /// Sets the value of `key`.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<(), Error> {
        let (key, value) = (key.into(), value.into());
        match self.call(Request::Put { key, value }).await? {
            Answer::Put => Ok(()),
            _ => Err(mismatch(true)),
        }
    }

    /// Adds `suffix` to the end of the value of `key` (a missing key counts as empty), and returns the value's
    /// length in bytes afterwards.
    ///
    /// ```no_run
    /// # async fn example(client: shardkv_client::Client) -> Result<(), shardkv_client::Error> {
    /// assert_eq!(client.append("log", "one;").await?, 4);
    /// assert_eq!(client.append("log", "two;").await?, 8);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn append(
        &self,
        key: impl Into<Bytes>,
        suffix: impl Into<Bytes>,
    ) -> Result<u64, Error> {
        let (key, suffix) = (key.into(), suffix.into());
        match self.call(Request::Append { key, suffix }).await? {
            Answer::Length(length) => Ok(length),
            _ => Err(mismatch(true)),
        }
    }

    /// Removes `key` and returns whether it existed.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<bool, Error> {
        let key = key.into();
        match self.call(Request::Delete { key }).await? {
            Answer::Existed(existed) => Ok(existed),
            _ => Err(mismatch(true)),
        }
    }

    /// Sets `key` to `new` (`None`: removes it) if its value is `expected` (`None`: if there is no such key).
    /// Returns whether it was.
    ///
    /// ```no_run
    /// # async fn example(client: shardkv_client::Client) -> Result<(), shardkv_client::Error> {
    /// let taken = client.compare_and_swap("lock", None, Some("me".into())).await?;
    /// if taken {
    ///     client.compare_and_swap("lock", Some("me".into()), None).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn compare_and_swap(
        &self,
        key: impl Into<Bytes>,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> Result<bool, Error> {
        let key = key.into();
        let request = Request::CompareAndSwap { key, expected, new };
        match self.call(request).await? {
            Answer::Swapped(swapped) => Ok(swapped),
            _ => Err(mismatch(true)),
        }
    }

    /// The pairs of a range in key order. Each page that a node sends is linearizable by itself; the whole is
    /// not one cut. The deadline holds for each page.
    ///
    /// ```no_run
    /// use shardkv_client::ScanOptions;
    /// use futures::TryStreamExt as _;
    ///
    /// # async fn example(client: shardkv_client::Client) -> Result<(), shardkv_client::Error> {
    /// let mut users = client.scan(ScanOptions::prefix("user/"));
    /// while let Some(pair) = users.try_next().await? {
    ///     println!("{} bytes", pair.value.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn scan(&self, options: ScanOptions) -> Scan {
        Scan::new(self.core.router.clone(), self.timeout, options)
    }

    /// A consistent cut of each shard, shard by shard. The deadline holds for each part.
    ///
    /// ```no_run
    /// use shardkv_client::{ExportEvent, ExportOptions};
    /// use futures::TryStreamExt as _;
    ///
    /// # async fn example(client: shardkv_client::Client) -> Result<(), shardkv_client::Error> {
    /// let mut export = client.export(ExportOptions::default());
    /// let (mut all, mut shard_began_at) = (Vec::new(), 0);
    /// while let Some(event) = export.try_next().await? {
    ///     match event {
    ///         ExportEvent::Begin { restarts: 0, .. } => shard_began_at = all.len(),
    ///         // What came of this shard before is void.
    ///         ExportEvent::Begin { .. } => all.truncate(shard_began_at),
    ///         ExportEvent::Pairs(pairs) => all.extend(pairs),
    ///         ExportEvent::End { shard, pairs } => println!("{shard}: {pairs} pairs"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn export(&self, options: ExportOptions) -> Export {
        Export::new(self.core.router.clone(), self.timeout, options)
    }

    /// Where the leader of the first group (the only one, in a standalone cluster) is reached now: `host:port`. Asks the
    /// nodes, and waits for one to lead.
    pub async fn leader(&self) -> Result<String, Error> {
        self.find_leader(None).await
    }

    /// Where the leader of a group is reached now: `host:port`. Asks its nodes, and waits for one to lead.
    pub async fn leader_of(&self, gid: Gid) -> Result<String, Error> {
        self.find_leader(Some(gid)).await
    }

    /// The configuration by which calls are routed now; `None` until a node told one.
    pub fn config(&self) -> Option<Arc<ShardConfig>> {
        self.core.router.config()
    }

    /// The configuration by which calls are routed, as it changes.
    pub fn configs(&self) -> watch::Receiver<Option<Arc<ShardConfig>>> {
        self.core.router.configs()
    }

    async fn find_leader(&self, gid: Option<Gid>) -> Result<String, Error> {
        let router = &self.core.router;
        let options = router.options();
        let mut backoff = Backoff::new(options.min_backoff, options.max_backoff);
        let start = Instant::now();
        let mut last = None;
        let search = async {
            loop {
                let first = || router.config()?.groups().keys().next().copied();
                let found = match gid.or_else(first) {
                    Some(gid) => router.confirmed_leader(gid, start.elapsed()).await,
                    None => Err(router.unowned()),
                };
                match found {
                    Ok(address) => return address,
                    Err(why) => last = Some(why),
                }
                sleep(backoff.pause(Instant::now())).await;
            }
        };
        match timeout_at(start + self.timeout, search).await {
            Ok(address) => Ok(address.to_string()),
            Err(_) => Err(verdict::timeout(self.timeout, false, last)),
        }
    }

    /// The node at `address` (`host:port`), to be asked directly.
    pub fn admin(&self, address: &str) -> Result<Admin, ConnectError> {
        parse_address(address)?;
        let router = self.core.router.clone();
        Ok(Admin::new(router, short(address), self.timeout))
    }

    /// The configuration centre.
    pub fn controller(&self) -> Controller {
        Controller::new(Arc::clone(&self.core.centre), self.timeout)
    }

    /// What each group of the configuration has to do with which of `shards` (empty: of all), as its leader knows it. With
    /// `exact` keys and bytes are counted by reading all of them; otherwise they are estimates that cost nothing. Groups
    /// are asked at the same time, 16 of them at most.
    pub async fn shards(
        &self,
        shards: &ShardSet,
        exact: bool,
    ) -> BTreeMap<Gid, Result<GroupShards, Error>> {
        self.core.router.oriented(self.timeout).await;
        let groups = self.config().into_iter();
        let gids: Vec<Gid> = groups
            .flat_map(|it| it.groups().keys().copied().collect::<Vec<_>>())
            .collect();
        let asked = gids.into_iter().map(async |gid| {
            let router = self.core.router.clone();
            let answer = match self.leader_of(gid).await {
                Ok(leader) => {
                    let leader = Admin::new(router, short(&leader), self.timeout);
                    leader.shards(shards, exact).await
                }
                Err(error) => Err(error),
            };
            (gid, answer)
        });
        stream::iter(asked)
            .buffer_unordered(MAX_ASKED)
            .collect()
            .await
    }

    /// The status of every node that is configured, of a group of the configuration, or known as a member, sorted by
    /// address. They are asked at the same time, 64 of them at most, and each gets at most twice the connect timeout. A node that is reached by two addresses is listed once,
    /// by the one that it calls its own if that is among them.
    pub async fn status_all(&self) -> Vec<(String, Result<NodeStatus, Error>)> {
        let patience = self.core.router.options().connect_timeout * 2;
        let patience = self.timeout.min(patience);
        self.core.router.oriented(patience).await;
        let mut answers = BTreeMap::new();
        loop {
            // The first answers may tell of more members.
            let mut unasked = self.core.router.addresses();
            unasked.retain(|address| !answers.contains_key(address));
            if unasked.is_empty() {
                break;
            }
            let asked = unasked.into_iter().map(|address| async {
                let router = self.core.router.clone();
                let admin = Admin::new(router, Arc::clone(&address), patience);
                (address, admin.status().await)
            });
            let asked = stream::iter(asked).buffer_unordered(MAX_STATUSES);
            answers.extend(asked.collect::<Vec<_>>().await);
        }
        once_each(answers)
    }

    async fn call(&self, request: Request) -> Result<Answer, Error> {
        self.check_size(&request)?;
        let deadline = Instant::now() + self.timeout;
        let hash = types::hash_key(request.key());
        let gate = self.gate(hash, deadline).await?;
        let Some(permit) = gate.permit(request.cost(), deadline).await else {
            return Err(self.crowded("bytes in flight (max_in_flight_bytes)"));
        };
        if let Some(unary) = &self.core.unary {
            let answer = unary.call(&request, hash, self.timeout, deadline).await;
            drop(permit);
            return answer;
        }
        let write = request.is_write();
        let (answer, answered) = oneshot::channel();
        let call = Call {
            request,
            hash,
            timeout: self.timeout,
            deadline,
            answer,
            permit: Some(permit),
            trial: Trial::default(),
        };
        self.enqueue(gate, call).await?;
        answered.await.unwrap_or_else(|_| Err(closed(write)))
    }

    fn check_size(&self, request: &Request) -> Result<(), Error> {
        let limit = self.core.router.options().max_request_bytes;
        if request.cost() <= limit {
            return Ok(());
        }
        let detail = api::errors::too_large("request", request.cost() as u64, limit as u64);
        Err(Error::TooLarge {
            what: "request".to_owned(),
            size: request.cost() as u64,
            limit: limit as u64,
            message: detail.message,
        })
    }

    /// The way to the group that owns the shard of a key with this hash.
    async fn gate(&self, hash: u64, deadline: Instant) -> Result<Arc<Gate>, Error> {
        let Core { router, gates, .. } = &*self.core;
        match timeout_at(deadline, router.owner(hash)).await {
            Ok(gid) => Ok(gates.of(gid)),
            Err(_) => Err(verdict::timeout(
                self.timeout,
                false,
                Some(router.unowned()),
            )),
        }
    }

    /// Puts a call into a lane. The lane keeps its deadline from then on, so the usual way needs no timer.
    async fn enqueue(&self, gate: Arc<Gate>, call: Call) -> Result<(), Error> {
        let Some(lane) = gate.lane() else {
            return Err(closed(false));
        };
        let call = match lane.calls.try_send(call) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(call)) => {
                // Its group has just left; the call finds the one that has the shard now.
                self.core.gates.hand_over(call);
                return Ok(());
            }
            Err(mpsc::error::TrySendError::Full(call)) => call,
        };
        let deadline = call.deadline;
        match timeout_at(deadline, lane.calls.send(call)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(mpsc::error::SendError(call))) => {
                self.core.gates.hand_over(call);
                Ok(())
            }
            Err(_) => Err(self.crowded("calls in flight (max_in_flight)")),
        }
    }

    fn crowded(&self, what: &str) -> Error {
        let last = format!("the call was never sent: too many {what}");
        verdict::timeout(self.timeout, false, Some(last))
    }
}

/// Drops second addresses of the same node.
fn once_each(
    answers: BTreeMap<Arc<str>, Result<NodeStatus, Error>>,
) -> Vec<(String, Result<NodeStatus, Error>)> {
    let mut best: BTreeMap<NodeId, Arc<str>> = BTreeMap::new();
    for (address, status) in &answers {
        let Ok(status) = status else { continue };
        if *status.address == **address || !best.contains_key(&status.node_id) {
            best.insert(status.node_id, Arc::clone(address));
        }
    }
    let listed = |(address, status): &(Arc<str>, Result<NodeStatus, Error>)| match status {
        Ok(status) => best.get(&status.node_id) == Some(address),
        Err(_) => true,
    };
    let named = |(address, status): (Arc<str>, _)| (address.to_string(), status);
    answers.into_iter().filter(listed).map(named).collect()
}

fn closed(maybe_applied: bool) -> Error {
    Error::Closed { maybe_applied }
}
