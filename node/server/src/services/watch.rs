//! `Shardctrler.Watch`: configurations as they come.
//!
//! A controller asks its own state what a watcher lacks, whenever that changes; a follower's state may be behind, but
//! never wrong. A watch ends when its node takes no part any more, so that the watcher asks a node that does. What a watcher
//! doesn't fetch stops only its own stream.

use std::sync::Arc;

use api::v1::{ErrorDetail, WatchRequest, WatchResponse};
use api::{config_to_wire, error_status, errors};
use shardctrler::{CtrlError, GroupKind, Response};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use types::{ConfigNum, Gid, MAX_GROUPS};

use crate::configs::synthetic;
use crate::convert::{ctrl, kv};
use crate::hub::Hub;

/// The most deltas in one message.
const MAX_DELTAS: u32 = 256;

type Messages = mpsc::Sender<Result<WatchResponse, Status>>;

/// Opens a watch; its first message is on its way when this returns.
pub(crate) async fn open(
    hub: &Arc<Hub>,
    request: &WatchRequest,
) -> Result<ReceiverStream<Result<WatchResponse, Status>>, ErrorDetail> {
    hub.check_running()?;
    let (places, limit) = if request.gid == 0 {
        (&hub.watchers, hub.options.limits.max_watchers)
    } else {
        (&hub.group_watchers, MAX_GROUPS)
    };
    let full = |_| errors::overloaded("watchers", limit as u64, 1_000);
    let place = Arc::clone(places).try_acquire_owned().map_err(full)?;
    let mut watcher = Watcher {
        hub: Arc::clone(hub),
        have: ConfigNum(request.after),
        group: (request.gid != 0).then_some(Gid(request.gid)),
        _place: place,
    };
    let (first, _) = watcher.lacking().await?;
    let (messages, stream) = mpsc::channel(1);
    tokio::spawn(watcher.run(first, messages));
    Ok(ReceiverStream::new(stream))
}

struct Watcher {
    hub: Arc<Hub>,
    have: ConfigNum,
    /// The replica group that follows, if it is one.
    group: Option<Gid>,
    /// Given back when the watch ends.
    _place: OwnedSemaphorePermit,
}

impl Watcher {
    async fn run(mut self, first: WatchResponse, messages: Messages) {
        // Subscribed before the state is asked, so that nothing is missed in between.
        let mut known = self.hub.configs.watch();
        let mut view = self.hub.watch();
        if messages.send(Ok(first)).await.is_err() {
            return;
        }
        loop {
            known.borrow_and_update();
            let news = match self.lacking().await {
                Ok((message, true)) => Ok(message),
                Ok((_, false)) => {
                    let gone = async {
                        let takes_no_part = view.wait_for(|view| !Hub::is_serving(view));
                        // The sender lives in the hub.
                        let _ = takes_no_part.await;
                    };
                    tokio::select! {
                        changed = known.changed() => if changed.is_err() { return },
                        () = gone => {
                            let why = "this node takes no part in its group now";
                            let error = errors::unavailable(why, 100);
                            let _ = messages.send(Err(error_status(&error))).await;
                            return;
                        }
                        () = messages.closed() => return,
                    }
                    continue;
                }
                Err(error) => Err(error_status(&error)),
            };
            let ends = news.is_err();
            if messages.send(news).await.is_err() || ends {
                return;
            }
        }
    }

    /// What the watcher lacks, and whether that is anything.
    async fn lacking(&mut self) -> Result<(WatchResponse, bool), ErrorDetail> {
        let response = match self.hub.kind() {
            GroupKind::Controller => self.by_state().await?,
            GroupKind::Shards => self.by_cache()?,
            GroupKind::Standalone => self.alone()?,
        };
        let last = response.deltas.last().map(|delta| delta.num);
        let full = response.full.as_ref().map(|full| full.num);
        if let Some(num) = last.or(full) {
            self.have = ConfigNum(num);
            // It begins only once.
            self.group = None;
        }
        let some = last.or(full).is_some();
        Ok((response, some))
    }

    async fn by_state(&self) -> Result<WatchResponse, ErrorDetail> {
        let hub = &self.hub;
        let unknown = || errors::unavailable("the group isn't known yet", 100);
        let cluster = hub.identity.cluster().ok_or_else(unknown)?;
        let shards = hub.view().genesis.ok_or_else(unknown)?.shards;
        let result = hub
            .ask(ctrl::after(self.have, MAX_DELTAS, self.group))
            .await?;
        let empty = || WatchResponse {
            cluster_id: cluster.0,
            shards,
            ..WatchResponse::default()
        };
        if let Ok(replica::Answer::Machine(crate::machine::Response::Controller(
            Response::Refused(CtrlError::Future { latest, .. }),
        ))) = &result
        {
            // This follower is behind what the watcher has heard elsewhere.
            return Ok(WatchResponse {
                latest: latest.0,
                ..empty()
            });
        }
        match ctrl::outcome(result, |node| hub.address_or_empty(node))? {
            Response::Configs(configs) => Ok(ctrl::watch_response(&configs, cluster, shards)),
            _ => Err(kv::mismatch()),
        }
    }

    fn by_cache(&self) -> Result<WatchResponse, ErrorDetail> {
        let since = self.hub.configs.since(self.have);
        let (response, _) = since
            .ok_or_else(|| errors::unavailable("the controllers have not been heard yet", 100))?;
        Ok(response)
    }

    fn alone(&self) -> Result<WatchResponse, ErrorDetail> {
        let known = synthetic(&self.hub)
            .ok_or_else(|| errors::unavailable("the group isn't known yet", 100))?;
        let latest = known.config.num();
        let full = (self.have < latest).then(|| config_to_wire(&known.config));
        Ok(WatchResponse {
            full,
            deltas: Vec::new(),
            cluster_id: known.cluster.0,
            shards: known.config.shards(),
            latest: latest.0,
        })
    }
}
