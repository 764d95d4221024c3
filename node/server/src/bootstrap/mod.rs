//! Takes a node from an empty disk to a member of a group: asks the initial peers, waits and writes as [`replica::decide`] and
//! [`replica::NodeRecord`] decide.

pub(crate) mod genesis;
mod questions;

use std::time::Duration;

use anyhow::Context as _;
use raft::{Envelope, Message, Term};
use replica::{Bugs, Decision, FirstMembership, decide};
use tokio::time::{Instant, sleep};
use types::{ClusterId, NodeId};

use crate::exit::{ExitCode, Fatal};
use crate::options::GenesisOptions;
use crate::peers::Peers;
use crate::random;
use crate::transport::Transport;

use questions::Questions;

/// The pause between two rounds of questions.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// The pause between two join requests.
const JOIN_EVERY: Duration = Duration::from_millis(500);
/// The pause between two log lines of a waiting node that say the same.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// The way in which a node without a log starts.
#[derive(Debug)]
pub(crate) enum FirstStart {
    /// The node is one of a group's first members.
    Member(FirstMembership),
    /// The node is uninitialised and asks a group to add it.
    Joiner,
}

/// Decides how a node without a log starts. Returns only when that is certain.
pub(crate) async fn begin(
    peers: &Peers,
    transport: &Transport,
    genesis: &GenesisOptions,
) -> Result<FirstStart, Fatal> {
    match peers.identity().first_start() {
        replica::FirstStart::Continue(first) => {
            tracing::info!(cluster = %first.cluster, "continuing an interrupted first start");
            return Ok(FirstStart::Member(first));
        }
        replica::FirstStart::Join => {
            tracing::info!(
                "this node has heard from a group before: waiting until the group adds it"
            );
            return Ok(FirstStart::Joiner);
        }
        replica::FirstStart::Ask => {}
    }
    let initial = peers.initial();
    let mut report = Report::default();
    let mut asked: Option<Instant> = None;
    let mut questions = Questions::new(peers, &initial);
    loop {
        questions.round().await;
        match decide(peers.node(), &initial, questions.answers(), Bugs::NONE) {
            Decision::Adopt(first) => {
                tracing::info!(cluster = %first.cluster, "adopting the group's first membership");
                return Ok(FirstStart::Member(first));
            }
            Decision::Join if peers.invited() => return Ok(FirstStart::Joiner),
            Decision::Join => {
                // Nothing is settled before the group calls this node: the peer that answered may be the last node of a
                // group that is being deleted.
                report.log("a group without this node exists: waiting until the group adds it");
                if asked.is_none_or(|at| at.elapsed() >= JOIN_EVERY) {
                    transport.send(join_request(peers));
                    asked = Some(Instant::now());
                }
            }
            Decision::Form(members) => {
                let first = form(genesis, members)?;
                tracing::info!(cluster = %first.cluster, "forming a new group");
                return Ok(FirstStart::Member(first));
            }
            Decision::Wait(reason) => report.log(&format!("looking for the group: {reason}")),
        }
        sleep(ROUND_PAUSE).await;
    }
}

/// Logs the state of a waiting node: when it changes, and every [`REPORT_EVERY`].
#[derive(Default)]
struct Report(Option<(String, Instant)>);

impl Report {
    fn log(&mut self, what: &str) {
        let old = self
            .0
            .as_ref()
            .is_some_and(|(logged, at)| logged == what && at.elapsed() < REPORT_EVERY);
        if !old {
            tracing::info!("{what}");
            self.0 = Some((what.to_owned(), Instant::now()));
        }
    }
}

/// Returns the request to join, for any node at the configured addresses.
fn join_request(peers: &Peers) -> Envelope {
    Envelope {
        from: peers.node(),
        to: NodeId(0),
        term: Term(0),
        message: Message::JoinRequest {
            address: peers.address().to_owned(),
        },
    }
}

fn form(
    genesis: &GenesisOptions,
    members: Vec<(NodeId, String)>,
) -> Result<FirstMembership, Fatal> {
    let cluster = random::number().context("the operating system gave no randomness")?;
    let first = FirstMembership {
        cluster: ClusterId(cluster),
        members,
        genesis: chosen(genesis),
    };
    first
        .checked()
        .map_err(|error| Fatal::new(ExitCode::BadOptions, error))
}

/// Returns the options' values, with defaults for values that are not given.
fn chosen(options: &GenesisOptions) -> shardkv::Genesis {
    let default = shardkv::Genesis::default();
    shardkv::Genesis {
        kind: options.kind,
        shards: options.shards.unwrap_or(default.shards),
        session_ttl_ms: options.session_ttl_ms.unwrap_or(default.session_ttl_ms),
        max_sessions_per_shard: options
            .max_sessions_per_shard
            .unwrap_or(default.max_sessions_per_shard),
        max_results_per_session: options
            .max_results_per_session
            .unwrap_or(default.max_results_per_session),
    }
}

/// Refuses options that contradict the values that the group was created with.
pub(crate) fn check_chosen(
    options: &GenesisOptions,
    stored: &shardkv::Genesis,
) -> Result<(), Fatal> {
    if options.kind != stored.kind {
        let message = format!(
            "the option role is {}, but the group was created as {}, which never changes: correct --role, or \
             give this node another directory and keep this one",
            options.kind, stored.kind
        );
        return Err(Fatal::message(ExitCode::WrongIdentity, message));
    }
    let pairs = [
        (
            "shards",
            options.shards.map(u64::from),
            u64::from(stored.shards),
        ),
        (
            "session_ttl_ms",
            options.session_ttl_ms,
            stored.session_ttl_ms,
        ),
        (
            "max_sessions_per_shard",
            options.max_sessions_per_shard.map(u64::from),
            u64::from(stored.max_sessions_per_shard),
        ),
        (
            "max_results_per_session",
            options.max_results_per_session.map(u64::from),
            u64::from(stored.max_results_per_session),
        ),
    ];
    for (name, asked, stored) in pairs {
        if let Some(asked) = asked.filter(|asked| *asked != stored) {
            let message = format!(
                "the option {name} is {asked}, but the group was created with {stored}, which never \
                 changes: remove the option"
            );
            return Err(Fatal::message(ExitCode::WrongIdentity, message));
        }
    }
    Ok(())
}
