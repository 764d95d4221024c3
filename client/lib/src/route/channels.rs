//! Connections, each with a name: whose, and what for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::options::parse_address;
use crate::{ClientOptions, ConnectError};

/// Which of a node's connections: bulk traffic must not stand before calls, nor before questions about leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// Status, configurations, and other small traffic beside the calls.
    Control,
    /// Scans, exports, shards on their way.
    Bulk,
    /// The calls of one lane, or of one forwarder.
    Calls(usize),
}

/// The open connections.
///
/// Invariant: at most one connection for each address and slot; those of addresses that left the cluster are closed
/// by [`Channels::retain`].
pub(crate) struct Channels {
    options: Arc<ClientOptions>,
    open: Mutex<BTreeMap<(Arc<str>, Slot), Channel>>,
}

impl Channels {
    pub(crate) fn new(options: Arc<ClientOptions>) -> Self {
        Self {
            options,
            open: Mutex::default(),
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<(Arc<str>, Slot), Channel>> {
        // Nothing is left half done under this lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open connection to `address`: kept from before, or made now.
    pub(crate) async fn channel(&self, address: &Arc<str>, slot: Slot) -> Result<Channel, String> {
        let name = (Arc::clone(address), slot);
        if let Some(channel) = self.open().get(&name) {
            return Ok(channel.clone());
        }
        let endpoint = endpoint(address, &self.options).map_err(|error| error.to_string())?;
        // The connector's own timeout covers TCP only; a peer that accepts and then is silent must not hold us.
        let channel = match timeout(self.options.connect_timeout, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(root_cause(&error)),
            Err(_) => return Err("connecting took too long".to_owned()),
        };
        Ok(self.open().entry(name).or_insert(channel).clone())
    }

    /// The connection is broken: the next use makes another, and resolves the name again.
    pub(crate) fn discard(&self, address: &Arc<str>, slot: Slot) {
        self.open().remove(&(Arc::clone(address), slot));
    }

    /// Forgets the connections to other addresses than those that `keep` takes.
    pub(crate) fn retain(&self, keep: impl Fn(&Arc<str>) -> bool) {
        self.open().retain(|(address, _), _| keep(address));
    }
}

/// An address without its scheme, so that one node has one name.
pub(crate) fn short(address: &str) -> Arc<str> {
    let address = address.strip_prefix("http://").unwrap_or(address);
    address.strip_suffix('/').unwrap_or(address).into()
}

fn endpoint(address: &str, options: &ClientOptions) -> Result<Endpoint, ConnectError> {
    Ok(Endpoint::from(parse_address(address)?)
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        // The defaults of 64 KB would stop a batch stream at every round trip.
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20))
}

/// The innermost cause, which says "connection refused" where the outer ones say "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
