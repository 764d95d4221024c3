//! The service `Maintenance`: the upkeep of one keyspace. Calls that concern the whole of an etcd are refused.

use std::pin::Pin;
use std::sync::Arc;

use api::etcd::etcdserverpb as pb;
use futures::Stream;
use keyspace::{Access, Record};
use pb::alarm_request::AlarmAction;
use pb::maintenance_client::MaintenanceClient;
use pb::maintenance_server::Maintenance;
use prometheus_client::metrics::histogram::Histogram;
use replica::PairReader;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::serve::{Answered, Call, EtcdServices, Method};
use super::status::{Failure, finally};
use super::store::{Found, Freshness};
use crate::forward::Repeat;
use crate::metrics::Metrics;

/// The version of etcd whose API is served. Kubernetes asks for watch progress from 3.5.13 on.
pub(crate) const API_VERSION: &str = "3.7.3";
/// The version of etcd whose storage has the same features.
pub(crate) const STORAGE_VERSION: &str = "3.7.0";

/// The service.
pub(crate) struct MaintenanceService(pub(crate) Arc<EtcdServices>);

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    async fn alarm(
        &self,
        request: Request<pb::AlarmRequest>,
    ) -> Result<Response<pb::AlarmResponse>, Status> {
        if request.get_ref().action == AlarmAction::Activate as i32 {
            return Err(unimplemented(
                "an alarm of a keyspace can't be raised by hand: it comes and goes with the space that is left",
            ));
        }
        self.0.serve::<AlarmMethod>(request).await
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        self.0.serve::<StatusMethod>(request).await
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        self.0.serve::<HashKvMethod>(request).await
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.0.serve::<DefragmentMethod>(request).await
    }

    async fn hash(
        &self,
        _: Request<pb::HashRequest>,
    ) -> Result<Response<pb::HashResponse>, Status> {
        Err(unimplemented(
            "a keyspace has no file of its own whose hash could be told: use HashKV",
        ))
    }

    async fn snapshot(
        &self,
        _: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(unimplemented(
            "a keyspace has no file of its own that could be copied: back up the cluster with its operator or its command line",
        ))
    }

    async fn move_leader(
        &self,
        _: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        Err(unimplemented(
            "many keyspaces share a leader, so a client of one can't move it: use the command line of the cluster",
        ))
    }

    async fn downgrade(
        &self,
        _: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(unimplemented(
            "the version of the servers is the operator's business, not a keyspace's",
        ))
    }
}

fn unimplemented(text: &str) -> Status {
    finally(Code::Unimplemented, text)
}

/// Reads the record of the call's keyspace from any replica, if the caller has this access, and returns it with the header of an answer.
pub(super) async fn record(
    services: &EtcdServices,
    call: &Call,
    freshness: Freshness,
    access: Access<'static>,
) -> Result<(pb::ResponseHeader, Record), Failure> {
    let keyspaces = &services.keyspaces;
    let credentials = call.credentials.clone();
    let allow =
        move |reader: &dyn PairReader, found: &Found| credentials.allow(reader, found, access);
    let read = keyspaces.read(&call.keyspace, freshness, allow);
    let record = read.await?.0.record;
    let header = keyspaces.header(record.cluster_id(), record.revision);
    Ok((header, record))
}

struct AlarmMethod;

impl Method for AlarmMethod {
    type Request = pb::AlarmRequest;
    type Answer = pb::AlarmResponse;

    fn repeat(_: &Self::Request) -> Repeat {
        Repeat::Freely
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.read_seconds
    }

    /// Lists the alarm of the keyspace. Deactivating it changes nothing, because it ends by itself.
    async fn here(
        services: &EtcdServices,
        call: &Call,
        request: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let access = if request.action == AlarmAction::Get as i32 {
            Access::Any
        } else {
            Access::Root
        };
        let (header, record) = record(services, call, Freshness::Linearizable, access).await?;
        let listed = request.action == AlarmAction::Get as i32
            && record.no_space()
            && [pb::AlarmType::None as i32, pb::AlarmType::Nospace as i32].contains(&request.alarm);
        let alarm = pb::AlarmMember {
            member_id: header.member_id,
            alarm: pb::AlarmType::Nospace.into(),
        };
        Ok(pb::AlarmResponse {
            header: Some(header),
            alarms: listed.then_some(alarm).into_iter().collect(),
        }
        .into())
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        MaintenanceClient::new(channel).alarm(request).await
    }
}

struct StatusMethod;

impl Method for StatusMethod {
    type Request = pb::StatusRequest;
    type Answer = pb::StatusResponse;

    fn repeat(_: &Self::Request) -> Repeat {
        Repeat::Freely
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.read_seconds
    }

    /// Tells the state of the keyspace and of the replica that answers.
    async fn here(
        services: &EtcdServices,
        call: &Call,
        _: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let access = Access::Any;
        let (header, record) = record(services, call, Freshness::Serializable, access).await?;
        let status = services.keyspaces.replica.view().status;
        let status = status.as_deref();
        let bytes = i64::try_from(record.bytes).unwrap_or(i64::MAX);
        let full = || {
            let member = header.member_id;
            format!("memberID:{member} alarm:NOSPACE ")
        };
        Ok(pb::StatusResponse {
            version: API_VERSION.to_owned(),
            db_size: bytes,
            leader: status
                .and_then(|status| status.leader)
                .map_or(0, |leader| leader.0),
            raft_index: status.map_or(0, |status| status.commit_index.0),
            raft_term: header.raft_term,
            raft_applied_index: status.map_or(0, |status| status.last_applied.0),
            errors: record.no_space().then(full).into_iter().collect(),
            db_size_in_use: bytes,
            is_learner: false,
            storage_version: STORAGE_VERSION.to_owned(),
            db_size_quota: i64::try_from(record.options.quota_bytes).unwrap_or(i64::MAX),
            downgrade_info: None,
            header: Some(header),
        }
        .into())
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        MaintenanceClient::new(channel).status(request).await
    }
}

struct HashKvMethod;

impl Method for HashKvMethod {
    type Request = pb::HashKvRequest;
    type Answer = pb::HashKvResponse;

    fn repeat(_: &Self::Request) -> Repeat {
        Repeat::Freely
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.read_seconds
    }

    /// Hashes the keyspace on this replica, so that a client that asks each of them can compare.
    async fn here(
        services: &EtcdServices,
        call: &Call,
        request: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let keyspaces = &services.keyspaces;
        let credentials = call.credentials.clone();
        let (found, hash) = keyspaces
            .read_long(&call.keyspace, move |reader, found| {
                credentials.guard(reader, found, Access::Root, || {
                    keyspace::hash(reader, found.place, request.revision)
                })
            })
            .await?;
        Ok(pb::HashKvResponse {
            header: Some(keyspaces.header(found.record.cluster_id(), hash.revision)),
            hash: hash.hash,
            compact_revision: hash.compacted,
            hash_revision: hash.hash_revision,
        }
        .into())
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        MaintenanceClient::new(channel).hash_kv(request).await
    }
}

struct DefragmentMethod;

impl Method for DefragmentMethod {
    type Request = pb::DefragmentRequest;
    type Answer = pb::DefragmentResponse;

    fn repeat(_: &Self::Request) -> Repeat {
        Repeat::Freely
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.read_seconds
    }

    /// Succeeds, because nothing is left to do: the store gives back space by itself after a compaction. Scripts for the upkeep of an
    /// etcd call it after each compaction.
    async fn here(
        services: &EtcdServices,
        call: &Call,
        _: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let access = Access::Root;
        let (header, _) = record(services, call, Freshness::Serializable, access).await?;
        Ok(pb::DefragmentResponse {
            header: Some(header),
        }
        .into())
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        MaintenanceClient::new(channel).defragment(request).await
    }
}
