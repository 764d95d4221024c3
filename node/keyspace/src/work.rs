//! Bounds of the work of an operation, by its bytes alone. A leader uses them to choose the operations of one log entry.
//!
//! The unit is that of [`replica::LOOKUP_WORK`]. An operation on single keys is bounded by the number of the keys; one that walks
//! over a span, or revokes a lease, by its limits alone.

use bytes::Bytes;
use replica::{LOOKUP_WORK, WRITE_WORK, work_of_bytes};

use crate::auth::{MAX_AUTH_BYTES, MAX_ROLE_BYTES, MAX_ROLES_OF_USER, MAX_USERS};
use crate::{
    Action, AuthWrite, Compare, DeleteRange, LeaseId, Limits, Op, Operation, Put, Range, Span,
    Target, Txn, Write,
};

/// The most rows that the change of one key writes: event, version or mark, newest version, deletion, and row and key of the leases
/// before and after. The shard's journal names each of them.
const WRITES_OF_CHANGE: u64 = 2 * 8;

/// The most times that a byte of a key is written, by the same rows. Escaping doubles some of them.
const COPIES_OF_KEY: u64 = 2 * 12;

/// The most work of the lookups for one key: its newest version, a value, two leases.
const KEY: u64 = 4 * LOOKUP_WORK;

/// The most work of writing the change of one key, without the bytes.
const CHANGE: u64 = WRITES_OF_CHANGE * WRITE_WORK;

/// The work of the shard's and the keyspace's records.
const RECORDS: u64 = 4 * (LOOKUP_WORK + 2 * WRITE_WORK);

impl Operation {
    /// Returns the most work of applying an encoded operation.
    pub fn most_work(entry: Bytes) -> u64 {
        let bytes = entry.len() as u64;
        let Ok(operation) = Self::decode(entry) else {
            return 0;
        };
        let own = match &operation.action {
            Action::Create { .. } => 0,
            Action::In(_, write) => of_write(write, &operation.limits),
        };
        let written = work_of_bytes(bytes.saturating_mul(COPIES_OF_KEY));
        own.saturating_add(written).saturating_add(RECORDS)
    }
}

fn of_write(write: &Write, limits: &Limits) -> u64 {
    match write {
        Write::Put(put) => of_put(put, limits),
        Write::DeleteRange(request) => of_delete(request, limits),
        Write::Txn(txn) => of_txn(txn, limits),
        Write::Clear => of_bytes(limits) + u64::from(limits.max_clear_rows) * (1 + CHANGE),
        Write::Revoke { .. } | Write::Expire { .. } => {
            of_bytes(limits) + u64::from(limits.max_lease_keys) * (KEY + CHANGE)
        }
        Write::Auth(AuthWrite::RoleDelete { .. }) => {
            2 * work_of_bytes(MAX_AUTH_BYTES) + u64::from(MAX_USERS) * (1 + LOOKUP_WORK + CHANGE)
        }
        Write::As { write, .. } => of_check(write, limits).saturating_add(of_write(write, limits)),
        Write::Auth(_)
        | Write::Compact { .. }
        | Write::Grant { .. }
        | Write::SetOptions(_)
        | Write::Delete => KEY + CHANGE,
    }
}

/// Returns the work of finding out whether a user may do a write: the user, the roles, and the keys of the leases that it names.
fn of_check(write: &Write, limits: &Limits) -> u64 {
    let roles = MAX_ROLES_OF_USER as u64;
    let user = (1 + roles) * LOOKUP_WORK + work_of_bytes(roles * MAX_ROLE_BYTES as u64);
    let leases = match write {
        Write::Put(put) => u64::from(put.lease != LeaseId::NONE),
        Write::Txn(txn) => leases_of(txn),
        Write::Revoke { .. } => 1,
        _ => 0,
    };
    let keys = leases.saturating_mul(limits.max_lease_keys.into());
    user + keys.min(limits.max_visited.into())
}

/// Returns the number of puts of a transaction that name a lease.
fn leases_of(txn: &Txn) -> u64 {
    let ops = txn.success.iter().chain(&txn.failure);
    let leases = ops.map(|op| match op {
        Op::Put(put) => u64::from(put.lease != LeaseId::NONE),
        Op::Txn(nested) => leases_of(nested),
        Op::Range(_) | Op::DeleteRange(_) => 0,
    });
    leases.sum()
}

/// Returns the work of a transaction: that of all its operations, although only a part of them is carried out.
fn of_txn(txn: &Txn, limits: &Limits) -> u64 {
    let compares = txn
        .compare
        .iter()
        .map(|compare| of_compare(compare, limits));
    let ops = txn.success.iter().chain(&txn.failure).map(|op| match op {
        Op::Range(range) => of_range(range, limits),
        Op::Put(put) => of_put(put, limits),
        Op::DeleteRange(request) => of_delete(request, limits),
        Op::Txn(nested) => of_txn(nested, limits),
    });
    compares.chain(ops).fold(0, u64::saturating_add)
}

fn of_compare(compare: &Compare, limits: &Limits) -> u64 {
    let reads_value = matches!(compare.target, Target::Value(_));
    of_span(&compare.span, reads_value, limits)
}

fn of_range(range: &Range, limits: &Limits) -> u64 {
    of_span(&range.span, !range.count_only, limits)
}

fn of_put(put: &Put, limits: &Limits) -> u64 {
    let reads_value = put.prev_kv || put.ignore_value;
    let values = if reads_value { 2 * of_value(limits) } else { 0 };
    KEY + CHANGE + values
}

fn of_delete(request: &DeleteRange, limits: &Limits) -> u64 {
    let found = of_span(&request.span, request.prev_kv, limits);
    match request.span {
        Span::Key(_) => found + CHANGE,
        Span::Range(..) | Span::From(_) => {
            found.saturating_add(u64::from(limits.max_changes) * CHANGE)
        }
    }
}

/// Returns the work of reading a span, with values or without.
fn of_span(span: &Span, reads_values: bool, limits: &Limits) -> u64 {
    match span {
        Span::Key(_) if reads_values => KEY + of_value(limits),
        Span::Key(_) => KEY,
        // A row at an old revision is one step of each of two cursors.
        Span::Range(..) | Span::From(_) => 2 * u64::from(limits.max_visited) + of_bytes(limits),
    }
}

/// Returns the work of reading the largest value that can be stored.
fn of_value(limits: &Limits) -> u64 {
    work_of_bytes(limits.max_request_bytes.into())
}

/// Returns the work of reading and writing all bytes that an operation may.
fn of_bytes(limits: &Limits) -> u64 {
    work_of_bytes(u64::from(limits.max_write_bytes) * (1 + COPIES_OF_KEY))
}
