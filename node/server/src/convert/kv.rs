//! Conversion of clients' requests and answers to and from the wire, with the checks that need no state.

use api::v1::batch_item::Request as Item;
use api::v1::batch_result::Response as ItemResponse;
use api::v1::{self, ErrorDetail};
use api::{decode_client_id, errors};
use bytes::Bytes;
use raft::{MembershipChange, MembershipError};
use replica::{Answer, Refusal, Request};
use shardkv::{
    Command, JournalError, JournalStep, KvError, MAX_KEY_BYTES, Query, Response, SessionRef, Step,
    Write, Written,
};
use types::{NodeId, Sequence};

use crate::machine::{self, MachineRequest, MachineResult};
use crate::options::Limits;

/// The time after which a client should try again when no better time is known, in milliseconds.
const RETRY_AFTER_MS: u32 = 20;

/// Converts and checks clients' requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checks {
    max_value_bytes: usize,
}

impl Checks {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            max_value_bytes: limits.max_value_bytes,
        }
    }

    pub(crate) fn get(wire: v1::GetRequest) -> Result<MachineRequest, ErrorDetail> {
        let key = key(wire.key)?;
        Ok(read(Query::Get { key }))
    }

    pub(crate) fn put(self, wire: v1::PutRequest) -> Result<MachineRequest, ErrorDetail> {
        let key = key(wire.key)?;
        let value = self.value("value", wire.value)?;
        write(wire.session.as_ref(), Write::Put { key, value })
    }

    pub(crate) fn append(self, wire: v1::AppendRequest) -> Result<MachineRequest, ErrorDetail> {
        let key = key(wire.key)?;
        let suffix = self.value("suffix", wire.suffix)?;
        write(wire.session.as_ref(), Write::Append { key, suffix })
    }

    pub(crate) fn delete(wire: v1::DeleteRequest) -> Result<MachineRequest, ErrorDetail> {
        let key = key(wire.key)?;
        write(wire.session.as_ref(), Write::Delete { key })
    }

    pub(crate) fn compare_and_swap(
        self,
        wire: v1::CompareAndSwapRequest,
    ) -> Result<MachineRequest, ErrorDetail> {
        let key = key(wire.key)?;
        let expected = wire
            .expected
            .map(|value| self.value("expected", value))
            .transpose()?;
        let new = wire.new.map(|value| self.value("new", value)).transpose()?;
        write(
            wire.session.as_ref(),
            Write::CompareAndSwap { key, expected, new },
        )
    }

    /// Converts an item of a batch.
    pub(crate) fn item(self, item: Option<Item>) -> Result<MachineRequest, ErrorDetail> {
        match item {
            Some(Item::Get(wire)) => Self::get(wire),
            Some(Item::Put(wire)) => self.put(wire),
            Some(Item::Append(wire)) => self.append(wire),
            Some(Item::Delete(wire)) => Self::delete(wire),
            Some(Item::CompareAndSwap(wire)) => self.compare_and_swap(wire),
            None => Err(errors::bad_request(
                "request",
                "it is missing or of a kind that this version doesn't know",
            )),
        }
    }

    fn value(self, field: &str, value: Bytes) -> Result<Bytes, ErrorDetail> {
        if value.len() > self.max_value_bytes {
            let limit = self.max_value_bytes as u64;
            return Err(errors::too_large(field, value.len() as u64, limit));
        }
        Ok(value)
    }
}

/// Returns a linearizable read of shards.
pub(crate) fn read(query: Query) -> MachineRequest {
    Request::Read(machine::Query::Shards(query))
}

/// Returns a linearizable read of shards that followers serve, too.
pub(crate) fn read_here(query: Query) -> MachineRequest {
    Request::ReadHere(machine::Query::Shards(query))
}

/// Returns a read of this node's own state of shards, which may be behind.
pub(crate) fn read_local(query: Query) -> MachineRequest {
    Request::ReadLocal(machine::Query::Shards(query))
}

/// Returns the write that puts a step of a hand-off into the group's log.
pub(crate) fn step(step: &Step) -> MachineRequest {
    Request::Write {
        operation: step.encode(),
        frees_space: step.frees_space(),
    }
}

/// Converts a step of a journal. It is accepted on a nearly full disk, because moves free space.
pub(crate) fn journal_step(step: JournalStep) -> MachineRequest {
    Request::Write {
        operation: step.encode(),
        frees_space: true,
    }
}

fn key(key: Bytes) -> Result<Bytes, ErrorDetail> {
    if key.is_empty() {
        return Err(errors::bad_request("key", "it is empty"));
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(errors::too_large(
            "key",
            key.len() as u64,
            MAX_KEY_BYTES as u64,
        ));
    }
    Ok(key)
}

fn write(session: Option<&v1::Session>, write: Write) -> Result<MachineRequest, ErrorDetail> {
    let frees_space = write.frees_space();
    let session = session.map(session_ref).transpose()?;
    Ok(Request::Write {
        operation: Command { session, write }.encode(),
        frees_space,
    })
}

/// Converts the session and sequence of a write.
pub(crate) fn session_ref(wire: &v1::Session) -> Result<SessionRef, ErrorDetail> {
    let Some(client) = decode_client_id(&wire.client_id) else {
        let reason = "it must have the 16 bytes that OpenSession returned";
        return Err(errors::bad_request("session.client_id", reason));
    };
    if wire.sequence == 0 {
        let reason = "a session's writes are numbered from 1";
        return Err(errors::bad_request("session.sequence", reason));
    }
    if wire.acked_below > wire.sequence {
        let reason = "a write can't be acknowledged before it is answered";
        return Err(errors::bad_request("session.acked_below", reason));
    }
    Ok(SessionRef {
        client,
        sequence: Sequence(wire.sequence),
        acked_below: Sequence(wire.acked_below),
    })
}

/// Returns the state machine's answer, or the typed error of a refusal. `address` returns the address of a node for
/// clients, or an empty string for an unknown node.
pub(crate) fn outcome(
    result: MachineResult,
    address: impl Fn(NodeId) -> String,
) -> Result<Response, ErrorDetail> {
    match result {
        Ok(Answer::Machine(machine::Response::Shards(Response::Refused(error)))) => {
            Err(kv_error(&error))
        }
        Ok(Answer::Machine(machine::Response::Shards(response))) => Ok(response),
        Ok(_) => Err(mismatch()),
        Err(refusal) => Err(refused(&refusal, address)),
    }
}

/// Returns the state machine's answer to a step of a journal, or its refusal; or the typed error of another refusal.
pub(crate) fn journal_outcome(
    result: MachineResult,
    address: impl Fn(NodeId) -> String,
) -> Result<Result<Response, JournalError>, ErrorDetail> {
    match result {
        Ok(Answer::Machine(machine::Response::Shards(Response::Refused(KvError::Journal {
            error,
            ..
        })))) => Ok(Err(error)),
        result => outcome(result, address).map(Ok),
    }
}

/// Returns the error for an answer of another kind than the request, which is a bug. The status has the code `Internal`.
pub(crate) fn mismatch() -> ErrorDetail {
    ErrorDetail {
        message: "the answer is of another kind than the request".to_owned(),
        kind: None,
    }
}

/// Returns the typed error of a request that the replica refused.
pub(crate) fn refused(refusal: &Refusal, address: impl Fn(NodeId) -> String) -> ErrorDetail {
    let hint = |leader: &Option<NodeId>| leader.map(address).unwrap_or_default();
    match refusal {
        Refusal::NotLeader { leader } => errors::not_leader(&hint(leader)),
        Refusal::Unknown { leader } => errors::outcome_unknown(&hint(leader)),
        Refusal::Transferring => errors::not_leader(""),
        Refusal::Overloaded { what, limit } => errors::overloaded(what, *limit, RETRY_AFTER_MS),
        Refusal::TooLarge { size, limit } => errors::too_large("operation", *size, *limit),
        Refusal::DiskFull => errors::disk_full(),
        Refusal::Membership(error) => membership_error(error),
        Refusal::Stopping => errors::outcome_unknown(""),
        // Nothing was done, and trying again doesn't help.
        Refusal::NoLiveQuorum { .. } => errors::conflict(refusal),
        Refusal::BadTransfer(reason) => errors::bad_request("node_id", reason),
        // All other refusals are temporary: another change in progress, a learner that is behind.
        other => errors::unavailable(other, RETRY_AFTER_MS),
    }
}

fn membership_error(error: &MembershipError) -> ErrorDetail {
    let field = match error {
        MembershipError::BadAddress => "address",
        _ => "node_id",
    };
    errors::bad_request(field, error)
}

pub(crate) fn kv_error(error: &KvError) -> ErrorDetail {
    match error {
        KvError::KeySize { size: 0, .. } => errors::bad_request("key", error),
        KvError::KeySize { size, limit } => errors::too_large("key", *size, *limit),
        KvError::ValueTooLarge { size, limit } => errors::too_large("value", *size, *limit),
        KvError::SessionExpired => errors::session_expired(),
        KvError::SessionFromFuture { ahead_ms } => errors::session_from_future(*ahead_ms),
        KvError::StaleSequence { .. } | KvError::BadSequence { .. } => {
            errors::bad_request("session.sequence", error)
        }
        KvError::SessionLimit { what, limit, .. } => errors::overloaded(what, *limit, 1_000),
        KvError::WrongGroup { config, .. } => errors::wrong_group(config.0),
        KvError::ShardNotReady { .. } => errors::shard_not_ready(20),
        // The level rises once an administrator has upgraded all members: trying again doesn't help until then.
        KvError::FeatureLevel { .. } | KvError::ShardGone { .. } | KvError::Journal { .. } => {
            errors::conflict(error)
        }
        KvError::NoShard { .. } => errors::not_found(error),
        KvError::Malformed(_) => errors::bad_request("request", error),
    }
}

/// Converts the answer to a request about one key.
pub(crate) fn item_answer(response: Response) -> Result<ItemResponse, ErrorDetail> {
    Ok(match response {
        Response::Value(value) => ItemResponse::Get(v1::GetResponse {
            found: value.is_some(),
            value: value.unwrap_or_default(),
        }),
        Response::Written(Written::Put) => ItemResponse::Put(v1::PutResponse {}),
        Response::Written(Written::Append { length }) => {
            ItemResponse::Append(v1::AppendResponse { length })
        }
        Response::Written(Written::Delete { existed }) => {
            ItemResponse::Delete(v1::DeleteResponse { existed })
        }
        Response::Written(Written::CompareAndSwap { swapped }) => {
            ItemResponse::CompareAndSwap(v1::CompareAndSwapResponse { swapped })
        }
        _ => return Err(mismatch()),
    })
}

/// Converts a membership change.
pub(crate) fn membership_change(
    wire: v1::ChangeMembershipRequest,
) -> Result<MembershipChange, ErrorDetail> {
    use v1::change_membership_request::Change;
    let forced = wire.without_live_quorum;
    match wire.change {
        Some(Change::AddLearner(add)) => Ok(MembershipChange::AddLearner {
            node: NodeId(add.node_id),
            address: add.address,
        }),
        Some(Change::Promote(node)) => Ok(MembershipChange::Promote { node: NodeId(node) }),
        Some(Change::Remove(node)) if forced => {
            Ok(MembershipChange::RemoveWithoutLiveQuorum { node: NodeId(node) })
        }
        Some(Change::Remove(node)) => Ok(MembershipChange::Remove { node: NodeId(node) }),
        None => Err(errors::bad_request("change", "it is missing")),
    }
}

#[cfg(test)]
mod tests {
    use api::v1::error_detail::Kind;
    use types::{ClientId, LogTime};

    use super::*;

    const CHECKS: Checks = Checks {
        max_value_bytes: 100,
    };

    fn put(key: &'static [u8], value: Vec<u8>, session: Option<v1::Session>) -> v1::PutRequest {
        v1::PutRequest {
            key: Bytes::from_static(key),
            value: value.into(),
            session,
        }
    }

    fn session(sequence: u64, acked_below: u64) -> v1::Session {
        let client = ClientId {
            birth: LogTime(5),
            nonce: 9,
        };
        v1::Session {
            client_id: api::encode_client_id(client),
            sequence,
            acked_below,
        }
    }

    #[test]
    fn a_write_is_proposed_with_its_session() {
        let request = CHECKS
            .put(put(b"k", vec![7; 100], Some(session(3, 2))))
            .unwrap();
        let Request::Write {
            operation,
            frees_space,
        } = request
        else {
            panic!("a put is a write");
        };
        assert!(!frees_space);
        let command = Command::decode(operation).unwrap();
        let session = command.session.unwrap();
        assert_eq!(
            (session.sequence, session.acked_below),
            (Sequence(3), Sequence(2))
        );
        assert_eq!(session.client.nonce, 9);
        assert_eq!(command.write.key().as_ref(), b"k");
    }

    /// A client must know that nothing was done, and what to do.
    #[test]
    fn a_group_below_the_level_refuses_for_certain() {
        let error = KvError::FeatureLevel {
            level: 1,
            needed: 2,
        };
        let detail = kv_error(&error);
        assert!(matches!(detail.kind, Some(Kind::Conflict(_))), "{detail:?}");
        assert!(
            detail.message.contains("upgrade all its nodes"),
            "{detail:?}"
        );
    }

    #[test]
    fn a_delete_frees_space() {
        let wire = v1::DeleteRequest {
            key: Bytes::from_static(b"k"),
            session: None,
        };
        let request = Checks::delete(wire).unwrap();
        assert!(matches!(
            request,
            Request::Write {
                frees_space: true,
                ..
            }
        ));
    }

    #[test]
    fn bad_requests_name_their_field() {
        let cases = [
            (put(b"", vec![], None), "bad_request key"),
            (
                put(&[b'k'; MAX_KEY_BYTES + 1], vec![], None),
                "too_large key",
            ),
            (put(b"k", vec![0; 101], None), "too_large value"),
            (
                put(b"k", vec![], Some(session(0, 0))),
                "bad_request session.sequence",
            ),
            (
                put(b"k", vec![], Some(session(3, 4))),
                "bad_request session.acked_below",
            ),
            (
                put(
                    b"k",
                    vec![],
                    Some(v1::Session {
                        client_id: Bytes::from_static(b"short"),
                        sequence: 1,
                        acked_below: 0,
                    }),
                ),
                "bad_request session.client_id",
            ),
        ];
        for (request, expected) in cases {
            let error = CHECKS.put(request).unwrap_err();
            let got = match error.kind.unwrap() {
                Kind::BadRequest(bad) => format!("bad_request {}", bad.field),
                Kind::TooLarge(large) => format!("too_large {}", large.what),
                other => panic!("{other:?}"),
            };
            assert_eq!(got, expected);
        }
        assert!(CHECKS.item(None).is_err());
    }

    #[test]
    fn refusals_carry_the_leaders_address() {
        let address = |node: NodeId| format!("host-{}:1", node.0);
        let leader = Some(NodeId(7));
        let detail = refused(&Refusal::NotLeader { leader }, address);
        let Some(Kind::NotLeader(hint)) = detail.kind else {
            panic!("{detail:?}");
        };
        assert_eq!(hint.leader_address, "host-7:1");
        let detail = refused(&Refusal::Unknown { leader: None }, address);
        assert!(matches!(detail.kind, Some(Kind::OutcomeUnknown(_))));
        assert!(matches!(
            refused(&Refusal::DiskFull, address).kind,
            Some(Kind::DiskFull(_))
        ));
    }

    #[test]
    fn a_refused_session_leaves_no_doubt() {
        for error in [
            KvError::SessionExpired,
            KvError::SessionFromFuture { ahead_ms: 9 },
        ] {
            let refusal = api::refused(kv_error(&error)).refusal;
            let verdict = refusal.judge();
            assert!(!verdict.doubt, "{error}");
            assert_eq!(verdict.action, request::Action::RenewSession, "{error}");
        }
    }
}
