//! Every refusal with its code and text. The texts are etcd's, because etcd's clients compare them; only refusals that etcd
//! doesn't have are worded here.

/// The class of a refusal, by the names of gRPC's status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // gRPC explains its codes.
pub enum Code {
    InvalidArgument,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    OutOfRange,
    ResourceExhausted,
    PermissionDenied,
    Unauthenticated,
    Unknown,
}

/// The refusal of a call. It has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// A key is empty.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// A put keeps the value or the lease of a key that doesn't exist.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// A put keeps the value and gives another.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// A put keeps the lease and gives another.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// A transaction has too many operations.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// A transaction changes a key twice.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// A range names an unknown order.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// The request is too large, or it would change or read too much at once.
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// The revision has been compacted.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted {
        /// The compacted revision, which is the oldest that can be read. A watch that is canceled tells it.
        compacted: i64,
    },
    /// The revision is yet to come.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// The keyspace's quota has no room for the write.
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// There is no such lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// A lease with this id exists.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// A lease may not live so long.
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    /// A read is over its share of bytes, or the keyspace has as many leases as it may.
    #[error("etcdserver: too many requests")]
    TooManyRequests,

    /// Authentication can't be enabled without the user `root`.
    #[error("etcdserver: root user does not exist")]
    RootUserNotExist,
    /// Authentication can't be enabled while the user `root` lacks the role `root`.
    #[error("etcdserver: root user does not have root role")]
    RootRoleNotExist,
    /// A user with this name exists.
    #[error("etcdserver: user name already exists")]
    UserExists,
    /// The name of a user is empty, or the call has no user.
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    /// There is no such user.
    #[error("etcdserver: user name not found")]
    UserNotFound,
    /// A role with this name exists.
    #[error("etcdserver: role name already exists")]
    RoleExists,
    /// There is no such role.
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    /// The name of a role is empty.
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    /// The user doesn't exist, or the password is another.
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    /// The user has no password. etcd has no text of its interface for it, and so no code.
    #[error("auth: authentication failed, password was given for no password user")]
    NoPasswordUser,
    /// A role is to get no permission.
    #[error("etcdserver: permission not given")]
    PermissionNotGiven,
    /// The user has no permission for it.
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    /// The user doesn't have the role.
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    /// The role doesn't have the permission.
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    /// Authentication isn't enabled.
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    /// The token is none of this keyspace, it has expired, or its user has another password now.
    #[error("etcdserver: invalid auth token")]
    InvalidAuthToken,
    /// The change would take from `root` what it needs, or the range of a permission is empty.
    #[error("etcdserver: invalid auth management")]
    InvalidAuthMgmt,
    /// Users, roles or permissions have changed since the server found out who calls.
    #[error("etcdserver: revision of auth store is old")]
    AuthOldRevision,
    /// The keyspace has as many users, roles or permissions as it may.
    #[error(
        "etcdserver: too many users, roles or permissions: remove some that are not needed, or cover several ranges by one permission"
    )]
    AuthTooLarge,

    /// There is no such keyspace, or it was deleted.
    #[error("keyspace not found: create it first, or check the name")]
    KeyspaceNotFound,
    /// A keyspace with this name exists in the shard.
    #[error("keyspace already exists")]
    KeyspaceExists,
    /// A name isn't one of a keyspace.
    #[error(
        "invalid keyspace name: use 1 to 128 of a-z, 0-9, '-' and '.', and begin and end with a letter or digit"
    )]
    InvalidName,
    /// An option of a keyspace is out of range.
    #[error("invalid keyspace option: the quota and the retention of compaction must be above 0")]
    InvalidOption,
    /// The shard holds as many keyspaces as it may.
    #[error(
        "too many keyspaces in this shard: delete some that are not needed, or choose another name"
    )]
    TooManyKeyspaces,
    /// An expiry was decided in another term or configuration, so the lease may have been renewed since, or for an earlier grant
    /// of a lease with the same id.
    #[error(
        "the expiry of the lease was decided under another leader, or for an earlier lease with its id: it is decided again"
    )]
    StaleExpiry,
    /// The bytes of the operation are not an operation of this version.
    #[error("malformed operation: upgrade all nodes to one version, and try again")]
    Malformed,
}

impl Refusal {
    /// Returns the class of the refusal.
    pub fn code(self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TooManyOps
            | Self::DuplicateKey
            | Self::InvalidSortOption
            | Self::RequestTooLarge
            | Self::InvalidName
            | Self::InvalidOption
            | Self::UserEmpty
            | Self::RoleEmpty
            | Self::AuthFailed
            | Self::PermissionNotGiven
            | Self::InvalidAuthMgmt
            | Self::AuthOldRevision
            | Self::Malformed => Code::InvalidArgument,
            Self::Compacted { .. } | Self::FutureRevision | Self::LeaseTtlTooLarge => {
                Code::OutOfRange
            }
            Self::NoSpace | Self::TooManyRequests | Self::TooManyKeyspaces | Self::AuthTooLarge => {
                Code::ResourceExhausted
            }
            Self::LeaseNotFound | Self::KeyspaceNotFound => Code::NotFound,
            Self::LeaseExists
            | Self::StaleExpiry
            | Self::RootUserNotExist
            | Self::RootRoleNotExist
            | Self::UserExists
            | Self::UserNotFound
            | Self::RoleExists
            | Self::RoleNotFound
            | Self::RoleNotGranted
            | Self::PermissionNotGranted
            | Self::AuthNotEnabled => Code::FailedPrecondition,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::InvalidAuthToken => Code::Unauthenticated,
            Self::NoPasswordUser => Code::Unknown,
            Self::KeyspaceExists => Code::AlreadyExists,
        }
    }
}
