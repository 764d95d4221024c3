//! Applying committed entries: many at once, in one batch of the state store, with their position.

use raft::{Entry, EntryId, Payload, StoreError};

use crate::bug::Bug;
use crate::entry::Record;
use crate::level::check_level;
use crate::pending::by_index_only;
use crate::{Answer, Applying, Outlet, Refusal, Replica, RequestId, StateMachine, Transaction};

impl<M: StateMachine> Replica<M> {
    /// Applies `entries` and answers the requests that they carry. Answers leave after the commit of the batch, so a
    /// read that follows an answer sees its effect.
    pub(crate) fn apply(
        &mut self,
        entries: Vec<Entry>,
        outlet: &mut dyn Outlet<M::Response>,
    ) -> Result<(), StoreError> {
        let mut applied = self.applied.clone();
        let mut transaction = Transaction::new(&*self.state);
        let mut answers: Vec<(RequestId, M::Response)> = Vec::new();
        let mut overtaken: Vec<RequestId> = Vec::new();
        let by_index = by_index_only(&self.options);
        for entry in entries {
            self.compaction.count(&entry);
            overtaken.extend(self.writes.take_overtaken(entry.id, by_index));
            applied.last = entry.id;
            match entry.payload {
                Payload::Noop => {}
                Payload::Membership(membership) => {
                    applied.membership = membership;
                    self.admin.mark_committed(entry.id);
                }
                Payload::Command(data) => {
                    let record =
                        Record::decode(data).map_err(|error| unreadable(entry.id, &error))?;
                    let batch = match record {
                        Record::Operations(batch) => batch,
                        Record::Raise(level) => {
                            check_level(level, self.options.raft.feature_level)?;
                            applied.feature_level = applied.feature_level.max(level);
                            continue;
                        }
                    };
                    applied.time = applied.time.max(batch.time);
                    let mut requests = self.writes.take(entry.id, by_index).into_iter();
                    for operation in batch.operations {
                        let request = requests.next();
                        let at = Applying {
                            entry: entry.id,
                            time: applied.time,
                            feature_level: applied.feature_level,
                            max_value_bytes: batch.max_value_bytes,
                            awaited: request.is_some(),
                        };
                        let response = self.machine.apply(at, operation, &mut transaction)?;
                        if let Some(request) = request {
                            answers.push((request, response));
                        }
                    }
                }
            }
        }
        self.machine.finish_batch(&mut transaction)?;
        let batch = transaction.into_batch();
        // The machine's caches are ahead of the state now, and Raft won't hand these entries out again. So a failed commit
        // is final: only a restart can apply the entries again.
        self.state
            .commit(batch, applied.clone())
            .map_err(final_error)?;
        let later = applied.time > self.applied.time;
        self.applied = applied;
        if later {
            self.follow_log_time();
        }
        for (request, response) in answers {
            outlet.answer(request, Ok(Answer::Machine(response)));
        }
        let leader = self.raft.leader();
        for request in overtaken {
            outlet.answer(request, Err(Refusal::Unknown { leader }));
        }
        let unchecked = self.options.bugs.has(Bug::ChangeAnsweredByIndex);
        self.admin
            .answer_applied(self.applied.last.index, leader, unchecked, outlet);
        Ok(())
    }
}

/// Makes an error final that a later poll must not try to mend.
pub(crate) fn final_error(error: StoreError) -> StoreError {
    match error {
        StoreError::Full(what) => {
            // The text tells the node's exit code.
            StoreError::Io(format!(
                "committed entries can't be applied, because the disk is full: {what}"
            ))
        }
        other => other,
    }
}

/// Returns the error of an entry that this version can't read. The replica must not skip the entry, because its state would
/// differ from that of replicas that can read it. The entry's checksum was right, so the disk isn't damaged.
fn unreadable(id: EntryId, error: &types::DecodeError) -> StoreError {
    StoreError::NewerVersion(format!("log entry {id} can't be read ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_final_here_and_still_says_so() {
        let error = final_error(StoreError::Full("9 bytes are free".to_owned()));
        let StoreError::Io(text) = error else {
            panic!("a later poll must not try again: {error:?}");
        };
        assert!(text.contains("because the disk is full: 9 bytes"), "{text}");
    }
}
