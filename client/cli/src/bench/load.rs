//! The load itself: tasks, schedule, warm-up, end.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Args;
use futures::StreamExt as _;
use indicatif::ProgressBar;
use shardkv_client::{Client, Error};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::history::{History, now_ns};
use super::latencies::Latencies;
use super::move_watch::MoveWatch;
use super::operation::{Answer, Operation, Shape, Source, WriteKind};
use super::report::Report;
use crate::client_error::call_failure;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::output::grouped;
use crate::parse::{duration, share};

/// Tasks share this many sets of figures: few enough to stay small, enough that tasks seldom wait for each other.
const SLOTS: usize = 16;

/// Writes at once while keys are preloaded.
const PRELOAD_IN_FLIGHT: usize = 256;

/// The load.
#[derive(Clone, Debug, Args)]
pub(super) struct LoadArgs {
    /// Number of concurrent operations
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// The size of a value, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=(64 << 20)))]
    value_bytes: u32,
    /// Number of keys
    #[arg(long, value_name = "KEYS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    key_space: u64,
    /// Prefix of all keys
    #[arg(long, value_name = "TEXT", default_value = "bench/")]
    key_prefix: String,
    /// The share of reads, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    read_ratio: f64,
    /// Kinds of writes, in equal shares
    #[arg(
        long,
        value_name = "OP,...",
        value_enum,
        value_delimiter = ',',
        default_value = "put"
    )]
    writes: Vec<WriteKind>,
    /// Duration of the measurement, such as 500ms, 10s or 2m
    #[arg(long, value_parser = duration, default_value = "10s", conflicts_with = "count")]
    duration: Duration,
    /// Number of operations to measure, instead of a duration
    #[arg(long, value_name = "OPERATIONS", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Time to run before the measurement begins
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s")]
    warmup: Duration,
    /// Transport of calls: one gRPC call each, or many together on a stream
    #[arg(long, value_enum, default_value_t = Mode::Batch)]
    mode: Mode,
    /// Number of batch streams, each on a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Start this many operations a second, whether or not earlier ones have ended
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: Option<u32>,
    /// Write every key once before anything else
    #[arg(long)]
    preload: bool,
    /// Equal seeds draw equal keys and operations
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write each operation to this file as a line of JSON, for a checker of linearizability
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Report the effect of shards that change their owner meanwhile: the write pause of each, and the latency of the others
    #[arg(long)]
    moves: bool,
    /// Give up after this many failed operations
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    max_errors: u64,
}

/// The transport of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// A gRPC call each
    Unary,
    /// Many calls together on a stream
    Batch,
}

/// Makes the load and writes the report.
pub(super) async fn run(args: &LoadArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let mode = match args.mode {
        Mode::Unary => shardkv_client::Mode::Unary,
        Mode::Batch => shardkv_client::Mode::Batch,
    };
    let client = global.client_with(mode, args.connections.into())?;
    // The first call finds the leader. Fail here if there is none.
    client.get(args.key_prefix.clone() + "0").await?;
    let history = match &args.record {
        Some(path) => {
            Some(History::create(path).map_err(|error| Failure::file("create", path, &error))?)
        }
        None => None,
    };
    let shape = shape(args);
    if args.preload {
        preload(&client, &shape).await?;
    }
    let moves = if args.moves {
        Some(MoveWatch::start(&client).await?)
    } else {
        None
    };
    let shared = Arc::new(Shared::new(args.clone(), client, history, moves));
    let mut tasks = start(&shared, &shape);
    let cpu_of_warmup = {
        let measure = shared.measure;
        tokio::spawn(async move {
            tokio::time::sleep_until(measure).await;
            cpu_time()
        })
    };
    tokio::select! {
        () = wait(&mut tasks) => {}
        () = show_progress(&shared) => {}
        () = follow_moves(&shared) => {}
        () = interrupted() => {
            // Wait for the operations in flight, so that the history is complete. Their timeout bounds the wait.
            eprintln!("interrupted: waiting for what is in flight");
            shared.stop.store(true, Ordering::Relaxed);
            tokio::select! {
                () = wait(&mut tasks) => {}
                () = follow_moves(&shared) => {}
            }
        }
    }
    // A run that ends within its warm-up has measured nothing.
    let warmed_up = cpu_of_warmup.is_finished();
    let cpu = if warmed_up {
        cpu_of_warmup.await.ok()
    } else {
        None
    };
    let cpu = cpu.map(|before| cpu_time().saturating_sub(before));
    finish(&shared, global, cpu.unwrap_or_default())
}

fn shape(args: &LoadArgs) -> Shape {
    let value_bytes = args.value_bytes as usize;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a million"
    )]
    let reads_per_million = (args.read_ratio * 1e6).round() as u32;
    Shape {
        prefix: args.key_prefix.clone(),
        key_space: args.key_space,
        value_bytes,
        reads_per_million,
        writes: args.writes.clone(),
        unique: args.record.is_some(),
        noise: Shape::noise(value_bytes, args.seed),
    }
}

/// Writes each key once.
async fn preload(client: &Client, shape: &Shape) -> Result<(), Failure> {
    let value = shape.noise.slice(..shape.value_bytes);
    let puts = futures::stream::iter(0..shape.key_space)
        .map(|number| client.put(shape.key(number), value.clone()));
    let mut puts = std::pin::pin!(puts.buffer_unordered(PRELOAD_IN_FLIGHT));
    while let Some(put) = puts.next().await {
        put.map_err(|error| call_failure(&error).context("while the keys were preloaded"))?;
    }
    Ok(())
}

/// The state that the tasks share.
struct Shared {
    args: LoadArgs,
    client: Client,
    history: Option<History>,
    /// The start of the warm-up, and the start of the measurement.
    begin: Instant,
    measure: Instant,
    stop: AtomicBool,
    /// Operations that were started: the number of the next one in a schedule.
    scheduled: AtomicU64,
    /// Measured operations that were started.
    started: AtomicU64,
    /// The next client number of a history.
    next_client: AtomicU64,
    slots: Vec<Mutex<Slot>>,
    failures: Mutex<Failures>,
    reads: Gaps,
    writes: Gaps,
    moves: Option<MoveWatch>,
}

/// Figures of some tasks.
struct Slot {
    reads: Latencies,
    writes: Latencies,
}

/// The failed operations.
#[derive(Default)]
struct Failures {
    kinds: BTreeMap<&'static str, u64>,
    count: u64,
    first: Option<Error>,
}

/// The longest time between two acknowledgements, in nanoseconds since measuring began.
#[derive(Default)]
struct Gaps {
    last: AtomicU64,
    longest: AtomicU64,
}

impl Gaps {
    fn acknowledged(&self, at: Duration) {
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let before = self.last.fetch_max(at, Ordering::Relaxed);
        self.longest
            .fetch_max(at.saturating_sub(before), Ordering::Relaxed);
    }

    fn longest_ms(&self) -> f64 {
        Duration::from_nanos(self.longest.load(Ordering::Relaxed)).as_secs_f64() * 1e3
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(
        args: LoadArgs,
        client: Client,
        history: Option<History>,
        moves: Option<MoveWatch>,
    ) -> Self {
        let slots = SLOTS.min(args.clients as usize);
        let begin = Instant::now();
        Self {
            begin,
            measure: begin + args.warmup,
            next_client: AtomicU64::new(u64::from(args.clients) + 1),
            args,
            client,
            history,
            stop: AtomicBool::new(false),
            scheduled: AtomicU64::new(0),
            started: AtomicU64::new(0),
            slots: (0..slots)
                .map(|_| {
                    Mutex::new(Slot {
                        reads: Latencies::new(),
                        writes: Latencies::new(),
                    })
                })
                .collect(),
            failures: Mutex::default(),
            reads: Gaps::default(),
            writes: Gaps::default(),
            moves,
        }
    }

    /// Returns the start of the next operation, or `None` when none is left.
    async fn next_start(&self) -> Option<Instant> {
        let start = match self.args.rate {
            None => Instant::now(),
            Some(rate) => {
                let number = self.scheduled.fetch_add(1, Ordering::Relaxed);
                let nanos = u128::from(number) * 1_000_000_000 / u128::from(rate);
                let at =
                    self.begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
                if !self.ends_before(at) {
                    tokio::time::sleep_until(at).await;
                }
                at
            }
        };
        if self.stop.load(Ordering::Relaxed) || self.ends_before(start) {
            return None;
        }
        if start < self.measure {
            return Some(start);
        }
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        self.args
            .count
            .is_none_or(|count| number < count)
            .then_some(start)
    }

    fn ends_before(&self, at: Instant) -> bool {
        self.args.count.is_none() && at >= self.measure + self.args.duration
    }

    fn succeeded(&self, slot: &Mutex<Slot>, operation: &Operation, start: Instant) {
        let now = Instant::now();
        if start < self.measure {
            return;
        }
        let read = operation.is_read();
        if let Some(moves) = self.moves.as_ref().filter(|_| !read) {
            moves.acknowledged(operation.key(), start, now);
        }
        let mut slot = locked(slot);
        let (latencies, gaps) = if read {
            (&mut slot.reads, &self.reads)
        } else {
            (&mut slot.writes, &self.writes)
        };
        latencies.add(now - start);
        gaps.acknowledged(now - self.measure);
    }

    fn failed(&self, error: Error) {
        let mut failures = locked(&self.failures);
        *failures.kinds.entry(kind(&error)).or_default() += 1;
        failures.count += 1;
        if failures.count > self.args.max_errors {
            self.stop.store(true, Ordering::Relaxed);
        }
        failures.first.get_or_insert(error);
    }
}

fn start(shared: &Arc<Shared>, shape: &Shape) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for task in 0..u64::from(shared.args.clients) {
        let source = Source::new(shape.clone(), task, shared.args.seed);
        tasks.spawn(one_client(Arc::clone(shared), source, task));
    }
    tasks
}

/// One operation after the other until the end.
async fn one_client(shared: Arc<Shared>, mut source: Source, task: u64) {
    let slots = shared.slots.len().max(1);
    let Some(slot) = shared.slots.get(usize::try_from(task).unwrap_or(0) % slots) else {
        return;
    };
    let mut client_number = task + 1;
    while let Some(start) = shared.next_start().await {
        let operation = source.draw();
        let call = now_ns();
        let result = operation.run(&shared.client).await;
        if let Some(history) = &shared.history {
            history.record(client_number, &operation, call, now_ns(), &result);
        }
        match result {
            Ok(answer) => {
                learn(&shared, &mut source, &operation, &answer);
                shared.succeeded(slot, &operation, start);
            }
            Err(error) => {
                if error.maybe_applied() {
                    client_number = shared.next_client.fetch_add(1, Ordering::Relaxed);
                }
                shared.failed(error);
            }
        }
    }
}

fn learn(shared: &Shared, source: &mut Source, operation: &Operation, answer: &Answer) {
    // Only compare-and-swaps use it.
    if shared.args.writes.contains(&WriteKind::Cas) {
        source.learn(operation, answer);
    }
}

/// An error's kind, as reports and scripts name it.
fn kind(error: &Error) -> &'static str {
    match error {
        error if error.maybe_applied() => "outcome_unknown",
        Error::Timeout { .. } => "timeout",
        Error::TooLarge { .. } => "too_large",
        Error::BadRequest { .. } => "bad_request",
        Error::DiskFull { .. } => "disk_full",
        Error::WrongCluster { .. } => "wrong_cluster",
        Error::NotLeader { .. } => "not_leader",
        Error::Unavailable { .. } => "unavailable",
        _ => "other",
    }
}

/// Shows on a terminal what goes on; never ends.
async fn show_progress(shared: &Shared) {
    if !io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let bar = ProgressBar::new_spinner();
    let mut interval = tokio::time::interval(Duration::from_millis(200));
    loop {
        interval.tick().await;
        bar.tick();
        let now = Instant::now();
        if now < shared.measure {
            bar.set_message("warming up");
            continue;
        }
        let started = grouped(shared.started.load(Ordering::Relaxed));
        let seconds = (now - shared.measure).as_secs();
        bar.set_message(format!("{started} operations in {seconds} s"));
    }
}

/// Follows what happens to the shards; never ends.
async fn follow_moves(shared: &Shared) {
    match &shared.moves {
        Some(moves) => moves.follow(&shared.client).await,
        None => std::future::pending().await,
    }
}

async fn wait(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

/// Ends when the program is to end early: Ctrl-C or SIGTERM.
pub(super) async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        Ok(()) = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        // If signals can't be caught, the load ends by itself only.
        else => std::future::pending().await,
    }
}

/// CPU time of this process.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

fn finish(shared: &Shared, global: &GlobalArgs, cpu: Duration) -> Result<Exit, Failure> {
    let report = report(shared, cpu);
    report.write(global.output, &mut io::stdout().lock())?;
    let max_errors = shared.args.max_errors;
    if let (Some(history), Some(path)) = (&shared.history, &shared.args.record) {
        history
            .finish()
            .map_err(|error| Failure::file("write", path, &error))?;
    }
    if report.all.count > 0 && report.error_count <= max_errors {
        return Ok(Exit::Ok);
    }
    Err(Failure::failed(
        format!(
            "{} operations failed, and {} succeeded",
            report.error_count, report.all.count
        ),
        "look at the first error above, and at `shardkv status`; --max-errors sets how many are too many",
    ))
}

fn report(shared: &Shared, cpu: Duration) -> Report {
    let args = &shared.args;
    let seconds = shared.measure.elapsed().as_secs_f64();
    let (mut reads, mut writes) = (Latencies::new(), Latencies::new());
    for slot in &shared.slots {
        let slot = locked(slot);
        reads.merge(&slot.reads);
        writes.merge(&slot.writes);
    }
    let mut all = reads.clone();
    all.merge(&writes);
    let failures = locked(&shared.failures);
    let count = all.count() + failures.count;
    #[allow(clippy::cast_precision_loss, reason = "a figure to show")]
    let cpu_us = cpu.as_secs_f64() * 1e6 / (count.max(1) as f64);
    let some = |latencies: &Latencies| (latencies.count() > 0).then(|| latencies.row(seconds));
    let gap =
        |latencies: &Latencies, gaps: &Gaps| (latencies.count() > 0).then(|| gaps.longest_ms());
    Report {
        mode: match args.mode {
            Mode::Unary => "unary",
            Mode::Batch => "batch",
        },
        clients: args.clients,
        connections: args.connections,
        value_bytes: args.value_bytes,
        key_space: args.key_space,
        read_ratio: args.read_ratio,
        rate: args.rate,
        seconds,
        all: all.row(seconds),
        reads: some(&reads),
        writes: some(&writes),
        errors: failures.kinds.clone(),
        error_count: failures.count,
        first_error: failures.first.as_ref().map(ToString::to_string),
        longest_read_gap_ms: gap(&reads, &shared.reads),
        longest_write_gap_ms: gap(&writes, &shared.writes),
        client_cpu_us_per_op: cpu_us,
        moves: shared
            .moves
            .as_ref()
            .map(|moves| moves.report(Instant::now())),
    }
}
