//! What all groups together promised about clients' writes: each is done once, wherever its shard is.

use std::collections::BTreeMap;

use shardkv::{Response, Written};
use types::{ClientId, Gid, NodeId, Sequence};

use crate::history::Name;
use crate::invariants::Violation;
use crate::machine::Reply;
use crate::recorder::AppliedOperation;
use crate::rng::digest;

/// The writes that took effect. It is shown each operation once, when the first replica of a group applies it.
#[derive(Debug, Default)]
pub struct WriteChecker {
    outcomes: BTreeMap<(ClientId, Sequence), Written>,
    /// In which order the logs carried writes. A shard's order is that of its writes, in whichever log: it is
    /// installed only after its fence was applied.
    places: BTreeMap<Name, u64>,
}

impl WriteChecker {
    /// A group applied an operation. A write that is applied again answers what it answered first.
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
        let next = self.places.len() as u64;
        let Some(session) = command.session else {
            let name = Name::Digest(digest(&operation.operation));
            self.places.entry(name).or_insert(next);
            return Ok(());
        };
        let name = Name::Numbered(session.client, session.sequence);
        self.places.entry(name).or_insert(next);
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

    /// The how manieth write it was, in the order of the logs.
    pub fn place(&self, name: Name) -> Option<u64> {
        self.places.get(&name).copied()
    }

    /// How many writes of sessions took effect.
    pub fn outcomes(&self) -> u64 {
        self.outcomes.len() as u64
    }
}
