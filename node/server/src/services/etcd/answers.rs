//! Converts answers to etcd's messages.
//!
//! As in etcd, the answers within a transaction have headers with nothing but the revision.

use api::etcd::etcdserverpb as pb;
use api::etcd::mvccpb;
use keyspace::{DeleteRangeAnswer, KeyValue, OpAnswer, PutAnswer, RangeAnswer, TxnAnswer};
use pb::response_op::Response;

pub(super) fn pair(pair: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: pair.key,
        create_revision: pair.create_revision,
        mod_revision: pair.mod_revision,
        version: pair.version,
        value: pair.value,
        lease: pair.lease.0,
    }
}

pub(super) fn range(answer: RangeAnswer, header: pb::ResponseHeader) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header),
        kvs: answer.kvs.into_iter().map(pair).collect(),
        more: answer.more,
        count: answer.count,
    }
}

pub(super) fn put(answer: PutAnswer, header: pb::ResponseHeader) -> pb::PutResponse {
    pb::PutResponse {
        header: Some(header),
        prev_kv: answer.prev_kv.map(pair),
    }
}

pub(super) fn delete_range(
    answer: DeleteRangeAnswer,
    header: pb::ResponseHeader,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: Some(header),
        deleted: answer.deleted,
        prev_kvs: answer.prev_kvs.into_iter().map(pair).collect(),
    }
}

pub(super) fn txn(answer: TxnAnswer, header: pb::ResponseHeader) -> pb::TxnResponse {
    pb::TxnResponse {
        header: Some(header),
        succeeded: answer.succeeded,
        responses: answer.responses.into_iter().map(op).collect(),
    }
}

fn op(answer: OpAnswer) -> pb::ResponseOp {
    let within = |revision| pb::ResponseHeader {
        revision,
        ..pb::ResponseHeader::default()
    };
    let response = match answer {
        OpAnswer::Range(answer) => {
            let header = within(answer.revision);
            Response::ResponseRange(range(answer, header))
        }
        OpAnswer::Put(answer) => {
            let header = within(answer.revision);
            Response::ResponsePut(put(answer, header))
        }
        OpAnswer::DeleteRange(answer) => {
            let header = within(answer.revision);
            Response::ResponseDeleteRange(delete_range(answer, header))
        }
        OpAnswer::Txn(answer) => {
            let header = within(answer.revision);
            Response::ResponseTxn(txn(answer, header))
        }
    };
    pb::ResponseOp {
        response: Some(response),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_within_a_transaction_have_only_the_revision() {
        let answer = TxnAnswer {
            revision: 9,
            succeeded: true,
            responses: vec![
                OpAnswer::Put(PutAnswer {
                    revision: 9,
                    prev_kv: None,
                }),
                OpAnswer::Txn(TxnAnswer::default()),
            ],
        };
        let header = pb::ResponseHeader {
            cluster_id: 1,
            member_id: 2,
            revision: 9,
            raft_term: 3,
        };
        let wire = txn(answer, header);
        assert_eq!(wire.header, Some(header));
        let headers: Vec<_> = wire
            .responses
            .into_iter()
            .map(|op| match op.response.unwrap() {
                Response::ResponsePut(put) => put.header.unwrap(),
                Response::ResponseTxn(txn) => txn.header.unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        let within = |revision| pb::ResponseHeader {
            revision,
            ..pb::ResponseHeader::default()
        };
        assert_eq!(headers, [within(9), within(0)]);
    }
}
