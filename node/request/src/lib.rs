//! The sans-IO engine of a request to a sharded, replicated store.
//!
//! A request must reach the leader of the group that owns its key. On the way leaders change, shards move, connections break
//! and nodes refuse. This crate has the rules by which a client goes on: which node it asks next, which hints it follows, what
//! it may repeat, how long it waits, when it gives up, and what it can say about a write whose answer is missing. The client
//! library, the nodes' forwarding, the driver of a group's mover and the simulator's clients drive the same code, so the simulator's seeds test the rules that
//! the product runs.
//!
//! # The driver
//!
//! The crate opens no socket and reads no clock. A driver passes the time in, as the [`Time`] since an origin of its choice,
//! and a seed for jitter. There are two engines:
//!
//! - [`BatchStream`]: many calls to one group over one stream, with sessions of its own. The driver reports events
//!   (`handle_*`), performs the [`Effect`]s that come out (`poll_effect`), and sends the batches (`poll_batch`).
//! - [`SingleCall`]: one call, attempt by attempt. After each failed attempt it says how to go on ([`Next`]).
//!
//! Both judge a failure by one table ([`Refusal::judge`]), pause by one rule ([`Backoff`]), and use the same guess who leads
//! ([`GroupLeader`], [`LeaderTable`]). [`LeaderSearch`] evaluates one round of questions to all nodes of a group.
//!
//! ```text
//!              admit                      Effect::Connect, OpenSession, Disconnect, ...
//!  callers ───────────▶ BatchStream ─────────────────────────────────────────────────▶ driver ══▶ leader
//!     ▲                  PendingCalls ── poll_batch ─────────────────────────────────▶   ║
//!     └── answers ────── Sequences    ◀─ handle_results, handle_stream_ended, ... ────   ╝
//! ```
//!
//! # Guarantees
//!
//! - **A write takes effect at most once.** Every attempt of a write carries the same [`Stamp`] (session and sequence). It gets
//!   another one only if no attempt can have taken effect.
//! - **Doubt is never lost.** [`Failure::maybe_applied`] is false only if certainly no attempt took effect.
//! - **The fence is true.** `acked_below` never passes a write that may be sent again, so the cluster never forgets a result that a
//!   retry needs.
//! - **A write without a session is repeated only** while certainly no attempt took effect.
//! - **Every call ends**: with an answer, or in the first sweep after its deadline. Calls, batches, windows and learnt addresses are
//!   bounded.
//!
//! # Caveats
//!
//! The crate orders nothing between calls that are in flight at the same time. It knows no wire format: a driver maps wire
//! errors to [`Refusal`]. Time must not run backwards by more than jitter; a step backwards only makes pauses longer.
//!
//! # Example
//!
//! A read whose first node does not lead:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use request::{Jitter, LeaderTable, Next, Policy, Refusal, Refused, Repeat, SingleCall};
//! use types::Gid;
//!
//! let group = Gid(1);
//! let nodes = ["10.0.0.1:7000", "10.0.0.2:7000"];
//! let mut leaders = LeaderTable::default();
//! let policy = Policy {
//!     max_attempts: 12,
//!     reports_delays: false,
//!     min_backoff: Duration::from_millis(2),
//!     max_backoff: Duration::from_millis(250),
//!     doubling: false,
//!     bugs: Default::default(),
//! };
//! let mut call = SingleCall::new(Repeat::Freely, policy, Jitter::new(42));
//!
//! // The first node refuses, and names the leader.
//! let first = leaders.next(group, &nodes, 0).unwrap();
//! assert_eq!(&*first.address, "10.0.0.1:7000");
//! call.handle_sent();
//! let hint: Arc<str> = "10.0.0.2:7000".into();
//! let followed = leaders.failed(&first, Some(&hint));
//! let refused = Refused {
//!     refusal: Refusal::NotLeader { hint: Some(hint) },
//!     message: "this node does not lead".to_owned(),
//! };
//! let next = call.handle_refusal(Duration::ZERO, refused, None, followed);
//! assert_eq!(next, Next::Retry { pause: Duration::ZERO, leader_failed: true });
//!
//! // The second attempt goes to the leader, and its success is remembered.
//! let second = leaders.next(group, &nodes, 1).unwrap();
//! assert_eq!(&*second.address, "10.0.0.2:7000");
//! leaders.found(group, &second.address);
//! ```

mod attempts;
mod backoff;
mod bug;
mod leader;
mod pending;
mod refusal;
mod route;
mod search;
mod sequences;
mod single;
mod stream;

pub use attempts::Attempts;
pub use backoff::{Backoff, Jitter};
pub use bug::{BUGS_COMPILED_IN, Bug, Bugs};
pub use leader::{GroupLeader, Leader, LeaderTable, MAX_LEARNT};
pub use pending::{Call, Consequence, Ended, Limits, PendingCalls, Reroute, Tracked};
pub use refusal::{Action, Failure, Refusal, Refused, Rejection, Repeat, Verdict};
pub use route::owner;
pub use search::{LeaderSearch, Report, SearchError};
pub use sequences::{Blocked, Name, Number, SequenceAllocator, Sequences, Stamp};
pub use single::{Next, Policy, SingleCall};
pub use stream::{BatchStream, Effect, OpenedSession, SUPERSEDED, StreamOptions};

/// A moment: the time since an origin that the driver chose once.
pub type Time = std::time::Duration;
