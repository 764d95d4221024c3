//! From an empty disk to a member of a group, without ever beginning a second group beside the first.
//!
//! A node with a log goes on with it. An empty one asks all configured initial peers who they are, again and
//! again, until it can decide ([`decide`](mod@decide)): adopt the beginning that names it, wait to be let into a group that
//! doesn't, or begin the group if it is the one that shall.
//!
//! Two groups can't both get a quorum. A beginning is made by one node only, the one with the smallest address,
//! and each node adopts at most one, durably. If that node loses its disk between making a beginning and the
//! others' adopting it, it may make another; but then the first one has lost a member, so of two nodes that
//! adopted different ones at most one is in a quorum, and the other is refused by its cluster id.

pub(crate) mod decide;
pub(crate) mod genesis;

use std::time::Duration;

use anyhow::Context as _;
use api::v1::raft_client::RaftClient;
use api::v1::{IdentifyRequest, IdentifyResponse};
use raft::{Envelope, Message, Term};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;
use types::{ClusterId, NodeId};

use crate::bootstrap::decide::{Answer, Decision, decide};
use crate::bootstrap::genesis::FirstMembership;
use crate::exit::{ExitCode, Fatal};
use crate::options::GenesisOptions;
use crate::peers::Peers;
use crate::random;
use crate::transport::Transport;

/// How long one peer may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a round of questions is apart from the next.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// How often a node asks to be let in.
const JOIN_EVERY: Duration = Duration::from_millis(500);
/// How often a node that waits says so in its log.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// How a node without a log begins.
#[derive(Debug)]
pub(crate) enum Beginning {
    /// As one of a group's first members.
    First(FirstMembership),
    /// Uninitialised: it asks to be let in.
    Joiner,
}

/// Finds out how a node without a log begins. Returns only when that is known.
pub(crate) async fn begin(
    peers: &Peers,
    transport: &Transport,
    genesis: &GenesisOptions,
) -> Result<Beginning, Fatal> {
    if let Some(first) = peers.identity().genesis() {
        tracing::info!(cluster = %first.cluster, "going on with an interrupted first start");
        return Ok(Beginning::First(first));
    }
    if let Some(cluster) = peers.identity().cluster() {
        tracing::info!(%cluster, "waiting to be let into the group, as before");
        return Ok(Beginning::Joiner);
    }
    if peers.identity().initialised() {
        tracing::info!("this node has heard of a group before: waiting to be let in");
        return Ok(Beginning::Joiner);
    }
    let initial = peers.initial();
    let mut report = Report::default();
    let mut asked: Option<Instant> = None;
    loop {
        let answers = ask_all(peers, &initial).await;
        match decide(peers.node(), &initial, &answers) {
            Decision::Adopt(first) => {
                tracing::info!(cluster = %first.cluster, "adopting the group's beginning");
                return Ok(Beginning::First(first));
            }
            Decision::Join if peers.invited() => return Ok(Beginning::Joiner),
            Decision::Join => {
                // Nothing is settled before the group calls: what answered may be the last node of a group that is
                // being taken down.
                report.tell("there is a group without this node: waiting to be let in");
                if asked.is_none_or(|at| at.elapsed() >= JOIN_EVERY) {
                    transport.send(join_request(peers));
                    asked = Some(Instant::now());
                }
            }
            Decision::Form(members) => {
                let first = form(genesis, members)?;
                tracing::info!(cluster = %first.cluster, "beginning a new group");
                return Ok(Beginning::First(first));
            }
            Decision::Wait(reason) => report.tell(&format!("looking for the group: {reason}")),
        }
        sleep(ROUND_PAUSE).await;
    }
}

/// What a waiting node says in its log: when it changes, and now and then.
#[derive(Default)]
struct Report(Option<(String, Instant)>);

impl Report {
    fn tell(&mut self, what: &str) {
        let old = self
            .0
            .as_ref()
            .is_some_and(|(told, at)| told == what && at.elapsed() < REPORT_EVERY);
        if !old {
            tracing::info!("{what}");
            self.0 = Some((what.to_owned(), Instant::now()));
        }
    }
}

/// "Let me in", to whoever is at the configured addresses.
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
    let cluster = random::number().context("the system has no randomness")?;
    let first = FirstMembership {
        cluster: ClusterId(cluster),
        members,
        genesis: chosen(genesis),
    };
    first
        .checked()
        .map_err(|error| Fatal::new(ExitCode::BadOptions, error))
}

/// The options' choice, with defaults for what was not chosen.
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

/// Refuses options that contradict what the group was created with.
pub(crate) fn check_chosen(
    options: &GenesisOptions,
    stored: &shardkv::Genesis,
) -> Result<(), Fatal> {
    if options.kind != stored.kind {
        let message = format!(
            "the option role says {}, but the group was created as {}, and that never changes: correct --role, or \
             give this node an empty directory",
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
                "the option {name} says {asked}, but the group was created with {stored}, and that never \
                 changes: remove the option"
            );
            return Err(Fatal::message(ExitCode::WrongIdentity, message));
        }
    }
    Ok(())
}

/// One round: every peer's answer, at its position.
async fn ask_all(own: &Peers, peers: &[String]) -> Vec<Answer> {
    let mut answers = vec![Answer::Silent; peers.len()];
    let mut asking = JoinSet::new();
    for (position, peer) in peers.iter().enumerate() {
        if peer == own.address() {
            if let Some(answer) = answers.get_mut(position) {
                *answer = Answer::Empty(own.node());
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
                Answer::Silent
            }
            Err(_) => Answer::Silent,
        };
        if let Some(slot) = answers.get_mut(position) {
            *slot = answer;
        }
    }
    answers
}

/// Asks one peer who it is. The name is resolved each time: pods' addresses change.
async fn ask(peer: &str, request: IdentifyRequest) -> anyhow::Result<Answer> {
    let endpoint = Endpoint::from_shared(format!("http://{peer}"))?
        .connect_timeout(ANSWER_TIMEOUT)
        .tcp_nodelay(true);
    let channel = endpoint.connect().await?;
    let mut client = RaftClient::new(channel);
    match client.identify(request).await {
        Ok(response) => understand(response.into_inner()),
        Err(status) => {
            if matches!(status.code(), tonic::Code::FailedPrecondition) {
                // Another cluster at a configured address is a mistake that somebody should see.
                tracing::warn!(peer, "{}", status.message());
            }
            Err(anyhow::anyhow!("{}", status.message()))
        }
    }
}

fn understand(response: IdentifyResponse) -> anyhow::Result<Answer> {
    anyhow::ensure!(response.node_id != 0, "it has no node id");
    let genesis = response
        .genesis
        .map(FirstMembership::from_wire)
        .transpose()?;
    if genesis.is_some() || response.initialised {
        Ok(Answer::Member(genesis))
    } else {
        Ok(Answer::Empty(NodeId(response.node_id)))
    }
}
