//! Applying committed entries: many at once, in one batch of the state store, with their position.
//!
//! A batch ends with an entry, because the state holds the position of the last entry. So a poll that has done its work still applies
//! the rest of the entry, whose work is bounded when it is proposed.

use bytes::Bytes;
use raft::{EntryId, Payload, StoreError};

use crate::bug::Bug;
use crate::entry::Record;
use crate::level::check_level;
use crate::pending::by_index_only;
use crate::work::{OPERATION_WORK, work_of_bytes};
use crate::{
    Answer, Applied, Applying, DIGEST_LEVEL, Digest, Outlet, Refusal, Replica, RequestId,
    StateMachine, Table, Transaction,
};

impl<M: StateMachine> Replica<M> {
    /// Applies entries that wait, until this poll's work is done, and answers the requests that they carry. Answers leave after the
    /// commit of the batch, so a read that follows an answer sees its effect.
    pub(crate) fn apply(&mut self, outlet: &mut dyn Outlet<M::Response>) -> Result<(), StoreError> {
        let bounded = !self.options.bugs.has(Bug::ApplyWithoutBudget);
        let mut applied = self.applied.clone();
        let mut transaction = Transaction::new(&*self.state);
        let mut answers: Vec<(RequestId, M::Response)> = Vec::new();
        let mut overtaken: Vec<RequestId> = Vec::new();
        let by_index = by_index_only(&self.options);
        transaction.set_digest(applied.digest);
        while let Some(entry) = self.unapplied.pop_front() {
            self.compaction.count(&entry);
            overtaken.extend(self.writes.take_overtaken(entry.id, by_index));
            applied.last = entry.id;
            let is_noop = matches!(entry.payload, Payload::Noop);
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
                            raise(&mut applied, level);
                            transaction.set_digest(applied.digest);
                            continue;
                        }
                    };
                    applied.time = applied.time.max(batch.time);
                    let mut requests = self.writes.take(entry.id, by_index).into_iter();
                    for operation in batch.operations {
                        transaction
                            .add_work(OPERATION_WORK + work_of_bytes(operation.len() as u64));
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
            self.misapply(&applied, &mut transaction);
            applied.digest = transaction.end_entry(entry.id);
            let index = entry.id.index;
            let is_checkpoint = is_noop || index.0.is_multiple_of(self.options.checkpoint_every);
            if let Some(digest) = applied.digest.filter(|_| is_checkpoint) {
                self.comparing.checkpoints.add(digest.at(index));
            }
            if bounded && transaction.work() >= self.work_left {
                break;
            }
        }
        self.work_left = self.work_left.saturating_sub(transaction.work());
        // Caches are written once a batch, and where a batch ends differs between replicas.
        transaction.set_digest(None);
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

impl<M: StateMachine> Replica<M> {
    /// Writes what one replica of the group alone writes, as [`Bug::ApplyDependsOnReplica`] does.
    fn misapply(&self, applied: &Applied, transaction: &mut Transaction<'_>) {
        let first = || applied.membership.voters().min() == Some(self.raft.node());
        if self.options.bugs.has(Bug::ApplyDependsOnReplica) && first() {
            let value = Bytes::copy_from_slice(&self.raft.node().0.to_be_bytes());
            transaction.put(Table::Meta, Bytes::from_static(b"misapplied"), value);
        }
    }
}

/// Raises the feature level. The digest begins anew, because another level may write other changes.
fn raise(applied: &mut Applied, level: u32) {
    if level <= applied.feature_level {
        return;
    }
    applied.feature_level = level;
    applied.digest = (level >= DIGEST_LEVEL).then(|| Digest::begin(applied.last.index));
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
    StoreError::OtherVersion(format!("log entry {id} can't be read ({error})"))
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
