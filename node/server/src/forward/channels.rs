//! Connections to other groups and to the controllers, kept while they are of use.
//!
//! The first connection to an address is made before anything is sent over it, so that "nobody there" leaves no doubt
//! about a request. A kept one connects again by itself, resolving the name anew; after a failure it is dropped.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::options::Network;

/// Connections that are kept; beyond it the one that was used least recently goes.
const MAX_KEPT: usize = 256;

/// Kept connections by address.
#[derive(Debug)]
pub(crate) struct Channels {
    network: Network,
    kept: Mutex<BTreeMap<String, Kept>>,
}

#[derive(Debug)]
struct Kept {
    channel: Channel,
    used: Instant,
}

impl Channels {
    pub(crate) fn new(network: Network) -> Self {
        Self {
            network,
            kept: Mutex::default(),
        }
    }

    /// A connection to `address`. An error means that nothing was sent.
    pub(crate) async fn get(&self, address: &str) -> Result<Channel, String> {
        if let Some(kept) = self.lock().get_mut(address) {
            kept.used = Instant::now();
            return Ok(kept.channel.clone());
        }
        let endpoint = self.endpoint(address)?;
        // The connector's own timeout covers TCP only; a peer that accepts and then is silent must not hold us.
        let channel = match timeout(self.network.connect_timeout, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => {
                return Err(format!("{address}: {:#}", anyhow::Error::from(error)));
            }
            Err(_) => return Err(format!("{address}: connecting took too long")),
        };
        self.keep(address, channel.clone());
        Ok(channel)
    }

    /// The connection to `address` failed.
    pub(crate) fn discard(&self, address: &str) {
        self.lock().remove(address);
    }

    fn keep(&self, address: &str, channel: Channel) {
        let mut kept = self.lock();
        if kept.len() >= MAX_KEPT && !kept.contains_key(address) {
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.used);
            if let Some(oldest) = oldest.map(|(address, _)| address.clone()) {
                kept.remove(&oldest);
            }
        }
        let used = Instant::now();
        kept.insert(address.to_owned(), Kept { channel, used });
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, String> {
        let network = &self.network;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| format!("{address}: {error}"))?;
        Ok(endpoint
            .tcp_nodelay(true)
            .connect_timeout(network.connect_timeout)
            .http2_keep_alive_interval(network.keepalive_interval)
            .keep_alive_timeout(network.keepalive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(network.stream_window_bytes)
            .initial_connection_window_size(network.connection_window_bytes))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        // Nothing is left half done under this lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
