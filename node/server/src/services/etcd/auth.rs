//! The service `Auth`. Keyspaces have no users and roles of etcd's kind, so each call is answered as an etcd answers whose
//! authentication is not enabled.

use std::sync::Arc;

use api::etcd::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use pb::auth_server::Auth;
use prometheus_client::metrics::histogram::Histogram;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::maintenance::record;
use super::serve::{Answered, Call, EtcdServices, Method};
use super::status::{Failure, finally};
use super::store::Freshness;
use crate::forward::Repeat;
use crate::metrics::Metrics;

/// The service.
pub(crate) struct AuthService(pub(crate) Arc<EtcdServices>);

fn not_enabled<T>() -> Result<Response<T>, Status> {
    let text = "etcdserver: authentication is not enabled";
    Err(finally(Code::FailedPrecondition, text))
}

macro_rules! not_enabled {
    ($($method:ident: $request:ident -> $answer:ident;)*) => {
        #[tonic::async_trait]
        impl Auth for AuthService {
            async fn auth_status(
                &self,
                request: Request<pb::AuthStatusRequest>,
            ) -> Result<Response<pb::AuthStatusResponse>, Status> {
                self.0.serve::<AuthStatusMethod>(request).await
            }

            $(async fn $method(
                &self,
                _: Request<pb::$request>,
            ) -> Result<Response<pb::$answer>, Status> {
                not_enabled()
            })*
        }
    };
}

not_enabled! {
    auth_enable: AuthEnableRequest -> AuthEnableResponse;
    auth_disable: AuthDisableRequest -> AuthDisableResponse;
    authenticate: AuthenticateRequest -> AuthenticateResponse;
    user_add: AuthUserAddRequest -> AuthUserAddResponse;
    user_get: AuthUserGetRequest -> AuthUserGetResponse;
    user_list: AuthUserListRequest -> AuthUserListResponse;
    user_delete: AuthUserDeleteRequest -> AuthUserDeleteResponse;
    user_change_password: AuthUserChangePasswordRequest -> AuthUserChangePasswordResponse;
    user_grant_role: AuthUserGrantRoleRequest -> AuthUserGrantRoleResponse;
    user_revoke_role: AuthUserRevokeRoleRequest -> AuthUserRevokeRoleResponse;
    role_add: AuthRoleAddRequest -> AuthRoleAddResponse;
    role_get: AuthRoleGetRequest -> AuthRoleGetResponse;
    role_list: AuthRoleListRequest -> AuthRoleListResponse;
    role_delete: AuthRoleDeleteRequest -> AuthRoleDeleteResponse;
    role_grant_permission: AuthRoleGrantPermissionRequest -> AuthRoleGrantPermissionResponse;
    role_revoke_permission: AuthRoleRevokePermissionRequest -> AuthRoleRevokePermissionResponse;
}

struct AuthStatusMethod;

impl Method for AuthStatusMethod {
    type Request = pb::AuthStatusRequest;
    type Answer = pb::AuthStatusResponse;

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
        let (header, _) = record(services, call, Freshness::Linearizable).await?;
        Ok(pb::AuthStatusResponse {
            header: Some(header),
            enabled: false,
            // As of an etcd without users.
            auth_revision: 1,
        }
        .into())
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        AuthClient::new(channel).auth_status(request).await
    }
}
