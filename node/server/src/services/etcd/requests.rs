//! Converts etcd's requests. It refuses only what the types of the keyspace can't say; all other checks are the keyspace's. A transaction is
//! checked while it is converted: of several faults the first is told, in etcd's order.

use api::etcd::etcdserverpb as pb;
use bytes::Bytes;
use keyspace::{
    Compare, DeleteRange, LeaseId, Op, Put, Range, Refusal, Relation, SortOrder, SortTarget, Span,
    Target, Txn, check_delete_range, check_put,
};
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::range_request;
use pb::request_op::Request;

/// The deepest nesting of transactions. The codec of messages refuses deeper ones, too.
const MAX_DEPTH: usize = 100;

pub(super) fn range(wire: pb::RangeRequest) -> Result<Range, Refusal> {
    let (order, target) = sort(&wire)?;
    Ok(Range {
        span: Span::new(wire.key, wire.range_end),
        limit: wire.limit,
        revision: wire.revision,
        sort_order: order,
        sort_target: target,
        keys_only: wire.keys_only,
        count_only: wire.count_only,
        min_mod_revision: wire.min_mod_revision,
        max_mod_revision: wire.max_mod_revision,
        min_create_revision: wire.min_create_revision,
        max_create_revision: wire.max_create_revision,
    })
}

/// etcd refuses an empty key before an unknown order.
fn sort(wire: &pb::RangeRequest) -> Result<(SortOrder, SortTarget), Refusal> {
    if wire.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    let order = range_request::SortOrder::try_from(wire.sort_order);
    let order = match order.map_err(|_| Refusal::InvalidSortOption)? {
        range_request::SortOrder::None => SortOrder::None,
        range_request::SortOrder::Ascend => SortOrder::Ascending,
        range_request::SortOrder::Descend => SortOrder::Descending,
    };
    let target = range_request::SortTarget::try_from(wire.sort_target);
    let target = match target.map_err(|_| Refusal::InvalidSortOption)? {
        range_request::SortTarget::Key => SortTarget::Key,
        range_request::SortTarget::Version => SortTarget::Version,
        range_request::SortTarget::Create => SortTarget::Create,
        range_request::SortTarget::Mod => SortTarget::Mod,
        range_request::SortTarget::Value => SortTarget::Value,
    };
    Ok((order, target))
}

pub(super) fn put(wire: pb::PutRequest) -> Put {
    Put {
        key: wire.key,
        value: wire.value,
        lease: LeaseId(wire.lease),
        prev_kv: wire.prev_kv,
        ignore_value: wire.ignore_value,
        ignore_lease: wire.ignore_lease,
    }
}

pub(super) fn delete_range(wire: pb::DeleteRangeRequest) -> DeleteRange {
    DeleteRange {
        span: Span::new(wire.key, wire.range_end),
        prev_kv: wire.prev_kv,
    }
}

/// Converts a transaction with at most `max_ops` operations.
pub(super) fn txn(wire: pb::TxnRequest, max_ops: usize) -> Result<Txn, Refusal> {
    nested(wire, MAX_DEPTH, max_ops)
}

fn nested(wire: pb::TxnRequest, depth: usize, max_ops: usize) -> Result<Txn, Refusal> {
    let depth = depth.checked_sub(1).ok_or(Refusal::TooManyOps)?;
    let lists = [wire.compare.len(), wire.success.len(), wire.failure.len()];
    let longest = lists.into_iter().max().unwrap_or(0);
    let left = max_ops.checked_sub(longest).ok_or(Refusal::TooManyOps)?;
    if wire.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    let ops = |wire: Vec<pb::RequestOp>| -> Result<Vec<Op>, Refusal> {
        wire.into_iter().map(|wire| op(wire, depth, left)).collect()
    };
    Ok(Txn {
        compare: wire.compare.into_iter().map(compare).collect(),
        success: ops(wire.success)?,
        failure: ops(wire.failure)?,
    })
}

fn op(wire: pb::RequestOp, depth: usize, max_ops: usize) -> Result<Op, Refusal> {
    match wire.request {
        Some(Request::RequestRange(wire)) => range(wire).map(Op::Range),
        Some(Request::RequestPut(wire)) => {
            let put = put(wire);
            check_put(&put).map(|()| Op::Put(put))
        }
        Some(Request::RequestDeleteRange(wire)) => {
            let delete = delete_range(wire);
            check_delete_range(&delete).map(|()| Op::DeleteRange(delete))
        }
        Some(Request::RequestTxn(wire)) => nested(wire, depth, max_ops).map(Op::Txn),
        // As etcd answers.
        None => Err(Refusal::KeyNotFound),
    }
}

/// As in etcd, a value of another field than the target's counts as 0 or empty.
fn compare(wire: pb::Compare) -> Compare {
    let union = wire.target_union;
    let number = |of: fn(&TargetUnion) -> Option<i64>| union.as_ref().and_then(of).unwrap_or(0);
    let target = match CompareTarget::try_from(wire.target) {
        Ok(CompareTarget::Version) => Target::Version(number(|union| match union {
            TargetUnion::Version(version) => Some(*version),
            _ => None,
        })),
        Ok(CompareTarget::Create) => Target::Create(number(|union| match union {
            TargetUnion::CreateRevision(revision) => Some(*revision),
            _ => None,
        })),
        Ok(CompareTarget::Mod) => Target::Mod(number(|union| match union {
            TargetUnion::ModRevision(revision) => Some(*revision),
            _ => None,
        })),
        Ok(CompareTarget::Lease) => Target::Lease(number(|union| match union {
            TargetUnion::Lease(lease) => Some(*lease),
            _ => None,
        })),
        Ok(CompareTarget::Value) => Target::Value(match union {
            Some(TargetUnion::Value(value)) => value,
            _ => Bytes::new(),
        }),
        Err(_) => Target::Unknown,
    };
    let relation = match CompareResult::try_from(wire.result) {
        Ok(CompareResult::Equal) => Relation::Equal,
        Ok(CompareResult::Greater) => Relation::Greater,
        Ok(CompareResult::Less) => Relation::Less,
        Ok(CompareResult::NotEqual) => Relation::NotEqual,
        Err(_) => Relation::Unknown,
    };
    Compare {
        span: Span::new(wire.key, wire.range_end),
        target,
        relation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(key: &'static [u8], order: i32, target: i32) -> pb::RangeRequest {
        pb::RangeRequest {
            key: Bytes::from_static(key),
            sort_order: order,
            sort_target: target,
            ..pb::RangeRequest::default()
        }
    }

    #[test]
    fn a_range_is_refused_in_etcds_order() {
        assert_eq!(range(request(b"", 9, 0)), Err(Refusal::EmptyKey));
        let invalid = Err(Refusal::InvalidSortOption);
        assert_eq!(range(request(b"k", 9, 0)), invalid);
        assert_eq!(range(request(b"k", 0, 5)), invalid);
        let sorted = range(request(b"k", 2, 4)).unwrap();
        assert_eq!(
            (sorted.sort_order, sorted.sort_target),
            (SortOrder::Descending, SortTarget::Value)
        );
    }

    #[test]
    fn a_compare_takes_the_value_of_its_target_only() {
        let wire = |target: i32, union| pb::Compare {
            result: CompareResult::Less.into(),
            target,
            key: Bytes::from_static(b"k"),
            target_union: union,
            range_end: Bytes::from_static(b"\0"),
        };
        let mod_7 = Some(TargetUnion::ModRevision(7));
        let table = [
            (CompareTarget::Mod.into(), mod_7.clone(), Target::Mod(7)),
            (
                CompareTarget::Create.into(),
                mod_7.clone(),
                Target::Create(0),
            ),
            (
                CompareTarget::Value.into(),
                mod_7,
                Target::Value(Bytes::new()),
            ),
            (
                CompareTarget::Lease.into(),
                Some(TargetUnion::Lease(5)),
                Target::Lease(5),
            ),
            (77, None, Target::Unknown),
        ];
        for (target, union, expected) in table {
            let compare = compare(wire(target, union));
            assert_eq!(compare.target, expected);
            assert_eq!(compare.relation, Relation::Less);
            assert_eq!(compare.span, Span::From(Bytes::from_static(b"k")));
        }
    }

    #[test]
    fn an_operation_without_content_and_endless_nesting_are_refused() {
        let empty = pb::TxnRequest {
            success: vec![pb::RequestOp::default()],
            ..pb::TxnRequest::default()
        };
        assert_eq!(txn(empty, 128), Err(Refusal::KeyNotFound));
        let mut deep = pb::TxnRequest::default();
        for _ in 0..200 {
            deep = pb::TxnRequest {
                failure: vec![pb::RequestOp {
                    request: Some(Request::RequestTxn(deep)),
                }],
                ..pb::TxnRequest::default()
            };
        }
        assert_eq!(txn(deep, 1_000), Err(Refusal::TooManyOps));
    }

    #[test]
    fn of_several_faults_the_first_in_etcds_order_is_told() {
        let unsorted = || pb::RequestOp {
            request: Some(Request::RequestRange(request(b"k", 9, 0))),
        };
        let keyless = || pb::RequestOp {
            request: Some(Request::RequestPut(pb::PutRequest::default())),
        };
        let many = pb::TxnRequest {
            success: vec![unsorted(), unsorted()],
            ..pb::TxnRequest::default()
        };
        assert_eq!(txn(many.clone(), 1), Err(Refusal::TooManyOps));
        let compared = pb::TxnRequest {
            compare: vec![pb::Compare::default()],
            ..many
        };
        assert_eq!(txn(compared, 128), Err(Refusal::EmptyKey));
        let first = pb::TxnRequest {
            success: vec![keyless()],
            failure: vec![unsorted()],
            ..pb::TxnRequest::default()
        };
        assert_eq!(txn(first, 128), Err(Refusal::EmptyKey));
        let second = pb::TxnRequest {
            success: vec![unsorted(), keyless()],
            ..pb::TxnRequest::default()
        };
        assert_eq!(txn(second, 128), Err(Refusal::InvalidSortOption));
    }
}
