//! Requests and answers of a watch stream.

use keyspace::{Event, Refusal, Span};

/// The id that asks for an id.
pub const AUTO_ID: i64 = 0;
/// The id of answers that concern no watch, or all watches of a stream.
pub const NO_ID: i64 = -1;

/// A request to watch a span.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // They are etcd's.
pub struct Create {
    /// The id that the client has chosen, or [`AUTO_ID`].
    pub id: i64,
    /// The keys.
    pub span: Span,
    /// The first revision of interest; 0 means from now on.
    pub start: i64,
    /// Leaves puts out.
    pub no_put: bool,
    /// Leaves deletions out.
    pub no_delete: bool,
    /// Asks for the pairs before the events.
    pub prev_kv: bool,
    /// Allows that the events of one revision come in several messages.
    pub fragment: bool,
    /// Asks for notices of progress while there are no events.
    pub progress_notify: bool,
}

impl Create {
    /// Watches a span from now on.
    pub fn new(span: Span) -> Self {
        Self {
            id: AUTO_ID,
            span,
            start: 0,
            no_put: false,
            no_delete: false,
            prev_kv: false,
            fragment: false,
            progress_notify: false,
        }
    }

    /// Returns true if the watch wants an event of its span.
    pub(crate) fn passes(&self, event: &Event) -> bool {
        !(if event.deleted {
            self.no_delete
        } else {
            self.no_put
        })
    }
}

/// The reason for which a watch isn't created. The texts are etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The range is empty.
    EmptyRange,
    /// The stream has a watch with this id.
    DuplicateId,
    /// The start is below 0.
    NegativeStart,
    /// The stream or the node has too many watches.
    TooMany,
    /// The user may not read the range, or the call has no user.
    Access(Refusal),
}

impl Refused {
    /// Returns the text for the client.
    pub fn text(self) -> String {
        let text = match self {
            Self::EmptyRange => "mvcc: watcher range is empty",
            Self::DuplicateId => "mvcc: duplicate watch ID provided on the WatchStream",
            Self::NegativeStart => "etcdserver: mvcc: required revision has been compacted",
            Self::TooMany => "etcdserver: too many requests",
            Self::Access(refusal) => return access_text(refusal),
        };
        text.to_owned()
    }
}

/// Returns the text of a refusal for lack of a permission. etcd's client compares the whole text, which is that of an error of Go's gRPC
/// library, to decide whether it opens the watch again. As in etcd, any other refusal is told as a missing permission.
pub fn access_text(refusal: Refusal) -> String {
    let (code, refusal) = match refusal {
        Refusal::InvalidAuthToken => ("Unauthenticated", refusal),
        Refusal::AuthOldRevision | Refusal::UserEmpty => ("InvalidArgument", refusal),
        _ => ("PermissionDenied", Refusal::PermissionDenied),
    };
    format!("rpc error: code = {code} desc = {refusal}")
}

/// An answer of a watch stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// A watch was created.
    Created {
        /// Its id.
        id: i64,
        /// The newest revision.
        revision: i64,
    },
    /// A watch was not created.
    Refused {
        /// The newest revision.
        revision: i64,
        /// The reason.
        why: Refused,
    },
    /// A watch was canceled, as its client asked.
    Canceled {
        /// Its id.
        id: i64,
        /// The newest revision.
        revision: i64,
    },
    /// A watch was canceled because the next revision that it needs is compacted.
    Compacted {
        /// Its id.
        id: i64,
        /// The compacted revision.
        compacted: i64,
    },
    /// Events of a watch: whole revisions.
    Events {
        /// Its id.
        id: i64,
        /// A revision up to which the watch has all events now.
        revision: i64,
        /// The events, in order; never empty.
        events: Vec<Event>,
        /// True if the pairs before the events are wanted.
        prev_kv: bool,
        /// True if the message may be split.
        fragment: bool,
    },
    /// A watch, or all watches of the stream, have all events up to a revision.
    Progress {
        /// The watch, or [`NO_ID`].
        id: i64,
        /// The revision.
        revision: i64,
    },
}
