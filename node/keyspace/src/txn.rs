//! Transactions: compares, the checks before the first change, and the operations.

use std::cmp::Ordering;

use crate::draft::Draft;
use crate::failure::Failure;
use crate::limits::Budget;
use crate::range;
use crate::rows::Meta;
use crate::view::{Row, View};
use crate::{
    Compare, LeaseId, Op, OpAnswer, Put, Record, Refusal, Relation, Target, Txn, TxnAnswer,
};

/// A transaction whose compares are decided: the operations that are to be carried out.
pub(crate) struct Decided<'r> {
    succeeded: bool,
    ops: Vec<DecidedOp<'r>>,
}

enum DecidedOp<'r> {
    Op(&'r Op),
    Txn(Decided<'r>),
}

/// Decides the compares of a transaction and of the nested transactions on its path, all by the state before.
pub(crate) fn decide<'r>(
    view: View<'_>,
    txn: &'r Txn,
    budget: &mut Budget,
) -> Result<Decided<'r>, Failure> {
    let mut succeeded = true;
    for compare in &txn.compare {
        // As in etcd, the first condition that fails ends it.
        if !holds(view, compare, budget)? {
            succeeded = false;
            break;
        }
    }
    let mut ops = Vec::new();
    for op in if succeeded {
        &txn.success
    } else {
        &txn.failure
    } {
        budget.visit()?;
        ops.push(match op {
            Op::Txn(nested) => DecidedOp::Txn(decide(view, nested, budget)?),
            op => DecidedOp::Op(op),
        });
    }
    Ok(Decided { succeeded, ops })
}

/// Returns true if a condition holds for all keys of its span.
fn holds(view: View<'_>, compare: &Compare, budget: &mut Budget) -> Result<bool, Failure> {
    budget.lookup()?;
    let mut rows = view.walk(&compare.span)?;
    let mut any = false;
    while let Some(row) = rows.next(budget)? {
        any = true;
        if !holds_for(view, compare, &row, budget)? {
            return Ok(false);
        }
    }
    if any {
        return Ok(true);
    }
    let none = order(&compare.target, &Meta::default());
    Ok(none.is_some_and(|order| related(order, compare.relation)))
}

fn holds_for(
    view: View<'_>,
    compare: &Compare,
    row: &Row,
    budget: &mut Budget,
) -> Result<bool, Failure> {
    let order = match (order(&compare.target, &row.meta), &compare.target) {
        (None, Target::Value(value)) => {
            budget.value(row.meta.size)?;
            view.value(row)?.cmp(value)
        }
        (order, _) => order.unwrap_or(Ordering::Equal),
    };
    Ok(related(order, compare.relation))
}

/// Compares a field with what a condition names; `None` for the value.
fn order(target: &Target, meta: &Meta) -> Option<Ordering> {
    match target {
        Target::Version(version) => Some(meta.version.cmp(version)),
        Target::Create(revision) => Some(meta.create_revision.cmp(revision)),
        Target::Mod(revision) => Some(meta.mod_revision.cmp(revision)),
        Target::Lease(lease) => Some(meta.lease.0.cmp(lease)),
        Target::Unknown => Some(Ordering::Equal),
        Target::Value(_) => None,
    }
}

fn related(order: Ordering, relation: Relation) -> bool {
    match relation {
        Relation::Equal => order.is_eq(),
        Relation::NotEqual => order.is_ne(),
        Relation::Greater => order.is_gt(),
        Relation::Less => order.is_lt(),
        Relation::Unknown => true,
    }
}

/// Refuses what etcd refuses before the first operation: revisions, leases and keys, by the state before. So the refusal of a
/// transaction with several faults is the same as etcd's.
pub(crate) fn check(
    draft: &mut Draft<'_>,
    decided: &Decided<'_>,
    record: &Record,
) -> Result<(), Failure> {
    for op in &decided.ops {
        match op {
            DecidedOp::Op(Op::Range(range)) => {
                check_revision(range.revision, record)?;
            }
            DecidedOp::Op(Op::Put(put)) => check_put(draft, put)?,
            DecidedOp::Op(_) => {}
            DecidedOp::Txn(nested) => check(draft, nested, record)?,
        }
    }
    Ok(())
}

/// Refuses a put whose lease doesn't exist, or that keeps what doesn't exist.
pub(crate) fn check_put(draft: &mut Draft<'_>, put: &Put) -> Result<(), Failure> {
    if put.lease != LeaseId::NONE && draft.lease(put.lease)?.is_none() {
        return Err(Refusal::LeaseNotFound.into());
    }
    if (put.ignore_value || put.ignore_lease) && draft.newest_version(&put.key)?.is_none() {
        return Err(Refusal::KeyNotFound.into());
    }
    Ok(())
}

/// As in etcd, a negative revision is a compacted one in a transaction, except -1 before the first compaction.
fn check_revision(revision: i64, record: &Record) -> Result<(), Refusal> {
    if revision != 0 && revision < record.compacted {
        let compacted = record.compacted;
        return Err(Refusal::Compacted { compacted });
    }
    range::check_revision(revision, record.compacted, record.revision)
}

/// Carries out the operations. What a range sees of the operations before it: all if it names no revision, else nothing.
pub(crate) fn execute(
    draft: &mut Draft<'_>,
    decided: &Decided<'_>,
    answer: bool,
) -> Result<TxnAnswer, Failure> {
    let mut responses = Vec::with_capacity(decided.ops.len());
    for op in &decided.ops {
        responses.push(match op {
            DecidedOp::Op(op) => execute_op(draft, op, answer)?,
            DecidedOp::Txn(nested) => OpAnswer::Txn(execute(draft, nested, answer)?),
        });
    }
    Ok(TxnAnswer {
        revision: 0,
        succeeded: decided.succeeded,
        responses,
    })
}

fn execute_op(draft: &mut Draft<'_>, op: &Op, answer: bool) -> Result<OpAnswer, Failure> {
    Ok(match op {
        Op::Range(request) => {
            let mut budget = draft.budget.clone();
            let ranged = range::read(draft.view(), request, draft.newest(), answer, &mut budget)?;
            draft.budget = budget;
            OpAnswer::Range(ranged)
        }
        Op::Put(put) => OpAnswer::Put(draft.put(put, answer)?),
        Op::DeleteRange(request) => OpAnswer::DeleteRange(draft.delete_range(request, answer)?),
        // `decide` has taken them apart.
        Op::Txn(_) => OpAnswer::Txn(TxnAnswer::default()),
    })
}
