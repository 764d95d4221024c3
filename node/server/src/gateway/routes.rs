//! The paths of the gateway.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MessageDescriptor, MethodDescriptor};
use tonic::codegen::http::{Method as HttpMethod, Request};
use tonic::{Code, Status};

/// The prefixes of the API's versions. Each serves the same.
const PREFIXES: [&str; 2] = ["/v3/", "/v3beta/"];

/// The paths after the prefix, and their methods.
const METHODS: &[(&str, &str, &str)] = &[
    ("kv/range", "etcdserverpb.KV", "Range"),
    ("kv/put", "etcdserverpb.KV", "Put"),
    ("kv/deleterange", "etcdserverpb.KV", "DeleteRange"),
    ("kv/txn", "etcdserverpb.KV", "Txn"),
    ("kv/compaction", "etcdserverpb.KV", "Compact"),
    ("watch", "etcdserverpb.Watch", "Watch"),
    ("lease/grant", "etcdserverpb.Lease", "LeaseGrant"),
    ("lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("kv/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("lease/keepalive", "etcdserverpb.Lease", "LeaseKeepAlive"),
    ("lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    (
        "kv/lease/timetolive",
        "etcdserverpb.Lease",
        "LeaseTimeToLive",
    ),
    ("lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("kv/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("cluster/member/add", "etcdserverpb.Cluster", "MemberAdd"),
    (
        "cluster/member/remove",
        "etcdserverpb.Cluster",
        "MemberRemove",
    ),
    (
        "cluster/member/update",
        "etcdserverpb.Cluster",
        "MemberUpdate",
    ),
    ("cluster/member/list", "etcdserverpb.Cluster", "MemberList"),
    (
        "cluster/member/promote",
        "etcdserverpb.Cluster",
        "MemberPromote",
    ),
    ("maintenance/alarm", "etcdserverpb.Maintenance", "Alarm"),
    ("maintenance/status", "etcdserverpb.Maintenance", "Status"),
    (
        "maintenance/defragment",
        "etcdserverpb.Maintenance",
        "Defragment",
    ),
    ("maintenance/hash", "etcdserverpb.Maintenance", "HashKV"),
    (
        "maintenance/snapshot",
        "etcdserverpb.Maintenance",
        "Snapshot",
    ),
    (
        "maintenance/transfer-leadership",
        "etcdserverpb.Maintenance",
        "MoveLeader",
    ),
    (
        "maintenance/downgrade",
        "etcdserverpb.Maintenance",
        "Downgrade",
    ),
    ("auth/enable", "etcdserverpb.Auth", "AuthEnable"),
    ("auth/disable", "etcdserverpb.Auth", "AuthDisable"),
    ("auth/status", "etcdserverpb.Auth", "AuthStatus"),
    ("auth/authenticate", "etcdserverpb.Auth", "Authenticate"),
    ("auth/user/add", "etcdserverpb.Auth", "UserAdd"),
    ("auth/user/get", "etcdserverpb.Auth", "UserGet"),
    ("auth/user/list", "etcdserverpb.Auth", "UserList"),
    ("auth/user/delete", "etcdserverpb.Auth", "UserDelete"),
    (
        "auth/user/changepw",
        "etcdserverpb.Auth",
        "UserChangePassword",
    ),
    ("auth/user/grant", "etcdserverpb.Auth", "UserGrantRole"),
    ("auth/user/revoke", "etcdserverpb.Auth", "UserRevokeRole"),
    ("auth/role/add", "etcdserverpb.Auth", "RoleAdd"),
    ("auth/role/get", "etcdserverpb.Auth", "RoleGet"),
    ("auth/role/list", "etcdserverpb.Auth", "RoleList"),
    ("auth/role/delete", "etcdserverpb.Auth", "RoleDelete"),
    (
        "auth/role/grant",
        "etcdserverpb.Auth",
        "RoleGrantPermission",
    ),
    (
        "auth/role/revoke",
        "etcdserverpb.Auth",
        "RoleRevokePermission",
    ),
    ("lock/lock", "v3lockpb.Lock", "Lock"),
    ("lock/unlock", "v3lockpb.Lock", "Unlock"),
    ("election/campaign", "v3electionpb.Election", "Campaign"),
    ("election/proclaim", "v3electionpb.Election", "Proclaim"),
    ("election/leader", "v3electionpb.Election", "Leader"),
    ("election/observe", "v3electionpb.Election", "Observe"),
    ("election/resign", "v3electionpb.Election", "Resign"),
];

/// The descriptors of etcd's services. They were compiled with the crate, so they can be read.
static POOL: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(api::etcd::DESCRIPTORS).ok());

/// The way in which a request is answered.
#[derive(Debug)]
pub(super) enum Route {
    /// By a method.
    Method(Method),
    /// With the version.
    Version,
    /// By a health check.
    Check(Check),
    /// Not at all.
    Refused(Status),
}

/// A health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// `/health`: linearizable, unless the query says otherwise.
    Health,
    /// `/readyz`: the keyspace can be read and written.
    Ready,
    /// `/livez`: the node answers.
    Live,
}

/// A method of a gRPC service.
#[derive(Clone, Debug)]
pub(super) struct Method(MethodDescriptor);

impl Method {
    /// Returns a method by the names of its service and of itself.
    pub(super) fn named(service: &str, name: &str) -> Option<Self> {
        let service = POOL.as_ref()?.get_service_by_name(service)?;
        service.methods().find(|it| it.name() == name).map(Self)
    }

    /// Returns the path of the method in gRPC.
    pub(super) fn path(&self) -> String {
        let service = self.0.parent_service().full_name();
        format!("/{service}/{}", self.0.name())
    }

    pub(super) fn request(&self) -> MessageDescriptor {
        self.0.input()
    }

    pub(super) fn answer(&self) -> MessageDescriptor {
        self.0.output()
    }

    pub(super) fn streams_requests(&self) -> bool {
        self.0.is_client_streaming()
    }

    pub(super) fn streams_answers(&self) -> bool {
        self.0.is_server_streaming()
    }
}

/// Returns the way in which a request is answered; `None` if it isn't the gateway's.
pub(super) fn of<B>(request: &Request<B>) -> Option<Route> {
    let path = request.uri().path();
    let gets = request.method() == HttpMethod::GET;
    match path {
        "/version" if gets => return Some(Route::Version),
        "/health" if gets => return Some(Route::Check(Check::Health)),
        "/readyz" if gets => return Some(Route::Check(Check::Ready)),
        "/livez" if gets => return Some(Route::Check(Check::Live)),
        _ => {}
    }
    let rest = PREFIXES
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix))?;
    let listed = METHODS.iter().find(|(path, _, _)| *path == rest);
    let method = listed.and_then(|(_, service, name)| Method::named(service, name));
    Some(match method {
        Some(_) if request.method() != HttpMethod::POST => {
            Route::Refused(Status::new(Code::Unimplemented, "Method Not Allowed"))
        }
        Some(method) => Route::Method(method),
        None => Route::Refused(Status::new(Code::NotFound, "Not Found")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_listed_method_exists() {
        for (path, service, name) in METHODS {
            let method = Method::named(service, name);
            let method = method.unwrap_or_else(|| panic!("{path}: no {service}/{name}"));
            assert_eq!(method.path(), format!("/{service}/{name}"));
        }
        assert!(Method::named("etcdserverpb.KV", "Nope").is_none());
    }

    #[test]
    fn a_path_leads_to_one_answer() {
        let route = |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(path);
            match of(&request.body(()).unwrap()) {
                None => "none".to_owned(),
                Some(Route::Method(method)) => method.path(),
                Some(Route::Version) => "version".to_owned(),
                Some(Route::Check(check)) => format!("{check:?}"),
                Some(Route::Refused(status)) => status.message().to_owned(),
            }
        };
        for (method, path, expected) in [
            ("POST", "/v3/kv/range", "/etcdserverpb.KV/Range"),
            ("POST", "/v3beta/watch", "/etcdserverpb.Watch/Watch"),
            (
                "POST",
                "/v3/kv/lease/revoke",
                "/etcdserverpb.Lease/LeaseRevoke",
            ),
            ("GET", "/v3/kv/range", "Method Not Allowed"),
            ("POST", "/v3/kv/nope", "Not Found"),
            ("POST", "/v3/", "Not Found"),
            ("GET", "/version", "version"),
            ("GET", "/health?serializable=true", "Health"),
            ("GET", "/readyz?verbose", "Ready"),
            ("GET", "/livez", "Live"),
            ("POST", "/health", "none"),
            ("GET", "/", "none"),
            ("POST", "/etcdserverpb.KV/Range", "none"),
            ("POST", "/shardkv.v1.Kv/Get", "none"),
        ] {
            assert_eq!(route(method, path), expected, "{method} {path}");
        }
    }
}
