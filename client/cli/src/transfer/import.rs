//! Import from a file to a cluster.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use futures::stream::FuturesUnordered;
use futures::{Future, StreamExt as _};
use shardkv_client::{Client, Error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::format::FileFormat;
use super::progress::{Progress, Summary};
use super::record::Record;
use crate::client_error::call_failure;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;

/// The most lines that are parsed ahead of the writes.
const QUEUE_RECORDS: usize = 1_024;

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
struct Limits {
    from_line: u64,
    max_line_bytes: u64,
    budget: Budget,
}

impl Limits {
    fn of(args: &ImportArgs) -> Self {
        Self {
            from_line: args.from_line,
            max_line_bytes: args.max_line_bytes,
            budget: Budget::new(args.memory_bytes),
        }
    }
}

/// The arguments of `import`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  shardkv import names.tsv\n  zcat dump.jsonl.gz | shardkv import\n  shardkv import names.tsv --skip-bad\n\n\
    A bad line stops the import with its number, unless --skip-bad is given. Lines before it were written. Importing\n\
    sets values, so repeating it does no harm; after an interruption --from-line continues where the error says."
)]
pub(crate) struct ImportArgs {
    /// The file; `-` or nothing: standard input
    file: Option<PathBuf>,
    /// The format; default: by the file's extension, else jsonl
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
    /// Report bad lines on standard error and go on
    #[arg(long)]
    skip_bad: bool,
    /// Begin with this line, counted from 1
    #[arg(long, value_name = "LINE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
    /// Maximum number of writes in flight
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    in_flight: u32,
    /// Maximum bytes of lines in memory, parsed ahead and in flight
    #[arg(long, value_name = "BYTES", default_value_t = 32 << 20, value_parser = clap::value_parser!(u64).range(1..))]
    memory_bytes: u64,
    /// The longest line that is read, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20, value_parser = clap::value_parser!(u64).range(1..))]
    max_line_bytes: u64,
}

/// A record with its place in the input.
struct Item {
    record: Record,
    line: u64,
    /// Bytes of the input up to the end of this record.
    position: u64,
    memory: Option<OwnedSemaphorePermit>,
}

/// A result of the reader, in the order of the lines.
enum Parsed {
    Item(Item),
    /// A line that is not a record.
    Bad {
        line: u64,
        what: String,
    },
    /// The input can't be read any further.
    Broken(Failure),
}

/// Writes all records of the input.
pub(crate) async fn import(
    args: &ImportArgs,
    client: &Client,
    global: &GlobalArgs,
) -> Result<Exit, Failure> {
    let path = args.file.as_deref().filter(|path| *path != Path::new("-"));
    let (input, total): (Box<dyn io::Read + Send>, Option<u64>) = match path {
        Some(path) => {
            let file = File::open(path).map_err(|error| Failure::file("open", path, &error))?;
            let metadata = file
                .metadata()
                .map_err(|error| Failure::file("open", path, &error))?;
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        }
        None => (Box::new(io::stdin()), None),
    };
    let format = FileFormat::of(args.format, path);
    let (sender, parsed) = mpsc::channel(QUEUE_RECORDS);
    let limits = Limits::of(args);
    std::thread::spawn(move || {
        read_lines(
            BufReader::with_capacity(1 << 18, input),
            format,
            &limits,
            &sender,
        );
    });
    let put = |key, value| {
        let client = client.clone();
        async move { client.put(key, value).await }
    };
    let summary = write_records(args, parsed, total, put).await?;
    summary.write("imported", global.output, &mut io::stdout().lock())?;
    Ok(Exit::Ok)
}

/// Parses lines until the end of the input, or until the writer stops.
fn read_lines(
    mut input: impl BufRead,
    format: FileFormat,
    limits: &Limits,
    sender: &mpsc::Sender<Parsed>,
) {
    let max_line_bytes = limits.max_line_bytes;
    let mut line = Vec::new();
    let mut position = 0;
    for number in 1.. {
        line.clear();
        let read = input
            .by_ref()
            .take(max_line_bytes + 1)
            .read_until(b'\n', &mut line);
        let read = match read {
            Ok(0) => return,
            Ok(read) => read as u64,
            Err(error) => {
                let broken = Failure::failed(
                    format!("can't read line {number} of the input: {error}"),
                    format!("repair the input and continue with --from-line {number}"),
                );
                let _ = sender.blocking_send(Parsed::Broken(broken));
                return;
            }
        };
        position += read;
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if text.len() as u64 > max_line_bytes {
            let broken = Failure::usage(
                format!("line {number} is longer than {max_line_bytes} bytes"),
                "check that the file is what --format says, or raise --max-line-bytes",
            );
            let _ = sender.blocking_send(Parsed::Broken(broken));
            return;
        }
        if number < limits.from_line {
            continue;
        }
        let parsed = match format.decode(text) {
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
        };
        if sender.blocking_send(parsed).is_err() {
            return;
        }
    }
}

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
    progress: Progress,
    /// The failed write that stands first in the input.
    failed: Option<(u64, Error)>,
    last_ack: Instant,
    longest_gap: Duration,
}

impl Writes {
    fn settle(&mut self, done: Done) {
        self.keys.remove(&done.key);
        match done.result {
            Ok(()) => {
                self.longest_gap = self.longest_gap.max(self.last_ack.elapsed());
                self.last_ack = Instant::now();
                self.progress.record(done.bytes, done.position);
            }
            Err(error) => {
                if self
                    .failed
                    .as_ref()
                    .is_none_or(|(line, _)| done.line < *line)
                {
                    self.failed = Some((done.line, error));
                }
            }
        }
    }
}

/// Writes the records, with a bounded number in flight. After the first failure it sends no more, and waits for the writes
/// in flight.
async fn write_records<P, F>(
    args: &ImportArgs,
    mut parsed: mpsc::Receiver<Parsed>,
    total_bytes: Option<u64>,
    put: P,
) -> Result<Summary, Failure>
where
    P: Fn(Bytes, Bytes) -> F,
    F: Future<Output = Result<(), Error>>,
{
    let mut flying = FuturesUnordered::new();
    let mut writes = Writes {
        keys: HashSet::new(),
        progress: Progress::start(total_bytes),
        failed: None,
        last_ack: Instant::now(),
        longest_gap: Duration::ZERO,
    };
    let mut skipped = 0;
    let mut bad = None;
    while writes.failed.is_none() {
        let next = tokio::select! {
            biased;
            Some(done) = flying.next() => {
                writes.settle(done);
                continue;
            }
            next = parsed.recv() => next,
        };
        let item = match next {
            None => break,
            Some(Parsed::Item(item)) => item,
            Some(Parsed::Bad { line, what }) if args.skip_bad => {
                eprintln!("line {line} skipped: {what}");
                skipped += 1;
                continue;
            }
            Some(Parsed::Bad { line, what }) => {
                bad = Some(Failure::usage(
                    format!("line {line}: {what}; the lines before it were imported"),
                    format!(
                        "correct the line and continue with --from-line {line}, or pass over bad lines with --skip-bad"
                    ),
                ));
                break;
            }
            Some(Parsed::Broken(failure)) => {
                bad = Some(failure);
                break;
            }
        };
        let key = Bytes::from(item.record.key);
        let value = Bytes::from(item.record.value);
        let bytes = (key.len() + value.len()) as u64;
        let full = |writes: &Writes, flying: usize| {
            flying >= args.in_flight as usize || writes.keys.contains(&key)
        };
        while full(&writes, flying.len()) {
            let Some(done) = flying.next().await else {
                break;
            };
            writes.settle(done);
        }
        writes.keys.insert(key.clone());
        let written = put(key.clone(), value);
        let (line, position, memory) = (item.line, item.position, item.memory);
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
    while let Some(done) = flying.next().await {
        writes.settle(done);
    }
    if let Some((line, error)) = writes.failed {
        let next = format!("when the cluster answers again, continue with --from-line {line}");
        let failure = call_failure(&error).context(&format!("line {line} was not acknowledged"));
        // The cluster would refuse this record again, so continuing from it does not help. Keep the advice of the error.
        return Err(if failure.exit() == Exit::Refused {
            failure
        } else {
            failure.with_next(next)
        });
    }
    match bad {
        Some(failure) => Err(failure),
        None => Ok(writes.progress.finish(skipped, writes.longest_gap)),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use clap::Parser as _;

    use super::*;
    use crate::random::Random;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        import: ImportArgs,
    }

    fn args(words: &[&str]) -> ImportArgs {
        Line::parse_from([&["import"], words].concat()).import
    }

    /// Imitates a store: finishes puts out of order, and counts how many are in flight.
    #[derive(Default)]
    struct Store {
        pairs: BTreeMap<Bytes, Bytes>,
        flying: usize,
        most: usize,
        refuse: Option<Bytes>,
    }

    async fn run(
        args: &ImportArgs,
        input: &[u8],
        store: &RefCell<Store>,
    ) -> Result<Summary, Failure> {
        let (sender, parsed) = mpsc::channel(QUEUE_RECORDS);
        let limits = Limits::of(args);
        let input = input.to_vec();
        let format = FileFormat::of(args.format, None);
        let reader = std::thread::spawn(move || read_lines(&input[..], format, &limits, &sender));
        let random = RefCell::new(Random::new(1));
        let summary = write_records(args, parsed, None, |key: Bytes, value: Bytes| {
            let yields = random.borrow_mut().below(20);
            store.borrow_mut().flying += 1;
            async move {
                for _ in 0..yields {
                    tokio::task::yield_now().await;
                }
                let mut store = store.borrow_mut();
                store.most = store.most.max(store.flying);
                store.flying -= 1;
                if store.refuse.as_ref() == Some(&key) {
                    return Err(Error::DiskFull {
                        message: "full".into(),
                    });
                }
                store.pairs.insert(key, value);
                Ok(())
            }
        })
        .await;
        reader.join().unwrap();
        summary
    }

    fn input(lines: u32) -> Vec<u8> {
        (0..lines)
            .flat_map(|n| format!("k{}\t{n}\n", n % 97).into_bytes())
            .collect()
    }

    #[tokio::test]
    async fn the_last_line_of_a_key_wins_and_flight_is_bounded() {
        let store = RefCell::default();
        let args = args(&["--format", "tsv", "--in-flight", "16"]);
        run(&args, &input(5_000), &store).await.unwrap();
        let store = store.into_inner();
        assert_eq!(store.pairs.len(), 97);
        for n in 5_000 - 97..5_000u32 {
            let key = Bytes::from(format!("k{}", n % 97));
            assert_eq!(store.pairs[&key], n.to_string(), "{key:?}");
        }
        assert!(
            (2..=16).contains(&store.most),
            "pipelined, bounded: {}",
            store.most
        );
    }

    #[tokio::test]
    async fn a_bad_line_stops_with_its_number() {
        let store = RefCell::default();
        let text = b"a\t1\n\nbroken\nb\t2\n";
        let failure = run(&args(&["--format", "tsv"]), text, &store)
            .await
            .unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.to_string().contains("line 3: "), "{failure}");
        assert_eq!(
            store.borrow().pairs.len(),
            1,
            "lines before it were written"
        );

        let skipping = args(&["--format", "tsv", "--skip-bad"]);
        run(&skipping, text, &store).await.unwrap();
        assert_eq!(store.borrow().pairs.len(), 2);
        let mut out = Vec::new();
        let summary = run(
            &args(&["--format", "tsv", "--from-line", "4"]),
            text,
            &store,
        )
        .await
        .unwrap();
        summary
            .write("imported", crate::output::Format::Raw, &mut out)
            .unwrap();
        assert_eq!(out, b"1\n");
    }

    #[tokio::test]
    async fn a_refused_write_names_the_first_line_that_is_missing() {
        let store = RefCell::new(Store {
            refuse: Some("k5".into()),
            ..Store::default()
        });
        let args = args(&["--format", "tsv", "--in-flight", "8"]);
        let failure = run(&args, &input(1_000), &store).await.unwrap_err();
        assert_eq!(failure.exit(), Exit::Refused);
        assert!(failure.to_string().contains("line 6 was not"), "{failure}");
        assert!(
            store.borrow().pairs.len() < 97,
            "nothing more is sent after a failure"
        );
    }

    #[tokio::test]
    async fn records_larger_than_the_memory_go_one_by_one() {
        let store = RefCell::default();
        let args = args(&["--format", "tsv", "--memory-bytes", "2048"]);
        let input: Vec<u8> = (0..50)
            .flat_map(|n| format!("k{n}\t{}\n", "x".repeat(5_000)).into_bytes())
            .collect();
        run(&args, &input, &store).await.unwrap();
        let store = store.into_inner();
        assert_eq!((store.pairs.len(), store.most), (50, 1));
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused() {
        let store = RefCell::default();
        let args = args(&["--max-line-bytes", "100"]);
        let failure = run(&args, &[b'x'; 1_000], &store).await.unwrap_err();
        assert!(
            failure.to_string().contains("line 1 is longer"),
            "{failure}"
        );
    }
}
