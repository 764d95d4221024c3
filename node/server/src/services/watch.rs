//! `Shardctrler.Watch`: a stream of configurations.
//!
//! A controller reads the steps that a watcher lacks from its own state, whenever that changes. A follower's state may be
//! behind, but never wrong. A watch ends when its node stops serving, so that the watcher goes to another node. A watcher
//! that doesn't fetch stops only its own stream. A group that follows is told what it has settled, which only controllers know.

use std::sync::Arc;

use api::v1::{ErrorDetail, WatchRequest, WatchResponse};
use api::{config_to_wire, error_status, errors};
use shardctrler::{CtrlError, GroupKind, Response};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use types::{ConfigNum, Gid};

use crate::admission::Admission;
use crate::configs::standalone;
use crate::convert::{ctrl, kv};
use crate::forward::no_config;
use crate::lifecycle::Lifecycle;
use crate::peers::Peers;
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;

/// The maximum number of deltas in one message.
const MAX_DELTAS: u32 = 256;

type Messages = mpsc::Sender<Result<WatchResponse, Status>>;

/// Serves watches of the configuration.
#[derive(Clone)]
pub(crate) struct Watches {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) admission: Arc<Admission>,
}

impl Watches {
    /// Opens a watch and queues its first message. A watch of a node takes no place of a client's.
    pub(crate) async fn open(
        &self,
        request: &WatchRequest,
        of_node: bool,
    ) -> Result<ReceiverStream<Result<WatchResponse, Status>>, ErrorDetail> {
        self.lifecycle.check_running()?;
        if request.gid != 0 && self.routing.kind() != GroupKind::Controller {
            return Err(errors::conflict(
                "this node is not a controller, and only controllers know what a group has settled: a group must follow them",
            ));
        }
        let slot = if of_node || request.gid != 0 {
            self.admission.node_watcher()?
        } else {
            self.admission.watcher()?
        };
        let mut watcher = Watcher {
            handles: self.clone(),
            have: ConfigNum(request.after),
            group: (request.gid != 0).then_some(Gid(request.gid)),
            begun: request.begun,
            cluster: 0,
            _slot: slot,
        };
        let (first, _) = watcher.lacking().await?;
        watcher.cluster = first.cluster_id;
        let (messages, stream) = mpsc::channel(1);
        tokio::spawn(watcher.run(first, messages));
        Ok(ReceiverStream::new(stream))
    }
}

struct Watcher {
    handles: Watches,
    have: ConfigNum,
    /// The replica group for which the watcher follows, if it does.
    group: Option<Gid>,
    /// True if the group has a configuration.
    begun: bool,
    /// The cluster of the configurations, which the first message names; 0 before.
    cluster: u64,
    /// Given back when the watch ends.
    _slot: OwnedSemaphorePermit,
}

impl Watcher {
    async fn run(mut self, first: WatchResponse, messages: Messages) {
        // Subscribed before the state is read, so that no change in between is missed.
        let mut known = self.handles.routing.configs().watch();
        let mut view = self.handles.lifecycle.watch();
        if messages.send(Ok(first)).await.is_err() {
            return;
        }
        loop {
            known.borrow_and_update();
            let news = match self.lacking().await {
                Ok((message, true)) => Ok(message),
                Ok((_, false)) => {
                    let gone = async {
                        let takes_no_part = view.wait_for(|view| !view.is_serving());
                        // The sender lives in the lifecycle.
                        let _ = takes_no_part.await;
                    };
                    tokio::select! {
                        changed = known.changed() => if changed.is_err() { return },
                        () = gone => {
                            let why = "this node does not serve at the moment";
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

    /// Returns the configurations that the watcher lacks, and true if there are any.
    async fn lacking(&mut self) -> Result<(WatchResponse, bool), ErrorDetail> {
        let response = match self.handles.routing.kind() {
            GroupKind::Controller => self.by_state().await?,
            GroupKind::Shards => self.by_cache()?,
            GroupKind::Standalone => self.alone()?,
        };
        let last = response.deltas.last().map(|delta| delta.num);
        let full = response.full.as_ref().map(|full| full.num);
        if let Some(num) = last.or(full) {
            self.have = ConfigNum(num);
        }
        let some = last.or(full).is_some();
        Ok((response, some))
    }

    async fn by_state(&self) -> Result<WatchResponse, ErrorDetail> {
        let replica = &self.handles.replica;
        let unknown = || errors::unavailable("this node does not know its group yet", 100);
        let identity = self.handles.peers.identity();
        let cluster = identity.cluster().ok_or_else(unknown)?;
        let shards = replica.view().genesis.ok_or_else(unknown)?.shards;
        let begins = self.group.is_some() && self.have == ConfigNum(0) && !self.begun;
        let result = replica
            .ask(ctrl::after(self.have, MAX_DELTAS, self.group, begins))
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
            // This follower is behind the configuration that the watcher got elsewhere.
            return Ok(WatchResponse {
                latest: latest.0,
                ..empty()
            });
        }
        match ctrl::outcome(result, |node| replica.address_or_empty(node))? {
            Response::Configs(configs) => Ok(ctrl::watch_response(&configs, cluster, shards)),
            _ => Err(kv::mismatch()),
        }
    }

    fn by_cache(&self) -> Result<WatchResponse, ErrorDetail> {
        let since = self.handles.routing.configs().since(self.have);
        let (response, _) = since.ok_or_else(no_config)?;
        if self.cluster != 0 && self.cluster != response.cluster_id {
            // The numbers of one cluster's configurations say nothing about those of another.
            let why = "this node follows other controllers now than when the watch began";
            return Err(errors::unavailable(why, 100));
        }
        Ok(response)
    }

    fn alone(&self) -> Result<WatchResponse, ErrorDetail> {
        let known = standalone::config(&self.handles.lifecycle, &self.handles.peers)
            .ok_or_else(|| errors::unavailable("this node does not know its group yet", 100))?;
        let latest = known.config.num();
        let full = (self.have < latest).then(|| config_to_wire(&known.config));
        Ok(WatchResponse {
            full,
            deltas: Vec::new(),
            cluster_id: known.cluster.0,
            shards: known.config.shards(),
            latest: latest.0,
            settled: latest.0,
            held: 0,
        })
    }
}
