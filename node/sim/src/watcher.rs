//! A watch of a keyspace, and the check of what it gets: each event once, in order, and none left out.

use changes::{Create, Response, Watches};
use keyspace::{Event, Place, Span};

use crate::keyspace_checker::KeyspaceChecker;
use crate::network::HostId;
use crate::violation::{Checked, Violation};

/// The process that serves a watch: its host and incarnation.
pub(crate) type Served = (HostId, u64);

/// One client's watch. It goes on at another process when one is gone, as etcd's clients do.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) place: Option<Place>,
    pub(crate) span: Span,
    /// The first revision that it hasn't seen.
    pub(crate) next: i64,
    pub(crate) served: Option<Served>,
    pub(crate) watches: Watches,
    pub(crate) events: u64,
}

impl Watcher {
    /// Creates a watch that watches nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            place: None,
            span: Span::Range(Vec::new().into(), Vec::new().into()),
            next: 1,
            served: None,
            watches: Watches::new(0, 1),
            events: 0,
        }
    }

    /// Watches a span of a keyspace from a revision on.
    pub(crate) fn begin(&mut self, place: Place, span: Span, start: i64) {
        *self = Self {
            events: self.events,
            ..Self::new()
        };
        (self.place, self.span, self.next) = (Some(place), span, start);
    }

    /// Goes on at a process whose feed of the keyspace is at `newest`.
    pub(crate) fn attach(&mut self, served: Served, start: i64, (newest, compacted): (i64, i64)) {
        self.served = Some(served);
        self.watches = Watches::new(newest, 1);
        let wants = Create {
            start,
            ..Create::new(self.span.clone())
        };
        self.watches.create(wants, newest, compacted);
    }

    /// Returns the events up to a revision that the watch has not got, by the model.
    fn missing(&self, checker: &KeyspaceChecker, through: i64) -> Vec<Event> {
        let events = self.place.map(|place| checker.events(place, self.next));
        let events = events.unwrap_or_default().into_iter();
        let wanted =
            |event: &Event| event.kv.mod_revision <= through && self.span.contains(&event.kv.key);
        events.filter(wanted).collect()
    }

    /// Checks an answer, and takes it in.
    pub(crate) fn take(&mut self, answer: &Response, checker: &KeyspaceChecker) -> Checked {
        match answer {
            Response::Created { .. } => {}
            Response::Events {
                revision, events, ..
            } => {
                let expected = self.missing(checker, *revision);
                if *events != expected {
                    let what = format!("{self:?} got {events:?} instead of {expected:?}");
                    return Err(Violation::new(
                        "a watch gets each event once, in order",
                        what,
                    ));
                }
                self.events += events.len() as u64;
                self.next = self.next.max(revision + 1);
            }
            Response::Progress { revision, .. } => {
                let missing = self.missing(checker, *revision);
                if !missing.is_empty() {
                    let what = format!("{self:?} was told {revision} before {missing:?}");
                    return Err(Violation::new("progress comes after the events", what));
                }
                self.next = self.next.max(revision + 1);
            }
            Response::Compacted { compacted, .. } => {
                let newest = self.place.map(|place| checker.revisions(place).1);
                if *compacted <= self.next || newest.is_some_and(|newest| newest < *compacted) {
                    let what = format!("{self:?} was canceled at {compacted}");
                    return Err(Violation::new("only compacted watches are canceled", what));
                }
                self.next = *compacted;
                self.served = None;
            }
            Response::Refused { .. } | Response::Canceled { .. } => {
                let what = format!("{self:?} was answered {answer:?}");
                return Err(Violation::new("a watch that is right is created", what));
            }
        }
        Ok(())
    }

    /// Checks that nothing is left that the watch must get.
    pub(crate) fn check_complete(&self, checker: &KeyspaceChecker) -> Checked {
        let missing = self.missing(checker, i64::MAX);
        if missing.is_empty() {
            return Ok(());
        }
        Err(Violation::new(
            "a watch gets all events in the end",
            format!("{self:?} lacks {missing:?}"),
        ))
    }
}
