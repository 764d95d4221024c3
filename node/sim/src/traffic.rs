//! Counts and descriptions of the messages between nodes.

use raft::{Envelope, Message};

/// Counts of messages and bytes between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// All messages.
    pub messages: u64,
    /// The messages that expect an answer, which correspond to remote procedure calls.
    pub calls: u64,
    /// The messages that carry entries.
    pub appends: u64,
    /// The bytes of entries.
    pub bytes: u64,
}

impl Traffic {
    /// Counts a message.
    pub fn count(&mut self, envelope: &Envelope) {
        self.messages += 1;
        self.calls += u64::from(is_call(&envelope.message));
        if let Message::Append { entries, .. } = &envelope.message
            && !entries.is_empty()
        {
            self.appends += 1;
            let bytes: usize = entries.iter().map(raft::Entry::size).sum();
            self.bytes += bytes as u64;
        }
    }
}

fn is_call(message: &Message) -> bool {
    !matches!(
        message,
        Message::Heartbeat { quiet: true, .. }
            | Message::PreVoteReply { .. }
            | Message::VoteReply { .. }
            | Message::AppendAccepted { .. }
            | Message::AppendRejected { .. }
            | Message::HeartbeatReply { .. }
            | Message::SnapshotReply { .. }
            | Message::ReadIndexReply { .. }
    )
}

/// Describes a message in one line.
pub(crate) fn describe(envelope: &Envelope) -> String {
    let Envelope { term, message, .. } = envelope;
    match message {
        Message::Append {
            prev,
            entries,
            commit,
        } => {
            let last = entries.last().map(|entry| entry.id);
            let last = last.map_or_else(|| "nothing".to_owned(), |id| id.to_string());
            format!(
                "[{term}] Append after {prev}: {} entries to {last}, commit {commit}",
                entries.len()
            )
        }
        Message::SnapshotChunk(chunk) => format!(
            "[{term}] SnapshotChunk {} of {}, {} bytes, done {}",
            chunk.number,
            chunk.meta.last,
            chunk.data.len(),
            chunk.done
        ),
        other => format!("[{term}] {other:?}"),
    }
}
