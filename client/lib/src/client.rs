//! The handle that applications hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use crate::backoff::Backoff;
use crate::book::Call;
use crate::call::{Answer, Request, mismatch};
use crate::lane::Lane;
use crate::options::parse_address;
use crate::router::{Router, Slot, short};
use crate::unary::Unary;
use crate::verdict;
use crate::{
    Admin, ClientOptions, ConnectError, Error, Mode, NodeId, NodeStatus, Scan, ScanOptions,
};

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
    options: Arc<ClientOptions>,
    router: Arc<Router>,
    engine: Engine,
    /// Bytes of calls in flight.
    budget: Arc<Semaphore>,
    budget_bytes: u32,
}

enum Engine {
    Batch {
        lanes: Vec<mpsc::Sender<Call>>,
        next: AtomicUsize,
    },
    Unary(Unary),
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("options", &self.core.options)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Checks the options and that at least one node accepts a connection. Must be called within a tokio runtime,
    /// on which the client's tasks then live.
    ///
    /// ```no_run
    /// use client::{Client, ClientOptions};
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
        options.validate()?;
        let runtime = Handle::try_current().map_err(|_| ConnectError::NoRuntime)?;
        let options = Arc::new(options);
        let router = Arc::new(Router::new(Arc::clone(&options)));
        let engine = match options.mode {
            Mode::Unary => Engine::Unary(Unary::new(Arc::clone(&options), Arc::clone(&router))),
            Mode::Batch => {
                let start = |lane| {
                    let (calls, queue) = mpsc::channel(options.max_in_flight);
                    let slot = Slot::Calls(lane);
                    let lane = Lane::new(Arc::clone(&options), Arc::clone(&router), slot, queue);
                    runtime.spawn(lane.run());
                    calls
                };
                Engine::Batch {
                    lanes: (0..options.connections).map(start).collect(),
                    next: AtomicUsize::new(0),
                }
            }
        };
        let budget_bytes = u32::try_from(options.max_in_flight_bytes).unwrap_or(u32::MAX >> 4);
        let budget_bytes = budget_bytes.min(u32::MAX >> 4);
        let timeout = options.request_timeout;
        let core = Arc::new(Core {
            options,
            router,
            engine,
            budget: Arc::new(Semaphore::new(budget_bytes as usize)),
            budget_bytes,
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
    /// # async fn example(client: client::Client) -> Result<(), client::Error> {
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
    /// # async fn example(client: client::Client) -> Result<(), client::Error> {
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
    /// use client::ScanOptions;
    /// use futures::TryStreamExt as _;
    ///
    /// # async fn example(client: client::Client) -> Result<(), client::Error> {
    /// let mut users = client.scan(ScanOptions::prefix("user/"));
    /// while let Some(pair) = users.try_next().await? {
    ///     println!("{} bytes", pair.value.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn scan(&self, options: ScanOptions) -> Scan {
        let router = Arc::clone(&self.core.router);
        Scan::new(&self.core.options, router, self.timeout, options)
    }

    /// Where the leader is reached now: `host:port`. Asks the nodes, and waits for one to lead.
    pub async fn leader(&self) -> Result<String, Error> {
        let options = &self.core.options;
        let mut backoff = Backoff::new(options.min_backoff, options.max_backoff);
        let start = Instant::now();
        let mut last = None;
        let search = async {
            loop {
                match self.core.router.confirmed_leader(start.elapsed()).await {
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
        let router = Arc::clone(&self.core.router);
        Ok(Admin::new(router, short(address), self.timeout))
    }

    /// The status of every node that is configured or known as a member, sorted by address. They are asked at the same
    /// time, and each gets at most twice the connect timeout. A node that is reached by two addresses is listed once,
    /// by the one that it calls its own if that is among them.
    pub async fn status_all(&self) -> Vec<(String, Result<NodeStatus, Error>)> {
        let patience = self.timeout.min(self.core.options.connect_timeout * 2);
        let mut answers = BTreeMap::new();
        loop {
            // The first answers may tell of more members.
            let mut unasked = self.core.router.addresses();
            unasked.retain(|address| !answers.contains_key(address));
            if unasked.is_empty() {
                break;
            }
            let asked = unasked.into_iter().map(|address| async {
                let router = Arc::clone(&self.core.router);
                let admin = Admin::new(router, Arc::clone(&address), patience);
                (address, admin.status().await)
            });
            answers.extend(join_all(asked).await);
        }
        once_each(answers)
    }

    async fn call(&self, request: Request) -> Result<Answer, Error> {
        self.check_size(&request)?;
        let deadline = Instant::now() + self.timeout;
        let permit = self.permit(request.cost(), deadline).await?;
        match &self.core.engine {
            Engine::Unary(unary) => {
                let answer = unary.call(&request, self.timeout, deadline).await;
                drop(permit);
                answer
            }
            Engine::Batch { lanes, next } => {
                let turn = next.fetch_add(1, Ordering::Relaxed) % lanes.len().max(1);
                let Some(lane) = lanes.get(turn) else {
                    return Err(closed(false));
                };
                self.enqueue(lane, request, deadline, permit).await
            }
        }
    }

    fn check_size(&self, request: &Request) -> Result<(), Error> {
        let limit = self.core.options.max_request_bytes;
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

    /// Waits for a share of the bytes in flight.
    async fn permit(&self, cost: usize, deadline: Instant) -> Result<OwnedSemaphorePermit, Error> {
        let most = self.core.budget_bytes;
        // What exceeds all of it goes alone.
        let cost = u32::try_from(cost).unwrap_or(most).min(most);
        if let Ok(permit) = Arc::clone(&self.core.budget).try_acquire_many_owned(cost) {
            return Ok(permit);
        }
        let waiting = Arc::clone(&self.core.budget).acquire_many_owned(cost);
        match timeout_at(deadline, waiting).await {
            Ok(permit) => permit.map_err(|_| closed(false)),
            Err(_) => Err(self.crowded("bytes in flight (max_in_flight_bytes)")),
        }
    }

    async fn enqueue(
        &self,
        lane: &mpsc::Sender<Call>,
        request: Request,
        deadline: Instant,
        permit: OwnedSemaphorePermit,
    ) -> Result<Answer, Error> {
        let write = request.is_write();
        let (answer, answered) = oneshot::channel();
        let call = Call {
            request,
            timeout: self.timeout,
            deadline,
            answer,
            _permit: permit,
        };
        // The lane keeps the deadline from here on, so the usual way needs no timer.
        match lane.try_send(call) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(closed(false)),
            Err(mpsc::error::TrySendError::Full(call)) => {
                match timeout_at(deadline, lane.send(call)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(closed(false)),
                    Err(_) => return Err(self.crowded("calls in flight (max_in_flight)")),
                }
            }
        }
        answered.await.unwrap_or_else(|_| Err(closed(write)))
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
