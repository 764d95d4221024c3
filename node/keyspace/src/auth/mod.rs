//! Authentication of a keyspace, with etcd's semantics: users, roles, permissions, and whether they are enforced.
//!
//! # The model
//!
//! A *user* has a password's hash, or none, and roles. A *role* has permissions on ranges of keys. The role `root` has all rights. The
//! *auth revision* counts the changes of all of that. It begins at 1, and is no revision of keys.
//!
//! - [`AuthWrite`] are the changes (the module `manage`).
//! - [`check_access`] decides what a caller may do (the modules `guard` and `permissions`).
//! - [`read_user`], [`read_role`], [`read_users`] and [`read_roles`] answer questions.
//!
//! # A check counts only for the state that it saw
//!
//! A server finds out who calls in some state, and names the user with the auth revision of that state ([`Principal`]). A write is checked in
//! apply, and is refused if the auth revision is another by then ([`crate::Refusal::AuthOldRevision`]): the user may have been deleted and added
//! again. So each write is checked against the state right before it, and a right that was taken away before it in the log doesn't count.
//!
//! # What it doesn't do
//!
//! It hashes no passwords, and makes no tokens: the server does. The record keeps a secret for the server's tokens, which is drawn
//! anew whenever authentication is enabled.

mod guard;
mod manage;
mod permissions;
mod rows;
mod state;

use bytes::Bytes;

pub use guard::{Access, check_access};
pub use rows::{Permission, Right, Role, User, read_role, read_roles, read_user, read_users};
pub use state::AuthState;

pub(crate) use guard::Guard;
pub(crate) use manage::{check, manage};
pub(crate) use rows::{decode_permission, encode_permission, string};

/// The user who may do everything, and can't be deleted while authentication is enabled.
pub const ROOT: &str = "root";

/// The most bytes of the name of a user or a role.
pub(crate) const MAX_AUTH_NAME_BYTES: usize = 1_024;
/// The most bytes of a password's hash.
pub(crate) const MAX_HASH_BYTES: usize = 1_024;
/// The most bytes of the secret of tokens.
pub(crate) const MAX_SECRET_BYTES: usize = 64;
/// The most users of a keyspace.
pub(crate) const MAX_USERS: u32 = 10_000;
/// The most roles of a keyspace.
pub(crate) const MAX_ROLES: u32 = 1_000;
/// The most roles of a user. A write reads all of them.
pub(crate) const MAX_ROLES_OF_USER: usize = 32;
/// The most bytes of a role with its permissions.
pub(crate) const MAX_ROLE_BYTES: usize = 16 << 10;
/// The most bytes of all users and roles of a keyspace. The deletion of a role reads all of them.
pub(crate) const MAX_AUTH_BYTES: u64 = 4 << 20;

/// The user of a call, as of one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The name.
    pub user: String,
    /// The auth revision of the state in which the server found out who calls.
    pub revision: u64,
}

/// A change of users, roles and permissions.
#[derive(Clone, PartialEq, Eq)]
pub enum AuthWrite {
    /// Enforces permissions from now on. There must be a user `root` with the role `root`.
    Enable {
        /// A secret for the tokens of the server, which it draws.
        secret: Bytes,
    },
    /// Enforces nothing any more.
    Disable,
    /// Adds a user.
    UserAdd {
        /// The name.
        name: String,
        /// The hash of the password; `None` for a user who can't log in by password.
        hash: Option<Bytes>,
    },
    /// Deletes a user.
    UserDelete {
        /// The name.
        name: String,
    },
    /// Gives a user another password. A user without a password stays without.
    ChangePassword {
        /// The name.
        name: String,
        /// The hash of the password.
        hash: Bytes,
    },
    /// Gives a role to a user.
    GrantRole {
        /// The user.
        user: String,
        /// The role.
        role: String,
    },
    /// Takes a role from a user.
    RevokeRole {
        /// The user.
        user: String,
        /// The role.
        role: String,
    },
    /// Adds a role.
    RoleAdd {
        /// The name.
        name: String,
    },
    /// Deletes a role, and takes it from all users.
    RoleDelete {
        /// The name.
        name: String,
    },
    /// Gives a permission to a role.
    GrantPermission {
        /// The role.
        role: String,
        /// The permission. As in etcd, a request without one is refused only if the caller may manage roles.
        permission: Option<Permission>,
    },
    /// Takes all permissions on exactly this range from a role.
    RevokePermission {
        /// The role.
        role: String,
        /// The first key.
        key: Bytes,
        /// The end of the range, as etcd writes it.
        range_end: Bytes,
    },
}

/// Shows no hash and no secret.
impl std::fmt::Debug for AuthWrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Enable { .. } => write!(f, "Enable"),
            Self::Disable => write!(f, "Disable"),
            Self::UserAdd { name, hash } => {
                let password = hash.is_some();
                write!(f, "UserAdd({name:?}, password: {password})")
            }
            Self::UserDelete { name } => write!(f, "UserDelete({name:?})"),
            Self::ChangePassword { name, .. } => write!(f, "ChangePassword({name:?})"),
            Self::GrantRole { user, role } => write!(f, "GrantRole({user:?}, {role:?})"),
            Self::RevokeRole { user, role } => write!(f, "RevokeRole({user:?}, {role:?})"),
            Self::RoleAdd { name } => write!(f, "RoleAdd({name:?})"),
            Self::RoleDelete { name } => write!(f, "RoleDelete({name:?})"),
            Self::GrantPermission { role, permission } => {
                write!(f, "GrantPermission({role:?}, {permission:?})")
            }
            Self::RevokePermission {
                role,
                key,
                range_end,
            } => write!(f, "RevokePermission({role:?}, {key:?}, {range_end:?})"),
        }
    }
}
