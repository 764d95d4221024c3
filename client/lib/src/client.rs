//! The handle that applications hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use request::{Attempts, Tracked};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::call::{Answer, Call, Request};
use crate::clock::backoff;
use crate::controller::{Controller, ControllerCalls};
use crate::failure::{self, mismatch};
use crate::pool::{GroupPool, PooledGroup};
use crate::route::{Router, short};
use crate::unary::Unary;
use crate::{
    Admin, ClientOptions, ClusterId, ConnectError, Error, Export, ExportOptions, Gid, GroupShards,
    Keyspaces, Mode, NodeId, NodeStatus, Scan, ScanOptions, ShardConfig, ShardSet,
};

/// The number of leaders that are asked for their shards at the same time.
const MAX_ASKED: usize = 16;

/// The number of nodes that are asked for their status at the same time.
const MAX_STATUSES: usize = 64;

/// A connection to a cluster: cheap to clone, shared by any number of tasks.
///
/// Calls from several tasks travel together and may take effect in any order. A call that is made after the answer of another
/// takes effect after it. Dropping a call's future abandons the call: a write may then take effect or not.
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
    timeout: Duration,
}

struct Core {
    router: Router,
    pool: Arc<GroupPool>,
    /// Set in unary mode.
    unary: Option<Unary>,
    controller: Arc<ControllerCalls>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("options", self.core.router.options())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client, after checking the options and that at least one node accepts a connection. Must be called within a tokio
    /// runtime, on which the client's tasks then live.
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

    /// Makes a client like [`Client::connect`], but connects to no node before the first call.
    pub fn lazy(options: ClientOptions) -> Result<Self, ConnectError> {
        Self::of(Router::watch(options)?)
    }

    /// Makes a client like [`Client::lazy`], for a program that knows the configurations of `cluster` already: it puts them into
    /// `configs`, with rising numbers. The client asks no node for configurations, and needs no address in its options.
    pub fn following(
        options: ClientOptions,
        cluster: ClusterId,
        configs: watch::Receiver<Option<Arc<ShardConfig>>>,
    ) -> Result<Self, ConnectError> {
        Self::of(Router::follow(options, cluster, configs)?)
    }

    fn of(router: Router) -> Result<Self, ConnectError> {
        let runtime = Handle::try_current().map_err(|_| ConnectError::NoRuntime)?;
        let pool = GroupPool::new(router.clone(), runtime);
        let unary = (router.options().mode == Mode::Unary)
            .then(|| Unary::new(router.clone(), Arc::clone(&pool)));
        let timeout = router.options().request_timeout;
        let controller = ControllerCalls::new(router.clone());
        let core = Arc::new(Core {
            router,
            pool,
            unary,
            controller,
        });
        Ok(Self { core, timeout })
    }

    /// Returns the same client with another deadline for its calls.
    #[must_use]
    pub fn with_timeout(&self, request_timeout: Duration) -> Self {
        Self {
            core: Arc::clone(&self.core),
            timeout: request_timeout,
        }
    }

    /// Returns the value of `key`, or `None` if there is no such key. Linearizable: sees every write that was acknowledged, to any
    /// client, before the call.
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

    /// Appends `suffix` to the value of `key` (a missing key counts as empty), and returns the value's new length in bytes.
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

    /// Sets `key` to `new` (`None`: removes it) if its value is `expected` (`None`: if there is no such key). Returns true if it
    /// did.
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

    /// Streams the pairs of a range in key order. Each page that a node sends is linearizable by itself; the whole is not one
    /// cut. The deadline holds for each page.
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

    /// Streams a consistent cut of each shard, shard by shard. The deadline holds for each event.
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
    ///         // The pairs of this shard so far are void.
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

    /// Returns the address (`host:port`) of the leader of the first group, which is the only one in a standalone cluster. Asks the
    /// nodes, and waits for one to lead.
    pub async fn leader(&self) -> Result<String, Error> {
        self.find_leader(None).await
    }

    /// Returns the address (`host:port`) of the leader of a group. Asks its nodes, and waits for one to lead.
    pub async fn leader_of(&self, gid: Gid) -> Result<String, Error> {
        self.find_leader(Some(gid)).await
    }

    /// Returns the configuration by which calls are routed now; `None` until a node has sent one.
    pub fn config(&self) -> Option<Arc<ShardConfig>> {
        self.core.router.config()
    }

    /// Returns the configuration by which calls are routed, as it changes.
    pub fn configs(&self) -> watch::Receiver<Option<Arc<ShardConfig>>> {
        self.core.router.configs()
    }

    async fn find_leader(&self, gid: Option<Gid>) -> Result<String, Error> {
        let router = &self.core.router;
        let mut backoff = backoff(router.options());
        let start = Instant::now();
        let mut last: Option<String> = None;
        let search = async {
            loop {
                let first = || router.config()?.groups().keys().next().copied();
                if let Some(gid) = gid.or_else(first) {
                    match router.confirmed_leader(gid, start.elapsed()).await {
                        Ok(address) => return address,
                        Err(error) => last = Some(error.to_string()),
                    }
                } else {
                    last = Some(router.unowned());
                }
                sleep(backoff.pause(router.clock().now())).await;
            }
        };
        match timeout_at(start + self.timeout, search).await {
            Ok(address) => Ok(address.to_string()),
            Err(_) => Err(router.explain(failure::timeout(self.timeout, false, last))),
        }
    }

    /// Returns a handle that asks the node at `address` (`host:port`) directly.
    pub fn admin(&self, address: &str) -> Result<Admin, ConnectError> {
        let router = self.core.router.clone();
        router.options().check_address(address)?;
        Ok(Admin::new(router, short(address), self.timeout))
    }

    /// Returns a handle to the controllers, which keep the configuration.
    pub fn controller(&self) -> Controller {
        Controller::new(Arc::clone(&self.core.controller), self.timeout)
    }

    /// Returns a handle to the keyspaces.
    pub fn keyspaces(&self) -> Keyspaces {
        Keyspaces::new(self.core.router.clone(), self.timeout)
    }

    /// Returns for each group of the configuration the states of `shards` (empty: of all) there, as its leader knows them. With
    /// `exact`, keys and bytes are counted by reading all of them; otherwise they are estimates that cost nothing. At most 16
    /// groups are asked at the same time.
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

    /// Returns the status of every node that is in the options, in a group of the configuration, or known as a member, sorted by
    /// address. At most 64 are asked at the same time, and each gets at most twice the connect timeout. A node with two addresses
    /// is listed once, by the address that it calls its own if that is one of them.
    pub async fn status_all(&self) -> Vec<(String, Result<NodeStatus, Error>)> {
        let patience = self.core.router.options().connect_timeout * 2;
        let patience = self.timeout.min(patience);
        self.core.router.oriented(patience).await;
        let mut answers = BTreeMap::new();
        loop {
            // The first answers may name more members.
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
        let answer = self.routed(request).await;
        answer.map_err(|error| self.core.router.explain(error))
    }

    async fn routed(&self, request: Request) -> Result<Answer, Error> {
        self.check_size(&request)?;
        let deadline = Instant::now() + self.timeout;
        let hash = types::hash_key(request.key());
        let group = self.group(hash, deadline).await?;
        let Some(share) = group.share(request.cost(), deadline).await else {
            return Err(self.never_sent("bytes in flight (max_in_flight_bytes)"));
        };
        if let Some(unary) = &self.core.unary {
            let answer = unary.call(&request, hash, self.timeout, deadline).await;
            drop(share);
            return answer;
        }
        let write = request.is_write();
        let (answer, answered) = oneshot::channel();
        let call = Call {
            request,
            hash,
            timeout: self.timeout,
            deadline: self.core.router.clock().time(deadline),
            answer,
            share,
        };
        let attempts = Attempts::default();
        self.enqueue(&group, Tracked { call, attempts }, deadline)
            .await?;
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

    /// Returns the resources of the group that owns the shard of a key with this hash.
    async fn group(&self, hash: u64, deadline: Instant) -> Result<Arc<PooledGroup>, Error> {
        let Core { router, pool, .. } = &*self.core;
        match timeout_at(deadline, router.owner(hash)).await {
            Ok(gid) => Ok(pool.group(gid)),
            Err(_) => Err(failure::timeout(
                self.timeout,
                false,
                Some(router.unowned()),
            )),
        }
    }

    /// Puts a call into the queue of a stream. The stream keeps the deadline from then on, so the usual way needs no timer.
    async fn enqueue(
        &self,
        group: &PooledGroup,
        call: Tracked<Call>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let Some(stream) = group.stream() else {
            return Err(closed(false));
        };
        let call = match stream.calls.try_send(call) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(call)) => {
                // The group has just left. Send the call to the group that owns the shard now.
                self.core.pool.pass_on(call);
                return Ok(());
            }
            Err(mpsc::error::TrySendError::Full(call)) => call,
        };
        match timeout_at(deadline, stream.calls.send(call)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(mpsc::error::SendError(call))) => {
                self.core.pool.pass_on(call);
                Ok(())
            }
            Err(_) => Err(self.never_sent("calls in flight (max_in_flight)")),
        }
    }

    fn never_sent(&self, what: &str) -> Error {
        let last = format!("the call was never sent: too many {what}");
        failure::timeout(self.timeout, false, Some(last))
    }
}

/// Drops the second addresses of nodes that answered at two. Two nodes of one identity, which each answer at an address of their
/// own, are both listed.
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
        Ok(status) => *status.address == **address || best.get(&status.node_id) == Some(address),
        Err(_) => true,
    };
    let named = |(address, status): (Arc<str>, _)| (address.to_string(), status);
    answers.into_iter().filter(listed).map(named).collect()
}

fn closed(maybe_applied: bool) -> Error {
    Error::Closed { maybe_applied }
}

#[cfg(test)]
mod tests {
    use api::v1::StatusResponse;

    use super::*;
    use crate::admin::node_status;

    #[test]
    fn a_node_with_two_addresses_is_listed_once_and_a_copied_node_twice() {
        let says = |at: &str, node_id, own: &str| {
            let address = own.to_owned();
            let status = node_status(StatusResponse {
                node_id,
                address,
                ..StatusResponse::default()
            });
            (Arc::from(at), Ok(status))
        };
        let answers = [
            says("a:1", 1, "a:1"),
            says("alias:1", 1, "a:1"),
            says("b:1", 2, "b:1"),
            says("copy:1", 2, "copy:1"),
            says("hidden:1", 3, "inner:1"),
        ];
        let listed = once_each(answers.into()).into_iter();
        let listed: Vec<String> = listed.map(|(address, _)| address).collect();
        assert_eq!(listed, ["a:1", "b:1", "copy:1", "hidden:1"]);
    }
}
