//! The service `Watch`. Each replica of the group that owns a keyspace serves its watches; other nodes pass them on.

use std::sync::Arc;
use std::time::Duration;

use api::errors;
use api::etcd::etcdserverpb as pb;
use changes::Watches;
use futures::Stream;
use pb::watch_client::WatchClient;
use pb::watch_server::Watch;
use tokio::time::interval;
use tonic::{Request, Response, Status, Streaming};

use super::leader;
use super::outgoing::Outgoing;
use super::serve::{Call, EtcdServices};
use super::status::Failure;
use super::store::{Freshness, Identity};
use super::streams::{Opened, Over, status_of, stopped};
use super::watch_access::WatchAccess;
use super::watch_stream::WatchStream;
use crate::forward::StreamKind;
use crate::keyspaces::budgets::{KeyspaceShares, MAX_WATCH_STREAMS};
use crate::keyspaces::hub::{Hub, Subscription};
use crate::keyspaces::shares::Share;
use crate::metrics::set;
use crate::reads::{ReadKind, Readers};
use crate::services::pages::Pages;

/// The most watches of a stream.
const MAX_WATCHES_PER_STREAM: usize = 10_000;

/// The interval of published figures.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);

/// The bounds of reads for watches. A stream has one read at a time.
pub(crate) const READ_KIND: ReadKind = ReadKind {
    what: "reads of watches",
    max_running: 2,
    max_admitted: MAX_WATCH_STREAMS,
};

/// The parts that watch streams share.
pub(crate) struct WatchServices {
    pub(crate) etcd: Arc<EtcdServices>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) readers: Readers,
    election_timeout: Duration,
}

impl WatchServices {
    pub(crate) fn new(
        etcd: Arc<EtcdServices>,
        hub: Arc<Hub>,
        readers: Readers,
        election_timeout: Duration,
    ) -> Self {
        Self {
            etcd,
            hub,
            readers,
            election_timeout,
        }
    }

    /// Returns the budgets that keyspaces share.
    pub(super) fn shares(&self) -> &KeyspaceShares {
        &self.etcd.admission.keyspaces
    }

    /// Publishes the numbers of streams, watches and feeds now and then.
    pub(crate) async fn publish(self: Arc<Self>) {
        let metrics = &self.etcd.metrics.watches;
        let mut look = interval(PUBLISH_EVERY);
        loop {
            look.tick().await;
            set(&metrics.streams, self.shares().watch_streams.used() as u64);
            set(&metrics.watches, self.shares().watches.used() as u64);
            let held = self.shares().watches.held();
            self.etcd.metrics.usage.publish_watches(&held);
            let (feeds, bytes) = self.hub.size();
            set(&metrics.feeds, feeds as u64);
            set(&metrics.feed_bytes, bytes as u64);
            let shares = self.shares();
            let unfetched = shares.watch_pages.used() + shares.stream_answers.used();
            set(&metrics.unfetched_bytes, unfetched as u64);
        }
    }

    /// Finds the keyspace in this node's state and follows it.
    async fn find(&self, name: &str) -> Result<(Identity, Subscription), Failure> {
        let keyspaces = &self.etcd.keyspaces;
        let found = keyspaces.read(name, Freshness::Serializable, |_, _| Ok(Ok(())));
        let identity = found.await?.0.identity();
        let routing = &keyspaces.routing;
        let subscription = self.hub.follow(identity.place);
        // The shard went away meanwhile.
        let subscription = subscription.ok_or_else(|| routing.wrong_group())?;
        if subscription.followed.revisions().is_none() {
            let place = identity.place;
            let generation = subscription.followed.generation();
            let read = keyspaces.read(name, Freshness::Serializable, move |_, found| {
                Ok(Ok((found.place == place).then_some(())))
            });
            let (found, same) = read.await?;
            // Another incarnation: the caller tries again.
            same.ok_or_else(|| errors::unavailable("the keyspace was created anew", 100))?;
            let record = &found.record;
            subscription
                .followed
                .learn(generation, record.revision, record.compacted);
        }
        Ok((identity, subscription))
    }
}

/// The service.
pub(crate) struct WatchService(pub(crate) Arc<WatchServices>);

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = Answers;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let services = &self.0;
        let call = services.etcd.call(&request)?;
        let stream = open(services, &call, request.into_inner()).await?;
        Ok(stream.into_response())
    }
}

/// The answers of a watch stream.
pub(super) type Answers = Pages<pb::WatchResponse>;

/// Opens a watch stream, here or at the node that can serve it.
pub(super) async fn open<R>(
    services: &Arc<WatchServices>,
    call: &Call,
    requests: R,
) -> Result<Answers, Status>
where
    R: Stream<Item = Result<pb::WatchRequest, Status>> + Send + Unpin + 'static,
{
    let opened = services.open(call, requests).await;
    opened.map_err(|failure| status_of(&services.etcd, call, failure))
}

impl WatchServices {
    async fn open<R>(self: &Arc<Self>, call: &Call, requests: R) -> Result<Answers, Failure>
    where
        R: Stream<Item = Result<pb::WatchRequest, Status>> + Send + Unpin + 'static,
    {
        let services = Arc::clone(self);
        let slot = services
            .shares()
            .watch_streams
            .try_take(&call.keyspace, 1)?;
        let opened = services.etcd.open(
            call,
            StreamKind::Watch,
            || services.find(&call.keyspace),
            |channel, outgoing| async move {
                let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
                Ok(client.watch(outgoing).await?.into_inner())
            },
        );
        let opened = opened.await?;
        let answers = Arc::clone(&services.shares().stream_answers);
        let (outgoing, stream) = Outgoing::new(answers, &call.keyspace);
        let lifecycle = Arc::clone(&services.etcd.lifecycle);
        match opened {
            Opened::There(elsewhere) => {
                tokio::spawn(async move {
                    elsewhere.relay(lifecycle, requests, outgoing).await;
                    drop(slot);
                });
            }
            Opened::Here((identity, subscription)) => {
                if call.requires_leader {
                    leader::check(&lifecycle)?;
                }
                let revisions = subscription.followed.revisions();
                let newest = revisions.map_or(0, |(newest, _)| newest);
                let stream = WatchStream {
                    watches: Watches::new(newest, MAX_WATCHES_PER_STREAM),
                    name: call.keyspace.clone(),
                    identity,
                    access: WatchAccess::new(call.credentials.clone()),
                    subscription,
                    requests,
                    open: true,
                    outgoing,
                    slots: None,
                    share: None,
                    services,
                };
                tokio::spawn(run(stream, call.requires_leader, slot));
            }
        }
        Ok(stream)
    }
}

/// Serves a stream until it is over, and tells the client why.
async fn run<R>(mut stream: WatchStream<R>, requires_leader: bool, _slot: Share)
where
    R: Stream<Item = Result<pb::WatchRequest, Status>> + Send + Unpin,
{
    let services = Arc::clone(&stream.services);
    let lifecycle = &services.etcd.lifecycle;
    let over = tokio::select! {
        over = stream.serve() => over,
        () = lifecycle.draining() => Over::Failed(stopped()),
        status = leader::lost(lifecycle, services.election_timeout), if requires_leader => Over::Failed(status),
    };
    stream.into_outgoing().end(over).await;
}
