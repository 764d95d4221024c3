//! Follows the configurations of the controllers.

use std::sync::Arc;
use std::time::Duration;

use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{WatchRequest, WatchResponse};
use api::{config_from_wire, delta_from_wire};
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;
use types::{ClusterId, ConfigDelta, ConfigNum, Gid, NodeId, ShardConfig};

use super::AdvanceError;

use crate::exit::{ExitCode, Fatal};
use crate::forward::Forwarder;
use crate::forward::{ChannelError, Channels, once};
use crate::lifecycle::Lifecycle;
use crate::routing::{Routing, Strangers};

/// The pause after a stream that ended. It doubles up to the longest pause.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// One message of a watch.
#[derive(Debug)]
pub(crate) struct WatchMessage {
    pub(crate) cluster: ClusterId,
    pub(crate) shards: u32,
    /// With `full`, in a watch of a group: the configuration that the group has settled.
    pub(crate) settled: ConfigNum,
    /// Likewise: the latest configuration by which the group has served a shard.
    pub(crate) held: ConfigNum,
    pub(crate) full: Option<ShardConfig>,
    pub(crate) deltas: Vec<ConfigDelta>,
}

/// The reason why a watch of the controllers failed. Every reason allows another try, at the next controller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError {
    /// The controller can't be reached.
    #[error(transparent)]
    Connect(#[from] ChannelError),
    /// The controller refused the watch, or the connection broke.
    #[error("{address}: {reason}")]
    Refused { address: String, reason: String },
    /// The controller did not answer in time.
    #[error("{address}: no answer within {patience:?}")]
    Silent { address: String, patience: Duration },
    /// The controller ended the watch, for example because it has no leader.
    #[error("{0}: the controller ended the watch")]
    Ended(String),
    /// The controller sent a configuration that is not valid.
    #[error("{address}: {error}")]
    Invalid {
        address: String,
        error: types::ConfigError,
    },
}

impl FeedError {
    fn refused(address: &str, status: &tonic::Status) -> Self {
        Self::Refused {
            address: address.to_owned(),
            reason: status.message().to_owned(),
        }
    }
}

/// A watch of one controller.
pub(crate) struct Feed {
    stream: Streaming<WatchResponse>,
    address: String,
    /// The controllers' cluster and the number of shards, from the last message.
    source: (ClusterId, u32),
}

impl Feed {
    /// Starts to watch the controller at `address` for the configurations after `after`. A group that follows the
    /// controllers passes its `gid`, and true once it has a configuration; other watchers pass [`Gid::NONE`].
    pub(crate) async fn open(
        channels: &Channels,
        patience: Duration,
        address: &str,
        after: ConfigNum,
        (gid, begun): (Gid, bool),
    ) -> Result<Self, FeedError> {
        let channel = channels.get(address).await?;
        let mut client = ShardctrlerClient::new(channel).max_decoding_message_size(usize::MAX);
        let request = once(WatchRequest {
            after: after.0,
            gid: gid.0,
            begun,
        });
        match timeout(patience, client.watch(request)).await {
            Ok(Ok(stream)) => Ok(Self {
                stream: stream.into_inner(),
                address: address.to_owned(),
                source: (ClusterId(0), 0),
            }),
            Ok(Err(status)) => {
                if api::error_detail(&status).is_none() {
                    channels.discard(address);
                }
                Err(FeedError::refused(address, &status))
            }
            Err(_) => {
                channels.discard(address);
                Err(FeedError::Silent {
                    address: address.to_owned(),
                    patience,
                })
            }
        }
    }

    /// Returns the next message.
    pub(crate) async fn next(&mut self) -> Result<WatchMessage, FeedError> {
        let address = &self.address;
        // Dropping this future loses nothing: the stream keeps what has arrived.
        match self.stream.message().await {
            Ok(Some(message)) => {
                let message = convert(message).map_err(|error| FeedError::Invalid {
                    address: address.clone(),
                    error,
                })?;
                self.source = (message.cluster, message.shards);
                Ok(message)
            }
            Ok(None) => Err(FeedError::Ended(address.clone())),
            Err(status) => Err(FeedError::refused(address, &status)),
        }
    }

    /// Returns a message without changes, from the source of the last message.
    pub(crate) fn unchanged(&self) -> WatchMessage {
        let (cluster, shards) = self.source;
        WatchMessage {
            cluster,
            shards,
            settled: ConfigNum(0),
            held: ConfigNum(0),
            full: None,
            deltas: Vec::new(),
        }
    }
}

fn convert(message: WatchResponse) -> Result<WatchMessage, types::ConfigError> {
    let deltas = message.deltas.into_iter().map(delta_from_wire);
    Ok(WatchMessage {
        cluster: ClusterId(message.cluster_id),
        shards: message.shards,
        settled: ConfigNum(message.settled),
        held: ConfigNum(message.held),
        full: message.full.map(config_from_wire).transpose()?,
        deltas: deltas.collect::<Result<_, _>>()?,
    })
}

/// Follows the controllers and keeps the node's configurations up to date.
pub(crate) struct Follower {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) controllers: Vec<String>,
    /// The maximum time that a controller may take to accept a watch.
    pub(crate) patience: Duration,
}

/// Returns the position of the controller that `node` asks first, so that not all nodes ask the same one.
pub(crate) fn first_turn(node: NodeId, controllers: &[String]) -> usize {
    let count = controllers.len().max(1) as u64;
    usize::try_from(node.0 % count).unwrap_or(0)
}

impl Follower {
    /// Follows the controllers for as long as the future is polled.
    pub(crate) async fn run(self) {
        let configs = self.routing.configs();
        let mut pause = FIRST_PAUSE;
        let turn = first_turn(self.routing.identity().node(), &self.controllers);
        for address in self.controllers.iter().cycle().skip(turn) {
            let known = configs.known();
            let after = known.map_or(ConfigNum(0), |it| it.config.num());
            let since = Instant::now();
            let channels = &self.forwarder.channels;
            let feed =
                Feed::open(channels, self.patience, address, after, (Gid::NONE, false)).await;
            let ended = match feed {
                Ok(mut feed) => self.take_in(&mut feed).await.to_string(),
                Err(error) => error.to_string(),
            };
            // Controllers without a leader send what they know and end the watch. That is no reason to ask again at once.
            if since.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            // Logged when the trouble begins and when it lasts, not at every attempt.
            let longer = (pause * 2).min(LONGEST_PAUSE);
            if pause == FIRST_PAUSE || longer > pause && longer == LONGEST_PAUSE {
                tracing::info!("not following the controllers: {ended}");
            } else {
                tracing::debug!("not following the controllers: {ended}");
            }
            sleep(pause).await;
            pause = longer;
        }
    }

    /// Applies messages until the feed ends, and returns the reason.
    async fn take_in(&self, feed: &mut Feed) -> FollowError {
        loop {
            let source = feed.source.0;
            let message = tokio::select! {
                message = feed.next() => message,
                // These controllers may have nothing more to say, and would be followed for ever.
                strangers = self.routing.forsaken(source), if source != ClusterId(0) => return strangers.into(),
            };
            let message = match message {
                Ok(message) => message,
                Err(error) => return error.into(),
            };
            if let Err(strangers) = self.routing.check_controllers(message.cluster) {
                return strangers.into();
            }
            let own = self.lifecycle.view().genesis.map(|genesis| genesis.shards);
            if let Some(own) = own.filter(|own| *own != message.shards) {
                let message = format!(
                    "the controllers' cluster has {} shards, and this node's group was created with {own}: they are \
                     different clusters; correct --controllers, or give this node another directory and keep this one",
                    message.shards
                );
                let fatal = Fatal::message(ExitCode::WrongIdentity, message);
                self.lifecycle.fail(fatal);
            }
            let WatchMessage {
                cluster,
                shards,
                full,
                deltas,
                settled: _,
                held: _,
            } = message;
            let configs = self.routing.configs();
            if let Err(error) = configs.advance(cluster, shards, full, deltas) {
                return error.into();
            }
        }
    }
}

/// The reason why following one controller ended. The next controller is tried after a pause.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Feed(#[from] FeedError),
    #[error(transparent)]
    Strangers(#[from] Strangers),
    #[error(transparent)]
    Advance(#[from] AdvanceError),
}
