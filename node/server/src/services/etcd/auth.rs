//! The service `Auth`: users, roles and permissions of one keyspace. The crate [`keyspace`] decides; here passwords are hashed and
//! compared, and tokens are given.

use std::sync::Arc;

use api::errors;
use api::etcd::{authpb, etcdserverpb as pb};
use keyspace::{Access, AuthWrite, Permission, Record, Refusal, Right, User, Write};
use pb::auth_client::AuthClient;
use pb::auth_server::Auth;
use prometheus_client::metrics::histogram::Histogram;
use raft::StoreError;
use replica::PairReader;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::credentials;
use super::serve::{Answered, Call, EtcdServices, Method};
use super::status::Failure;
use super::store::{Extent, Found, Freshness};
use crate::convert::kv::mismatch;
use crate::forward::Repeat;
use crate::metrics::Metrics;

/// The service.
pub(crate) struct AuthService(pub(crate) Arc<EtcdServices>);

macro_rules! auth {
    ($($call:ident: $request:ident -> $answer:ident = $marker:ident, $repeat:ident, $here:path;)*) => {
        #[tonic::async_trait]
        impl Auth for AuthService {
            $(async fn $call(
                &self,
                request: Request<pb::$request>,
            ) -> Result<Response<pb::$answer>, Status> {
                self.0.serve::<$marker>(request).await
            })*
        }

        $(struct $marker;

        impl Method for $marker {
            type Request = pb::$request;
            type Answer = pb::$answer;

            fn repeat(_: &Self::Request) -> Repeat {
                Repeat::$repeat
            }

            fn latency(metrics: &Metrics) -> &Histogram {
                match Repeat::$repeat {
                    Repeat::Never => &metrics.keyspaces.write_seconds,
                    _ => &metrics.keyspaces.read_seconds,
                }
            }

            async fn here(
                services: &EtcdServices,
                call: &Call,
                request: Self::Request,
            ) -> Result<Answered<Self::Answer>, Failure> {
                Ok($here(services, call, request).await?.into())
            }

            async fn there(
                channel: Channel,
                request: Request<Self::Request>,
            ) -> Result<Response<Self::Answer>, Status> {
                let client = AuthClient::new(channel);
                client.max_decoding_message_size(usize::MAX).$call(request).await
            }
        })*
    };
}

auth! {
    auth_enable: AuthEnableRequest -> AuthEnableResponse = AuthEnable, Never, auth_enable;
    auth_disable: AuthDisableRequest -> AuthDisableResponse = AuthDisable, Never, auth_disable;
    auth_status: AuthStatusRequest -> AuthStatusResponse = AuthStatus, Freely, auth_status;
    authenticate: AuthenticateRequest -> AuthenticateResponse = Authenticate, Freely, authenticate;
    user_add: AuthUserAddRequest -> AuthUserAddResponse = UserAdd, Never, user_add;
    user_get: AuthUserGetRequest -> AuthUserGetResponse = UserGet, Freely, user_get;
    user_list: AuthUserListRequest -> AuthUserListResponse = UserList, Freely, user_list;
    user_delete: AuthUserDeleteRequest -> AuthUserDeleteResponse = UserDelete, Never, user_delete;
    user_change_password: AuthUserChangePasswordRequest -> AuthUserChangePasswordResponse = ChangePassword, Never, change_password;
    user_grant_role: AuthUserGrantRoleRequest -> AuthUserGrantRoleResponse = GrantRole, Never, grant_role;
    user_revoke_role: AuthUserRevokeRoleRequest -> AuthUserRevokeRoleResponse = RevokeRole, Never, revoke_role;
    role_add: AuthRoleAddRequest -> AuthRoleAddResponse = RoleAdd, Never, role_add;
    role_get: AuthRoleGetRequest -> AuthRoleGetResponse = RoleGet, Freely, role_get;
    role_list: AuthRoleListRequest -> AuthRoleListResponse = RoleList, Freely, role_list;
    role_delete: AuthRoleDeleteRequest -> AuthRoleDeleteResponse = RoleDelete, Never, role_delete;
    role_grant_permission: AuthRoleGrantPermissionRequest -> AuthRoleGrantPermissionResponse = GrantPermission, Never, grant_permission;
    role_revoke_permission: AuthRoleRevokePermissionRequest -> AuthRoleRevokePermissionResponse = RevokePermission, Never, revoke_permission;
}

type Header = Option<pb::ResponseHeader>;

/// Proposes a change, which is carried out if the caller may do it, and returns the header of its answer.
async fn change(services: &EtcdServices, call: &Call, write: AuthWrite) -> Result<Header, Failure> {
    let keyspaces = &services.keyspaces;
    let write = keyspaces.write(call.target(), Write::Auth(write));
    match write.await? {
        (identity, keyspace::Answer::Done { revision }) => {
            Ok(Some(keyspaces.header(identity.cluster_id, revision)))
        }
        _ => Err(mismatch().into()),
    }
}

/// Reads users or roles, if the caller may do it.
async fn read<T: Send + 'static>(
    services: &EtcdServices,
    call: &Call,
    extent: Extent,
    read: impl FnOnce(&dyn PairReader, &Found) -> Result<Result<T, Refusal>, StoreError>
    + Clone
    + Send
    + 'static,
) -> Result<(Header, T), Failure> {
    let keyspaces = &services.keyspaces;
    let freshness = call.freshness(false);
    let (found, answer) = keyspaces
        .read_extent(extent, &call.keyspace, freshness, read)
        .await?;
    let record = &found.record;
    let header = keyspaces.header(record.cluster_id(), record.revision);
    Ok((Some(header), answer))
}

/// Refuses a caller who may not manage users before a password is hashed for it.
async fn only_root(services: &EtcdServices, call: &Call) -> Result<(), Failure> {
    let credentials = call.credentials.clone();
    let allow = move |reader: &dyn PairReader, found: &Found| {
        credentials.allow(reader, found, Access::Root)
    };
    let keyspaces = &services.keyspaces;
    let checked = keyspaces.read(&call.keyspace, Freshness::Linearizable, allow);
    checked.await?;
    Ok(())
}

async fn auth_enable(
    services: &EtcdServices,
    call: &Call,
    _: pb::AuthEnableRequest,
) -> Result<pb::AuthEnableResponse, Failure> {
    let secret = credentials::secret().map_err(|error| {
        let why = format!("the operating system gave no randomness: {error}");
        errors::unavailable(why, 1_000)
    })?;
    let header = change(services, call, AuthWrite::Enable { secret }).await?;
    Ok(pb::AuthEnableResponse { header })
}

async fn auth_disable(
    services: &EtcdServices,
    call: &Call,
    _: pb::AuthDisableRequest,
) -> Result<pb::AuthDisableResponse, Failure> {
    let header = change(services, call, AuthWrite::Disable).await?;
    Ok(pb::AuthDisableResponse { header })
}

/// Tells everybody whether a token is needed. As in etcd, a call with a bad token is refused.
async fn auth_status(
    services: &EtcdServices,
    call: &Call,
    _: pb::AuthStatusRequest,
) -> Result<pb::AuthStatusResponse, Failure> {
    let credentials = call.credentials.clone();
    let status = move |reader: &dyn PairReader, found: &Found| {
        let principal = credentials.principal(reader, found)?;
        let auth = &found.record.auth;
        Ok(principal.map(|_| (auth.enabled, auth.revision)))
    };
    let (header, status) = read(services, call, Extent::Single, status).await?;
    Ok(pb::AuthStatusResponse {
        header,
        enabled: status.0,
        auth_revision: status.1,
    })
}

/// Gives a token to a user who knows the password. A token is of the password that was compared: if that is changed meanwhile, the
/// token is none.
async fn authenticate(
    services: &EtcdServices,
    call: &Call,
    request: pb::AuthenticateRequest,
) -> Result<pb::AuthenticateResponse, Failure> {
    let name = request.name.clone();
    let find = move |reader: &dyn PairReader, found: &Found| {
        if !found.record.auth.enabled {
            return Ok(Err(Refusal::AuthNotEnabled));
        }
        let user = keyspace::read_user(reader, found.place, &name)?;
        Ok(Ok((user, found.record.clone())))
    };
    let (header, (user, record)): (_, (Option<User>, Record)) =
        read(services, call, Extent::Single, find).await?;
    if user.as_ref().is_some_and(|user| user.hash.is_none()) {
        return Err(Refusal::NoPasswordUser.into());
    }
    let since = user.as_ref().map(|user| user.since);
    let hash = user.and_then(|user| user.hash);
    let passwords = &services.passwords;
    let matches = passwords.matches(&call.keyspace, request.password, hash);
    let matches = matches.await?;
    match since.filter(|_| matches) {
        Some(since) => Ok(pb::AuthenticateResponse {
            header,
            token: credentials::give(&request.name, since, &record),
        }),
        None => Err(Refusal::AuthFailed.into()),
    }
}

async fn user_add(
    services: &EtcdServices,
    call: &Call,
    request: pb::AuthUserAddRequest,
) -> Result<pb::AuthUserAddResponse, Failure> {
    only_root(services, call).await?;
    let no_password = request.options.is_some_and(|options| options.no_password);
    let hash = if no_password {
        None
    } else {
        Some(
            services
                .passwords
                .hash(&call.keyspace, request.password)
                .await?,
        )
    };
    let name = request.name;
    let header = change(services, call, AuthWrite::UserAdd { name, hash }).await?;
    Ok(pb::AuthUserAddResponse { header })
}

/// As in etcd, a client may bring the hash instead of the password, and without both nobody can log in.
async fn change_password(
    services: &EtcdServices,
    call: &Call,
    request: pb::AuthUserChangePasswordRequest,
) -> Result<pb::AuthUserChangePasswordResponse, Failure> {
    only_root(services, call).await?;
    let hash = if request.password.is_empty() {
        let hash = credentials::decode_base64(&request.hashed_password);
        hash.ok_or(Refusal::NoPasswordUser)?
    } else {
        services
            .passwords
            .hash(&call.keyspace, request.password)
            .await?
    };
    let name = request.name;
    let header = change(services, call, AuthWrite::ChangePassword { name, hash }).await?;
    Ok(pb::AuthUserChangePasswordResponse { header })
}

async fn user_get(
    services: &EtcdServices,
    call: &Call,
    request: pb::AuthUserGetRequest,
) -> Result<pb::AuthUserGetResponse, Failure> {
    let (credentials, name) = (call.credentials.clone(), request.name);
    let get = move |reader: &dyn PairReader, found: &Found| {
        credentials.guard(reader, found, Access::User(&name), || {
            let user = keyspace::read_user(reader, found.place, &name)?;
            Ok(user.ok_or(Refusal::UserNotFound))
        })
    };
    let (header, user) = read(services, call, Extent::Single, get).await?;
    let roles = user.roles;
    Ok(pb::AuthUserGetResponse { header, roles })
}

async fn user_list(
    services: &EtcdServices,
    call: &Call,
    _: pb::AuthUserListRequest,
) -> Result<pb::AuthUserListResponse, Failure> {
    let credentials = call.credentials.clone();
    let list = move |reader: &dyn PairReader, found: &Found| {
        credentials.guard(reader, found, Access::Root, || {
            let users = keyspace::read_users(reader, found.place)?;
            Ok(Ok(users.into_iter().map(|(name, _)| name).collect()))
        })
    };
    let (header, users) = read(services, call, Extent::Many, list).await?;
    Ok(pb::AuthUserListResponse { header, users })
}

async fn user_delete(
    services: &EtcdServices,
    call: &Call,
    request: pb::AuthUserDeleteRequest,
) -> Result<pb::AuthUserDeleteResponse, Failure> {
    let name = request.name;
    let header = change(services, call, AuthWrite::UserDelete { name }).await?;
    Ok(pb::AuthUserDeleteResponse { header })
}

async fn grant_role(
    services: &EtcdServices,
    call: &Call,
    request: pb::AuthUserGrantRoleRequest,
) -> Result<pb::AuthUserGrantRoleResponse, Failure> {
    let pb::AuthUserGrantRoleRequest { user, role } = request;
    let header = change(services, call, AuthWrite::GrantRole { user, role }).await?;
    Ok(pb::AuthUserGrantRoleResponse { header })
}

async fn revoke_role(
    services: &EtcdServices,
    call: &Call,
    request: pb::AuthUserRevokeRoleRequest,
) -> Result<pb::AuthUserRevokeRoleResponse, Failure> {
    let pb::AuthUserRevokeRoleRequest { name: user, role } = request;
    let header = change(services, call, AuthWrite::RevokeRole { user, role }).await?;
    Ok(pb::AuthUserRevokeRoleResponse { header })
}

async fn role_add(
    services: &EtcdServices,
    call: &Call,
    request: pb::AuthRoleAddRequest,
) -> Result<pb::AuthRoleAddResponse, Failure> {
    let name = request.name;
    let header = change(services, call, AuthWrite::RoleAdd { name }).await?;
    Ok(pb::AuthRoleAddResponse { header })
}

/// As in etcd, the role `root` is told with all rights.
async fn role_get(
    services: &EtcdServices,
    call: &Call,
    request: pb::AuthRoleGetRequest,
) -> Result<pb::AuthRoleGetResponse, Failure> {
    let (credentials, name) = (call.credentials.clone(), request.role);
    let get = move |reader: &dyn PairReader, found: &Found| {
        credentials.guard(reader, found, Access::Role(&name), || {
            let role = keyspace::read_role(reader, found.place, &name)?;
            let all = || authpb::Permission {
                perm_type: Right::ReadWrite.number(),
                key: bytes::Bytes::new(),
                range_end: bytes::Bytes::from_static(&[0]),
            };
            Ok(role.ok_or(Refusal::RoleNotFound).map(|role| match &*name {
                keyspace::ROOT => vec![all()],
                _ => role.permissions.into_iter().map(permission).collect(),
            }))
        })
    };
    let (header, perm) = read(services, call, Extent::Single, get).await?;
    Ok(pb::AuthRoleGetResponse { header, perm })
}

fn permission(permission: Permission) -> authpb::Permission {
    authpb::Permission {
        perm_type: permission.right.number(),
        key: permission.key,
        range_end: permission.range_end,
    }
}

async fn role_list(
    services: &EtcdServices,
    call: &Call,
    _: pb::AuthRoleListRequest,
) -> Result<pb::AuthRoleListResponse, Failure> {
    let credentials = call.credentials.clone();
    let list = move |reader: &dyn PairReader, found: &Found| {
        credentials.guard(reader, found, Access::Root, || {
            let roles = keyspace::read_roles(reader, found.place)?;
            Ok(Ok(roles.into_iter().map(|(name, _)| name).collect()))
        })
    };
    let (header, roles) = read(services, call, Extent::Many, list).await?;
    Ok(pb::AuthRoleListResponse { header, roles })
}

async fn role_delete(
    services: &EtcdServices,
    call: &Call,
    request: pb::AuthRoleDeleteRequest,
) -> Result<pb::AuthRoleDeleteResponse, Failure> {
    let name = request.role;
    let header = change(services, call, AuthWrite::RoleDelete { name }).await?;
    Ok(pb::AuthRoleDeleteResponse { header })
}

async fn grant_permission(
    services: &EtcdServices,
    call: &Call,
    request: pb::AuthRoleGrantPermissionRequest,
) -> Result<pb::AuthRoleGrantPermissionResponse, Failure> {
    let role = request.name;
    let permission = request.perm.map(|wire| Permission {
        right: Right::from_number(wire.perm_type),
        key: wire.key,
        range_end: wire.range_end,
    });
    let write = AuthWrite::GrantPermission { role, permission };
    let header = change(services, call, write).await?;
    Ok(pb::AuthRoleGrantPermissionResponse { header })
}

async fn revoke_permission(
    services: &EtcdServices,
    call: &Call,
    request: pb::AuthRoleRevokePermissionRequest,
) -> Result<pb::AuthRoleRevokePermissionResponse, Failure> {
    let write = AuthWrite::RevokePermission {
        role: request.role,
        key: request.key,
        range_end: request.range_end,
    };
    let header = change(services, call, write).await?;
    Ok(pb::AuthRoleRevokePermissionResponse { header })
}
