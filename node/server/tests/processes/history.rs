//! The history of clients' calls and answers, and its check.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Value, json};
use shardkv_client::{Client, Error};

/// The operations on one cluster, by the clock of this process. Shared by all tasks that use the cluster.
pub(crate) struct History {
    began: Instant,
    lines: Mutex<Vec<Line>>,
}

struct Line {
    text: Value,
    outcome: Outcome,
    returned: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    Unknown,
    Failed,
}

/// The number of operations by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) ok: usize,
    pub(crate) unknown: usize,
    pub(crate) failed: usize,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            lines: Mutex::default(),
        }
    }

    /// Returns the counts of operations so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally_since(self.began)
    }

    /// Returns the counts of operations that ended since `instant`.
    pub(crate) fn tally_since(&self, instant: Instant) -> Tally {
        let lines = self.lines.lock().unwrap();
        let count = |outcome| {
            lines
                .iter()
                .filter(|line| line.outcome == outcome && line.returned >= instant)
                .count()
        };
        Tally {
            ok: count(Outcome::Ok),
            unknown: count(Outcome::Unknown),
            failed: count(Outcome::Failed),
        }
    }

    /// Fails the test unless the independent checker finds the whole history linearizable.
    pub(crate) fn check(&self) {
        match self.judge() {
            Ok(verdict) => println!("{verdict}"),
            Err(verdict) => panic!("{verdict}"),
        }
    }

    /// Has the independent checker decide if the whole history is linearizable. Returns what it said.
    pub(crate) fn judge(&self) -> Result<String, String> {
        let checker = std::env::var_os("SHARDKV_CHECKER").map_or_else(
            || PathBuf::from(crate::node::PROGRAM).with_file_name("shardkv-porcupine"),
            PathBuf::from,
        );
        let file = tempfile::Builder::new()
            .prefix("history-")
            .suffix(".jsonl")
            .tempfile()
            .unwrap();
        let text = {
            let lines = self.lines.lock().unwrap();
            let texts: Vec<String> = lines.iter().map(|line| line.text.to_string()).collect();
            texts.join("\n")
        };
        fs::write(file.path(), text).unwrap();
        let output = Command::new(&checker)
            .args(["-timeout", "120s", "-at-least", "50"])
            .arg(file.path())
            .output()
            .unwrap_or_else(|error| {
                panic!("{}: {error}; `make checker` builds it", checker.display())
            });
        if !output.status.success() {
            let (_, kept) = file.keep().unwrap();
            return Err(format!(
                "history {}: {}{}",
                kept.display(),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn record<T>(
        &self,
        mut text: Value,
        call: Instant,
        result: &Result<T, Error>,
        answer: impl FnOnce(&T) -> Value,
    ) {
        let returned = Instant::now();
        let nanos = |at: Instant| u64::try_from((at - self.began).as_nanos()).unwrap();
        let (outcome, name) = match result {
            Ok(_) => (Outcome::Ok, "ok"),
            Err(error) if error.maybe_applied() => (Outcome::Unknown, "unknown"),
            Err(_) => (Outcome::Failed, "failed"),
        };
        text["outcome"] = name.into();
        text["call"] = nanos(call).into();
        text["return"] = nanos(returned).into();
        if let Ok(value) = result {
            text["result"] = answer(value);
        } else if outcome == Outcome::Unknown {
            text["return"] = Value::Null;
        }
        self.lines.lock().unwrap().push(Line {
            text,
            outcome,
            returned,
        });
    }
}

/// A client that records every operation in a history.
pub(crate) struct Recorded<'a> {
    pub(crate) history: &'a History,
    pub(crate) client: &'a Client,
    /// The client's number in the history.
    pub(crate) number: u32,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("tests use text")
}

fn owned(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

impl Recorded<'_> {
    pub(crate) async fn get(&self, key: &str) -> Result<Option<String>, Error> {
        let call = Instant::now();
        let result = self.client.get(owned(key)).await;
        let result = result.map(|value| value.map(|bytes| text(&bytes)));
        let line = json!({"client": self.number, "op": "get", "key": key});
        self.history
            .record(line, call, &result, |value| json!(value));
        result
    }

    pub(crate) async fn put(&self, key: &str, value: &str) -> Result<(), Error> {
        let call = Instant::now();
        let result = self.client.put(owned(key), owned(value)).await;
        let line = json!({"client": self.number, "op": "put", "key": key, "value": value});
        self.history.record(line, call, &result, |()| Value::Null);
        result
    }

    pub(crate) async fn append(&self, key: &str, suffix: &str) -> Result<u64, Error> {
        let call = Instant::now();
        let result = self.client.append(owned(key), owned(suffix)).await;
        let line = json!({"client": self.number, "op": "append", "key": key, "value": suffix});
        self.history
            .record(line, call, &result, |length| json!(length));
        result
    }

    pub(crate) async fn delete(&self, key: &str) -> Result<bool, Error> {
        let call = Instant::now();
        let result = self.client.delete(owned(key)).await;
        let line = json!({"client": self.number, "op": "delete", "key": key});
        self.history
            .record(line, call, &result, |existed| json!(existed));
        result
    }

    pub(crate) async fn swap(
        &self,
        key: &str,
        expected: Option<&str>,
        new: Option<&str>,
    ) -> Result<bool, Error> {
        let call = Instant::now();
        let result = self
            .client
            .compare_and_swap(owned(key), expected.map(owned), new.map(owned))
            .await;
        let line = json!({
            "client": self.number, "op": "cas", "key": key, "expected": expected, "value": new,
        });
        self.history
            .record(line, call, &result, |swapped| json!(swapped));
        result
    }
}
