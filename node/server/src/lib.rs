//! The binary `shardkv-node`: one member of a replica group as a process.
//!
//! # What it is
//!
//! The one crate that owns sockets, threads and clocks. Everything that decides (elections, replication, sessions,
//! state) is in the pure crates below; this one carries words between them, the network and the disk.
//!
//! # How data flows
//!
//! ```text
//!  clients ── gRPC ──► services ─► inbox ─►┐                         ┌─► RocksDB (log, state)
//!  peers ──── gRPC ──► services ─► inbox ─►│ the replica's thread  ──┤
//!  time, disk ────────────────────────────►│ (runtime)               └─► transport ─► peers
//!                                          └─► deliveries ─► handlers ─► clients
//! ```
//!
//! A handler checks its request, takes a part of the budget, puts it into the `inbox` and waits. The replica's
//! thread (`runtime`) takes all that waits at once, and one write to disk serves all of it. The answers go back as
//! one list and are given out on the network's thread (`replies`). So a request crosses threads twice, once each
//! way, and the busier the node, the more requests share each step.
//!
//! Both state machines, users' shards and the configuration centre, run on that one thread's code (`machine`).
//!
//! Messages to peers leave from within the replica's poll, before its own disk has written what needn't be waited
//! for (`transport`). A stream that breaks is told to the replica at once.
//!
//! # Groups among others
//!
//! Every node serves every service. What isn't its own it passes on to whoever leads the group that owns it (`forward`),
//! guided by the configuration that it follows (`configs`). While a node leads a replica group it also moves shards
//! (`mover`): the pure `shardkv::Mover` says what is to be done, and the tasks here ask the controllers and the other
//! groups, and put steps into the group's log. The other end of that is the service `Handoff`.
//!
//! # How a node begins and ends
//!
//! `node` opens the data directory (`disk`), listens, finds its group or begins one (`bootstrap`), serves, and
//! on SIGTERM hands leadership over, finishes, flushes and exits. `exit` lists the exit codes.
//!
//! # What it does not do
//!
//! It trusts its network: there is no TLS and no authentication yet. It decides nothing about where shards belong: that
//! is the controllers' to say, and the groups' logs to carry out.

mod admission;
mod bootstrap;
mod budget;
mod configs;
mod convert;
mod disk;
mod endpoint;
mod exit;
mod forward;
mod grpc;
mod identity;
mod inbox;
mod lifecycle;
mod listen;
mod listeners;
mod machine;
mod metrics;
mod mover;
mod node;
mod options;
mod peers;
mod random;
mod readiness;
mod replica_handle;
mod replies;
mod routing;
mod runtime;
mod services;
mod transport;

use std::ffi::OsString;
use std::io::Write as _;

use anyhow::Context as _;
pub use exit::ExitCode;
use exit::Fatal;
use options::{Asked, Options};

// The switches that put known bugs back exist for the simulator only.
const _: () = assert!(
    !(raft::BUGS_COMPILED_IN
        || replica::BUGS_COMPILED_IN
        || request::BUGS_COMPILED_IN
        || shardctrler::BUGS_COMPILED_IN
        || shardkv::BUGS_COMPILED_IN)
);

/// Runs the program with a command line, its own name first. Returns how the process shall end, after saying why
/// on standard error.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match options::parse(args) {
        Ok(Asked::Print(text)) => {
            // Nobody may be reading.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::Clean
        }
        Ok(Asked::Run(options)) => match start(*options) {
            Ok(()) => ExitCode::Clean,
            Err(fatal) => {
                tracing::error!(exit_code = fatal.code as u8, "{:#}", fatal.error);
                fatal.code
            }
        },
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "shardkv-node: {error}");
            ExitCode::BadOptions
        }
    }
}

fn start(options: Options) -> Result<(), Fatal> {
    probes::telemetry::start(options.log_format, &options.log_filter)?;
    // With one thread a request needs no hand-over between threads on its way in and out.
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
        .max_blocking_threads(16)
        .build()
        .context("the network's threads can't be started")?;
    let result = runtime.block_on(node::run(options));
    // Tasks that hang on dead connections must not keep the process.
    runtime.shutdown_background();
    result
}
