//! Operations of the log.

use std::num::NonZeroU64;

use bytes::Bytes;
use raft::Term;
use types::{ConfigNum, ShardId};

use crate::auth::{self, AuthWrite, Principal};
use crate::{
    DeleteRange, KeyspaceId, KeyspaceOptions, LeaseId, Limits, Place, Put, Refusal, Txn, check,
    check_name,
};

/// An operation of the log: what to do in which shard, and the limits that the leader stamped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The shard.
    pub shard: ShardId,
    /// The cluster id of the keyspace that is meant, so that an id of before a shard was lost never means another keyspace; `None`
    /// for any, as steps of the leader and creations have.
    pub cluster_id: Option<NonZeroU64>,
    /// The limits.
    pub limits: Limits,
    /// The action.
    pub action: Action,
}

/// The action of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Creates a keyspace in the shard.
    Create {
        /// Its name.
        name: String,
        /// Its options.
        options: KeyspaceOptions,
        /// A random number that the server draws: the [cluster id](crate::Record::cluster_id) of the new keyspace.
        nonce: NonZeroU64,
    },
    /// Acts on a keyspace.
    In(KeyspaceId, Write),
}

/// A write to a keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(Put),
    /// Deletes the keys of a span.
    DeleteRange(DeleteRange),
    /// Carries out a transaction.
    Txn(Txn),
    /// Compacts the revisions before this one.
    Compact {
        /// The revision.
        revision: i64,
    },
    /// Clears the next rows that compaction or deletion has left.
    Clear,
    /// Grants a lease. The server draws an id if the client names none.
    Grant {
        /// The lease.
        id: LeaseId,
        /// The time to live, in seconds.
        ttl: i64,
    },
    /// Revokes a lease and deletes its keys.
    Revoke {
        /// The lease.
        id: LeaseId,
    },
    /// Revokes a lease that has expired. It is refused under another leader or configuration than the one that decided it,
    /// because a lease may have been renewed there, and if the lease was granted again under the same id.
    Expire {
        /// The lease.
        id: LeaseId,
        /// The grant that has expired.
        grant: u64,
        /// The term of the leader that decided it.
        term: Term,
        /// The configuration in which it was decided.
        config: ConfigNum,
    },
    /// Sets the options.
    SetOptions(KeyspaceOptions),
    /// Changes users, roles and permissions.
    Auth(AuthWrite),
    /// Carries out a write for a user, if the user may do it.
    As {
        /// The user.
        caller: Principal,
        /// The write, which is no other `As`.
        write: Box<Write>,
    },
    /// Deletes the keyspace: it is gone at once, and steps of clearing remove its rows.
    Delete,
}

impl Write {
    /// Returns the write, and the user for whom it is carried out.
    pub fn caller(&self) -> (Option<&Principal>, &Self) {
        match self {
            Self::As { caller, write } => (Some(caller), write),
            write => (None, write),
        }
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        match self {
            Self::Put(put) => check::check_put(put),
            Self::DeleteRange(request) => check::check_delete_range(request),
            Self::Txn(txn) => check::check_txn(txn, limits),
            Self::SetOptions(options) => options.check(),
            Self::Auth(write) => auth::check(write),
            Self::As { caller, write } => {
                if caller.user.len() > auth::MAX_AUTH_NAME_BYTES {
                    return Err(Refusal::RequestTooLarge);
                }
                if matches!(**write, Self::As { .. }) {
                    return Err(Refusal::Malformed);
                }
                write.check(limits)
            }
            _ => Ok(()),
        }
    }
}

impl Operation {
    /// Checks all that needs no state. `bytes` is the encoded size.
    pub fn check(&self, bytes: usize) -> Result<(), Refusal> {
        match &self.action {
            Action::Create { name, options, .. } => {
                check_name(name)?;
                options.check()?;
            }
            Action::In(_, write) => write.check(&self.limits)?,
        }
        self.check_size(bytes)
    }

    fn check_size(&self, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.limits.max_request_bytes as usize {
            return Err(Refusal::RequestTooLarge);
        }
        Ok(())
    }

    /// Returns the place of the keyspace, unless the operation creates it.
    pub fn place(&self) -> Option<Place> {
        match self.action {
            Action::Create { .. } => None,
            Action::In(id, _) => Some(Place {
                shard: self.shard,
                id,
            }),
        }
    }

    /// Decodes and checks the operation of an entry. The size comes first here, because it bounds the cost of the other checks;
    /// a server has told a client with several faults what etcd tells.
    pub(crate) fn read(entry: Bytes) -> Result<Self, Refusal> {
        let bytes = entry.len();
        let operation = Self::decode(entry).map_err(|_| Refusal::Malformed)?;
        operation.check_size(bytes)?;
        operation.check(bytes)?;
        Ok(operation)
    }
}
