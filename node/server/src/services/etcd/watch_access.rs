//! The right of a stream's caller to watch: asked when a watch is created, and again whenever the permissions may have changed.
//!
//! A stream of a keyspace that asks for no users reads nothing when a watch is created: the feed tells when that changes.

use keyspace::{Access, Refusal, Span};
use raft::StoreError;
use replica::PairReader;

use super::credentials::Credentials;
use super::store::{Found, Identity};
use crate::keyspaces::hub::Followed;

/// The answer of a check, or the refusal of a keyspace that is gone.
type Checked<T> = Result<Result<T, Refusal>, StoreError>;

/// The outcome of a check of all watches.
pub(super) struct Allowed {
    /// True if the keyspace asks for users.
    pub(super) enabled: bool,
    /// The watches that are not allowed any more.
    pub(super) lost: Vec<(i64, Refusal)>,
}

/// The caller of a stream, and what is known of its rights.
pub(super) struct WatchAccess {
    credentials: Credentials,
    /// The number of changes of permissions after which the watches were checked, and whether the keyspace asked for users.
    checked: Option<(u64, bool)>,
}

impl WatchAccess {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            checked: None,
        }
    }

    /// Returns true if the watches were checked after so many changes of permissions.
    pub(super) fn is_checked(&self, permissions: u64) -> bool {
        self.checked
            .is_some_and(|(checked, _)| checked == permissions)
    }

    /// Notes a check. The number of changes was taken before it.
    pub(super) fn checked(&mut self, permissions: u64, enabled: bool) {
        self.checked = Some((permissions, enabled));
    }

    /// Returns true if the keyspace is known to ask for no users.
    pub(super) fn is_open(&self, followed: &Followed) -> bool {
        let permissions = followed.permissions();
        self.checked == Some((permissions, false))
    }

    /// Returns the check of one span.
    pub(super) fn check_one(
        &self,
        identity: Identity,
        span: Span,
    ) -> impl FnOnce(&dyn PairReader) -> Checked<Result<(), Refusal>> + Send + use<> {
        let credentials = self.credentials.clone();
        move |reader| {
            let found = match find(reader, identity)? {
                Ok(found) => found,
                Err(refusal) => return Ok(Err(refusal)),
            };
            credentials
                .allow(reader, &found, Access::Range(&span))
                .map(Ok)
        }
    }

    /// Returns the check of all watches of a stream.
    pub(super) fn check_all(
        &self,
        identity: Identity,
        ranges: Vec<(i64, Span)>,
    ) -> impl FnOnce(&dyn PairReader) -> Checked<Allowed> + Send + use<> {
        let credentials = self.credentials.clone();
        move |reader| {
            let found = match find(reader, identity)? {
                Ok(found) => found,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let mut lost = Vec::new();
            for (id, span) in ranges {
                let access = Access::Range(&span);
                if let Err(refusal) = credentials.still_allow(reader, &found, access)? {
                    lost.push((id, refusal));
                }
            }
            let enabled = found.record.auth.enabled;
            Ok(Ok(Allowed { enabled, lost }))
        }
    }
}

fn find(reader: &dyn PairReader, identity: Identity) -> Checked<Found> {
    let place = identity.place;
    let record = keyspace::record(reader, place)?;
    Ok(record.map(|record| Found { place, record }))
}
