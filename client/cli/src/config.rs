//! `config`: shows and changes the configuration of the controllers, which assigns shards to groups.

mod change;
mod delta;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::io::Write;

use clap::Subcommand;
use serde_json::json;
use shardkv_client::{Client, ConfigNum, Gid, Incarnation, ShardId};

use self::change::{WaitArgs, changed, write_forgotten};
use self::delta::watch;
use self::view::write_map;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::output::{Format, json_line};
use crate::parse::{parse_gid, parse_group, parse_shard};

/// The commands to the controllers.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show a configuration: the groups, their addresses and their shards
    #[command(
        after_help = "Examples:\n  shardkv config query\n  shardkv config query 7\n  shardkv config query --output json | jq '.groups[].gid'\n\n\
        SETTLED is the configuration up to which a group has completed all hand-offs: pulled, given away, deleted. A group that\n\
        left is listed until it is drained."
    )]
    Query {
        /// The number of the configuration; default: the latest
        num: Option<u64>,
    },
    /// Add groups, or change the addresses of groups; shards rebalance with the fewest moves
    #[command(
        after_help = "Examples:\n  shardkv config join 3=10.0.0.7:7400,10.0.0.8:7400,10.0.0.9:7400\n  \
        shardkv config join 3=h7:7400,h8:7400 4=h9:7400,h10:7400 --wait\n\n\
        Start the groups' nodes first, with --role shards, their --gid and the same --controllers. The controllers ask the addresses: a\n\
        quorum must be nodes of that group of this cluster, and none may be something else."
    )]
    Join {
        /// A group's id and the addresses of its nodes
        #[arg(required = true, value_name = "GID=HOST:PORT,...", value_parser = parse_group)]
        groups: Vec<(Gid, Vec<String>)>,
        /// Don't ask the addresses. For tests: shards wait for a group that doesn't exist
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Remove groups; their shards move to the other groups
    #[command(
        after_help = "Examples:\n  shardkv config leave 2 --wait\n\nKeep a group's nodes running until it is drained: --wait waits for that, and\n\
        `shardkv config query` shows it."
    )]
    Leave {
        /// The groups' ids
        #[arg(required = true, value_name = "GID", value_parser = parse_gid)]
        gids: Vec<Gid>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Assign one shard to a group; a later rebalance may move it again
    #[command(after_help = "Examples:\n  shardkv config move 17 2 --wait")]
    Move {
        /// The shard
        #[arg(value_parser = parse_shard)]
        shard: ShardId,
        /// The group's id
        #[arg(value_parser = parse_gid)]
        gid: Gid,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Remove groups that are gone for good, with the data that only they had
    #[command(
        after_help = "Examples:\n  shardkv config forget 2                      # refused, and says what would be lost\n  \
        shardkv config forget 2 --accept-data-loss\n\n\
        Without --accept-data-loss the command forgets only a group that has nothing, for example one that joined with a wrong address.\n\n\
        For groups whose disks are lost. Use `config leave` for a group that runs: it hands its shards over and loses nothing.\n\
        Stop the group's nodes first: until a node hears of the change, it serves old data to clients that know it.\n\n\
        Shards that only these groups had begin empty at other groups. Shards that were on their way to them and had not arrived\n\
        go back to the groups that have them still. Restore what was lost from a backup with `shardkv import`."
    )]
    Forget {
        /// The groups' ids
        #[arg(required = true, value_name = "GID", value_parser = parse_gid)]
        gids: Vec<Gid>,
        /// Go ahead although the data of shards are lost
        #[arg(long)]
        accept_data_loss: bool,
    },
    /// Retire the number of a group that is drained, so that no group joins under it again
    #[command(
        after_help = "Examples:\n  shardkv config leave 2 --wait && shardkv config retire 2\n\n\
        Retire a group's number before you delete its volumes: nodes that come back with old volumes, or new ones under the same\n\
        number, can't join by mistake. The controllers remember the last 10,000 groups that were drained."
    )]
    Retire {
        /// The group's id
        #[arg(value_parser = parse_gid)]
        gid: Gid,
    },
    /// Print each change of the configuration when it happens, until Ctrl-C
    #[command(
        after_help = "Examples:\n  shardkv config watch\n  shardkv config watch --output json | jq .num"
    )]
    Watch,
}

impl ConfigCommand {
    /// Returns true if the command changes nothing.
    pub(crate) fn only_asks(&self) -> bool {
        matches!(self, Self::Query { .. } | Self::Watch)
    }
}

/// Runs `command` and writes the result to `out`.
pub(crate) async fn run(
    command: &ConfigCommand,
    client: &Client,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let controller = client.controller();
    match command {
        ConfigCommand::Query { num } => {
            let map = controller.query(num.map(ConfigNum)).await?;
            write_map(&map, global.output, out)?;
            Ok(Exit::Ok)
        }
        ConfigCommand::Join {
            groups,
            force,
            wait,
        } => {
            let mut distinct = BTreeMap::new();
            for (gid, addresses) in groups {
                if distinct.insert(*gid, addresses.clone()).is_some() {
                    return Err(Failure::usage(
                        format!("{gid} is listed twice"),
                        "give each group once, with all its addresses",
                    ));
                }
            }
            let change = async || match force {
                false => controller.join(distinct.clone()).await,
                true => controller.join_unproven(distinct.clone()).await,
            };
            changed(client, wait, global, out, change).await
        }
        ConfigCommand::Leave { gids, wait } => {
            let change = async || controller.leave(gids).await;
            changed(client, wait, global, out, change).await
        }
        ConfigCommand::Move { shard, gid, wait } => {
            let change = async || controller.move_shard(*shard, *gid).await;
            changed(client, wait, global, out, change).await
        }
        ConfigCommand::Forget {
            gids,
            accept_data_loss,
        } => {
            let forgotten = controller.forget(gids, *accept_data_loss).await?;
            write_forgotten(&forgotten, global.output, out)?;
            Ok(Exit::Ok)
        }
        ConfigCommand::Retire { gid } => {
            let view = controller.query(None).await?;
            // One that isn't drained is refused with the reason.
            let incarnation = view.drained.get(gid).map(|it| it.incarnation);
            let incarnation = incarnation.unwrap_or(Incarnation(view.latest.0));
            controller.retire(*gid, incarnation).await?;
            match global.output {
                Format::Json => json_line(out, &json!({"gid": gid.0, "retired": true}))?,
                Format::Table | Format::Raw => writeln!(out, "ok: no group joins as {gid} again")?,
            }
            Ok(Exit::Ok)
        }
        ConfigCommand::Watch => watch(&controller, global.output, out).await,
    }
}
