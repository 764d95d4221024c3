//! The open connections, each known by its address and its purpose.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::ServiceExt as _;

use super::error::ChannelError;
use crate::credentials::Credentials;
use crate::options::{parse_address, without_scheme};
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
    /// The credentials if connections have TLS. A connection without TLS is made only if there are none.
    credentials: Option<Arc<Credentials>>,
    open: Mutex<BTreeMap<(Arc<str>, Slot), Channel>>,
    /// The reason why the last attempt to connect failed, if it failed by TLS.
    refused: Mutex<Option<String>>,
}

impl Channels {
    pub(crate) fn new(options: Arc<ClientOptions>) -> Result<Self, ConnectError> {
        let credentials = options.tls.as_ref().map(Credentials::load).transpose()?;
        Ok(Self {
            options,
            credentials: credentials.map(Arc::new),
            open: Mutex::default(),
            refused: Mutex::default(),
        })
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
        let dialled = timeout(self.options.connect_timeout, self.dial(address, &endpoint)).await;
        let dialled = dialled.unwrap_or(Err(ChannelError::TimedOut));
        let refused = match &dialled {
            Err(ChannelError::Tls(why)) => Some(format!("{address}: {why}")),
            _ => None,
        };
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
        Ok(self.open().entry(name).or_insert(dialled?).clone())
    }

    async fn dial(&self, address: &str, endpoint: &Endpoint) -> Result<Channel, ChannelError> {
        let Some(credentials) = &self.credentials else {
            let channel = endpoint.connect().await;
            return channel.map_err(|error| ChannelError::Refused(root_cause(&error)));
        };
        let endpoint = endpoint.clone().origin(origin(address)?);
        let own = Arc::clone(credentials);
        // A channel connects again by itself, so the certificates are those of the moment.
        let connector = tower::service_fn(move |uri: Uri| {
            let own = Arc::clone(&own);
            async move { own.connector().await.oneshot(uri).await }
        });
        let channel = endpoint.connect_with_connector(connector).await;
        channel.map_err(|error| match tls_cause(&error) {
            Some(why) => ChannelError::Tls(match credentials.trouble() {
                Some(trouble) => {
                    format!("{why}; the files as they are now can't be used: {trouble}")
                }
                None => why,
            }),
            None => ChannelError::Refused(root_cause(&error)),
        })
    }

    /// Returns the reason why the last attempt to connect failed, if it failed by TLS.
    pub(crate) fn refused(&self) -> Option<String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.clone()
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
    let address = without_scheme(address);
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

/// Returns the URI that the node sees: its scheme says that the connection has TLS.
fn origin(address: &str) -> Result<Uri, ConnectError> {
    let uri = format!("https://{address}").parse();
    uri.map_err(|_| ConnectError::Address {
        address: address.to_owned(),
        reason: "write it as host:port".to_owned(),
    })
}

/// Returns the text of the innermost cause, which says "connection refused" where the outer ones say "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Returns the text of a failure of TLS, if the error has one among its causes.
fn tls_cause(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<tls::ConnectError>() {
            return error.is_refusal().then(|| error.to_string());
        }
        cause = error.source();
    }
    None
}
