//! The state machine of a keyspace: an ordered, versioned, watchable key-value store with the semantics of etcd v3.
//!
//! # What it is
//!
//! A *keyspace* lives in one shard. It has one revision counter, so its transactions are atomic and its events have one order.
//! [`apply`] carries out one operation of the log; [`range()`], [`read_txn`], [`events`] and the other readers answer from a state as of
//! one commit. Both work on a [`Store`] or a [`PairReader`](replica::PairReader) that the caller passes in, and keep nothing between calls.
//!
//! The reference for each answer, refusal and text is etcd's source (3.7). What differs on purpose is listed
//! [below](#what-differs-from-etcd).
//!
//! # How a write flows through
//!
//! 1. A server makes an [`Operation`], checks it ([`Operation::check`]), stamps its [`Limits`], and proposes it.
//! 2. [`apply`] decodes it, and checks it again. Bytes that are no operation are refused ([`Refusal::Malformed`]).
//! 3. The operations of the write are carried out on a *draft* (the module `draft`), which keeps all changes in memory. Ranges and
//!    later operations see the draft through a *view* (the module `view`).
//! 4. If all have succeeded and the quota has room, the draft is written: new versions, events, leases, and the record with the
//!    next revision. Otherwise nothing is written.
//!
//! # The layout
//!
//! The module `keys` has the table. Each put writes the value once, under its key and revision (`Versions`), names the version
//! in `Current`, and appends an event (`Events`). So
//!
//! - the newest state of a range is read from `Current`, values by exact lookups;
//! - the state at an old revision is read from `Current` where the version is old enough, and else from `Versions`, one step
//!   back from the revision. Keys that are gone by now are found by their deletions since (`Deletions`; the module `old`);
//! - a watch reads `Events` from its revision on;
//! - compaction walks `Events`, which name what each change replaced (the module `compaction`).
//!
//! # What differs from etcd
//!
//! - One write changes at most 10,000 keys and 16 MiB, reads at most 16 MiB for its compares and answers, and visits at most
//!   100,000 operations and rows together, of which a lookup counts as 16. Beyond that it is refused as too large. A lease has at
//!   most 10,000 keys, so that its end is one write.
//! - A transaction whose puts keep the value or lease of a key that an earlier operation of it deleted is refused
//!   ([`Refusal::KeyNotFound`]). It stops etcd's members. So does a transaction that deletes all keys from one on and puts one
//!   of them, if the store is then compacted at exactly its revision and the key is read; here the key stays.
//! - The quota counts exactly what versions and leases add. A write that doesn't fit changes nothing, and the alarm ends when there
//!   is room. etcd carries out the write that exceeds the quota, and then refuses every put, small or not, until an operator
//!   ends the alarm.
//! - The pair before an event at the compacted revision is not returned. In etcd that depends on how far compaction has come.
//!
//! # What it doesn't do
//!
//! It knows no gRPC, clock, thread or file. It doesn't own shards: `shardkv` does, and asks this crate. It has no timers: the
//! leader decides when a lease expires, when history is compacted, and when the next step of clearing is due.

mod answer;
mod auth;
mod check;
mod codec;
mod compaction;
mod draft;
mod failure;
mod hash;
mod ids;
mod keys;
mod lease;
mod lifecycle;
mod limits;
mod machine;
pub mod memory;
mod old;
mod operation;
mod range;
mod read;
mod record;
mod refusal;
mod request;
mod rows;
mod sizes;
mod store;
mod txn;
mod view;
mod work;

pub use answer::{
    Answer, DeleteRangeAnswer, Effect, Event, KeyValue, OpAnswer, Outcome, PutAnswer, RangeAnswer,
    TxnAnswer,
};
pub use auth::{
    Access, AuthState, AuthWrite, Permission, Principal, ROOT, Right, Role, User, check_access,
    read_role, read_roles, read_user, read_users,
};
pub use check::{check_delete_range, check_put, check_range, check_txn};
pub use hash::{HashAnswer, hash};
pub use ids::{KeyspaceId, LeaseId};
pub use keys::{Place, Table, is_auth_row, rows_of_shard};
pub use lease::{Lease, MAX_LEASE_TTL, MIN_LEASE_TTL, read_lease, read_lease_keys, read_leases};
pub use lifecycle::{find, list, renew};
pub use limits::Limits;
pub use machine::{Applying, apply};
pub use operation::{Action, Operation, Write};
pub use read::{EventPosition, Events, events, previous, range, read_txn, record};
pub use record::{AutoCompaction, KeyspaceOptions, MAX_NAME_BYTES, Record, check_name};
pub use refusal::{Code, Refusal};
pub use request::{
    Compare, DeleteRange, Op, Put, Range, Relation, SortOrder, SortTarget, Span, Target, Txn,
};
pub use store::Store;
