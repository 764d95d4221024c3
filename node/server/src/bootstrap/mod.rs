//! Takes a node from an empty disk to a member of a group: asks the initial peers, waits and writes as [`replica::decide`] and
//! [`replica::NodeRecord`] decide.

pub(crate) mod genesis;

use std::time::Duration;

use anyhow::Context as _;
use api::v1::raft_client::RaftClient;
use api::v1::{IdentifyRequest, IdentifyResponse};
use raft::{Envelope, Message, Term};
use replica::{Bugs, Decision, FirstMembership, Introduction, decide};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;
use types::{ClusterId, NodeId};

use crate::exit::{ExitCode, Fatal};
use crate::options::GenesisOptions;
use crate::peers::Peers;
use crate::random;
use crate::transport::Transport;

/// The maximum time for one peer's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
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
    loop {
        let answers = ask_all(peers, &initial).await;
        match decide(peers.node(), &initial, &answers, Bugs::NONE) {
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

/// Asks every peer once. Returns each answer at the peer's position.
async fn ask_all(own: &Peers, peers: &[String]) -> Vec<Introduction> {
    let mut answers = vec![Introduction::Silent; peers.len()];
    let mut asking = JoinSet::new();
    for (position, peer) in peers.iter().enumerate() {
        if peer == own.address() {
            if let Some(answer) = answers.get_mut(position) {
                *answer = Introduction::Empty(own.node());
            }
            continue;
        }
        let request = IdentifyRequest {
            cluster_name: own.identity().name().to_owned(),
            gid: own.identity().gid().0,
        };
        let peer = peer.clone();
        asking.spawn(async move {
            let answer = timeout(ANSWER_TIMEOUT, ask(&peer, request)).await;
            (position, peer, answer)
        });
    }
    while let Some(finished) = asking.join_next().await {
        let Ok((position, peer, answer)) = finished else {
            continue;
        };
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::debug!(peer, "no answer: {error:#}");
                Introduction::Silent
            }
            Err(_) => Introduction::Silent,
        };
        if let Some(slot) = answers.get_mut(position) {
            *slot = answer;
        }
    }
    answers
}

/// Asks one peer for its identity. The name is resolved each time, because pods' addresses change.
async fn ask(peer: &str, request: IdentifyRequest) -> anyhow::Result<Introduction> {
    let endpoint = Endpoint::from_shared(format!("http://{peer}"))?
        .connect_timeout(ANSWER_TIMEOUT)
        .tcp_nodelay(true);
    let channel = endpoint.connect().await?;
    let mut client = RaftClient::new(channel);
    match client.identify(request).await {
        Ok(response) => understand(response.into_inner()),
        Err(status) => {
            if matches!(status.code(), tonic::Code::FailedPrecondition) {
                // A node of another cluster at a configured address is an operator's mistake.
                tracing::warn!(peer, "{}", status.message());
            }
            Err(anyhow::anyhow!("{}", status.message()))
        }
    }
}

fn understand(response: IdentifyResponse) -> anyhow::Result<Introduction> {
    anyhow::ensure!(response.node_id != 0, "the peer sent no node id");
    let genesis = response.genesis.map(genesis::from_wire).transpose()?;
    if genesis.is_some() || response.initialised {
        Ok(Introduction::Member(genesis))
    } else {
        Ok(Introduction::Empty(NodeId(response.node_id)))
    }
}
