//! A whole cluster on this machine: real `shardkv-node` processes on loopback.
//!
//! One process, the playground, starts the nodes as its children, waits until they have a leader, and stops them when it
//! is told to. It restarts nothing by itself. What it did stands in `playground.json` in its folder ([`layout`]), so that
//! scripts find addresses, logs and process ids, and so that the same cluster comes back at the same addresses.
//!
//! The other commands (`kill`, `stop`, `cont`, `term`, `restart`, `down`) ask the playground through a socket in the folder
//! ([`control`]) and return when it is done: after `kill` the process is gone, after `restart` the node answers. Only the
//! parent of a process knows when it has ended, so signals never hit a stranger that got the number of a dead node.
//!
//! With `--groups` there are controllers, and groups that share the shards. The playground joins the groups, and `scale`
//! changes their number while everything runs ([`scale`]): new groups are started and join; the newest leave, are waited
//! for until they have given away everything, and only then are their processes stopped and their data removed.
//!
//! A playground that is itself killed leaves its nodes running, since a process can't be tied to its parent without unsafe
//! code; `down` finds and stops them.

mod announce;
mod cluster;
mod control;
mod layout;
mod nodes;
mod place;
mod ports;
mod process;
mod prompt;
mod scale;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::args::GlobalArgs;
use crate::bench::duration;
use crate::exit::{Exit, Failure};
use control::Order;

/// Which cluster is run, or what is done to one that runs.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  shardkv playground                          three nodes, gone without a trace after Ctrl-C\n  \
    shardkv playground --dir cluster            keeps its data and addresses\n  \
    shardkv playground --dir cluster -- --election-timeout-ms 1000\n  \
    shardkv playground --groups 2 --dir cluster  three controllers and two groups of three nodes\n  \
    shardkv playground scale 3 --dir cluster     a third group joins; `scale 2`: it leaves again\n  \
    shardkv playground kill g2/leader --dir cluster\n  \
    shardkv playground wait --dir cluster && shardkv playground kill leader --dir cluster\n  \
    shardkv playground restart node-2 --dir cluster --wipe\n\nWithout --groups there is one standalone group, which has all shards, and no controllers.\n\
    With --groups the nodes are called ctrl-1, ..., g1-1, ..., and the playground reads commands at its terminal.\n\
    What stands after -- is given to every node; `shardkv-node --help` explains it."
)]
pub(crate) struct PlaygroundArgs {
    #[command(subcommand)]
    command: Option<PlaygroundCommand>,
    #[command(flatten)]
    start: StartArgs,
}

/// How a playground is started.
#[derive(Debug, Args)]
pub(super) struct StartArgs {
    /// How many nodes a group has; default: as many as in the folder, or 3
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=9))]
    replicas: Option<u16>,
    /// How many groups share the shards, under controllers; default: as many as in the folder, or one without controllers
    #[arg(long, short, value_name = "N", value_parser = group_count())]
    groups: Option<u16>,
    /// How many controllers there are, with --groups; default: as many as in the folder, or 3
    #[arg(long, value_name = "N", requires = "groups", value_parser = clap::value_parser!(u16).range(1..=9))]
    controllers: Option<u16>,
    /// How many shards the keys are spread over, chosen once; default: the nodes' default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(types::MAX_SHARDS)))]
    shards: Option<u32>,
    /// Where data, logs and addresses are kept; default: a temporary folder that is removed at the end
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The first node's port, with the next ones after it; default: free ports
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65_000))]
    base_port: Option<u16>,
    /// The program of a node; default: `shardkv-node` beside this program, else in PATH
    #[arg(
        long,
        env = "SHARDKV_NODE_BINARY",
        hide_env_values = true,
        value_name = "FILE"
    )]
    node_binary: Option<PathBuf>,
    /// How long to wait for a leader at the start, and for a node that is restarted
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    start_timeout: Duration,
    /// How long a node may take to stop before it is killed
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    stop_timeout: Duration,
    /// Stop when standard input ends, as it does when the program that started this one is gone
    #[arg(long)]
    stop_on_stdin_eof: bool,
    /// Options for every node
    #[arg(last = true, value_name = "NODE OPTIONS")]
    node_args: Vec<String>,
}

/// What is done to a playground that runs.
#[derive(Debug, Subcommand)]
enum PlaygroundCommand {
    /// Show the nodes with their processes
    Status(DirArgs),
    /// Wait until it is ready, and in every group a majority of the nodes follows one leader
    Wait {
        #[command(flatten)]
        dir: DirArgs,
        /// How long
        #[arg(long, value_parser = duration, default_value = "60s")]
        timeout: Duration,
    },
    /// End a node at once, as a crash does (SIGKILL)
    Kill(NodeArgs),
    /// Freeze a node (SIGSTOP)
    Stop(NodeArgs),
    /// Let a frozen node go on (SIGCONT)
    Cont(NodeArgs),
    /// Ask a node to stop in good order (SIGTERM), and wait for it
    Term(NodeArgs),
    /// Start a node that ended, or stop and start one that runs; returns when it answers
    Restart {
        #[command(flatten)]
        node: NodeArgs,
        /// Remove its data first, as a lost disk does
        #[arg(long)]
        wipe: bool,
    },
    /// Have this many groups: new ones join, or the newest leave; returns when the shards are where they belong
    #[command(
        after_help = "Examples:\n  shardkv playground scale 3 --dir cluster\n\nThe nodes of a group that left are stopped, and their data removed, when nothing needs them any more. Whoever \
        interrupts this command stops waiting; the groups move all the same. Another `scale` changes what is wanted at any time."
    )]
    Scale {
        /// How many groups
        #[arg(value_parser = group_count())]
        groups: u16,
        #[command(flatten)]
        dir: DirArgs,
    },
    /// Stop the whole playground
    Down(DirArgs),
}

/// More groups than a machine has room for are a mistake.
fn group_count() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=64)
}

/// Which playground.
#[derive(Debug, Args)]
struct DirArgs {
    /// The playground's folder
    #[arg(long, env = "SHARDKV_PLAYGROUND_DIR", hide_env_values = true)]
    dir: PathBuf,
}

/// Which node of which playground.
#[derive(Debug, Args)]
struct NodeArgs {
    /// A name as `status` shows it, an address, `leader`, or the leader of a group: `g2/leader`, `ctrl/leader`
    node: String,
    #[command(flatten)]
    dir: DirArgs,
}

/// Runs a playground until it is stopped, or does something to one.
pub(crate) async fn run(args: &PlaygroundArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let Some(command) = &args.command else {
        return cluster::run(&args.start, global.output).await;
    };
    let (node, order) = match command {
        PlaygroundCommand::Status(args) => return watch::status(&args.dir, global.output).await,
        PlaygroundCommand::Wait { dir, timeout } => {
            return watch::wait(&dir.dir, *timeout, global.output).await;
        }
        PlaygroundCommand::Scale { groups, dir } => {
            return watch::scale(&dir.dir, *groups, global.output).await;
        }
        PlaygroundCommand::Down(args) => return watch::down(&args.dir).await,
        PlaygroundCommand::Kill(node) => (node, Order::Kill),
        PlaygroundCommand::Stop(node) => (node, Order::Stop),
        PlaygroundCommand::Cont(node) => (node, Order::Cont),
        PlaygroundCommand::Term(node) => (node, Order::Term),
        PlaygroundCommand::Restart { node, wipe } => (node, Order::Restart { wipe: *wipe }),
    };
    watch::order(&node.dir.dir, &node.node, order, global.output).await
}
