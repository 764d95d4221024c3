//! The history file: its format stands in the parent module's documentation.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use serde_json::{Map, Value};
use shardkv_client::Error;

use super::operation::{Answer, Operation};

/// A file that operations are written to as they return.
pub(super) struct History {
    file: Mutex<(BufWriter<File>, io::Result<()>)>,
}

impl History {
    /// Makes the file, or empties it.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        Ok(Self {
            file: Mutex::new((file, Ok(()))),
        })
    }

    /// Writes one operation. The first error is kept for [`Self::finish`].
    pub(super) fn record(
        &self,
        client: u64,
        operation: &Operation,
        call: u64,
        end: u64,
        result: &Result<Answer, Error>,
    ) {
        let mut line = line(client, operation, call, end, result).to_string();
        line.push('\n');
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, outcome) = &mut *guard;
        if outcome.is_ok() {
            *outcome = file.write_all(line.as_bytes());
        }
    }

    /// Completes the file, or gives the first error.
    pub(super) fn finish(&self) -> io::Result<()> {
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, outcome) = &mut *guard;
        std::mem::replace(outcome, Ok(()))?;
        file.flush()
    }
}

/// Nanoseconds of the machine's monotonic clock.
pub(super) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * 1_000_000_000 + nanos
}

fn line(
    client: u64,
    operation: &Operation,
    call: u64,
    end: u64,
    result: &Result<Answer, Error>,
) -> Value {
    let mut line = Map::new();
    let mut set = |name: &str, value: Value| line.insert(name.to_owned(), value);
    let (op, key, value) = match operation {
        Operation::Get { key } => ("get", key, None),
        Operation::Put { key, value } => ("put", key, Some(value)),
        Operation::Append { key, suffix } => ("append", key, Some(suffix)),
        Operation::Delete { key } => ("delete", key, None),
        Operation::Cas { key, new, .. } => ("cas", key, Some(new)),
    };
    set("client", client.into());
    set("op", op.into());
    set("key", text(key));
    set("value", optional_text(value));
    if let Operation::Cas { expected, .. } = operation {
        set("expected", optional_text(expected.as_ref()));
    }
    set("call", call.into());
    let unknown = matches!(result, Err(error) if error.maybe_applied());
    set("return", if unknown { Value::Null } else { end.into() });
    let outcome = match result {
        Ok(_) => "ok",
        Err(_) if unknown => "unknown",
        Err(_) => "failed",
    };
    set("outcome", outcome.into());
    let result = match result {
        Ok(Answer::Value(value)) => optional_text(value.as_ref()),
        Ok(Answer::Length(length)) => (*length).into(),
        Ok(Answer::Was(was)) => (*was).into(),
        Ok(Answer::Done) | Err(_) => Value::Null,
    };
    set("result", result);
    Value::Object(line)
}

fn optional_text(bytes: Option<&Bytes>) -> Value {
    bytes.map_or(Value::Null, text)
}

/// Recorded runs write ASCII only. Foreign bytes become replacement characters, which no write has: a checker
/// complains loudly.
fn text(bytes: &Bytes) -> Value {
    String::from_utf8_lossy(bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_match_the_golden() {
        let key = Bytes::from("k");
        let lost = || Error::OutcomeUnknown {
            reason: "lost".into(),
        };
        let none = || Error::DiskFull {
            message: "full".into(),
        };
        let cases: Vec<(Operation, Result<Answer, Error>)> = vec![
            (
                Operation::Get { key: key.clone() },
                Ok(Answer::Value(Some("v".into()))),
            ),
            (Operation::Get { key: key.clone() }, Ok(Answer::Value(None))),
            (
                Operation::Put {
                    key: key.clone(),
                    value: "v".into(),
                },
                Ok(Answer::Done),
            ),
            (
                Operation::Put {
                    key: key.clone(),
                    value: "v".into(),
                },
                Err(lost()),
            ),
            (
                Operation::Append {
                    key: key.clone(),
                    suffix: "s".into(),
                },
                Ok(Answer::Length(7)),
            ),
            (
                Operation::Delete { key: key.clone() },
                Ok(Answer::Was(true)),
            ),
            (
                Operation::Cas {
                    key: key.clone(),
                    expected: None,
                    new: "n".into(),
                },
                Ok(Answer::Was(false)),
            ),
            (
                Operation::Cas {
                    key,
                    expected: Some("e".into()),
                    new: "n".into(),
                },
                Err(none()),
            ),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h.jsonl");
        let history = History::create(&path).unwrap();
        for (number, (operation, result)) in cases.iter().enumerate() {
            history.record(1, operation, number as u64, number as u64 + 1, result);
        }
        history.finish().unwrap();
        crate::golden::check("history.jsonl", &std::fs::read_to_string(path).unwrap());
    }

    #[test]
    fn the_clock_runs_forwards() {
        let first = now_ns();
        assert!(first > 0 && now_ns() >= first);
    }
}
