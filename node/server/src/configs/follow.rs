//! Hearing of configurations from the controllers.

use std::sync::Arc;
use std::time::Duration;

use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{WatchRequest, WatchResponse};
use api::{config_from_wire, delta_from_wire};
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;
use types::{ClusterId, ConfigDelta, ConfigNum, Gid, ShardConfig};

use crate::exit::{ExitCode, Fatal};
use crate::forward::once;
use crate::hub::Hub;

/// The first pause after a stream that ended; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What the controllers told.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) cluster: ClusterId,
    pub(crate) shards: u32,
    pub(crate) full: Option<ShardConfig>,
    pub(crate) deltas: Vec<ConfigDelta>,
}

/// A watch of one controller.
pub(crate) struct Feed {
    stream: Streaming<WatchResponse>,
    address: String,
    /// Who speaks, and how many shards there are, as told last.
    speaker: (ClusterId, u32),
}

impl Feed {
    /// Starts to watch the controller at `address`, for what follows `after`. A group that follows it names itself.
    pub(crate) async fn open(
        hub: &Hub,
        address: &str,
        after: ConfigNum,
        gid: Gid,
    ) -> Result<Self, String> {
        let patience = hub.options.handoff.timeout;
        let channels = &hub.forwarding.channels;
        let channel = channels.get(address).await;
        let channel = channel.map_err(|error| error.to_string())?;
        let mut client = ShardctrlerClient::new(channel).max_decoding_message_size(usize::MAX);
        let request = once(WatchRequest {
            after: after.0,
            gid: gid.0,
        });
        match timeout(patience, client.watch(request)).await {
            Ok(Ok(stream)) => Ok(Self {
                stream: stream.into_inner(),
                address: address.to_owned(),
                speaker: (ClusterId(0), 0),
            }),
            Ok(Err(status)) => {
                if api::error_detail(&status).is_none() {
                    channels.discard(address);
                }
                Err(format!("{address}: {}", status.message()))
            }
            Err(_) => {
                channels.discard(address);
                Err(format!("{address}: no answer within {patience:?}"))
            }
        }
    }

    /// The next news.
    pub(crate) async fn next(&mut self) -> Result<News, String> {
        let address = &self.address;
        // Dropping this future loses nothing: the stream keeps what has arrived.
        match self.stream.message().await {
            Ok(Some(message)) => {
                let news = news(message).map_err(|error| format!("{address}: {error}"))?;
                self.speaker = (news.cluster, news.shards);
                Ok(news)
            }
            Ok(None) => Err(format!("{address}: it ended the watch")),
            Err(status) => Err(format!("{address}: {}", status.message())),
        }
    }
}

impl Feed {
    /// That there is nothing new since the last news.
    pub(crate) fn nothing(&self) -> News {
        let (cluster, shards) = self.speaker;
        News {
            cluster,
            shards,
            full: None,
            deltas: Vec::new(),
        }
    }
}

fn news(message: WatchResponse) -> Result<News, types::ConfigError> {
    let deltas = message.deltas.into_iter().map(delta_from_wire);
    Ok(News {
        cluster: ClusterId(message.cluster_id),
        shards: message.shards,
        full: message.full.map(config_from_wire).transpose()?,
        deltas: deltas.collect::<Result<_, _>>()?,
    })
}

/// Follows the controllers, for as long as it is polled.
pub(crate) async fn follow(hub: Arc<Hub>) {
    let mut pause = FIRST_PAUSE;
    let turn = first_turn(&hub);
    for address in hub.options.controllers.iter().cycle().skip(turn) {
        let after = hub
            .configs
            .known()
            .map_or(ConfigNum(0), |it| it.config.num());
        let since = Instant::now();
        let ended = match Feed::open(&hub, address, after, Gid::NONE).await {
            Ok(mut feed) => take_in(&hub, &mut feed).await,
            Err(reason) => reason,
        };
        // Controllers without a leader tell what they know and end the watch: that is no reason to ask at once again.
        if since.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        // Told when it begins and when it lasts, not with every attempt.
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

/// Which controller this node asks first, so that not all nodes ask the same.
pub(crate) fn first_turn(hub: &Hub) -> usize {
    let count = hub.options.controllers.len().max(1) as u64;
    usize::try_from(hub.node().0 % count).unwrap_or(0)
}

/// Takes news in until the feed ends, and tells why it did.
async fn take_in(hub: &Hub, feed: &mut Feed) -> String {
    loop {
        let news = match feed.next().await {
            Ok(news) => news,
            Err(reason) => return reason,
        };
        let own = hub.view().genesis.map(|genesis| genesis.shards);
        if let Some(own) = own.filter(|own| *own != news.shards) {
            let message = format!(
                "the controllers' cluster has {} shards, and this node's group was created with {own}: they are \
                 different clusters; correct --controllers, or give this node an empty directory",
                news.shards
            );
            hub.fail(Fatal::message(ExitCode::WrongIdentity, message));
        }
        let News {
            cluster,
            shards,
            full,
            deltas,
        } = news;
        if let Err(error) = hub.configs.advance(cluster, shards, full, deltas) {
            return error.to_string();
        }
    }
}
