//! A whole cluster on this machine: real `shardkv-node` processes on loopback.
//!
//! One process, the playground, starts the nodes as its children, waits until they have a leader, and stops them on
//! request. It restarts nothing by itself. It records the nodes in `playground.json` in its folder ([`layout`]). There
//! scripts find addresses, logs and process ids, and a later start restores the same cluster at the same addresses.
//!
//! The other commands (`kill`, `stop`, `cont`, `term`, `restart`, `down`) ask the playground through a socket in the folder
//! ([`control`]) and return when it is done: after `kill` the process is gone, after `restart` the node answers. Only the
//! parent of a process knows when it has ended, so a signal never hits another process that got the id of a dead node.
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
mod keyspace;
mod layout;
mod nodes;
mod place;
mod ports;
mod process;
mod prompt;
mod scale;
mod start;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::parse::duration;
use control::Order;
use start::{StartArgs, group_count};

/// The arguments of `playground`.
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

/// The commands on a running playground.
#[derive(Debug, Subcommand)]
enum PlaygroundCommand {
    /// Show the nodes with their processes
    Status(DirArgs),
    /// Wait until the playground is ready and a majority of each group follows one leader
    Wait {
        #[command(flatten)]
        dir: DirArgs,
        /// Time limit
        #[arg(long, value_parser = duration, default_value = "60s")]
        timeout: Duration,
    },
    /// Kill a node at once, like a crash (SIGKILL)
    Kill(NodeArgs),
    /// Freeze a node (SIGSTOP)
    Stop(NodeArgs),
    /// Resume a frozen node (SIGCONT)
    Cont(NodeArgs),
    /// Stop a node gracefully (SIGTERM), and wait for its end
    Term(NodeArgs),
    /// Start a node that ended, or stop and start one that runs; returns when it answers
    Restart {
        #[command(flatten)]
        node: NodeArgs,
        /// Remove the node's data first, like a lost disk
        #[arg(long)]
        wipe: bool,
    },
    /// Have this many groups: new ones join, or the newest leave; returns when the shards are where they belong
    #[command(
        after_help = "Examples:\n  shardkv playground scale 3 --dir cluster\n\nThe nodes of a group that left are stopped, and their data removed, when nothing needs them any more. Whoever \
        interrupts this command stops waiting; the groups move all the same. Another `scale` changes what is wanted at any time."
    )]
    Scale {
        /// Number of groups
        #[arg(value_parser = group_count())]
        groups: u16,
        #[command(flatten)]
        dir: DirArgs,
    },
    /// Stop the whole playground
    Down(DirArgs),
}

/// The option that names a playground.
#[derive(Debug, Args)]
struct DirArgs {
    /// The playground's folder
    #[arg(long, env = "SHARDKV_PLAYGROUND_DIR", hide_env_values = true)]
    dir: PathBuf,
}

/// The arguments that name a node of a playground.
#[derive(Debug, Args)]
struct NodeArgs {
    /// A name as `status` shows it, an address, `leader`, or the leader of a group: `g2/leader`, `ctrl/leader`
    node: String,
    #[command(flatten)]
    dir: DirArgs,
}

/// Runs a playground until it is stopped, or runs a command on a running one.
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
