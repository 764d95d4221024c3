//! The right that each method of a node needs.

/// A way of using data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Reads and writes: the answer of a write tells the caller about a value.
    ReadWrite,
    /// Reads, writes or both: the request has parts, and the service checks each.
    Parts,
}

/// The right that a method needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// No right: anybody may call the method.
    Public,
    /// Any right: the method tells where data is, and whether a node works.
    Route,
    /// The right to use data.
    Data(Access),
    /// The right to administer the cluster. Nodes forward such calls.
    Admin,
    /// The right to administer the node that is called. Nodes never forward such calls.
    NodeAdmin,
    /// The method is for nodes of the cluster. The service checks of which group.
    Member,
}

impl Need {
    /// Returns the words that complete "may not".
    pub(crate) const fn verb(self) -> &'static str {
        match self {
            Self::Public => "call this method",
            Self::Route => "use this cluster",
            Self::Data(Access::Read) => "read",
            Self::Data(Access::Write) => "write",
            Self::Data(Access::ReadWrite) => "read and write",
            Self::Data(Access::Parts) => "read or write",
            Self::Admin => "administer the cluster",
            Self::NodeAdmin => "administer this node",
            Self::Member => "act as a node",
        }
    }
}

const READ: Need = Need::Data(Access::Read);
const WRITE: Need = Need::Data(Access::Write);
const READ_WRITE: Need = Need::Data(Access::ReadWrite);
const PARTS: Need = Need::Data(Access::Parts);
const ADMIN: Need = Need::Admin;

/// The methods of each service, and what they need.
const SERVICES: &[(&str, &[(&str, Need)])] = &[
    ("grpc.health.v1.Health", HEALTH),
    ("grpc.reflection.v1.ServerReflection", REFLECTION),
    ("shardkv.v1.Kv", KV),
    ("shardkv.v1.Keyspaces", KEYSPACES),
    ("shardkv.v1.Shardctrler", CONTROLLERS),
    ("shardkv.v1.Admin", NODE),
    ("shardkv.v1.Handoff", HANDOFF),
    ("shardkv.v1.Raft", RAFT),
    ("etcdserverpb.KV", ETCD_KV),
    ("etcdserverpb.Watch", &[("Watch", READ)]),
    ("etcdserverpb.Lease", ETCD_LEASE),
    ("etcdserverpb.Cluster", ETCD_CLUSTER),
    ("etcdserverpb.Maintenance", ETCD_MAINTENANCE),
    ("etcdserverpb.Auth", ETCD_AUTH),
    ("v3lockpb.Lock", ETCD_LOCK),
    ("v3electionpb.Election", ETCD_ELECTION),
];

/// The load balancer and the kubelet have no identity.
const HEALTH: &[(&str, Need)] = &[
    ("Check", Need::Public),
    ("List", Need::Public),
    ("Watch", Need::Public),
];
const REFLECTION: &[(&str, Need)] = &[("ServerReflectionInfo", Need::Route)];
const KV: &[(&str, Need)] = &[
    ("OpenSession", WRITE),
    ("Get", READ),
    ("Put", WRITE),
    ("Append", WRITE),
    ("Delete", WRITE),
    ("CompareAndSwap", READ_WRITE),
    ("Scan", READ),
    ("Export", READ),
    ("Batch", PARTS),
];
/// The names of keyspaces are names of tenants.
const KEYSPACES: &[(&str, Need)] = &[
    ("Create", ADMIN),
    ("Get", ADMIN),
    ("List", ADMIN),
    ("SetOptions", ADMIN),
    ("Delete", ADMIN),
];
const CONTROLLERS: &[(&str, Need)] = &[
    ("Query", Need::Route),
    ("Watch", Need::Route),
    ("Join", ADMIN),
    ("Leave", ADMIN),
    ("Move", ADMIN),
    ("Forget", ADMIN),
    ("Retire", ADMIN),
    ("OpenSession", ADMIN),
    ("Report", Need::Member),
    ("Cut", Need::Member),
];
const NODE: &[(&str, Need)] = &[
    ("Status", Need::Route),
    ("Shards", Need::NodeAdmin),
    ("TransferLeadership", Need::NodeAdmin),
    ("ChangeMembership", Need::NodeAdmin),
];
const HANDOFF: &[(&str, Need)] = &[
    ("Pull", Need::Member),
    ("Delete", Need::Member),
    ("Copy", Need::Member),
    ("Journal", Need::Member),
];
const RAFT: &[(&str, Need)] = &[
    ("Stream", Need::Member),
    ("Snapshot", Need::Member),
    ("Identify", Need::Member),
];
const ETCD_KV: &[(&str, Need)] = &[
    ("Range", READ),
    ("RangeStream", READ),
    ("Put", WRITE),
    ("DeleteRange", WRITE),
    ("Txn", PARTS),
    ("Compact", WRITE),
];
const ETCD_LEASE: &[(&str, Need)] = &[
    ("LeaseGrant", WRITE),
    ("LeaseRevoke", WRITE),
    ("LeaseKeepAlive", WRITE),
    ("LeaseTimeToLive", READ),
    ("LeaseLeases", READ),
];
const ETCD_CLUSTER: &[(&str, Need)] = &[
    ("MemberList", READ),
    ("MemberAdd", ADMIN),
    ("MemberRemove", ADMIN),
    ("MemberUpdate", ADMIN),
    ("MemberPromote", ADMIN),
];
const ETCD_MAINTENANCE: &[(&str, Need)] = &[
    // Alarms come and go with the space that is left, so deactivating one changes nothing.
    ("Alarm", READ),
    ("Status", READ),
    ("Defragment", WRITE),
    ("Hash", READ),
    ("HashKV", READ),
    ("Snapshot", READ),
    ("MoveLeader", ADMIN),
    ("Downgrade", ADMIN),
];
/// Whoever logs in has no identity yet.
const ETCD_AUTH: &[(&str, Need)] = &[
    ("Authenticate", Need::Public),
    ("AuthStatus", READ),
    ("AuthEnable", ADMIN),
    ("AuthDisable", ADMIN),
    ("UserAdd", ADMIN),
    ("UserGet", ADMIN),
    ("UserList", ADMIN),
    ("UserDelete", ADMIN),
    ("UserChangePassword", ADMIN),
    ("UserGrantRole", ADMIN),
    ("UserRevokeRole", ADMIN),
    ("RoleAdd", ADMIN),
    ("RoleGet", ADMIN),
    ("RoleList", ADMIN),
    ("RoleDelete", ADMIN),
    ("RoleGrantPermission", ADMIN),
    ("RoleRevokePermission", ADMIN),
];
const ETCD_LOCK: &[(&str, Need)] = &[("Lock", READ_WRITE), ("Unlock", WRITE)];
const ETCD_ELECTION: &[(&str, Need)] = &[
    ("Campaign", READ_WRITE),
    ("Proclaim", READ_WRITE),
    ("Leader", READ),
    ("Observe", READ),
    ("Resign", READ_WRITE),
];

/// The paths of the JSON gateway that belong to no method of gRPC. A check of health reads the keyspace, so its answer tells whether the
/// keyspace exists.
const HTTP: &[(&str, Need)] = &[
    ("/version", Need::Public),
    ("/health", READ),
    ("/readyz", READ),
    ("/livez", READ),
];

/// Returns what a call needs by its path: `/<service>/<method>` of gRPC, or a path of the gateway without a method. Returns `None` for a
/// path that no service has.
pub fn need(path: &str) -> Option<Need> {
    let listed = |table: &[(&str, Need)], wanted: &str| {
        let found = table.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, need)| *need)
    };
    let Some((service, method)) = path.strip_prefix('/')?.rsplit_once('/') else {
        return listed(HTTP, path);
    };
    let (_, methods) = SERVICES.iter().find(|(name, _)| *name == service)?;
    listed(methods, method)
}

/// Returns the paths of all methods and of the gateway.
pub fn paths() -> impl Iterator<Item = String> {
    let methods = SERVICES.iter().flat_map(|(service, methods)| {
        let path = move |(method, _): &(&str, Need)| format!("/{service}/{method}");
        methods.iter().map(path)
    });
    methods.chain(HTTP.iter().map(|(path, _)| (*path).to_owned()))
}
