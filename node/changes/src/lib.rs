//! Decides for those who follow the changes of keyspaces: the watches of streams, the timers of leases, and the steps of clearing.
//!
//! # What it is
//!
//! A replica that applies an operation of a keyspace learns its effects ([`keyspace::Effect`]). This crate decides what becomes
//! of them, and the server carries it out:
//!
//! - A [`Feed`] keeps the latest events of one keyspace, shared by all its watches.
//! - [`Watches`] are the watches of one stream. They take batches from the feed, and pages of the past ([`read_page`]) where the
//!   feed doesn't reach, and say which answer goes out next.
//! - [`Timers`] are the leases of a leader: which lease expires when.
//! - [`Compacting`] is automatic compaction: which revision goes when.
//! - [`Clearing`] is what compaction and deletion have left: which keyspace has its next step when.
//!
//! # What it promises
//!
//! A watch gets each event of its span once, in order, and all events of one revision in one answer. A notice of progress with
//! a revision comes after every event up to it. A lease doesn't expire before the term that its client was told.
//!
//! # What it doesn't do
//!
//! It has no clock, thread, lock or socket: times are milliseconds of the caller's clock. It doesn't know who leads or which
//! shards are served; the caller says so.

mod clearing;
mod compacting;
mod feed;
mod intervals;
mod leases;
mod page;
mod spans;
mod stream;
mod watch;

pub use clearing::{Clearing, Step as ClearingStep};
pub use compacting::Compacting;
pub use feed::{Batch, End, Feed, FeedLimits, Read};
pub use leases::{Expiry, Remaining, Renewal, Timers};
pub use page::{Page, PageLimits, read_page, read_previous};
pub use spans::Spans;
pub use stream::{Source, Step, Watches};
pub use watch::{AUTO_ID, Create, NO_ID, Refused, Response, access_text};
