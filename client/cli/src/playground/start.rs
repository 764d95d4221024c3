//! The options that a playground starts with.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::parse::duration;

/// The options that start a playground.
#[derive(Debug, Args)]
pub(super) struct StartArgs {
    /// Number of nodes in each group; default: as in the folder, or 3
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=9))]
    pub(super) replicas: Option<u16>,
    /// Number of groups that share the shards, with controllers; default: as in the folder, or one group without controllers
    #[arg(long, short, value_name = "N", value_parser = group_count())]
    pub(super) groups: Option<u16>,
    /// Number of controllers, with --groups; default: as in the folder, or 3
    #[arg(long, value_name = "N", requires = "groups", value_parser = clap::value_parser!(u16).range(1..=9))]
    pub(super) controllers: Option<u16>,
    /// Number of shards, fixed when the cluster is created; default: the nodes' default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(types::MAX_SHARDS)))]
    pub(super) shards: Option<u32>,
    /// Folder for data, logs and addresses; default: a temporary folder that is removed at the end
    #[arg(long)]
    pub(super) dir: Option<PathBuf>,
    /// The first node's port, with the next ones after it; default: free ports
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub(super) base_port: Option<u16>,
    /// The program of a node; default: `shardkv-node` beside this program, else in PATH
    #[arg(
        long,
        env = "SHARDKV_NODE_BINARY",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(super) node_binary: Option<PathBuf>,
    /// Time limit for a leader at the start, and for a restarted node to answer
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    pub(super) start_timeout: Duration,
    /// Time limit for a node to stop; after it the node is killed
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub(super) stop_timeout: Duration,
    /// Stop when standard input ends, as it does when the program that started this one is gone
    #[arg(long)]
    pub(super) stop_on_stdin_eof: bool,
    /// Options for every node
    #[arg(last = true, value_name = "NODE OPTIONS")]
    pub(super) node_args: Vec<String>,
}

/// Parses a number of groups, within the limit of one machine.
pub(super) fn group_count() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=64)
}
