//! Streams of renewals. A renewal needs no entry in the log, but proof that this node leads: a lease that another leader has let expire
//! is not renewed here. The requests that have come together share the proof. A proof that has become too old while the keyspace was
//! looked up is made anew without a reader thread, so that reads which take long end no lease.

use std::sync::Arc;
use std::time::Duration;

use api::errors;
use api::etcd::etcdserverpb as pb;
use changes::Renewal;
use futures::{FutureExt as _, StreamExt as _};
use keyspace::{Access, LeaseId};
use pb::lease_client::LeaseClient;
use replica::PairReader;
use tokio::time::Instant;
use tonic::Streaming;
use types::ConfigNum;

use super::leader;
use super::lease::wait;
use super::outgoing::Outgoing;
use super::serve::{Call, EtcdServices};
use super::status::Failure;
use super::store::{Extent, Found, Freshness};
use super::streams::{Opened, Over, status_of, stopped};
use crate::forward::StreamKind;
use crate::keyspaces::shares::Share;
use crate::keyspaces::waiters::Waiting;
use crate::services::pages::Pages;

/// The most renewals that share a proof of leadership.
const MAX_BATCH: usize = 256;

/// The streams of renewals of a node.
pub(crate) struct KeepAlives {
    etcd: Arc<EtcdServices>,
    election_timeout: Duration,
    patience: Duration,
}

impl KeepAlives {
    /// `patience` is the time that a renewal may wait for the timers of a new leader, or for a revoke.
    pub(crate) fn new(
        etcd: Arc<EtcdServices>,
        election_timeout: Duration,
        patience: Duration,
    ) -> Self {
        Self {
            etcd,
            election_timeout,
            patience,
        }
    }

    /// Finds the keyspace, and proves that this node leads the group that owns it.
    async fn prove(&self, name: &str) -> Result<Proof, Failure> {
        let keyspaces = &self.etcd.keyspaces;
        let served_since = keyspaces.served_since(keyspaces.shard(name)?);
        let begun = Instant::now();
        let found = find(&self.etcd, name).await?;
        Ok(Proof {
            found,
            served_since,
            begun,
        })
    }

    /// Proves it anew, until a proof is young. Reader threads are needed only if the shard went away meanwhile.
    async fn prove_by(&self, proof: &mut Proof, name: &str, by: Instant) -> Result<(), Failure> {
        let keyspaces = &self.etcd.keyspaces;
        loop {
            let begun = Instant::now();
            keyspaces.replica.confirm().await?;
            // What was applied before the confirmation is published.
            let served_since = keyspaces.served_since(proof.found.place.shard);
            if served_since.is_some() && served_since == proof.served_since {
                proof.begun = begun;
            } else {
                *proof = self.prove(name).await?;
            }
            if proof.is_young(self.election_timeout) {
                return Ok(());
            }
            if Instant::now() >= by {
                let late = errors::unavailable("the proof of leadership takes too long", 100);
                return Err(late.into());
            }
        }
    }
}

type Requests = Streaming<pb::LeaseKeepAliveRequest>;

/// Opens a stream of renewals, here or at the leader.
pub(super) async fn open(
    streams: &Arc<KeepAlives>,
    call: &Call,
    requests: Requests,
) -> Result<Pages<pb::LeaseKeepAliveResponse>, Failure> {
    let etcd = &streams.etcd;
    let shares = &etcd.admission.keyspaces;
    let slot = shares.renewal_streams.try_take(&call.keyspace, 1)?;
    let opened = etcd.open(
        call,
        StreamKind::Renewals,
        || find(etcd, &call.keyspace),
        |channel, outgoing| async move {
            let mut client = LeaseClient::new(channel);
            Ok(client.lease_keep_alive(outgoing).await?.into_inner())
        },
    );
    let opened = opened.await?;
    let answers = Arc::clone(&shares.stream_answers);
    let (outgoing, stream) = Outgoing::new(answers, &call.keyspace);
    let lifecycle = Arc::clone(&etcd.lifecycle);
    match opened {
        Opened::There(elsewhere) => {
            tokio::spawn(async move {
                elsewhere.relay(lifecycle, requests, outgoing).await;
                drop(slot);
            });
        }
        Opened::Here(_) => {
            if call.requires_leader {
                leader::check(&lifecycle)?;
            }
            let stream = KeepAliveStream {
                streams: Arc::clone(streams),
                call: call.clone(),
                requests,
                outgoing,
            };
            tokio::spawn(stream.run(slot));
        }
    }
    Ok(stream)
}

/// Finds the keyspace, and proves that this node leads the group that owns it.
async fn find(etcd: &EtcdServices, name: &str) -> Result<Found, Failure> {
    let read = etcd
        .keyspaces
        .read(name, Freshness::Linearizable, |_, _| Ok(Ok(())));
    Ok(read.await?.0)
}

/// The proof that this node leads the group of a keyspace.
struct Proof {
    found: Found,
    /// The configuration since which the group serves its shard. The keyspace was found after that.
    served_since: Option<ConfigNum>,
    /// The time before which nothing is proved.
    begun: Instant,
}

impl Proof {
    /// Returns true if the proof is not older than half an election timeout. Another leader may have been elected after an older one.
    fn is_young(&self, election_timeout: Duration) -> bool {
        self.begun.elapsed() <= election_timeout / 2
    }
}

struct KeepAliveStream {
    streams: Arc<KeepAlives>,
    call: Call,
    requests: Requests,
    outgoing: Outgoing<pb::LeaseKeepAliveResponse>,
}

impl KeepAliveStream {
    async fn run(mut self, _slot: Share) {
        let streams = Arc::clone(&self.streams);
        let lifecycle = &streams.etcd.lifecycle;
        let requires = self.call.requires_leader;
        let over = tokio::select! {
            over = self.serve() => over,
            () = lifecycle.draining() => Over::Failed(stopped()),
            status = leader::lost(lifecycle, streams.election_timeout), if requires => Over::Failed(status),
        };
        self.outgoing.end(over).await;
    }

    async fn serve(&mut self) -> Over {
        loop {
            let first = tokio::select! {
                biased;
                over = self.outgoing.lost() => return over,
                first = self.requests.next() => first,
            };
            let Some(Ok(first)) = first else {
                return Over::Gone;
            };
            let mut batch = vec![LeaseId(first.id)];
            while batch.len() < MAX_BATCH
                && let Some(Some(Ok(next))) = self.requests.next().now_or_never()
            {
                batch.push(LeaseId(next.id));
            }
            if let Err(over) = self.renew_all(batch).await {
                return over;
            }
        }
    }

    async fn renew_all(&mut self, batch: Vec<LeaseId>) -> Result<(), Over> {
        let streams = Arc::clone(&self.streams);
        // The proof begins after the requests have come.
        let mut proof = self.prove().await?;
        if proof.found.record.auth.enabled {
            self.check(batch.clone()).await?;
        }
        for id in batch {
            let deadline = Instant::now() + streams.patience;
            let mut waiting: Option<Waiting> = None;
            loop {
                // The client may have fetched the answer before this one late.
                if !proof.is_young(streams.election_timeout) {
                    let proved = streams.prove_by(&mut proof, &self.call.keyspace, deadline);
                    proved.await.map_err(|failure| self.failed(failure))?;
                }
                let lessor = &streams.etcd.lessor;
                let place = proof.found.place;
                let ttl = match lessor.renew(place, id) {
                    Renewal::Renewed { ttl } => ttl,
                    Renewal::Unknown => 0,
                    Renewal::Expired | Renewal::Loading | Renewal::Elsewhere => {
                        match &mut waiting {
                            Some(waiting) if waiting.is_for(place, id) => {
                                let waited = wait(waiting, deadline).await;
                                waited.map_err(|error| self.failed(error.into()))?;
                                proof = self.prove().await?;
                            }
                            // It is tried again, so that no change before this is missed.
                            _ => {
                                waiting = Some(lessor.wait(place, id));
                                proof = self.prove().await?;
                            }
                        }
                        continue;
                    }
                };
                self.answer(&proof.found, id, ttl).await?;
                break;
            }
        }
        Ok(())
    }

    async fn answer(&mut self, found: &Found, id: LeaseId, ttl: i64) -> Result<(), Over> {
        let keyspaces = &self.streams.etcd.keyspaces;
        // The revision was read before the renewal, so it isn't above that of a revoke which comes after it.
        let header = keyspaces.header(found.record.cluster_id(), found.record.revision);
        let answer = pb::LeaseKeepAliveResponse {
            header: Some(header),
            id: id.0,
            ttl,
        };
        self.outgoing.send(answer, None).await
    }

    /// Ends the stream unless its user may renew the leases.
    async fn check(&self, batch: Vec<LeaseId>) -> Result<(), Over> {
        let credentials = self.call.credentials.clone();
        let allow = move |reader: &dyn PairReader, found: &Found| {
            let wanted = batch.into_iter().map(Access::Renew);
            credentials.allow_each(reader, found, wanted)
        };
        let keyspaces = &self.streams.etcd.keyspaces;
        let (many, here) = (Extent::Many, Freshness::Serializable);
        let checked = keyspaces.read_extent(many, &self.call.keyspace, here, allow);
        let checked = checked.await;
        checked.map_err(|failure| self.failed(failure))?;
        Ok(())
    }

    async fn prove(&self) -> Result<Proof, Over> {
        let proof = self.streams.prove(&self.call.keyspace).await;
        proof.map_err(|failure| self.failed(failure))
    }

    fn failed(&self, failure: Failure) -> Over {
        Over::Failed(status_of(&self.streams.etcd, &self.call, failure))
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;
    use tokio::sync::{mpsc, watch};
    use tokio::task::JoinSet;
    use tokio::time::{sleep, timeout};

    use super::super::store::{RANGE_KIND, READ_KIND};
    use super::super::testing::TestNode;
    use super::*;

    const NAME: &str = "a";
    const ELECTION_TIMEOUT: Duration = Duration::from_millis(100);
    /// The time in which everything ends.
    const LONG: Duration = Duration::from_secs(30);
    const FRESH: Freshness = Freshness::Serializable;

    /// Reads that hold their threads until the sender says true.
    struct Held {
        go_on: watch::Sender<bool>,
        reads: JoinSet<()>,
    }

    impl Held {
        /// Starts so many reads, and waits until they are at their threads.
        async fn start(node: &TestNode, extent: Extent, reads: usize) -> Self {
            let mut held = Self {
                go_on: watch::Sender::new(false),
                reads: JoinSet::new(),
            };
            let (started, mut starts) = mpsc::unbounded_channel();
            for _ in 0..reads {
                let (etcd, started) = (Arc::clone(&node.etcd), started.clone());
                let mut go_on = held.go_on.subscribe();
                held.reads.spawn(async move {
                    let wait = move |_: &dyn PairReader, _: &Found| {
                        started.send(()).unwrap();
                        let held = Handle::current();
                        assert!(held.block_on(go_on.wait_for(|go_on| *go_on)).is_ok());
                        Ok(Ok(()))
                    };
                    let read = etcd.keyspaces.read_extent(extent, NAME, FRESH, wait);
                    assert!(read.await.is_ok());
                });
            }
            for _ in 0..reads {
                assert!(timeout(LONG, starts.recv()).await.is_ok());
            }
            held
        }

        async fn end(mut self) {
            self.go_on.send_replace(true);
            while let Some(read) = self.reads.join_next().await {
                read.unwrap();
            }
        }
    }

    fn streams(node: &TestNode) -> KeepAlives {
        KeepAlives::new(Arc::clone(&node.etcd), ELECTION_TIMEOUT, LONG)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_look_up_waits_for_no_ranges() {
        let node = TestNode::with_keyspace(NAME).await;
        let ranges = Held::start(&node, Extent::Many, RANGE_KIND.max_running).await;
        let found = timeout(LONG, find(&node.etcd, NAME)).await;
        assert!(found.is_ok_and(|found| found.is_ok()));
        ranges.end().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_proof_that_a_look_up_has_held_up_is_made_anew_without_a_reader_thread() {
        let node = TestNode::with_keyspace(NAME).await;
        let streams = Arc::new(streams(&node));
        let most = READ_KIND.max_running;
        let reads = Held::start(&node, Extent::Single, most).await;
        let proving = tokio::spawn({
            let streams = Arc::clone(&streams);
            async move { streams.prove(NAME).await }
        });
        // The proof grows old meanwhile.
        sleep(2 * ELECTION_TIMEOUT).await;
        reads.end().await;
        let mut proof = proving.await.unwrap().unwrap();
        let found = proof.begun;
        let reads = Held::start(&node, Extent::Single, most).await;
        let proved = streams.prove_by(&mut proof, NAME, Instant::now() + LONG);
        let proved = timeout(LONG, proved).await;
        assert!(proved.is_ok_and(|proved| proved.is_ok()));
        assert!(proof.begun > found);
        reads.end().await;
    }
}
