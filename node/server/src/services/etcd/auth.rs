//! The service `Auth`. Keyspaces have no users and roles of etcd's kind, so each call is answered as an etcd answers whose
//! authentication is not enabled and which has neither. No user and no role can be added.

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

/// Refuses a call whose precondition doesn't hold: there are no users, no roles, and no authentication.
fn lacking(what: &str) -> Status {
    finally(Code::FailedPrecondition, format!("etcdserver: {what}"))
}

/// Refuses to add a user or a role.
fn not_added(what: &str, name: &str) -> Status {
    if name.is_empty() {
        let text = format!("etcdserver: {what} name is empty");
        return finally(Code::InvalidArgument, text);
    }
    let text = format!(
        "keyspaces have no {what}s, so none can be added: whoever reaches the port may use them, so bound that by the network"
    );
    finally(Code::Unimplemented, text)
}

macro_rules! auth {
    (
        add { $($add:ident: $add_request:ident -> $add_answer:ident = $kind:literal;)* }
        lacking { $($method:ident: $request:ident -> $answer:ident = $what:literal;)* }
        empty { $($empty:ident: $asked:ident -> $told:ident = $marker:ident { $($field:ident: $value:expr),* };)* }
    ) => {
        #[tonic::async_trait]
        impl Auth for AuthService {
            $(async fn $add(
                &self,
                request: Request<pb::$add_request>,
            ) -> Result<Response<pb::$add_answer>, Status> {
                Err(not_added($kind, &request.into_inner().name))
            })*

            $(async fn $method(
                &self,
                _: Request<pb::$request>,
            ) -> Result<Response<pb::$answer>, Status> {
                Err(lacking($what))
            })*

            $(async fn $empty(
                &self,
                request: Request<pb::$asked>,
            ) -> Result<Response<pb::$told>, Status> {
                self.0.serve::<$marker>(request).await
            })*
        }

        $(struct $marker;

        impl Method for $marker {
            type Request = pb::$asked;
            type Answer = pb::$told;

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
                let header = Some(header);
                Ok(pb::$told { header, $($field: $value),* }.into())
            }

            async fn there(
                channel: Channel,
                request: Request<Self::Request>,
            ) -> Result<Response<Self::Answer>, Status> {
                AuthClient::new(channel).$empty(request).await
            }
        })*
    };
}

auth! {
    add {
        user_add: AuthUserAddRequest -> AuthUserAddResponse = "user";
        role_add: AuthRoleAddRequest -> AuthRoleAddResponse = "role";
    }
    lacking {
        auth_enable: AuthEnableRequest -> AuthEnableResponse = "root user does not exist";
        authenticate: AuthenticateRequest -> AuthenticateResponse = "authentication is not enabled";
        user_get: AuthUserGetRequest -> AuthUserGetResponse = "user name not found";
        user_delete: AuthUserDeleteRequest -> AuthUserDeleteResponse = "user name not found";
        user_change_password: AuthUserChangePasswordRequest -> AuthUserChangePasswordResponse = "user name not found";
        user_grant_role: AuthUserGrantRoleRequest -> AuthUserGrantRoleResponse = "user name not found";
        user_revoke_role: AuthUserRevokeRoleRequest -> AuthUserRevokeRoleResponse = "user name not found";
        role_get: AuthRoleGetRequest -> AuthRoleGetResponse = "role name not found";
        role_delete: AuthRoleDeleteRequest -> AuthRoleDeleteResponse = "role name not found";
        role_grant_permission: AuthRoleGrantPermissionRequest -> AuthRoleGrantPermissionResponse = "role name not found";
        role_revoke_permission: AuthRoleRevokePermissionRequest -> AuthRoleRevokePermissionResponse = "role name not found";
    }
    empty {
        // As of an etcd without users.
        auth_status: AuthStatusRequest -> AuthStatusResponse = AuthStatusMethod { enabled: false, auth_revision: 1 };
        // It is disabled already.
        auth_disable: AuthDisableRequest -> AuthDisableResponse = AuthDisableMethod {};
        user_list: AuthUserListRequest -> AuthUserListResponse = UserListMethod { users: Vec::new() };
        role_list: AuthRoleListRequest -> AuthRoleListResponse = RoleListMethod { roles: Vec::new() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_roles_are_refused_with_a_text_that_says_why() {
        let empty = not_added("user", "");
        assert_eq!(empty.code(), Code::InvalidArgument);
        assert_eq!(empty.message(), "etcdserver: user name is empty");
        let root = not_added("user", "root");
        assert_eq!(root.code(), Code::Unimplemented);
        assert!(root.message().contains("have no users"), "{root}");
        let enabled = lacking("root user does not exist");
        assert_eq!(enabled.code(), Code::FailedPrecondition);
        let text = "etcdserver: root user does not exist";
        assert_eq!(enabled.message(), text);
    }
}
