//! Reads and parses the lines of an import, in a thread of its own.

use std::io::{self, BufRead, Read as _};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::format::FileFormat;
use super::import_args::ImportArgs;
use super::record::Record;
use super::sniff;
use crate::exit::Failure;

/// Bounds the bytes of records that are parsed and not written yet.
struct Budget {
    kib: Arc<Semaphore>,
    total_kib: u32,
}

impl Budget {
    fn new(bytes: u64) -> Self {
        let total_kib = u32::try_from(bytes / 1_024).unwrap_or(u32::MAX >> 4).max(1);
        Self {
            kib: Arc::new(Semaphore::new(total_kib as usize)),
            total_kib,
        }
    }

    /// Waits until a record of this size fits. A record larger than the whole budget waits until it is alone.
    fn wait_for(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes / 1_024 + 1).unwrap_or(u32::MAX);
        let acquire = Arc::clone(&self.kib).acquire_many_owned(kib.min(self.total_kib));
        // Only a closed semaphore fails, and this one is never closed.
        futures::executor::block_on(acquire).ok()
    }
}

/// The limits of the reader.
pub(super) struct Limits {
    from_line: u64,
    max_line_bytes: u64,
    skip_bad: bool,
    budget: Budget,
}

impl Limits {
    pub(super) fn of(args: &ImportArgs) -> Self {
        Self {
            from_line: args.from_line,
            max_line_bytes: args.max_line_bytes,
            skip_bad: args.skip_bad,
            budget: Budget::new(args.memory_bytes),
        }
    }
}

/// A record with its place in the input.
pub(super) struct Item {
    pub(super) record: Record,
    pub(super) line: u64,
    /// Bytes of the input up to the end of this record.
    pub(super) position: u64,
    pub(super) memory: Option<OwnedSemaphorePermit>,
}

/// A result of the reader, in the order of the lines.
pub(super) enum Parsed {
    Item(Item),
    /// A line that is not a record.
    Bad {
        line: u64,
        what: String,
    },
    /// The input can't be read any further.
    Broken(Failure),
}

/// Parses lines until the end of the input, or until the writer stops.
pub(super) fn read_lines(
    mut input: impl BufRead,
    format: FileFormat,
    limits: &Limits,
    sender: &mpsc::Sender<Parsed>,
) {
    if let Err(failure) = read_all(&mut input, format, limits, sender) {
        // The writer may have stopped for a reason of its own.
        let _ = sender.blocking_send(Parsed::Broken(failure));
    }
}

fn read_all(
    input: &mut dyn BufRead,
    format: FileFormat,
    limits: &Limits,
    sender: &mpsc::Sender<Parsed>,
) -> Result<(), Failure> {
    let most = limits.max_line_bytes;
    let mut line = Vec::new();
    let begun = sniff::begin(input, format)?;
    let (mut position, mut input) = (begun.skipped as u64, begun.input);
    for number in 1.. {
        let before = number < limits.from_line;
        let read = read_line(&mut input, &mut line, most, before || limits.skip_bad);
        let read = read.map_err(|error| {
            Failure::failed(
                format!("can't read line {number} of the input: {error}"),
                format!("repair the input and continue with --from-line {number}"),
            )
        })?;
        let Some(bytes) = read else { return Ok(()) };
        position += bytes;
        if before {
            continue;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let parsed = if text.len() as u64 > most {
            if !limits.skip_bad {
                return Err(overlong(number, most));
            }
            let what = format!("it is longer than {most} bytes (--max-line-bytes)");
            Parsed::Bad { line: number, what }
        } else {
            match format.decode(text) {
                Ok(None) => continue,
                Ok(Some(record)) => Parsed::Item(Item {
                    memory: limits
                        .budget
                        .wait_for(record.key.len() + record.value.len()),
                    record,
                    line: number,
                    position,
                }),
                Err(error) => Parsed::Bad {
                    line: number,
                    what: error.to_string(),
                },
            }
        };
        if sender.blocking_send(parsed).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads a line into `line`, at most one byte more than `most` of it. With `whole`, passes over the rest of a longer line. Returns
/// the bytes that were read, or `None` at the end of the input.
fn read_line(
    input: &mut dyn BufRead,
    line: &mut Vec<u8>,
    most: u64,
    whole: bool,
) -> io::Result<Option<u64>> {
    line.clear();
    let mut bytes = input.take(most + 1).read_until(b'\n', line)? as u64;
    if bytes == 0 {
        return Ok(None);
    }
    let mut ended = line.ends_with(b"\n") || !whole;
    while !ended {
        let rest = input.fill_buf()?;
        let newline = rest.iter().position(|byte| *byte == b'\n');
        let passed = newline.map_or(rest.len(), |at| at + 1);
        ended = newline.is_some() || rest.is_empty();
        input.consume(passed);
        bytes += passed as u64;
    }
    Ok(Some(bytes))
}

fn overlong(line: u64, most: u64) -> Failure {
    Failure::usage(
        format!("line {line} is longer than {most} bytes; the lines before it were imported"),
        format!(
            "check that the file is what --format says; raise --max-line-bytes or pass over bad lines with --skip-bad, and continue with --from-line {line}"
        ),
    )
}
