//! Connections to other groups and to the controllers, kept while they are of use.
//!
//! The first connection to an address is made before anything is sent over it, so that an unreachable node leaves no doubt about
//! a request. A kept connection reconnects by itself, and resolves the name again; after a failure it is dropped.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::options::Network;
use crate::reserve::calls::NODE;

/// The reason why there is no connection to a node. Nothing was sent, and a later attempt may succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    /// The address is malformed, or no node accepts a connection there.
    #[error("{address}: {error:#}")]
    Failed {
        address: String,
        error: anyhow::Error,
    },
    /// The node accepted the connection and was silent then, or the network is slow.
    #[error("{0}: connecting took too long")]
    TimedOut(String),
    /// All connections that there may be carry as many streams as they may.
    #[error("{0} connections carry as many streams as they may")]
    Full(usize),
}

impl ChannelError {
    fn new(address: &str, error: anyhow::Error) -> Self {
        let address = address.to_owned();
        Self::Failed { address, error }
    }
}

/// The windows of HTTP/2: the bytes that the other end may send before they are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    pub(crate) stream_bytes: u32,
    pub(crate) connection_bytes: u32,
}

/// Makes connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connector {
    pub(super) network: Network,
    pub(super) windows: Windows,
}

/// The kept connections, by address.
#[derive(Debug)]
pub(crate) struct Channels {
    connector: Connector,
    /// The most connections that are kept; beyond it the least recently used one is dropped.
    max_kept: usize,
    kept: Mutex<BTreeMap<String, Kept>>,
}

#[derive(Debug)]
struct Kept {
    channel: Channel,
    used: Instant,
}

impl Connector {
    async fn connect(&self, address: &str) -> Result<Channel, ChannelError> {
        let endpoint = self.endpoint(address)?;
        // The connector's own timeout covers TCP only, not a peer that accepts and is silent then.
        match timeout(self.network.connect_timeout, endpoint.connect()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(ChannelError::new(address, anyhow::Error::from(error))),
            Err(_) => Err(ChannelError::TimedOut(address.to_owned())),
        }
    }

    pub(super) fn endpoint(&self, address: &str) -> Result<Endpoint, ChannelError> {
        let network = &self.network;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| ChannelError::new(address, error.into()))?;
        Ok(endpoint
            .user_agent(NODE)
            .map_err(|error| ChannelError::new(address, error.into()))?
            .tcp_nodelay(true)
            .connect_timeout(network.connect_timeout)
            .http2_keep_alive_interval(network.keepalive_interval)
            .keep_alive_timeout(network.keepalive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(self.windows.stream_bytes)
            .initial_connection_window_size(self.windows.connection_bytes))
    }
}

impl Channels {
    /// Creates an empty set that keeps at most `max_kept` connections.
    pub(crate) fn new(network: Network, windows: Windows, max_kept: usize) -> Self {
        Self {
            connector: Connector { network, windows },
            max_kept,
            kept: Mutex::default(),
        }
    }

    /// Returns the kept connection to `address`, or makes one. An error means that nothing was sent.
    pub(crate) async fn get(&self, address: &str) -> Result<Channel, ChannelError> {
        if let Some(kept) = self.lock().get_mut(address) {
            kept.used = Instant::now();
            return Ok(kept.channel.clone());
        }
        let channel = self.connector.connect(address).await?;
        self.keep(address, channel.clone());
        Ok(channel)
    }

    /// Drops the connection to `address`, because it failed.
    pub(crate) fn discard(&self, address: &str) {
        self.lock().remove(address);
    }

    fn keep(&self, address: &str, channel: Channel) {
        let mut kept = self.lock();
        if kept.len() >= self.max_kept && !kept.contains_key(address) {
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.used);
            if let Some(oldest) = oldest.map(|(address, _)| address.clone()) {
                kept.remove(&oldest);
            }
        }
        let used = Instant::now();
        kept.insert(address.to_owned(), Kept { channel, used });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        // Each change under this lock is one call, so a poisoned lock is as good.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
