//! Checks that each write of a client takes effect once, over all groups and wherever its shard moves.

use std::collections::BTreeMap;

use shardkv::{Response, Written};
use types::{ClientId, Gid, NodeId, Sequence};

use crate::history::WriteId;
use crate::machine::Reply;
use crate::recorder::AppliedOperation;
use crate::rng::digest;
use crate::violation::Violation;

/// The writes that took effect. The world passes each operation once, when the first replica of a group applies it.
#[derive(Debug, Default)]
pub struct WriteChecker {
    outcomes: BTreeMap<(ClientId, Sequence), Written>,
    /// The position of each write in the order of all logs. The writes of one shard are in their true order even when
    /// it moves between logs, because a shard is installed only after its fence was applied.
    positions: BTreeMap<WriteId, u64>,
}

impl WriteChecker {
    /// Takes an operation that a group applied. A repeated write must get the same answer as at first.
    pub fn applied(
        &mut self,
        gid: Gid,
        node: NodeId,
        operation: &AppliedOperation,
    ) -> Result<(), Violation> {
        let Reply::Kv(Response::Written(written)) = &operation.response else {
            return Ok(());
        };
        let Ok(command) = shardkv::Command::decode(operation.operation.clone()) else {
            return Err(Violation::new(
                "malformed operations are refused",
                format!(
                    "{gid} {node} answered {written:?} to one at {}",
                    operation.entry
                ),
            ));
        };
        let next = self.positions.len() as u64;
        let Some(session) = command.session else {
            let name = WriteId::Digest(digest(&operation.operation));
            self.positions.entry(name).or_insert(next);
            return Ok(());
        };
        let name = WriteId::Numbered(session.client, session.sequence);
        self.positions.entry(name).or_insert(next);
        let name = (session.client, session.sequence);
        let first = *self.outcomes.entry(name).or_insert(*written);
        if first == *written {
            return Ok(());
        }
        Err(Violation::new(
            "exactly once",
            format!(
                "write {} of {} was answered {first:?}, then {written:?} by {gid} at {}",
                session.sequence, session.client, operation.entry
            ),
        ))
    }

    /// Returns the position of a write in the order of the logs.
    pub fn position(&self, name: WriteId) -> Option<u64> {
        self.positions.get(&name).copied()
    }

    /// Returns the number of writes with a session that took effect.
    pub fn outcomes(&self) -> u64 {
        self.outcomes.len() as u64
    }
}
