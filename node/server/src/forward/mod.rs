//! Forwarding: requests that another node must answer are passed to the leader of the group that they belong to.
//!
//! A forwarded call says so ([`NO_FORWARD_METADATA_KEY`]) and is answered or refused at the node that gets it, so there is at most
//! one hop. The bounds: calls that are being forwarded (`max_forwarded`) and their bytes, with a share for each group ([`places`]), and
//! the request's own time.
//!
//! # Retries
//!
//! The rules are the request engine's ([`request::SingleCall`]), as the client library's are. A refusal that says that nothing was
//! done (`NotLeader`, `WrongGroup`, no connection) is followed to the node that it names. A call that may have been carried out is
//! repeated only if that does no harm: a read, or a write with a session. A forwarded write keeps its session, so that the client
//! may repeat it anywhere. If one of its attempts is in doubt, a refusal of a later one doesn't say that nothing was done, so the
//! client gets an error that says that the outcome is unknown. A busy leader and an expired session are reported to the client at
//! once, because the client repeats the call by itself.
//!
//! A call for a shard that is being moved, or for a group without a leader, waits until its deadline. Calls that wait are bounded for
//! each group; a call beyond that gets the last refusal, and so does each call that waits when this node stops.

mod channels;
mod ctrl;
mod etcd;
mod kv;
mod leaders;
mod places;
mod refusals;
mod streams;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use api::v1::error_detail::Kind;
use api::v1::{ErrorDetail, Session};
use api::{CLUSTER_METADATA_KEY, GID_METADATA_KEY, NO_FORWARD_METADATA_KEY, error_detail, errors};
use request::{Bugs, Failure, Jitter, Leader, Next, Policy, Refusal, SingleCall};
use shardkv::GroupKind;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};
use types::{ConfigNum, Gid};

pub(crate) use channels::{ChannelError, Channels};
pub(crate) use ctrl::{ControllerRequest, controllers};
pub(crate) use etcd::{keyspace, keyspace_stream};
pub(crate) use kv::{export, item, no_config, open_session, own_group, scan, size};
pub(crate) use leaders::Leaders;
pub(crate) use refusals::refused_by;
pub(crate) use request::Repeat;
pub(crate) use streams::{StreamKind, StreamSlot};

use channels::Windows;
use places::{Place, Places, Waiting, WaitingHere};
use refusals::{in_doubt, refused};
use streams::{Connections, StreamChannels};

use crate::admission::{all_pages_window_bytes, page_window_bytes};
use crate::births::Births;
use crate::files;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::peers::Peers;
use crate::routing::Routing;

/// The rules of a forwarded call.
const POLICY: Policy = Policy {
    max_attempts: u32::MAX,
    reports_delays: true,
    min_backoff: Duration::from_millis(5),
    max_backoff: Duration::from_millis(320),
    doubling: true,
    bugs: Bugs::NONE,
};

/// A call that failed as often as this, which takes about 1.3 s, counts as one that waits.
const SOON: u32 = 12;

/// The time that a configuration which another group has already may take to arrive here.
const CONFIG_PATIENCE: Duration = Duration::from_secs(1);

/// The kept connections divided by this are for streams of pages.
const PAGE_CONNECTIONS: usize = 8;

/// Forwards requests: holds the connections, guesses and bounds.
pub(crate) struct Forwarder {
    pub(crate) channels: Channels,
    /// Connections of their own for streams of pages: callers that don't fetch fill the windows of HTTP/2, and nothing else must
    /// wait behind them.
    page_channels: Channels,
    /// Connections of their own for watches, and for streams of renewals: each stream stays open, and a connection carries only so
    /// many.
    watch_channels: StreamChannels,
    renewal_channels: StreamChannels,
    pub(crate) leaders: Leaders,
    pub(crate) births: Arc<Births>,
    places: Arc<Places>,
    lifecycle: Arc<Lifecycle>,
    peers: Arc<Peers>,
    pub(crate) routing: Arc<Routing>,
    metrics: Arc<Metrics>,
    controllers: Vec<String>,
    request_timeout: Duration,
    max_request_bytes: usize,
}

/// The group that a call is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The group; [`Gid::NONE`] for the controllers.
    pub(crate) gid: Gid,
    /// The addresses of its nodes.
    pub(crate) addresses: Vec<String>,
}

impl Forwarder {
    pub(crate) fn new(
        options: &Options,
        lifecycle: Arc<Lifecycle>,
        peers: Arc<Peers>,
        routing: Arc<Routing>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let Options {
            network, limits, ..
        } = options;
        let kept = files::kept_connections(limits.max_connections);
        let windows = Windows {
            stream_bytes: network.stream_window_bytes,
            connection_bytes: network.connection_window_bytes,
        };
        let page_windows = Windows {
            stream_bytes: page_window_bytes(limits),
            connection_bytes: all_pages_window_bytes(limits),
        };
        let kept_for_pages = kept / PAGE_CONNECTIONS;
        let for_streams = files::stream_connections(limits.max_connections) / 2;
        let server_streams = limits.max_streams_per_connection;
        let streams = || StreamChannels::new(*network, server_streams, for_streams);
        Self {
            channels: Channels::new(*network, windows, kept - kept_for_pages),
            watch_channels: streams(),
            renewal_channels: streams(),
            page_channels: Channels::new(*network, page_windows, kept_for_pages),
            leaders: Leaders::default(),
            births: Arc::default(),
            places: Arc::new(Places::new(
                options.max_forwarded,
                limits.max_inflight_bytes,
            )),
            lifecycle,
            peers,
            routing,
            metrics,
            controllers: options.controllers.clone(),
            request_timeout: options.request_timeout,
            max_request_bytes: limits.max_request_bytes,
        }
    }
}

impl Forwarder {
    /// Returns the right of a request of so many bytes to wait here for its shard, and a place for it, unless too much waits.
    pub(crate) fn wait_here(&self, bytes: usize) -> Option<WaitingHere> {
        self.places.wait_here(self.routing.gid(), bytes)
    }

    /// Returns the deadline of a request that arrived at this time.
    pub(crate) fn deadline(&self, arrived: std::time::Instant) -> Instant {
        Instant::from_std(arrived) + self.request_timeout
    }

    /// Returns the number of calls that are being forwarded, or wait for a shard.
    pub(crate) fn unanswered(&self) -> usize {
        self.places.held()
    }
}

/// Returns true if a call forbids forwarding: it was forwarded, or its sender routes by itself.
pub(crate) fn is_forbidden(metadata: &MetadataMap) -> bool {
    metadata.contains_key(NO_FORWARD_METADATA_KEY)
}

/// Makes a request that the receiver must not forward.
pub(crate) fn once<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert(NO_FORWARD_METADATA_KEY, MetadataValue::from_static("1"));
    request
}

/// Makes a request that the receiver must not forward, and that names the destination group: if the address is used again by a
/// node of another group, that node refuses it.
pub(crate) fn once_for<T>(forwarder: &Forwarder, gid: Gid, message: T) -> Request<T> {
    let mut request = once(message);
    let metadata = request.metadata_mut();
    metadata.insert(GID_METADATA_KEY, MetadataValue::from(gid.0));
    let cluster = match forwarder.routing.kind() {
        GroupKind::Shards => forwarder
            .routing
            .configs()
            .known()
            .map(|known| known.cluster),
        GroupKind::Standalone | GroupKind::Controller => forwarder.peers.identity().cluster(),
    };
    let cluster = cluster.and_then(|it| format!("{:016x}", it.0).parse().ok());
    if let Some(cluster) = cluster {
        metadata.insert(CLUSTER_METADATA_KEY, cluster);
    }
    request
}

/// Returns true if a refusal means that another node would serve the request.
pub(crate) fn is_elsewhere(error: &ErrorDetail) -> bool {
    matches!(error.kind, Some(Kind::NotLeader(_) | Kind::WrongGroup(_)))
}

/// Returns true if a refusal means that the node that was asked is about to serve the request.
pub(crate) fn is_on_its_way(error: &ErrorDetail) -> bool {
    matches!(error.kind, Some(Kind::ShardNotReady(_)))
}

/// Returns the right to repeat a write.
pub(crate) fn repeat_of_write(session: Option<&Session>) -> Repeat {
    match session {
        Some(_) => Repeat::ByName,
        None => Repeat::Never,
    }
}

/// The terms of a call that is forwarded.
#[derive(Clone, Copy, Debug)]
struct Terms {
    repeat: Repeat,
    /// The memory that it takes.
    bytes: usize,
    deadline: Instant,
}

impl Terms {
    /// Returns the terms of a small call that has all the time of a request.
    fn new(forwarder: &Forwarder, repeat: Repeat) -> Self {
        Self {
            repeat,
            bytes: 0,
            deadline: Instant::now() + forwarder.request_timeout,
        }
    }
}

/// Forwards a client's call: as [`reach`], over the connections for calls.
async fn call<T, F>(
    forwarder: &Forwarder,
    route: impl Fn() -> Result<Destination, ErrorDetail>,
    terms: Terms,
    call: impl Fn(Channel, Gid) -> F,
) -> Result<T, ErrorDetail>
where
    F: Future<Output = Result<T, Status>>,
{
    let over = Connections::Kept(&forwarder.channels);
    let (answer, _) = reach(forwarder, over, route, terms, call).await?;
    Ok(answer)
}

/// Opens a stream of pages: as [`call`], over connections of their own.
async fn open<T, F>(
    forwarder: &Forwarder,
    route: impl Fn() -> Result<Destination, ErrorDetail>,
    call: impl Fn(Channel, Gid) -> F,
) -> Result<T, ErrorDetail>
where
    F: Future<Output = Result<T, Status>>,
{
    let over = Connections::Kept(&forwarder.page_channels);
    let terms = Terms::new(forwarder, Repeat::Freely);
    let (opened, _) = reach(forwarder, over, route, terms, call).await?;
    Ok(opened)
}

/// Opens a stream that stays open: as [`call`], over connections for its kind. It must keep its slot.
async fn open_stream<T, F>(
    forwarder: &Forwarder,
    kind: StreamKind,
    route: impl Fn() -> Result<Destination, ErrorDetail>,
    call: impl Fn(Channel, Gid) -> F,
) -> Result<(T, Option<StreamSlot>), ErrorDetail>
where
    F: Future<Output = Result<T, Status>>,
{
    let over = Connections::Counted(match kind {
        StreamKind::Watch => &forwarder.watch_channels,
        StreamKind::Renewals => &forwarder.renewal_channels,
    });
    let terms = Terms::new(forwarder, Repeat::Freely);
    reach(forwarder, over, route, terms, call).await
}

/// Calls the leader of the group that `route` returns, which is asked again before each attempt.
async fn reach<T, F>(
    forwarder: &Forwarder,
    connections: Connections<'_>,
    route: impl Fn() -> Result<Destination, ErrorDetail>,
    terms: Terms,
    call: impl Fn(Channel, Gid) -> F,
) -> Result<(T, Option<StreamSlot>), ErrorDetail>
where
    F: Future<Output = Result<T, Status>>,
{
    forwarder.metrics.forwarded.inc();
    let mut attempts = Forwarded::new(forwarder, connections, terms);
    let result = attempts.run(route, call).await;
    if result.is_err() {
        forwarder.metrics.forward_failures.inc();
    }
    let doubt = attempts.engine.attempts.doubt && terms.repeat == Repeat::ByName;
    result.map_err(|error| if doubt { in_doubt(error) } else { error })
}

/// One call that is being forwarded.
struct Forwarded<'a> {
    forwarder: &'a Forwarder,
    connections: Connections<'a>,
    engine: SingleCall,
    start: Instant,
    deadline: Instant,
    bytes: usize,
    /// The place at the group that is asked.
    place: Option<Place>,
    /// The right to wait for the group, once the call needs it.
    waiting: Option<Waiting>,
    /// The error of the last attempt, as the client gets it.
    last: Option<ErrorDetail>,
}

impl<'a> Forwarded<'a> {
    fn new(forwarder: &'a Forwarder, connections: Connections<'a>, terms: Terms) -> Self {
        let Terms {
            repeat,
            bytes,
            deadline,
        } = terms;
        let jitter = Jitter::new(RandomState::new().hash_one(0));
        Self {
            forwarder,
            connections,
            engine: SingleCall::new(repeat, POLICY, jitter),
            start: Instant::now(),
            deadline,
            bytes,
            place: None,
            waiting: None,
            last: None,
        }
    }

    async fn run<T, F>(
        &mut self,
        route: impl Fn() -> Result<Destination, ErrorDetail>,
        call: impl Fn(Channel, Gid) -> F,
    ) -> Result<(T, Option<StreamSlot>), ErrorDetail>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let forwarder = self.forwarder;
        loop {
            let to = route()?;
            self.enter(to.gid)?;
            let turn = self.engine.failures() as usize;
            let Some(leader) = forwarder.leaders.next(to.gid, &to.addresses, turn) else {
                return Err(self.last.take().unwrap_or_else(|| no_node(to.gid)));
            };
            let connecting = self.connections.get(&leader.address);
            let (channel, slot) = match timeout_at(self.deadline, connecting).await {
                Ok(Ok(connected)) => connected,
                Ok(Err(ChannelError::Full(most))) => return Err(streams::full(most)),
                Ok(Err(error)) => {
                    self.unreachable(&leader, &error).await?;
                    continue;
                }
                Err(_) => return Err(self.late()),
            };
            self.engine.handle_sent();
            match timeout_at(self.deadline, call(channel, to.gid)).await {
                Ok(Ok(answer)) => {
                    forwarder.leaders.found(to.gid, &leader.address);
                    return Ok((answer, slot));
                }
                Ok(Err(status)) => {
                    drop(slot);
                    self.refused(&leader, &status).await?;
                }
                Err(_) => return Err(self.late()),
            }
        }
    }

    /// Takes a place at a group, and gives back the place at another one.
    fn enter(&mut self, gid: Gid) -> Result<(), ErrorDetail> {
        if self.place.as_ref().is_none_or(|place| place.gid() != gid) {
            (self.place, self.waiting) = (None, None);
            self.place = Some(self.forwarder.places.take(gid, self.bytes)?);
        }
        Ok(())
    }

    /// Takes in that no connection could be made, and pauses.
    async fn unreachable(
        &mut self,
        leader: &Leader,
        error: &ChannelError,
    ) -> Result<(), ErrorDetail> {
        self.forwarder.leaders.failed(leader, None);
        let text = error.to_string();
        self.last = Some(errors::unavailable(&text, 100));
        match self.engine.handle_unreachable(self.start.elapsed(), text) {
            Ok(pause) => {
                self.check_patience(false)?;
                self.pause(pause).await
            }
            Err(_) => Err(self.last_error()),
        }
    }

    /// Fails if the call would have to wait, because its shard is on its way or because many attempts have failed, and too many
    /// calls wait for this group, or it is the controllers.
    fn check_patience(&mut self, on_its_way: bool) -> Result<(), ErrorDetail> {
        let waits = on_its_way || self.engine.failures() >= SOON;
        if waits && self.waiting.is_none() {
            let gid = self.place.as_ref().map(Place::gid);
            // The controllers' callers ask again by themselves.
            let gid = gid.filter(|gid| *gid != Gid::NONE);
            self.waiting = gid.and_then(|gid| self.forwarder.places.wait(gid));
            if self.waiting.is_none() {
                return Err(self.last_error());
            }
        }
        Ok(())
    }

    /// Takes in a failed attempt, and waits until the next may begin.
    async fn refused(&mut self, leader: &Leader, status: &Status) -> Result<(), ErrorDetail> {
        let forwarder = self.forwarder;
        let detail = error_detail(status);
        let refused = refused(status, detail.clone());
        if detail.is_none() || refused.refusal == Refusal::WrongCluster {
            // The next connection resolves the name again.
            self.connections.discard(&leader.address);
        }
        if detail.is_none() {
            let unsent = refused.refusal == Refusal::NotSent;
            let address = &leader.address;
            tracing::debug!(%address, unsent, "a forwarded call failed: {status:?}");
        }
        if let Some(detail) = &detail {
            forwarder.births.note(detail);
        }
        // Without a typed error the connection broke, or the other end is no node.
        let text = || format!("{}: {}", leader.address, status.message());
        let broken = || errors::unavailable(text(), 100);
        self.last = Some(detail.clone().unwrap_or_else(broken));
        let hint = refused.refusal.hint().cloned();
        let news = hint.is_some_and(|hint| forwarder.leaders.failed(leader, Some(&hint)));
        let known = self
            .forwarder
            .routing
            .configs()
            .known()
            .map(|known| known.config.num());
        let now = self.start.elapsed();
        let on_its_way = matches!(refused.refusal, Refusal::ShardNotReady { .. });
        let next = self.engine.handle_refusal(now, refused, known, news);
        if matches!(next, Next::Retry { .. } | Next::AwaitConfig { .. }) {
            self.check_patience(on_its_way)?;
        }
        match next {
            Next::Retry {
                pause,
                leader_failed,
            } => {
                if leader_failed {
                    forwarder.leaders.failed(leader, None);
                }
                self.pause(pause).await
            }
            Next::AwaitConfig {
                pause,
                leader_failed: true,
                ..
            } => {
                forwarder.leaders.failed(leader, None);
                self.pause(pause).await
            }
            Next::AwaitConfig { num, .. } => self.await_config(num).await,
            // Without an error of the node's own the client learns only that the outcome is unknown.
            Next::Fail(Failure::Unrepeatable) if detail.is_none() => {
                Err(errors::outcome_unknown(""))
            }
            Next::Report | Next::Fail(_) => Err(self.last_error()),
        }
    }

    /// Waits until a configuration that another group has already is known here. If it comes late, the next attempt waits again.
    async fn await_config(&mut self, num: ConfigNum) -> Result<(), ErrorDetail> {
        let patience = self.deadline.min(Instant::now() + CONFIG_PATIENCE);
        let reached = timeout_at(patience, self.forwarder.routing.configs().reached(num));
        let waited = self.forwarder.lifecycle.unless_draining(reached).await;
        self.check_time(waited.is_some())
    }

    async fn pause(&mut self, pause: Duration) -> Result<(), ErrorDetail> {
        let pause = sleep_until(self.deadline.min(Instant::now() + pause));
        let waited = self.forwarder.lifecycle.unless_draining(pause).await;
        self.check_time(waited.is_some())
    }

    /// Fails if the deadline has passed, or the call didn't wait to the end because the node stops.
    fn check_time(&mut self, waited: bool) -> Result<(), ErrorDetail> {
        if waited && Instant::now() < self.deadline {
            return Ok(());
        }
        Err(self.late())
    }

    /// Returns the error of a call that gets no more time.
    fn late(&mut self) -> ErrorDetail {
        match self.engine.handle_deadline() {
            Failure::Unrepeatable => errors::outcome_unknown(""),
            _ => self.last_error(),
        }
    }

    fn last_error(&mut self) -> ErrorDetail {
        let late = || errors::unavailable("no answer came in time", 100);
        self.last.take().unwrap_or_else(late)
    }
}

fn no_node(gid: Gid) -> ErrorDetail {
    let what = if gid == Gid::NONE {
        "no other controller is known".to_owned()
    } else {
        format!("no other node of {gid} is known")
    };
    errors::unavailable(what, 100)
}

#[cfg(test)]
mod tests;
