//! The text forms of messages, entries and batches in the goldens.

use std::fmt::Write as _;

use raft::{Entry, Envelope, LogBatch, Message, Payload, SnapshotStatus};

/// Returns a message's name in scripts.
pub(crate) fn kind(message: &Message) -> &'static str {
    match message {
        Message::PreVote { .. } => "prevote",
        Message::PreVoteReply { .. } => "prevote-reply",
        Message::Vote { .. } => "vote",
        Message::VoteReply { .. } => "vote-reply",
        Message::Append { .. } => "append",
        Message::AppendAccepted { .. } => "accepted",
        Message::AppendRejected { .. } => "rejected",
        Message::Heartbeat { .. } => "heartbeat",
        Message::HeartbeatReply { .. } => "heartbeat-reply",
        Message::SnapshotChunk(_) => "snapshot",
        Message::SnapshotReply { .. } => "snapshot-reply",
        Message::ReadIndex { .. } => "read-index",
        Message::ReadIndexReply { .. } => "read-index-reply",
        Message::TimeoutNow => "timeout-now",
        Message::JoinRequest { .. } => "join",
    }
}

pub(crate) fn envelope(envelope: &Envelope) -> String {
    let Envelope {
        from,
        to,
        term,
        message,
    } = envelope;
    format!("{from} → {to} {term} {}{}", kind(message), details(message))
}

fn details(message: &Message) -> String {
    match message {
        Message::PreVote { next_term, last } => format!(" for={next_term} last={last}"),
        Message::PreVoteReply { next_term, granted } => {
            format!(" for={next_term} {}", yes_no(*granted))
        }
        Message::Vote { last, transfer } => {
            format!(" last={last}{}", if *transfer { " transfer" } else { "" })
        }
        Message::VoteReply { granted } => format!(" {}", yes_no(*granted)),
        Message::Append {
            prev,
            entries: list,
            commit,
        } => format!(" prev={prev} commit={commit} [{}]", entries(list)),
        Message::AppendAccepted { match_index } => format!(" match_index={match_index}"),
        Message::AppendRejected { refused, hint } => format!(" refused={refused} hint={hint}"),
        Message::Heartbeat {
            commit,
            read_round,
            lease,
            quiet,
            ..
        } => {
            let lease = if *lease { " lease" } else { "" };
            let quiet = if *quiet { " quiet" } else { "" };
            format!(" commit={commit} round={read_round}{lease}{quiet}")
        }
        Message::HeartbeatReply { read_round, .. } => format!(" round={read_round}"),
        Message::SnapshotChunk(chunk) => {
            format!(
                " last={} members=({})",
                chunk.meta.last, chunk.meta.membership
            )
        }
        Message::SnapshotReply {
            snapshot, status, ..
        } => {
            let status = match status {
                SnapshotStatus::Receiving => "receiving",
                SnapshotStatus::Installed => "installed",
                SnapshotStatus::Failed => "failed",
            };
            format!(" last={snapshot} {status}")
        }
        Message::TimeoutNow => String::new(),
        Message::ReadIndex { question } => format!(" question={question}"),
        Message::ReadIndexReply { question, index } => {
            format!(" question={question} index={index}")
        }
        Message::JoinRequest { address } => format!(" {address}"),
    }
}

fn yes_no(granted: bool) -> &'static str {
    if granted { "granted" } else { "refused" }
}

pub(crate) fn entries(entries: &[Entry]) -> String {
    let shown: Vec<String> = entries.iter().map(entry).collect();
    shown.join(", ")
}

pub(crate) fn entry(entry: &Entry) -> String {
    match &entry.payload {
        Payload::Noop => format!("{} noop", entry.id),
        Payload::Command(data) if data.len() > 16 => format!("{} {} bytes", entry.id, data.len()),
        Payload::Command(data) => format!("{} {}", entry.id, String::from_utf8_lossy(data)),
        Payload::Membership(membership) => format!("{} members=({membership})", entry.id),
    }
}

pub(crate) fn batch(batch: &LogBatch) -> String {
    let mut out = String::new();
    if let Some(hard_state) = batch.hard_state {
        write!(out, " {hard_state}").unwrap();
    }
    if let Some(reset) = &batch.reset {
        write!(
            out,
            " reset to {} members=({})",
            reset.last, reset.membership
        )
        .unwrap();
    }
    if !batch.entries.is_empty() {
        write!(out, " [{}]", entries(&batch.entries)).unwrap();
    }
    out
}
