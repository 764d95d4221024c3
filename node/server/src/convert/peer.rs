//! Conversion of Raft messages to and from the wire. Peers' messages are checked here, so that the code behind this file
//! never gets an id of zero, a gap between entries or terms that run backwards.

use api::v1;
use api::v1::raft_message::Message as Wire;
use raft::{
    Comparison, Entry, EntryId, Envelope, Index, LeasePromise, MAX_ADDRESS_BYTES, Membership,
    Message, Payload, SnapshotChunk, SnapshotMeta, SnapshotStatus, StateDigest, Term,
};
use types::{NodeId, Reader, Writer};

/// A peer's message that is not valid. The node ends the stream with this error, and the peer connects again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {field}: {reason}")]
pub(crate) struct Malformed {
    /// The field of the wire message.
    pub(crate) field: &'static str,
    /// The reason.
    pub(crate) reason: String,
}

fn malformed(field: &'static str, reason: impl Into<String>) -> Malformed {
    Malformed {
        field,
        reason: reason.into(),
    }
}

/// Returns the approximate size of a message on the wire, in bytes.
pub(crate) fn size(envelope: &Envelope) -> usize {
    64 + match &envelope.message {
        Message::Append { entries, .. } => entries.iter().map(Entry::size).sum(),
        Message::SnapshotChunk(chunk) => chunk.data.len(),
        Message::JoinRequest { address } => address.len(),
        _ => 0,
    }
}

/// Converts a message to the wire.
pub(crate) fn to_wire(envelope: Envelope) -> v1::RaftMessage {
    v1::RaftMessage {
        from: envelope.from.0,
        to: envelope.to.0,
        term: envelope.term.0,
        message: Some(message_to_wire(envelope.message)),
    }
}

fn message_to_wire(message: Message) -> Wire {
    match message {
        Message::PreVote { next_term, last } => Wire::PreVote(v1::PreVote {
            next_term: next_term.0,
            last: id_to_wire(last),
        }),
        Message::PreVoteReply { next_term, granted } => Wire::PreVoteReply(v1::PreVoteReply {
            next_term: next_term.0,
            granted,
        }),
        Message::Vote { last, transfer } => Wire::Vote(v1::Vote {
            last: id_to_wire(last),
            transfer,
        }),
        Message::VoteReply { granted } => Wire::VoteReply(v1::VoteReply { granted }),
        Message::Append {
            prev,
            entries,
            commit,
        } => Wire::Append(v1::AppendEntries {
            prev: id_to_wire(prev),
            entries: entries.iter().map(entry_to_wire).collect(),
            commit: commit.0,
        }),
        Message::AppendAccepted { match_index } => Wire::AppendAccepted(v1::AppendAccepted {
            matched: match_index.0,
        }),
        Message::AppendRejected { refused, hint } => Wire::AppendRejected(v1::AppendRejected {
            refused: refused.0,
            hint: id_to_wire(hint),
        }),
        Message::Heartbeat {
            commit,
            read_round,
            lease,
            quiet,
            comparison,
            answers_reads,
        } => Wire::Heartbeat(v1::Heartbeat {
            commit: commit.0,
            read_round,
            lease,
            quiet,
            comparison: comparison.map(|it| v1::Comparison {
                since: it.since.0,
                index: it.index.0,
                agreed: it.agreed,
            }),
            answers_reads,
        }),
        Message::HeartbeatReply {
            read_round,
            feature_level,
            lease,
            digest,
        } => Wire::HeartbeatReply(v1::HeartbeatReply {
            read_round,
            feature_level,
            lease_election_ms: lease.election_ms,
            lease_reads: lease.lease_reads,
            digest: digest.map(|it| v1::StateDigest {
                since: it.since.0,
                index: it.index.0,
                value: it.value,
            }),
        }),
        Message::SnapshotChunk(chunk) => Wire::SnapshotChunk(chunk_to_wire(chunk)),
        Message::SnapshotReply {
            snapshot,
            serial,
            next_chunk,
            status,
        } => Wire::SnapshotReply(v1::SnapshotReply {
            snapshot: id_to_wire(snapshot),
            serial,
            next_chunk,
            status: status_to_wire(status).into(),
        }),
        Message::ReadIndex { question } => Wire::ReadIndex(v1::ReadIndex { question }),
        Message::ReadIndexReply { question, index } => Wire::ReadIndexReply(v1::ReadIndexReply {
            question,
            index: index.0,
        }),
        Message::TimeoutNow => Wire::TimeoutNow(v1::TimeoutNow {}),
        Message::JoinRequest { address } => Wire::JoinRequest(v1::MemberRequest { address }),
    }
}

// The generated fields are of type `Option`.
#[allow(clippy::unnecessary_wraps)]
fn id_to_wire(id: EntryId) -> Option<v1::EntryId> {
    Some(v1::EntryId {
        term: id.term.0,
        index: id.index.0,
    })
}

fn entry_to_wire(entry: &Entry) -> v1::Entry {
    v1::Entry {
        term: entry.id.term.0,
        payload: entry.payload.encode(),
    }
}

fn chunk_to_wire(chunk: SnapshotChunk) -> v1::SnapshotChunk {
    let mut membership = Writer::default();
    chunk.meta.membership.encode(&mut membership);
    v1::SnapshotChunk {
        last: id_to_wire(chunk.meta.last),
        membership: membership.finish(),
        number: chunk.number,
        serial: chunk.serial,
        done: chunk.done,
        checksum: chunk.checksum,
        feature_level: chunk.feature_level,
        data: chunk.data,
    }
}

fn status_to_wire(status: SnapshotStatus) -> v1::SnapshotStatus {
    match status {
        SnapshotStatus::Receiving => v1::SnapshotStatus::Receiving,
        SnapshotStatus::Installed => v1::SnapshotStatus::Installed,
        SnapshotStatus::Failed => v1::SnapshotStatus::Failed,
    }
}

/// Converts and checks a message from the wire.
pub(crate) fn from_wire(wire: v1::RaftMessage) -> Result<Envelope, Malformed> {
    let term = Term(wire.term);
    let Some(content) = wire.message else {
        // A kind of message that this version doesn't know arrives as `None`.
        return Err(malformed("message", "it is missing or of an unknown kind"));
    };
    let joins = matches!(content, Wire::JoinRequest(_));
    if wire.from == 0 {
        return Err(malformed("from", "node id 0 is not a node"));
    }
    if wire.to == 0 && !joins {
        return Err(malformed("to", "only a join request may have no receiver"));
    }
    Ok(Envelope {
        from: NodeId(wire.from),
        to: NodeId(wire.to),
        term,
        message: message_from_wire(term, content)?,
    })
}

fn message_from_wire(term: Term, wire: Wire) -> Result<Message, Malformed> {
    Ok(match wire {
        Wire::PreVote(v) => Message::PreVote {
            next_term: real_term("pre_vote.next_term", v.next_term)?,
            last: id("pre_vote.last", v.last)?,
        },
        Wire::PreVoteReply(v) => Message::PreVoteReply {
            next_term: real_term("pre_vote_reply.next_term", v.next_term)?,
            granted: v.granted,
        },
        Wire::Vote(v) => {
            real_term("term", term.0)?;
            Message::Vote {
                last: id("vote.last", v.last)?,
                transfer: v.transfer,
            }
        }
        Wire::VoteReply(v) => {
            real_term("term", term.0)?;
            Message::VoteReply { granted: v.granted }
        }
        Wire::Append(v) => append(real_term("term", term.0)?, v)?,
        Wire::AppendAccepted(v) => Message::AppendAccepted {
            match_index: Index(v.matched),
        },
        Wire::AppendRejected(v) => Message::AppendRejected {
            refused: Index(v.refused),
            hint: id("append_rejected.hint", v.hint)?,
        },
        Wire::Heartbeat(v) => {
            real_term("term", term.0)?;
            Message::Heartbeat {
                commit: Index(v.commit),
                read_round: v.read_round,
                lease: v.lease,
                quiet: v.quiet,
                comparison: v.comparison.map(|it| Comparison {
                    since: Index(it.since),
                    index: Index(it.index),
                    agreed: it.agreed,
                }),
                answers_reads: v.answers_reads,
            }
        }
        Wire::HeartbeatReply(v) => Message::HeartbeatReply {
            read_round: v.read_round,
            feature_level: v.feature_level,
            lease: LeasePromise {
                election_ms: v.lease_election_ms,
                lease_reads: v.lease_reads,
            },
            digest: v.digest.map(|it| StateDigest {
                since: Index(it.since),
                index: Index(it.index),
                value: it.value,
            }),
        },
        Wire::SnapshotChunk(v) => {
            real_term("term", term.0)?;
            Message::SnapshotChunk(chunk(v)?)
        }
        Wire::SnapshotReply(v) => Message::SnapshotReply {
            snapshot: id("snapshot_reply.snapshot", v.snapshot)?,
            serial: v.serial,
            next_chunk: v.next_chunk,
            status: status(v.status)?,
        },
        Wire::ReadIndex(v) => {
            real_term("term", term.0)?;
            Message::ReadIndex {
                question: v.question,
            }
        }
        Wire::ReadIndexReply(v) => {
            real_term("term", term.0)?;
            Message::ReadIndexReply {
                question: v.question,
                index: Index(v.index),
            }
        }
        Wire::TimeoutNow(v1::TimeoutNow {}) => {
            real_term("term", term.0)?;
            Message::TimeoutNow
        }
        Wire::JoinRequest(v) => {
            if v.address.is_empty() || v.address.len() > MAX_ADDRESS_BYTES {
                let reason = format!("it must have 1 to {MAX_ADDRESS_BYTES} bytes");
                return Err(malformed("join_request.address", reason));
            }
            Message::JoinRequest { address: v.address }
        }
    })
}

fn real_term(field: &'static str, term: u64) -> Result<Term, Malformed> {
    match term {
        0 => Err(malformed(field, "term 0 is before the first election")),
        term => Ok(Term(term)),
    }
}

fn id(field: &'static str, wire: Option<v1::EntryId>) -> Result<EntryId, Malformed> {
    let wire = wire.ok_or_else(|| malformed(field, "it is missing"))?;
    Ok(EntryId::new(Term(wire.term), Index(wire.index)))
}

fn append(term: Term, wire: v1::AppendEntries) -> Result<Message, Malformed> {
    let prev = id("append.prev", wire.prev)?;
    let mut last = prev;
    let mut entries = Vec::with_capacity(wire.entries.len());
    for entry in wire.entries {
        let entry = next_entry(last, entry)?;
        last = entry.id;
        entries.push(entry);
    }
    if last.term > term {
        let reason =
            format!("entry {last} has a later term than its sender, which is in term {term}");
        return Err(malformed("append.entries", reason));
    }
    Ok(Message::Append {
        prev,
        entries,
        commit: Index(wire.commit),
    })
}

/// Converts the entry after `last`. Its index isn't on the wire, because entries are contiguous.
fn next_entry(last: EntryId, wire: v1::Entry) -> Result<Entry, Malformed> {
    let term = real_term("append.entries.term", wire.term)?;
    if term < last.term {
        let reason = format!("terms run backwards after {last}");
        return Err(malformed("append.entries.term", reason));
    }
    let Some(index) = last.index.0.checked_add(1) else {
        return Err(malformed(
            "append.entries",
            "there is no index after the last",
        ));
    };
    let payload = Payload::decode(wire.payload)
        .map_err(|error| malformed("append.entries.payload", error.to_string()))?;
    Ok(Entry::new(term, Index(index), payload))
}

fn chunk(wire: v1::SnapshotChunk) -> Result<SnapshotChunk, Malformed> {
    let field = "snapshot_chunk.membership";
    let mut reader = Reader::new(wire.membership);
    let membership =
        Membership::decode(&mut reader).map_err(|error| malformed(field, error.to_string()))?;
    reader
        .finish()
        .map_err(|error| malformed(field, error.to_string()))?;
    Ok(SnapshotChunk {
        meta: SnapshotMeta {
            last: id("snapshot_chunk.last", wire.last)?,
            membership,
        },
        number: wire.number,
        serial: wire.serial,
        done: wire.done,
        checksum: wire.checksum,
        feature_level: wire.feature_level,
        data: wire.data,
    })
}

fn status(wire: i32) -> Result<SnapshotStatus, Malformed> {
    match v1::SnapshotStatus::try_from(wire) {
        Ok(v1::SnapshotStatus::Receiving) => Ok(SnapshotStatus::Receiving),
        Ok(v1::SnapshotStatus::Installed) => Ok(SnapshotStatus::Installed),
        Ok(v1::SnapshotStatus::Failed) => Ok(SnapshotStatus::Failed),
        Ok(v1::SnapshotStatus::Unspecified) | Err(_) => {
            let reason = format!("unknown value {wire}");
            Err(malformed("snapshot_reply.status", reason))
        }
    }
}

#[cfg(test)]
mod tests;
