//! Decisions: what a caller may do.

use crate::intervals::{End, Intervals};
use crate::{Account, Authorizer, Certificate};

/// The map that a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space<'a> {
    /// The flat map of the service `Kv`.
    Flat,
    /// The keyspace with this name, which need not exist.
    Keyspace(&'a str),
}

/// A kind of access to keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Shows keys or values, or tells that there are none.
    Read,
    /// Changes keys.
    Write,
}

/// The rights of one caller under one policy. Asking allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct Rights<'a>(Option<Granted<'a>>);

/// The grants of a caller.
#[derive(Clone, Copy, Debug)]
struct Granted<'a> {
    authorizer: &'a Authorizer,
    certificate: Option<&'a Certificate>,
    account: Option<&'a Account>,
}

impl<'a> Rights<'a> {
    /// Returns the rights of a caller from whom nothing is asked: a connection without TLS where these are taken.
    pub fn everything() -> Self {
        Self(None)
    }

    pub(crate) fn of(
        authorizer: &'a Authorizer,
        certificate: Option<&'a Certificate>,
        account: Option<&'a Account>,
    ) -> Self {
        Self(Some(Granted {
            authorizer,
            certificate,
            account,
        }))
    }

    /// Returns true if the caller may see and change the cluster.
    pub fn admin(&self) -> bool {
        let Some(granted) = &self.0 else { return true };
        granted
            .authorizer
            .subjects(granted.certificate, granted.account)
            .any(super::authorizer::Permitted::admin)
    }

    /// Returns true if the caller may do this to one key.
    pub fn key(&self, space: Space<'_>, verb: Verb, key: &[u8]) -> bool {
        let Some(granted) = &self.0 else { return true };
        granted.farthest(space, verb, key).is_some()
    }

    /// Returns true if the caller may do this to each key of `[start, end)`, whether it exists or not. Without an end, the range has
    /// all keys from `start` on. A range without keys is allowed if `start` is: its answer still says that the keyspace exists.
    pub fn range(&self, space: Space<'_>, verb: Verb, start: &[u8], end: Option<&[u8]>) -> bool {
        let Some(granted) = &self.0 else { return true };
        let mut next = start;
        loop {
            match granted.farthest(space, verb, next) {
                None => return false,
                Some(End::Never) => return true,
                Some(End::Before(reached)) if end.is_some_and(|end| end <= reached) => return true,
                // Each step reaches beyond `next`, and there are as many steps as intervals.
                Some(End::Before(reached)) => next = reached,
            }
        }
    }

    /// Returns true if the caller may do this to all keys.
    pub fn whole(&self, space: Space<'_>, verb: Verb) -> bool {
        self.range(space, verb, &[], None)
    }

    /// Returns true if there is a key to which the caller may do this. A keyspace without one is answered like one that doesn't exist.
    pub fn some(&self, space: Space<'_>, verb: Verb) -> bool {
        let Some(granted) = &self.0 else { return true };
        granted.any_set(space, verb, |keys| !keys.is_empty())
    }
}

impl<'a> Granted<'a> {
    /// Returns the farthest end of all intervals with `key`, or `None` if no interval has it.
    fn farthest(&self, space: Space<'_>, verb: Verb, key: &[u8]) -> Option<End<'a>> {
        let mut farthest: Option<End<'a>> = None;
        self.any_set(space, verb, |keys| {
            match (keys.end_at(key), farthest) {
                (None, _) => {}
                (Some(End::Before(end)), Some(End::Before(before))) if end <= before => {}
                (Some(end), _) => farthest = Some(end),
            }
            farthest == Some(End::Never)
        });
        farthest
    }

    /// Returns true if one of the caller's sets of keys is as asked.
    fn any_set(
        &self,
        space: Space<'_>,
        verb: Verb,
        mut ask: impl FnMut(&'a Intervals) -> bool,
    ) -> bool {
        let mut subjects = self.authorizer.subjects(self.certificate, self.account);
        subjects.any(|permitted| permitted.keys(space, verb).any(&mut ask))
    }
}
