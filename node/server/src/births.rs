//! The least births of sessions, as far as this node knows them.
//!
//! A shard refuses a session that is new to it and was born before one that the shard has forgotten. A group opens no session below
//! its own horizons, but those of another group may be ahead, and a client that opens its sessions at one node would be refused there again and
//! again. So a refusal names the least birth, and a node that passes it on opens no session below it from then on.

use std::sync::atomic::{AtomicU64, Ordering};

use api::v1::ErrorDetail;
use api::v1::error_detail::Kind;
use types::LogTime;

/// Remembers the least births of sessions that are new at each shard.
#[derive(Debug, Default)]
pub(crate) struct Births {
    /// The least birth at this node's own group.
    own: AtomicU64,
    /// The greatest that other groups have named.
    elsewhere: AtomicU64,
}

impl Births {
    /// Takes in the least birth at this node's own group.
    pub(crate) fn set_own(&self, least: LogTime) {
        self.own.store(least.0, Ordering::Relaxed);
    }

    /// Adds the least birth to a refusal by this node's own group.
    pub(crate) fn complete(&self, mut error: ErrorDetail) -> ErrorDetail {
        if let Some(Kind::SessionExpired(expired)) = &mut error.kind {
            expired.min_birth = self.own.load(Ordering::Relaxed);
        }
        error
    }

    /// Takes in a refusal by another group.
    pub(crate) fn note(&self, error: &ErrorDetail) {
        if let Some(Kind::SessionExpired(expired)) = &error.kind {
            self.elsewhere
                .fetch_max(expired.min_birth, Ordering::Relaxed);
        }
    }

    /// Returns the least birth of a session for a caller who asks for at least `asked`.
    pub(crate) fn least(&self, asked: u64) -> LogTime {
        LogTime(asked.max(self.elsewhere.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use api::errors;

    use super::*;

    #[test]
    fn a_session_is_born_no_earlier_than_another_groups_refusal_asks_for() {
        let (refusing, asked) = (Births::default(), Births::default());
        assert_eq!(asked.least(0), LogTime(0));
        refusing.set_own(LogTime(400));
        asked.note(&refusing.complete(errors::session_expired()));
        assert_eq!(asked.least(0), LogTime(400));
        refusing.set_own(LogTime(300));
        asked.note(&refusing.complete(errors::session_expired()));
        assert_eq!(asked.least(0), LogTime(400), "it never falls");
        assert_eq!(asked.least(450), LogTime(450));
    }

    #[test]
    fn other_refusals_say_nothing_about_births() {
        let births = Births::default();
        births.set_own(LogTime(9));
        for error in [errors::shard_not_ready(1), errors::wrong_group(5)] {
            assert_eq!(births.complete(error.clone()), error);
            births.note(&error);
        }
        assert_eq!(births.least(0), LogTime(0));
    }
}
