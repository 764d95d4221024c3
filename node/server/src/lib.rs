//! The binary `shardkv-node`: one member of a replica group as a process.
//!
//! This crate owns the sockets, the threads and the clocks of a node. The pure crates below decide everything else: elections,
//! replication, sessions, and the state of shards and configurations. This crate carries messages between them, the network and
//! the disk.
//!
//! # Threads and tasks
//!
//! - The *replica's thread* ([`runtime`]) owns the replica and its state machine. Nothing else touches them. It takes its input
//!   from the [`inbox`], and blocks only there and on the disk.
//! - The *network's threads* are a tokio runtime with `rpc_threads` threads, by default one. They run the gRPC server
//!   ([`grpc`], [`services`]), the streams to peers ([`transport`]), and the tasks below.
//! - The tasks are: the delivery of answers ([`replies`]), the upkeep of links to peers ([`transport`]), the check of free space
//!   ([`disk`]), and the gauges of shards ([`metrics`]). In a replica group also the watch of the controllers ([`configs`]) and,
//!   while the node leads, the driver of the mover ([`mover`]).
//! - Blocking calls of services (sizes of files, pages of exports, the identity's file) run on tokio's blocking threads.
//!
//! # The way of a request
//!
//! ```text
//!  clients ── gRPC ──► services ─► inbox ─►┐                         ┌─► RocksDB (log, state)
//!  peers ──── gRPC ──► services ─► inbox ─►│ the replica's thread  ──┤
//!  time, disk ────────────────────────────►│ (runtime)               └─► transport ─► peers
//!                                          └─► deliveries ─► handlers ─► clients
//! ```
//!
//! 1. A service checks the request, takes its share of the budget ([`admission`]), adds it to the inbox through the
//!    [`replica_handle`], and waits.
//! 2. The replica's thread takes all input at once. One write to disk serves all of it. Messages to peers leave before the own
//!    disk has finished where the protocol allows that.
//! 3. The answers of a round go back as one list and are delivered on the network's thread ([`replies`]).
//!
//! So a request crosses threads twice, once each way, and the busier the node is, the more requests share each step. A request
//! that another node must answer is forwarded to the leader of the group that owns it ([`forward`]), at most once.
//!
//! # Handles
//!
//! Each concern of the node has an owner, which is shared as an `Arc`: the phase and the published status ([`lifecycle`]),
//! identity and addresses ([`peers`]), configurations and ownership ([`routing`]), bounds ([`admission`]), and the way to the
//! replica ([`replica_handle`]). [`parts`] alone puts them together. A service or task takes only the handles that it uses, and
//! no two files depend on each other in a circle.
//!
//! # Start and stop
//!
//! [`node`] opens the data directory ([`disk`]), listens, finds its group or forms one ([`bootstrap`]), and serves. On SIGTERM it
//! hands leadership over, finishes the accepted requests, flushes and exits. [`exit`] lists the exit codes.
//!
//! # What it does not do
//!
//! It trusts its network: there is no TLS and no authentication. It does not decide which group owns a shard: the controllers
//! decide, and the groups' logs carry it out. It does not repeat a request whose outcome is in doubt, unless the request changes
//! nothing or has a session.

mod admission;
mod births;
mod bootstrap;
mod budget;
mod configs;
mod convert;
mod disk;
mod divergence;
mod endpoint;
mod exit;
mod files;
mod forward;
mod gateway;
mod grpc;
mod identity;
mod inbox;
mod keyspaces;
mod lifecycle;
mod limiter;
mod listen;
mod listeners;
mod machine;
mod metrics;
mod mover;
mod node;
mod page_budget;
mod parts;
mod peers;
mod progress;
mod random;
mod readiness;
mod reads;
mod refusals;
mod replica_handle;
mod replies;
mod reserve;
mod routing;
mod runtime;
mod services;
mod transport;

use std::ffi::OsString;
use std::io::Write as _;

pub use exit::ExitCode;
use exit::Fatal;
use node_options as options;
use options::{Invocation, Options};

// The switches that put known bugs back exist for the simulator only.
const _: () = assert!(
    !(raft::BUGS_COMPILED_IN
        || replica::BUGS_COMPILED_IN
        || request::BUGS_COMPILED_IN
        || shardctrler::BUGS_COMPILED_IN
        || shardkv::BUGS_COMPILED_IN)
);

/// Runs the program with a command line, which begins with the program's name. Returns the exit code, after printing the reason
/// on standard error.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match options::parse(args, exit::HELP) {
        Ok(Invocation::Print(text)) => {
            // Standard output may be closed.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::Clean
        }
        Ok(Invocation::Run(options)) => {
            let code = match start(*options) {
                Ok(()) => ExitCode::Clean,
                Err(fatal) => {
                    // Makes room in a full queue, so that the line below is not dropped.
                    probes::telemetry::flush();
                    tracing::error!(exit_code = fatal.code as u8, "{:#}", fatal.error);
                    fatal.code
                }
            };
            probes::telemetry::flush();
            code
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "shardkv-node: {error}");
            ExitCode::BadOptions
        }
    }
}

/// The threads for what blocks: the readers of all kinds at the same time, and some more.
const BLOCKING_THREADS: usize = 24;

fn start(mut options: Options) -> Result<(), Fatal> {
    probes::telemetry::start(options.log_format, &options.log_filter)?;
    files::share(&mut options)?;
    // With one thread a request needs no further hand-over between threads on its way in and out.
    let mut builder = if options.rpc_threads > 1 {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(options.rpc_threads);
        builder
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder
        .enable_all()
        .thread_name("network")
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|error| {
            let what = format!("the network's threads can't be started: {error}");
            Fatal::of_system(what, ExitCode::Unexpected)
        })?;
    let result = runtime.block_on(node::run(options));
    // Tasks that wait for dead connections must not keep the process alive.
    runtime.shutdown_background();
    result
}
