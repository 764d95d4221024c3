//! Upkeep: operations that a state machine needs although no client asks for them, such as to forget silent sessions.
//!
//! Log time advances with entries, so an idle log would keep for ever what is due by time. The leader asks its machine at
//! times, and puts what the machine returns into the log. An idle machine returns nothing, and then nothing is written.

use raft::{EntryId, Role};
use types::LogTime;

use crate::entry::OperationBatch;
use crate::{Replica, StateMachine};

/// The feature level from which on upkeep is in the log: older members refuse its operations, and so would keep what others forget.
pub(crate) const UPKEEP_LEVEL: u32 = 1;

/// The time between two questions to the machine, in milliseconds of log time.
const INTERVAL_MS: u64 = 1_000;

/// The pace of upkeep: at most one operation in [`INTERVAL_MS`], and at most one that isn't applied yet.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    /// The log time from which the machine is asked again.
    due: LogTime,
    /// The entry that was proposed last.
    proposed: Option<EntryId>,
}

impl<M: StateMachine> Replica<M> {
    /// Proposes the machine's upkeep if it is due. If the proposal is lost, the next leader asks its own machine.
    pub(crate) fn keep_up(&mut self) {
        if self.raft.role() != Role::Leader
            || self.raft.is_transferring()
            || self.applied.feature_level < UPKEEP_LEVEL
        {
            return;
        }
        let Some(time) = self.log_time().filter(|time| *time >= self.upkeep.due) else {
            return;
        };
        let waits = |id: EntryId| id.term == self.raft.term() && id > self.applied.last;
        if self.upkeep.proposed.is_some_and(waits) {
            return;
        }
        self.upkeep.due = LogTime(time.0.saturating_add(INTERVAL_MS));
        let Some(operation) = self.machine.upkeep(time) else {
            return;
        };
        let batch = OperationBatch {
            time,
            max_value_bytes: self.options.max_value_bytes,
            operations: vec![operation],
        };
        if let Ok(id) = self.raft.propose(batch.encode()) {
            self.stamped = time;
            self.upkeep.proposed = Some(id);
        }
    }
}
