//! The questions to the initial peers, each open until its answer arrives or its time is over.

use std::time::Duration;

use api::v1::raft_client::RaftClient;
use api::v1::{IdentifyRequest, IdentifyResponse};
use replica::Introduction;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use types::NodeId;

use super::genesis;
use crate::peers::Peers;

/// The maximum time of a round of questions. A question that has no answer by then stays open in the next round.
const ROUND_TIMEOUT: Duration = Duration::from_secs(1);
/// The time for the first answer of a peer. It doubles when no answer comes in time, because the link may be slow. It begins
/// short, because the address of a peer's name may be that of a pod that is gone.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
/// The longest time for one answer.
const MAX_PATIENCE: Duration = Duration::from_secs(8);

/// Asks the initial peers, in rounds.
///
/// A peer behind a slow link has several rounds for its answer, and a silent peer holds up no round for longer than
/// [`ROUND_TIMEOUT`]. The last answer of a peer counts until its next question ends.
pub(super) struct Questions {
    own: (String, NodeId),
    request: IdentifyRequest,
    peers: Vec<Peer>,
    answers: Vec<Introduction>,
    asking: JoinSet<(usize, Option<Introduction>)>,
}

/// One initial peer.
struct Peer {
    address: String,
    /// The time for its next answer.
    patience: Duration,
    /// True while a question to it is open.
    is_asked: bool,
}

impl Questions {
    pub(super) fn new(own: &Peers, peers: &[String]) -> Self {
        Self {
            own: (own.address().to_owned(), own.node()),
            request: IdentifyRequest {
                cluster_name: own.identity().name().to_owned(),
                gid: own.identity().gid().0,
            },
            peers: peers.iter().cloned().map(Peer::new).collect(),
            answers: vec![Introduction::Silent; peers.len()],
            asking: JoinSet::new(),
        }
    }

    /// Returns the last answer of each peer, at its position.
    pub(super) fn answers(&self) -> &[Introduction] {
        &self.answers
    }

    /// Asks each peer that has no open question, and waits for all answers for a while.
    pub(super) async fn round(&mut self) {
        for (position, peer) in self.peers.iter_mut().enumerate() {
            if peer.address == self.own.0 {
                if let Some(answer) = self.answers.get_mut(position) {
                    *answer = Introduction::Empty(self.own.1);
                }
            } else if !std::mem::replace(&mut peer.is_asked, true) {
                let (address, request) = (peer.address.clone(), self.request.clone());
                let patience = peer.patience;
                self.asking
                    .spawn(async move { (position, question(&address, request, patience).await) });
            }
        }
        let answers = async {
            while let Some(ended) = self.asking.join_next().await {
                let Ok((position, answer)) = ended else {
                    continue;
                };
                if let Some(peer) = self.peers.get_mut(position) {
                    peer.ended(answer.is_some());
                }
                if let Some(slot) = self.answers.get_mut(position) {
                    *slot = answer.unwrap_or(Introduction::Silent);
                }
            }
        };
        // A question without an answer stays open.
        let _ = timeout(ROUND_TIMEOUT, answers).await;
    }
}

impl Peer {
    fn new(address: String) -> Self {
        Self {
            address,
            patience: FIRST_PATIENCE,
            is_asked: false,
        }
    }

    /// Notes the end of a question.
    fn ended(&mut self, in_time: bool) {
        self.is_asked = false;
        if !in_time {
            self.patience = (self.patience * 2).min(MAX_PATIENCE);
        }
    }
}

/// Asks one peer. Returns its answer, or that it gave none; `None` if there was nothing in time.
async fn question(
    peer: &str,
    request: IdentifyRequest,
    patience: Duration,
) -> Option<Introduction> {
    let asked = timeout(patience, ask(peer, request)).await.ok()?;
    Some(asked.unwrap_or_else(|error| {
        tracing::debug!(peer, "no answer: {error:#}");
        Introduction::Silent
    }))
}

/// Asks one peer for its identity. The name is resolved each time, because pods' addresses change.
async fn ask(peer: &str, request: IdentifyRequest) -> anyhow::Result<Introduction> {
    let endpoint = Endpoint::from_shared(format!("http://{peer}"))?.tcp_nodelay(true);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_only_while_no_answer_comes_in_time() {
        let mut peer = Peer::new("a:1".to_owned());
        let mut patience = Vec::new();
        for in_time in [true, false, true, false, false, false] {
            peer.is_asked = true;
            peer.ended(in_time);
            assert!(!peer.is_asked, "it is asked again");
            patience.push(peer.patience.as_secs());
        }
        assert_eq!(patience, [1, 2, 2, 4, 8, 8]);
    }
}
