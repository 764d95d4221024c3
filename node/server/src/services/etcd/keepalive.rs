//! Streams of renewals. A renewal needs no entry in the log, but proof that this node leads: a lease that another leader has let expire
//! is not renewed here. The requests that have come together share the proof.

use std::sync::Arc;
use std::time::Duration;

use api::errors;
use api::etcd::etcdserverpb as pb;
use changes::Renewal;
use futures::{FutureExt as _, StreamExt as _};
use keyspace::LeaseId;
use pb::lease_client::LeaseClient;
use tokio::time::Instant;
use tonic::Streaming;

use super::leader;
use super::lease::wait;
use super::outgoing::Outgoing;
use super::serve::{Call, EtcdServices};
use super::status::Failure;
use super::store::{Found, Freshness};
use super::streams::{Opened, Over, status_of, stopped};
use crate::forward::StreamKind;
use crate::keyspaces::shares::Share;
use crate::keyspaces::waiters::Waiting;
use crate::page_budget::PageBudget;
use crate::services::pages::Pages;

/// The most renewals that share a proof of leadership.
const MAX_BATCH: usize = 256;

/// The streams of renewals of a node.
pub(crate) struct KeepAlives {
    etcd: Arc<EtcdServices>,
    /// The budget of large answers, of which no renewal has one.
    answers: Arc<PageBudget>,
    election_timeout: Duration,
    patience: Duration,
}

impl KeepAlives {
    /// `patience` is the time that a renewal may wait for the timers of a new leader, or for a revoke.
    pub(crate) fn new(
        etcd: Arc<EtcdServices>,
        answers: Arc<PageBudget>,
        election_timeout: Duration,
        patience: Duration,
    ) -> Self {
        Self {
            etcd,
            answers,
            election_timeout,
            patience,
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
    let (outgoing, stream) = Outgoing::new(Arc::clone(&streams.answers));
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
        // The proof begins after the requests have come.
        let mut proof = self.prove().await?;
        for id in batch {
            let deadline = Instant::now() + self.streams.patience;
            let mut waiting: Option<Waiting> = None;
            loop {
                // The client may have fetched the answer before this one late.
                if !proof.is_young(self.streams.election_timeout) {
                    proof = self.prove_by(deadline).await?;
                }
                let lessor = &self.streams.etcd.lessor;
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
                            _ => waiting = Some(lessor.wait(place, id)),
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

    async fn prove(&self) -> Result<Proof, Over> {
        let begun = Instant::now();
        let found = find(&self.streams.etcd, &self.call.keyspace).await;
        let found = found.map_err(|failure| self.failed(failure))?;
        Ok(Proof { found, begun })
    }

    /// Returns a young proof.
    async fn prove_by(&self, deadline: Instant) -> Result<Proof, Over> {
        loop {
            let proof = self.prove().await?;
            if proof.is_young(self.streams.election_timeout) {
                return Ok(proof);
            }
            if Instant::now() >= deadline {
                let late = errors::unavailable("the proof of leadership takes too long", 100);
                return Err(self.failed(late.into()));
            }
        }
    }

    fn failed(&self, failure: Failure) -> Over {
        Over::Failed(status_of(&self.streams.etcd, &self.call, failure))
    }
}
