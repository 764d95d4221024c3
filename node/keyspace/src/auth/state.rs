//! The part of a keyspace's record that concerns authentication.

use bytes::Bytes;
use types::{DecodeError, Reader, Writer};

/// The state of a keyspace's authentication. It is part of the record, so a keyspace that never had users pays nothing for it.
///
/// Invariants: `users`, `roles` and `bytes` are the numbers and the sizes of the rows of users and roles; there is a secret while
/// authentication is enabled, and none otherwise.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthState {
    /// True if permissions are enforced.
    pub enabled: bool,
    /// The number of changes of users, roles and permissions. It begins at 1.
    pub revision: u64,
    /// The secret of the server's tokens.
    pub secret: Bytes,
    /// The number of users.
    pub users: u32,
    /// The number of roles.
    pub roles: u32,
    /// The bytes of users and roles, which count against the quota.
    pub bytes: u64,
}

impl Default for AuthState {
    fn default() -> Self {
        Self {
            enabled: false,
            revision: 1,
            secret: Bytes::new(),
            users: 0,
            roles: 0,
            bytes: 0,
        }
    }
}

/// Shows no secret.
impl std::fmt::Debug for AuthState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthState")
            .field("enabled", &self.enabled)
            .field("revision", &self.revision)
            .field("users", &self.users)
            .field("roles", &self.roles)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl AuthState {
    pub(crate) fn encode(&self, out: &mut Writer) {
        out.byte(self.enabled.into())
            .number(self.revision)
            .bytes(&self.secret)
            .number(self.users.into())
            .number(self.roles.into())
            .number(self.bytes);
    }

    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            enabled: input.flag("enabled")?,
            revision: input.number("auth revision")?,
            secret: input.bytes("secret")?,
            users: input.number_u32("users")?,
            roles: input.number_u32("roles")?,
            bytes: input.number("auth bytes")?,
        })
    }
}
