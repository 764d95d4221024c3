//! The open connections, each known by its address and its purpose.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::error::ChannelError;
use crate::options::parse_address;
use crate::{ClientOptions, ConnectError};

/// The purpose of a connection to a node: bulk traffic must not delay calls, nor questions about leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// Status, configurations, and other small traffic beside the calls.
    Control,
    /// Scans and exports.
    Bulk,
    /// The calls of one batch stream, or a share of the unary calls.
    Calls(usize),
}

/// The open connections.
///
/// Invariant: at most one connection for each address and slot. [`Channels::retain`] closes the connections to addresses that
/// left the cluster.
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
        // Each change under this lock is one call, so a poisoned lock protects valid data.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the open connection to `address`, or makes one.
    pub(crate) async fn channel(
        &self,
        address: &Arc<str>,
        slot: Slot,
    ) -> Result<Channel, ChannelError> {
        let name = (Arc::clone(address), slot);
        if let Some(channel) = self.open().get(&name) {
            return Ok(channel.clone());
        }
        let endpoint = endpoint(address, slot, &self.options)?;
        // The connector's own timeout covers TCP only, not a peer that accepts the connection and then stays silent.
        let channel = match timeout(self.options.connect_timeout, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(ChannelError::Refused(root_cause(&error))),
            Err(_) => return Err(ChannelError::TimedOut),
        };
        Ok(self.open().entry(name).or_insert(channel).clone())
    }

    /// Drops a broken connection: the next use makes another, and resolves the name again.
    pub(crate) fn discard(&self, address: &Arc<str>, slot: Slot) {
        self.open().remove(&(Arc::clone(address), slot));
    }

    /// Drops the connections to addresses that `keep` refuses.
    pub(crate) fn retain(&self, keep: impl Fn(&Arc<str>) -> bool) {
        self.open().retain(|(address, _), _| keep(address));
    }
}

/// Returns an address without its scheme, so that one node has one name.
pub(crate) fn short(address: &str) -> Arc<str> {
    let address = address.strip_prefix("http://").unwrap_or(address);
    address.strip_suffix('/').unwrap_or(address).into()
}

fn endpoint(address: &str, slot: Slot, options: &ClientOptions) -> Result<Endpoint, ConnectError> {
    let (stream, connection) = match slot {
        Slot::Bulk => (options.scan_window_bytes, options.all_scans_window_bytes),
        // The default windows of 64 KB would make a batch stream wait in every round trip.
        Slot::Control | Slot::Calls(_) => (4 << 20, 8 << 20),
    };
    let mut endpoint = Endpoint::from(parse_address(address)?);
    if let Some(name) = &options.user_agent {
        let refused = |error: tonic::transport::Error| ConnectError::UserAgent(error.to_string());
        endpoint = endpoint.user_agent(name.as_str()).map_err(refused)?;
    }
    Ok(endpoint
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .initial_stream_window_size(stream)
        .initial_connection_window_size(connection))
}

/// Returns the text of the innermost cause, which says "connection refused" where the outer ones say "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
