//! The service `Cluster`: the members as a client of one keyspace sees them.
//!
//! etcd's client replaces its endpoints by the client URLs of the members. The names of pods would lead it to another keyspace, so
//! the list has one member: the name that the client dialled itself.

use std::sync::Arc;

use api::etcd::etcdserverpb as pb;
use keyspace::Access;
use pb::cluster_client::ClusterClient;
use pb::cluster_server::Cluster;
use prometheus_client::metrics::histogram::Histogram;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::maintenance::record;
use super::serve::{Answered, Call, EtcdServices, Method};
use super::status::{Failure, finally};
use crate::forward::Repeat;
use crate::metrics::Metrics;

/// The service.
pub(crate) struct ClusterService(pub(crate) Arc<EtcdServices>);

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let call = self.0.call(&request)?;
        let mut answer = self.0.serve::<MemberListMethod>(request).await?;
        // The node that was dialled knows the name.
        for member in &mut answer.get_mut().members {
            member.client_ur_ls = call
                .authority
                .iter()
                .map(|it| format!("http://{it}"))
                .collect();
        }
        Ok(answer)
    }

    async fn member_add(
        &self,
        _: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(refusal())
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(refusal())
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(refusal())
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(refusal())
    }
}

fn refusal() -> Status {
    finally(
        Code::Unimplemented,
        "many keyspaces share the members, so a client of one can't change them: use the operator of the cluster, or its command line",
    )
}

struct MemberListMethod;

impl Method for MemberListMethod {
    type Request = pb::MemberListRequest;
    type Answer = pb::MemberListResponse;

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
        let freshness = call.freshness(!request.linearizable);
        let (header, record) = record(services, call, freshness, Access::Any).await?;
        let member = pb::Member {
            id: header.member_id,
            name: record.name,
            ..pb::Member::default()
        };
        Ok(pb::MemberListResponse {
            header: Some(header),
            members: vec![member],
        }
        .into())
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        ClusterClient::new(channel).member_list(request).await
    }
}
