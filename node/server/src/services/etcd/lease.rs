//! The service `Lease`. The leader of the group that owns a keyspace answers, because it has the timers.

use std::sync::Arc;

use api::errors;
use api::etcd::etcdserverpb as pb;
use api::v1::ErrorDetail;
use changes::Remaining;
use keyspace::{Access, Answer, LeaseId, Refusal, Write};
use pb::lease_client::LeaseClient;
use pb::lease_server::Lease;
use prometheus_client::metrics::histogram::Histogram;
use replica::PairReader;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::keepalive;
use super::serve::{Answered, Call, EtcdServices, Method};
use super::status::Failure;
use super::store::{Extent, Found, Freshness};
use super::streams::status_of;
use crate::convert::kv::mismatch;
use crate::forward::Repeat;
use crate::keyspaces::waiters::Waiting;
use crate::metrics::Metrics;
use crate::random;
use crate::services::pages::Pages;

/// The most leases of one answer.
const MAX_LISTED: usize = 1_000_000;

/// The service.
pub(crate) struct LeaseService {
    pub(crate) etcd: Arc<EtcdServices>,
    pub(crate) streams: Arc<keepalive::KeepAlives>,
}

#[tonic::async_trait]
impl Lease for LeaseService {
    type LeaseKeepAliveStream = Pages<pb::LeaseKeepAliveResponse>;

    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        self.etcd.serve::<GrantMethod>(request).await
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        self.etcd.serve::<RevokeMethod>(request).await
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let call = self.etcd.call(&request)?;
        let opened = keepalive::open(&self.streams, &call, request.into_inner()).await;
        let stream = opened.map_err(|failure| status_of(&self.etcd, &call, failure))?;
        Ok(stream.into_response())
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        self.etcd.serve::<TimeToLiveMethod>(request).await
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        self.etcd.serve::<LeasesMethod>(request).await
    }
}

pub(super) struct GrantMethod;

impl Method for GrantMethod {
    type Request = pb::LeaseGrantRequest;
    type Answer = pb::LeaseGrantResponse;

    fn repeat(_: &Self::Request) -> Repeat {
        Repeat::Never
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.write_seconds
    }

    async fn here(
        services: &EtcdServices,
        call: &Call,
        request: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let id = match request.id {
            0 => random_id()?,
            id => LeaseId(id),
        };
        let ttl = request.ttl;
        let keyspaces = &services.keyspaces;
        let (identity, answer) = keyspaces
            .write(call.target(), Write::Grant { id, ttl })
            .await?;
        let Answer::Granted {
            revision, id, ttl, ..
        } = answer
        else {
            return Err(mismatch().into());
        };
        let answer = pb::LeaseGrantResponse {
            header: Some(keyspaces.header(identity.cluster_id, revision)),
            id: id.0,
            ttl,
            error: String::new(),
        };
        Ok(answer.into())
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        LeaseClient::new(channel).lease_grant(request).await
    }
}

/// Returns an id for a lease whose client names none. As in etcd it is above 0.
fn random_id() -> Result<LeaseId, ErrorDetail> {
    loop {
        let number = random::number().map_err(|error| {
            errors::unavailable(
                format!("the operating system gave no randomness: {error}"),
                1_000,
            )
        })?;
        let id = (number >> 1).cast_signed();
        if id != 0 {
            return Ok(LeaseId(id));
        }
    }
}

struct RevokeMethod;

impl Method for RevokeMethod {
    type Request = pb::LeaseRevokeRequest;
    type Answer = pb::LeaseRevokeResponse;

    fn repeat(_: &Self::Request) -> Repeat {
        Repeat::Never
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.write_seconds
    }

    async fn here(
        services: &EtcdServices,
        call: &Call,
        request: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let id = LeaseId(request.id);
        let keyspaces = &services.keyspaces;
        let (identity, answer) = keyspaces.write(call.target(), Write::Revoke { id }).await?;
        let Answer::Done { revision } = answer else {
            return Err(mismatch().into());
        };
        let header = Some(keyspaces.header(identity.cluster_id, revision));
        Ok(pb::LeaseRevokeResponse { header }.into())
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        LeaseClient::new(channel).lease_revoke(request).await
    }
}

struct TimeToLiveMethod;

impl Method for TimeToLiveMethod {
    type Request = pb::LeaseTimeToLiveRequest;
    type Answer = pb::LeaseTimeToLiveResponse;

    fn repeat(_: &Self::Request) -> Repeat {
        Repeat::Freely
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.read_seconds
    }

    async fn here(
        services: &EtcdServices,
        call: &Call,
        request: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let (id, with_keys) = (LeaseId(request.id), request.keys);
        let keyspaces = &services.keyspaces;
        let deadline = services.forwarder.deadline(call.arrived);
        let mut waiting: Option<Waiting> = None;
        loop {
            let credentials = call.credentials.clone();
            let read = keyspaces.read_extent(
                if with_keys {
                    Extent::Many
                } else {
                    Extent::Single
                },
                &call.keyspace,
                Freshness::Linearizable,
                move |reader: &dyn PairReader, found: &Found| {
                    let access = if with_keys {
                        Access::LeaseKeys(id)
                    } else {
                        Access::Any
                    };
                    credentials.guard(reader, found, access, || {
                        let lease = keyspace::read_lease(reader, found.place, id)?;
                        let keys = match &lease {
                            Some(_) if with_keys => {
                                keyspace::read_lease_keys(reader, found.place, id)?
                            }
                            _ => Vec::new(),
                        };
                        Ok(Ok((lease, keys)))
                    })
                },
            );
            let (found, (lease, keys)) = read.await?;
            let place = found.place;
            let header = keyspaces.header(found.record.cluster_id(), found.record.revision);
            let mut answer = pb::LeaseTimeToLiveResponse {
                header: Some(header),
                id: id.0,
                ttl: -1,
                granted_ttl: 0,
                keys,
            };
            let Some(lease) = lease else {
                return Ok(answer.into());
            };
            if let Some(Remaining { left, .. }) = services.lessor.remaining(place, id) {
                (answer.ttl, answer.granted_ttl) = (left, lease.ttl);
                return Ok(answer.into());
            }
            // The timers of a new leader are being set, or the lease was revoked meanwhile.
            match &mut waiting {
                Some(waiting) if waiting.is_for(place, id) => wait(waiting, deadline).await?,
                // The state is read again, so that no change before this is missed.
                _ => waiting = Some(services.lessor.wait(place, id)),
            }
        }
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        let client = LeaseClient::new(channel);
        let mut client = client.max_decoding_message_size(usize::MAX);
        client.lease_time_to_live(request).await
    }
}

/// Waits until a lease has changed, at most until a deadline.
pub(super) async fn wait(waiting: &mut Waiting, deadline: Instant) -> Result<(), ErrorDetail> {
    let waited = timeout_at(deadline, waiting.changed()).await;
    waited.map_err(|_| errors::unavailable("the leases are being read", 100))
}

struct LeasesMethod;

impl Method for LeasesMethod {
    type Request = pb::LeaseLeasesRequest;
    type Answer = pb::LeaseLeasesResponse;

    fn repeat(_: &Self::Request) -> Repeat {
        Repeat::Freely
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.read_seconds
    }

    async fn here(
        services: &EtcdServices,
        call: &Call,
        _: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let keyspaces = &services.keyspaces;
        let credentials = call.credentials.clone();
        let list = move |reader: &dyn PairReader, found: &Found| {
            credentials.guard(reader, found, Access::Leases, || {
                let leases = keyspace::read_leases(reader, found.place, None, MAX_LISTED + 1)?;
                if leases.len() > MAX_LISTED {
                    return Ok(Err(Refusal::TooManyRequests));
                }
                let status = |lease: keyspace::Lease| pb::LeaseStatus { id: lease.id.0 };
                Ok(Ok(leases.into_iter().map(status).collect()))
            })
        };
        let freshness = call.freshness(false);
        let read = keyspaces.read_extent(Extent::Many, &call.keyspace, freshness, list);
        let (found, leases) = read.await?;
        let header = keyspaces.header(found.record.cluster_id(), found.record.revision);
        let answer = pb::LeaseLeasesResponse {
            header: Some(header),
            leases,
        };
        Ok(answer.into())
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        let client = LeaseClient::new(channel);
        let mut client = client.max_decoding_message_size(usize::MAX);
        client.lease_leases(request).await
    }
}
