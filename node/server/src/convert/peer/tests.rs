//! Messages to the wire and back, and bytes that nobody sends.

use bytes::Bytes;
use prost::Message as _;

use super::*;

fn membership() -> Membership {
    Membership::of_voters([(NodeId(1), "a:1"), (NodeId(2), "b:2")])
}

fn id(term: u64, index: u64) -> EntryId {
    EntryId::new(Term(term), Index(index))
}

fn every_message() -> Vec<Message> {
    let entries = vec![
        Entry::new(Term(3), Index(8), Payload::Noop),
        Entry::new(
            Term(3),
            Index(9),
            Payload::Command(Bytes::from_static(b"x")),
        ),
        Entry::new(Term(5), Index(10), Payload::Membership(membership())),
    ];
    let chunk = SnapshotChunk {
        meta: SnapshotMeta {
            last: id(3, 7),
            membership: membership(),
        },
        number: 4,
        serial: 6,
        done: true,
        checksum: 77,
        feature_level: 3,
        data: Bytes::from_static(b"data"),
    };
    let reply = |status| Message::SnapshotReply {
        snapshot: id(3, 7),
        serial: 9,
        next_chunk: 5,
        status,
    };
    vec![
        Message::PreVote {
            next_term: Term(6),
            last: id(5, 10),
        },
        Message::PreVoteReply {
            next_term: Term(6),
            granted: true,
        },
        Message::Vote {
            last: id(5, 10),
            transfer: true,
        },
        Message::VoteReply { granted: true },
        Message::Append {
            prev: id(2, 7),
            entries,
            commit: Index(9),
        },
        Message::AppendAccepted {
            match_index: Index(9),
        },
        Message::AppendRejected {
            refused: Index(9),
            hint: id(2, 4),
        },
        Message::Heartbeat {
            commit: Index(9),
            read_round: 12,
            lease: true,
            quiet: true,
            comparison: None,
            answers_reads: true,
        },
        Message::Heartbeat {
            commit: Index(9),
            read_round: 12,
            lease: false,
            quiet: false,
            comparison: Some(Comparison {
                since: Index(2),
                index: Index(9),
                agreed: Some(0),
            }),
            answers_reads: false,
        },
        Message::ReadIndex { question: 12 },
        Message::ReadIndexReply {
            question: u64::MAX,
            index: Index(9),
        },
        Message::HeartbeatReply {
            read_round: 12,
            feature_level: 2,
            lease: LeasePromise {
                election_ms: 400,
                lease_reads: true,
            },
            digest: Some(StateDigest {
                since: Index(2),
                index: Index(9),
                value: u64::MAX,
            }),
        },
        Message::SnapshotChunk(chunk),
        reply(SnapshotStatus::Receiving),
        reply(SnapshotStatus::Installed),
        reply(SnapshotStatus::Failed),
        Message::TimeoutNow,
        Message::JoinRequest {
            address: "c:3".to_owned(),
        },
    ]
}

fn envelope(message: Message) -> Envelope {
    Envelope {
        from: NodeId(1),
        to: NodeId(2),
        term: Term(5),
        message,
    }
}

#[test]
fn every_message_survives_the_wire() {
    for message in every_message() {
        let sent = envelope(message);
        let bytes = to_wire(sent.clone()).encode_to_vec();
        let wire = v1::RaftMessage::decode(bytes.as_slice()).unwrap();
        assert_eq!(from_wire(wire).unwrap(), sent);
    }
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let good = |message| to_wire(envelope(message));
    let refuse = |wire: v1::RaftMessage, field: &str| {
        assert_eq!(from_wire(wire).unwrap_err().field, field);
    };
    let mut wire = good(Message::TimeoutNow);
    wire.from = 0;
    refuse(wire, "from");
    let mut wire = good(Message::TimeoutNow);
    wire.to = 0;
    refuse(wire, "to");
    let mut wire = good(Message::TimeoutNow);
    wire.term = 0;
    refuse(wire, "term");
    let mut wire = good(Message::TimeoutNow);
    wire.message = None;
    refuse(wire, "message");
    refuse(
        good(Message::JoinRequest {
            address: String::new(),
        }),
        "join_request.address",
    );
    let append = |prev, entries| {
        good(Message::Append {
            prev,
            entries,
            commit: Index(0),
        })
    };
    let entry = |term| vec![Entry::new(Term(term), Index(1), Payload::Noop)];
    refuse(append(id(4, 7), entry(3)), "append.entries.term");
    refuse(append(id(0, 0), entry(0)), "append.entries.term");
    refuse(append(id(2, 7), entry(6)), "append.entries");
    refuse(append(id(2, u64::MAX), entry(3)), "append.entries");
    let mut wire = append(id(2, 7), entry(3));
    if let Some(Wire::Append(append)) = &mut wire.message {
        append.prev = None;
    }
    refuse(wire, "append.prev");
}

#[test]
fn terms_and_indexes_at_their_maximum_are_taken() {
    let message = Message::Append {
        prev: id(u64::MAX, u64::MAX),
        entries: Vec::new(),
        commit: Index(u64::MAX),
    };
    let mut sent = envelope(message);
    sent.term = Term(u64::MAX);
    assert_eq!(from_wire(to_wire(sent.clone())).unwrap(), sent);
}

#[test]
fn damaged_bytes_give_errors_and_never_panics() {
    // A small generator gives many different inputs, the same in each run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let originals: Vec<Vec<u8>> = every_message()
        .into_iter()
        .map(|message| to_wire(envelope(message)).encode_to_vec())
        .collect();
    let mut refused = 0;
    for round in 0..60_000 {
        let mut bytes = originals[round % originals.len()].clone();
        for _ in 0..=random() % 3 {
            let at = usize::try_from(random()).unwrap() % bytes.len();
            bytes[at] = random().to_le_bytes()[0];
        }
        let keep = usize::try_from(random()).unwrap() % (bytes.len() + 1);
        if random().is_multiple_of(4) {
            bytes.truncate(keep);
        }
        let Ok(wire) = v1::RaftMessage::decode(bytes.as_slice()) else {
            continue;
        };
        match from_wire(wire) {
            Ok(envelope) => assert_ne!(envelope.from, NodeId(0)),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 1_000, "the damage reached the checks: {refused}");
}
