//! The history of the clients' operations: their invocations and returns in one order of moments.

use std::collections::BTreeMap;

use bytes::Bytes;
use shardkv::{Write, Written};
use types::{ClientId, Sequence};

use crate::linear::{Action, Operation, Value, Verdict, check, explain};
use crate::violation::Violation;

/// The number of an operation in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordId(usize);

/// The identity of a write in a log: its session and sequence, or a digest of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WriteId {
    /// A write with a session.
    Numbered(ClientId, Sequence),
    /// A write without a session.
    Digest(u64),
}

#[derive(Debug)]
struct Record {
    key: Bytes,
    write: Option<WriteId>,
    operation: Operation,
    /// True if the operation certainly had no effect. It is left out of the search.
    void: bool,
}

/// Every operation of a world's clients.
#[derive(Debug, Default)]
pub struct History {
    records: Vec<Record>,
    moment: u64,
}

impl History {
    fn now(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// Records the invocation of a write.
    pub fn invoke_write(&mut self, write: &Write) -> RecordId {
        let action = match write {
            Write::Put { value, .. } => Action::Put {
                value: Value::of(value),
            },
            Write::Append { suffix, .. } => Action::Append {
                suffix: suffix.to_vec(),
                length: None,
            },
            Write::Delete { .. } => Action::Delete { existed: None },
            Write::CompareAndSwap { expected, new, .. } => Action::CompareAndSwap {
                expected: expected.as_deref().map(Value::of),
                new: new.as_deref().map(Value::of),
                swapped: None,
            },
        };
        self.invoke(write.key().clone(), action)
    }

    /// Records the invocation of a read.
    pub fn invoke_get(&mut self, key: Bytes) -> RecordId {
        self.invoke(key, Action::Get { value: None })
    }

    fn invoke(&mut self, key: Bytes, action: Action) -> RecordId {
        let invoked = self.now();
        self.records.push(Record {
            key,
            write: None,
            operation: Operation {
                invoked,
                returned: None,
                action,
                hint: None,
            },
            void: false,
        });
        RecordId(self.records.len() - 1)
    }

    /// Sets the identity of a write in the log.
    pub fn set_write_id(&mut self, id: RecordId, write: WriteId) {
        if let Some(record) = self.records.get_mut(id.0) {
            record.write = Some(write);
        }
    }

    /// Records the acknowledgement of a write. Fails if the answer is of another kind than the write.
    pub fn return_written(&mut self, id: RecordId, written: Written) -> Result<(), Violation> {
        let moment = self.now();
        let Some(record) = self.records.get_mut(id.0) else {
            return Ok(());
        };
        record.operation.returned = Some(moment);
        match (&mut record.operation.action, written) {
            (Action::Put { .. }, Written::Put) => {}
            (Action::Append { length, .. }, Written::Append { length: answered }) => {
                *length = Some(answered);
            }
            (Action::Delete { existed }, Written::Delete { existed: answered }) => {
                *existed = Some(answered);
            }
            (
                Action::CompareAndSwap { swapped, .. },
                Written::CompareAndSwap { swapped: answered },
            ) => {
                *swapped = Some(answered);
            }
            (action, written) => {
                return Err(Violation::new(
                    "answers fit their requests",
                    format!("{action:?} of {:?} was answered {written:?}", record.key),
                ));
            }
        }
        Ok(())
    }

    /// Records the value that a read returned.
    pub fn return_value(&mut self, id: RecordId, found: Option<&[u8]>) -> Result<(), Violation> {
        let moment = self.now();
        let Some(record) = self.records.get_mut(id.0) else {
            return Ok(());
        };
        record.operation.returned = Some(moment);
        let Action::Get { value } = &mut record.operation.action else {
            return Err(Violation::new(
                "answers fit their requests",
                format!("{:?} was answered with a value", record.operation.action),
            ));
        };
        *value = found.map(Value::of);
        Ok(())
    }

    /// Marks an operation that certainly has no effect, now or later.
    pub fn mark_void(&mut self, id: RecordId) {
        if let Some(record) = self.records.get_mut(id.0) {
            record.void = true;
        }
    }

    /// Returns the number of invoked operations.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns true if no operation was invoked.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns the number of operations with a known outcome.
    pub fn returned(&self) -> usize {
        let known = |record: &&Record| record.operation.returned.is_some();
        self.records.iter().filter(known).count()
    }

    /// Checks each key's operations for linearizability, with a budget of search steps for each key. `place` returns
    /// the position of a write in the order of the logs.
    pub fn check(
        &self,
        budget: u64,
        place: impl Fn(WriteId) -> Option<u64>,
    ) -> Result<(), Violation> {
        let mut keys: BTreeMap<&Bytes, Vec<Operation>> = BTreeMap::new();
        for record in self.records.iter().filter(|record| record.void) {
            // Deletes of a key without a session have equal bytes, so a digest can't tell them apart.
            let name = record
                .write
                .filter(|name| matches!(name, WriteId::Numbered(..)));
            if let Some(at) = name.and_then(&place) {
                return Err(Violation::new(
                    "a refused write has no effect",
                    format!(
                        "{:?} of {:?} was refused, and was write {at}",
                        record.operation.action, record.key
                    ),
                ));
            }
        }
        for record in self.records.iter().filter(|record| !record.void) {
            let part = keys.entry(&record.key).or_default();
            let mut operation = record.operation.clone();
            operation.hint = record.write.and_then(&place);
            part.push(operation);
        }
        for (key, part) in keys {
            let what = match check(&part, budget) {
                Verdict::Linearizable(_) => continue,
                Verdict::Violated => "no order explains",
                Verdict::Unknown => "the search gave up on",
            };
            return Err(Violation::new(
                "linearizability",
                format!(
                    "{what} the {} operations of key {key:?}: {}",
                    part.len(),
                    explain(&part, budget)
                ),
            ));
        }
        Ok(())
    }

    /// Returns the operations of one key, one line each.
    pub fn describe(&self, key: &[u8]) -> Vec<String> {
        let of_key = |record: &&Record| record.key == key;
        let records = self.records.iter().filter(of_key);
        records
            .map(|record| {
                let Operation {
                    invoked,
                    returned,
                    action,
                    ..
                } = &record.operation;
                let returned = returned.map_or_else(|| "?".to_owned(), |moment| moment.to_string());
                let void = if record.void { " (void)" } else { "" };
                format!("{invoked}..{returned} {action:?}{void}")
            })
            .collect()
    }
}
