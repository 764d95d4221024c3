//! Writes the records of an import, with a bounded number of writes in flight.

use std::collections::{BTreeSet, HashSet};
use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use shardkv_client::Error;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::import_args::ImportArgs;
use super::progress::{Progress, Summary};
use super::read::{Item, Parsed};
use crate::client_error::call_failure;
use crate::exit::{Exit, Failure};
use crate::output::grouped;

/// A completed write.
struct Done {
    key: Bytes,
    line: u64,
    bytes: u64,
    position: u64,
    result: Result<(), Error>,
    /// Freed when this is settled.
    _memory: Option<OwnedSemaphorePermit>,
}

/// The writes in flight, and the outcome of the completed ones.
struct Writes {
    /// At most one write of a key is in flight, so that the last line of a key wins.
    keys: HashSet<Bytes>,
    /// The lines whose writes are in flight.
    lines: BTreeSet<u64>,
    /// The first line that was neither sent nor skipped.
    next_line: u64,
    progress: Progress,
    /// The failed write that stands first in the input.
    failed: Option<(u64, Error)>,
    skip_bad: bool,
    skipped: u64,
    records: u64,
    last_ack: Instant,
    longest_gap: Duration,
}

impl Writes {
    fn new(args: &ImportArgs, total_bytes: Option<u64>) -> Self {
        Self {
            keys: HashSet::new(),
            lines: BTreeSet::new(),
            next_line: args.from_line,
            progress: Progress::start(total_bytes),
            failed: None,
            skip_bad: args.skip_bad,
            skipped: 0,
            records: 0,
            last_ack: Instant::now(),
            longest_gap: Duration::ZERO,
        }
    }

    fn settle(&mut self, done: Done) {
        self.keys.remove(&done.key);
        self.lines.remove(&done.line);
        match done.result {
            Ok(()) => {
                self.longest_gap = self.longest_gap.max(self.last_ack.elapsed());
                self.last_ack = Instant::now();
                self.records += 1;
                self.progress.record(done.bytes, done.position);
            }
            Err(error) if self.skip_bad && is_bad_record(&error) => self.skip(done.line, &error),
            Err(error) => {
                let first = self.failed.as_ref();
                if first.is_none_or(|(line, _)| done.line < *line) {
                    self.failed = Some((done.line, error));
                }
            }
        }
    }

    fn skip(&mut self, line: u64, what: &dyn std::fmt::Display) {
        self.progress.say(&format!("line {line} skipped: {what}"));
        self.skipped += 1;
    }

    /// Returns the first line that is not known to be written or skipped.
    fn first_missing(&self) -> u64 {
        let failed = self.failed.as_ref().map(|(line, _)| *line);
        let flying = self.lines.first().copied();
        let missing = failed.into_iter().chain(flying).min();
        missing.unwrap_or(self.next_line)
    }
}

/// Returns true if the cluster refused the record as such: the next record may do.
fn is_bad_record(error: &Error) -> bool {
    matches!(error, Error::TooLarge { .. } | Error::BadRequest { .. })
}

/// Writes the records, with a bounded number in flight. After the first failure or interruption it sends no more, and waits for the
/// writes in flight, unless it is interrupted again.
pub(super) async fn write_records<P, F>(
    args: &ImportArgs,
    mut parsed: mpsc::Receiver<Parsed>,
    total_bytes: Option<u64>,
    mut interrupts: impl Stream<Item = ()> + Unpin,
    put: P,
) -> Result<Summary, Failure>
where
    P: Fn(Bytes, Bytes) -> F,
    F: Future<Output = Result<(), Error>>,
{
    let mut flying = FuturesUnordered::new();
    let mut writes = Writes::new(args, total_bytes);
    let mut waiting: Option<Item> = None;
    let mut stopped = None;
    let mut interrupted = false;
    while writes.failed.is_none() {
        if let Some(item) = waiting.take_if(|item| {
            let key = item.record.key.as_slice();
            flying.len() < args.in_flight as usize && !writes.keys.contains(key)
        }) {
            let (line, position, memory) = (item.line, item.position, item.memory);
            let key = Bytes::from(item.record.key);
            let value = Bytes::from(item.record.value);
            let bytes = (key.len() + value.len()) as u64;
            writes.keys.insert(key.clone());
            writes.lines.insert(line);
            writes.next_line = line + 1;
            let written = put(key.clone(), value);
            flying.push(async move {
                let result = written.await;
                Done {
                    key,
                    line,
                    bytes,
                    position,
                    result,
                    _memory: memory,
                }
            });
        }
        tokio::select! {
            biased;
            Some(()) = interrupts.next() => {
                interrupted = true;
                break;
            }
            Some(done) = flying.next() => writes.settle(done),
            next = parsed.recv(), if waiting.is_none() => match next {
                None => break,
                Some(Parsed::Item(item)) => waiting = Some(item),
                Some(Parsed::Bad { line, what }) if args.skip_bad => {
                    writes.skip(line, &what);
                    writes.next_line = line + 1;
                }
                Some(Parsed::Bad { line, what }) => {
                    stopped = Some(bad_line(line, &what));
                    break;
                }
                Some(Parsed::Broken(failure)) => {
                    stopped = Some(failure);
                    break;
                }
            },
        }
    }
    if interrupted && !flying.is_empty() {
        let flying = flying.len();
        writes.progress.say(&format!(
            "interrupted: waiting for {flying} writes in flight; interrupt again to leave them"
        ));
    }
    loop {
        tokio::select! {
            biased;
            Some(()) = interrupts.next() => {
                interrupted = true;
                break;
            }
            done = flying.next() => match done {
                Some(done) => writes.settle(done),
                None => break,
            }
        }
    }
    let missing = writes.first_missing();
    if interrupted {
        return Err(Failure::failed(
            format!("interrupted after {} records", grouped(writes.records)),
            format!("continue with --from-line {missing}"),
        ));
    }
    match (writes.failed, stopped) {
        (Some((line, error)), _) => Err(failed_write(line, &error, writes.records > 0)),
        (None, Some(failure)) => Err(failure),
        (None, None) => Ok(writes.progress.finish(writes.skipped, writes.longest_gap)),
    }
}

fn bad_line(line: u64, what: &str) -> Failure {
    Failure::usage(
        format!("line {line}: {what}; the lines before it were imported"),
        format!(
            "correct the line and continue with --from-line {line}, or pass over bad lines with --skip-bad"
        ),
    )
}

/// Returns the failure of an import that ends with the write of `line`. `some` is true if others were imported.
fn failed_write(line: u64, error: &Error, some: bool) -> Failure {
    let failure = call_failure(error)
        .after_some(some)
        .context(&format!("line {line} was not acknowledged"));
    let next = if is_bad_record(error) {
        format!(
            "correct the line and continue with --from-line {line}, or pass over refused lines with --skip-bad"
        )
    } else if failure.exit() == Exit::Refused {
        let advice = failure.next();
        format!("{advice}; then continue with --from-line {line}")
    } else {
        format!("when the cluster answers again, continue with --from-line {line}")
    };
    failure.with_next(next)
}

#[cfg(test)]
mod tests;
