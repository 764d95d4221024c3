//! Decides what a caller may do to a keyspace, in one state. The order of the checks is etcd's, and so are the refusals.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;

use bytes::Bytes;
use raft::StoreError;
use replica::{Order, PairReader};

use super::permissions::Permissions;
use super::rows::{User, read_role, read_user};
use super::{Principal, ROOT};
use crate::failure::Failure;
use crate::keys::{Table, split_lease_key};
use crate::lease::read_lease_keys;
use crate::limits::Budget;
use crate::rows::damaged;
use crate::store::Rows;
use crate::view::{borrowed, whole};
use crate::{DeleteRange, LeaseId, Op, Place, Put, Record, Refusal, Span, Txn, Write};

/// The access that a caller wants outside of the log.
#[derive(Clone, Copy, Debug)]
pub enum Access<'a> {
    /// A right of each user.
    Any,
    /// A right of `root` alone.
    Root,
    /// Reads a span.
    Range(&'a Span),
    /// Carries out a transaction.
    Txn(&'a Txn),
    /// Renews a lease: the caller must be able to write its keys.
    Renew(LeaseId),
    /// Lists the keys of a lease: the caller must be able to read them.
    LeaseKeys(LeaseId),
    /// Lists all leases: the caller must be able to read the keys of all of them.
    Leases,
    /// Reads a user, which each user may do of itself.
    User(&'a str),
    /// Reads a role, which each user may do who has it.
    Role(&'a str),
}

/// Checks that a caller may do something. Everybody may do everything unless authentication is enabled.
pub fn check_access(
    reader: &dyn PairReader,
    place: Place,
    record: &Record,
    caller: Option<&Principal>,
    access: Access<'_>,
) -> Result<Result<(), Refusal>, StoreError> {
    if !record.auth.enabled {
        return Ok(Ok(()));
    }
    let budget = Budget::of_read(u64::MAX);
    let check = || Guard::new(reader, place, record, caller, budget)?.access(access);
    Failure::split(check())
}

/// A caller of a keyspace whose authentication is enabled.
pub(crate) struct Guard<'a> {
    reader: &'a dyn PairReader,
    place: Place,
    revision: u64,
    caller: Option<&'a Principal>,
    /// The caller, if the user exists.
    user: Option<User>,
    permissions: OnceCell<Permissions>,
    /// The leases whose keys were checked, and the keys that may still be visited.
    leases: RefCell<(BTreeSet<LeaseId>, Budget)>,
}

impl<'a> Guard<'a> {
    pub(crate) fn new(
        reader: &'a dyn PairReader,
        place: Place,
        record: &Record,
        caller: Option<&'a Principal>,
        budget: Budget,
    ) -> Result<Self, StoreError> {
        let user = match caller {
            Some(principal) => read_user(reader, place, &principal.user)?,
            None => None,
        };
        Ok(Self {
            reader,
            place,
            revision: record.auth.revision,
            caller,
            user,
            permissions: OnceCell::new(),
            leases: RefCell::new((BTreeSet::new(), budget)),
        })
    }

    /// Checks a write of the log. Steps of the leader and of those who manage keyspaces need no user.
    pub(crate) fn write(&self, write: &Write) -> Result<(), Failure> {
        match write {
            Write::Put(put) => self.put(put),
            Write::DeleteRange(request) => self.delete_range(request),
            Write::Txn(txn) => self.txn(txn),
            Write::Grant { .. } => self.any(),
            Write::Revoke { id } => {
                self.any()?;
                self.lease_puts(*id)
            }
            Write::Auth(_) => self.root(),
            // The leader compacts without a user. The server checks that a client has one.
            Write::Compact { .. } if self.caller.is_some() => self.root(),
            Write::Compact { .. }
            | Write::Clear
            | Write::Expire { .. }
            | Write::SetOptions(_)
            | Write::Delete
            | Write::As { .. } => Ok(()),
        }
    }

    fn access(&self, access: Access<'_>) -> Result<(), Failure> {
        match access {
            Access::Any => self.any(),
            Access::Root => self.root(),
            Access::Range(span) => self.read(span),
            Access::Txn(txn) => self.txn(txn),
            Access::Renew(id) => {
                self.any()?;
                self.lease_puts(id)
            }
            Access::LeaseKeys(id) => self.lease_keys(id),
            Access::Leases => self.leases(),
            Access::User(name) => {
                let own = self.caller.is_some_and(|caller| caller.user == name);
                if own { Ok(()) } else { self.root() }
            }
            Access::Role(name) => {
                let has = self.user.as_ref().is_some_and(|user| user.has(name));
                if has { Ok(()) } else { self.root() }
            }
        }
    }

    fn any(&self) -> Result<(), Failure> {
        match self.caller {
            Some(_) => Ok(()),
            None => Err(Refusal::UserEmpty.into()),
        }
    }

    fn root(&self) -> Result<(), Failure> {
        if self.caller.is_none_or(|caller| caller.user.is_empty()) {
            return Err(Refusal::UserEmpty.into());
        }
        match &self.user {
            None => Err(Refusal::UserNotFound.into()),
            Some(user) if user.has(ROOT) => Ok(()),
            Some(_) => Err(Refusal::PermissionDenied.into()),
        }
    }

    /// Checks that the caller has a permission, if not all of them.
    fn permitted(&self, has: impl FnOnce(&Permissions) -> bool) -> Result<(), Failure> {
        let caller = self.caller.ok_or(Refusal::UserEmpty)?;
        if caller.revision != self.revision {
            return Err(Refusal::AuthOldRevision.into());
        }
        let user = self.user.as_ref().ok_or(Refusal::PermissionDenied)?;
        if user.has(ROOT) || has(self.permissions(user)?) {
            return Ok(());
        }
        Err(Refusal::PermissionDenied.into())
    }

    fn permissions(&self, user: &User) -> Result<&Permissions, StoreError> {
        if let Some(permissions) = self.permissions.get() {
            return Ok(permissions);
        }
        let mut all = Vec::new();
        for name in &user.roles {
            // As in etcd, a role that was deleted gives nothing.
            if let Some(role) = read_role(self.reader, self.place, name)? {
                all.extend(role.permissions);
            }
        }
        let merged = Permissions::new(all.into_iter());
        Ok(self.permissions.get_or_init(|| merged))
    }

    fn read(&self, span: &Span) -> Result<(), Failure> {
        self.permitted(|permissions| permissions.may_read(span))
    }

    fn change(&self, span: &Span) -> Result<(), Failure> {
        self.permitted(|permissions| permissions.may_write(span))
    }

    fn put(&self, put: &Put) -> Result<(), Failure> {
        let span = Span::Key(put.key.clone());
        self.change(&span)?;
        // Whoever attaches a key to a lease could delete the lease's other keys with it.
        self.lease_puts(put.lease)?;
        if put.prev_kv {
            self.read(&span)?;
        }
        Ok(())
    }

    fn delete_range(&self, request: &DeleteRange) -> Result<(), Failure> {
        if request.prev_kv {
            self.read(&request.span)?;
        }
        self.change(&request.span)
    }

    fn txn(&self, txn: &Txn) -> Result<(), Failure> {
        for compare in &txn.compare {
            self.read(&compare.span)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                Op::Range(range) => self.read(&range.span)?,
                Op::Put(put) => self.put(put)?,
                Op::DeleteRange(request) => self.delete_range(request)?,
                Op::Txn(nested) => self.txn(nested)?,
            }
        }
        Ok(())
    }

    fn lease_puts(&self, id: LeaseId) -> Result<(), Failure> {
        self.keys_of(id, Self::change)
    }

    fn lease_keys(&self, id: LeaseId) -> Result<(), Failure> {
        self.any()?;
        self.keys_of(id, Self::read)
    }

    /// Checks each key of a lease. `root` may do it without a look at them, and so may anybody with a lease that has none.
    fn keys_of(
        &self,
        id: LeaseId,
        check: impl Fn(&Self, &Span) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if id == LeaseId::NONE || self.root().is_ok() {
            return Ok(());
        }
        let mut leases = self.leases.borrow_mut();
        if !leases.0.insert(id) {
            return Ok(());
        }
        for key in read_lease_keys(self.reader, self.place, id)? {
            leases.1.visit()?;
            check(self, &Span::Key(key))?;
        }
        Ok(())
    }

    fn leases(&self) -> Result<(), Failure> {
        self.any()?;
        if self.root().is_ok() {
            return Ok(());
        }
        let bounds = whole(self.place, Table::LeaseKeys);
        let mut cursor = Rows::new(self.reader, borrowed(&bounds), Order::Ascending)?;
        while let Some((stored, _)) = cursor.next()? {
            let key: Option<Bytes> = split_lease_key(&stored);
            let key = key.ok_or_else(|| damaged("a lease's key", &"bad key"))?;
            self.read(&Span::Key(key))?;
        }
        Ok(())
    }
}
