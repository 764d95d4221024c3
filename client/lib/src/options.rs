//! The settings of a client.

use std::ops::RangeInclusive;
use std::time::Duration;

use tonic::transport::Uri;
use types::ClusterId;

use crate::{ConnectError, InvalidOption, TlsOptions};

/// The transport of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Calls are multiplexed over one bidirectional stream for each of [`ClientOptions::connections`]: by far the most calls a
    /// second. The default.
    #[default]
    Batch,
    /// Each call is a unary gRPC call of its own: simple to trace, and comparable with other systems.
    Unary,
}

/// The settings of a client. Every bound has a default; `ClientOptions::new` is enough for most uses.
///
/// ```
/// use std::time::Duration;
/// use shardkv_client::{ClientOptions, Mode};
///
/// let options = ClientOptions {
///     mode: Mode::Unary,
///     request_timeout: Duration::from_secs(3),
///     ..ClientOptions::new(["127.0.0.1:7001", "127.0.0.1:7002"])
/// };
/// assert_eq!(options.addresses.len(), 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// The addresses of nodes: `host:port`, optionally with a scheme before it: `https://` with [`Self::tls`], `http://` without. One
    /// node of any group, or a controller, suffices, because nodes name each other; with more than one the client works while that
    /// one is down.
    pub addresses: Vec<String>,
    /// TLS on all connections. `None`: no connection has TLS.
    pub tls: Option<TlsOptions>,
    /// The cluster that the nodes must belong to, as [`crate::ConfigView::cluster_id`] names it. `None`: that of the first node that
    /// answers.
    pub cluster: Option<ClusterId>,
    /// The transport of calls.
    pub mode: Mode,
    /// The number of batch streams to each group, each with a connection and sessions of its own. More than one helps when a
    /// single core can't serve one connection fast enough.
    pub connections: usize,
    /// The time for which a call is retried before it fails with [`crate::Error::Timeout`].
    pub request_timeout: Duration,
    /// The time that one attempt to open a connection may take.
    pub connect_timeout: Duration,
    /// The interval at which an idle connection is pinged.
    pub keepalive_interval: Duration,
    /// The time after which a connection whose ping is not answered is broken.
    pub keepalive_timeout: Duration,
    /// The time without an answer, although calls wait, after which the other nodes are asked for a newer leader.
    pub silence_timeout: Duration,
    /// The shortest pause before a retry. Pauses grow with the age of the trouble, with jitter.
    pub min_backoff: Duration,
    /// The longest pause before a retry.
    pub max_backoff: Duration,
    /// The most calls of one stream that are sent and not answered. Further calls wait. Calls that wait for their shard to be
    /// moved don't count, up to eight times as many.
    pub max_in_flight: usize,
    /// The most bytes of keys and values in all unanswered calls of the client to one group. Further calls wait. Calls that
    /// wait for their shard to be moved don't count, up to as many bytes again, whatever the number of connections.
    pub max_in_flight_bytes: usize,
    /// The most writes of a session from the oldest unanswered one to the newest. Must be less than the cluster's
    /// `max_results_per_session` (1024 by default).
    pub max_unacknowledged: usize,
    /// The most calls in one message of a batch stream.
    pub max_batch_items: usize,
    /// A message of a batch stream ends after the call that reaches this many bytes.
    pub max_batch_bytes: usize,
    /// The largest key and value together, in bytes. A larger request is refused with [`crate::Error::TooLarge`] before it is
    /// sent. At most the nodes' own `max_request_bytes`.
    pub max_request_bytes: usize,
    /// The largest message that is accepted from a node, in bytes.
    pub max_message_bytes: usize,
    /// The bytes of one scan or export that a node may send before the client reads them: the window of HTTP/2.
    pub scan_window_bytes: u32,
    /// Likewise, of all scans and exports that read from one node.
    pub all_scans_window_bytes: u32,
    /// The name of the program, which comes first in the user agent of its requests.
    pub user_agent: Option<String>,
}

impl ClientOptions {
    /// Returns the defaults for a cluster with nodes at `addresses`.
    pub fn new<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            tls: None,
            cluster: None,
            mode: Mode::Batch,
            connections: 1,
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            keepalive_interval: Duration::from_secs(1),
            keepalive_timeout: Duration::from_secs(2),
            silence_timeout: Duration::from_millis(250),
            min_backoff: Duration::from_millis(2),
            max_backoff: Duration::from_millis(250),
            max_in_flight: 1_024,
            max_in_flight_bytes: 32 << 20,
            max_unacknowledged: 512,
            max_batch_items: 256,
            max_batch_bytes: 1 << 20,
            max_request_bytes: 8 << 20,
            max_message_bytes: 64 << 20,
            scan_window_bytes: 4 << 20,
            all_scans_window_bytes: 8 << 20,
            user_agent: None,
        }
    }

    /// Refuses settings that can't work, and says what to change.
    pub fn validate(&self) -> Result<(), ConnectError> {
        if self.addresses.is_empty() {
            return Err(InvalidOption::NoAddress.into());
        }
        self.validate_without_address()
    }

    /// As [`ClientOptions::validate`], for a client that needs no address.
    pub(crate) fn validate_without_address(&self) -> Result<(), ConnectError> {
        let windows = [self.scan_window_bytes, self.all_scans_window_bytes];
        let checks = [
            (
                !(1..=64).contains(&self.connections),
                InvalidOption::Connections,
            ),
            (
                self.request_timeout < Duration::from_millis(1),
                InvalidOption::RequestTimeout,
            ),
            (
                self.connect_timeout < Duration::from_millis(1),
                InvalidOption::ConnectTimeout,
            ),
            (
                self.min_backoff.is_zero() || self.min_backoff > self.max_backoff,
                InvalidOption::Backoff,
            ),
            (self.max_in_flight == 0, InvalidOption::MaxInFlight),
            (
                self.max_in_flight_bytes == 0,
                InvalidOption::MaxInFlightBytes,
            ),
            (
                self.max_unacknowledged == 0,
                InvalidOption::MaxUnacknowledged,
            ),
            (self.max_batch_items == 0, InvalidOption::MaxBatchItems),
            (
                windows.iter().any(|it| !WINDOWS.contains(it)),
                InvalidOption::Window,
            ),
        ];
        if let Some((_, error)) = checks.into_iter().find(|(invalid, _)| *invalid) {
            return Err(error.into());
        }
        for address in &self.addresses {
            self.check_address(address)?;
        }
        Ok(())
    }

    /// Refuses an address that is malformed, or whose scheme contradicts [`Self::tls`]: a client never changes between plain
    /// connections and TLS by itself.
    pub(crate) fn check_address(&self, address: &str) -> Result<(), ConnectError> {
        parse_address(address)?;
        let reason = if self.tls.is_none() && address.starts_with(HTTPS) {
            "https:// asks for TLS, and the client has no authority to trust: give the cluster's (--ca on the command line), or write \
             host:port if the nodes have no TLS"
        } else if self.tls.is_some() && address.starts_with(HTTP) {
            "http:// asks for a connection without TLS, and the client is to use TLS: write https://host:port or host:port, or give no \
             authority (--ca on the command line)"
        } else {
            return Ok(());
        };
        Err(ConnectError::Address {
            address: address.to_owned(),
            reason: reason.to_owned(),
        })
    }
}

const HTTP: &str = "http://";
const HTTPS: &str = "https://";

/// Returns an address without its scheme.
pub(crate) fn without_scheme(address: &str) -> &str {
    let stripped = address.strip_prefix(HTTPS);
    stripped.unwrap_or_else(|| address.strip_prefix(HTTP).unwrap_or(address))
}

/// The sizes of windows that HTTP/2 allows, from a page's least piece on.
const WINDOWS: RangeInclusive<u32> = (16 << 10)..=i32::MAX.cast_unsigned();

/// Returns the URI of `host:port`, with or without a scheme. Its own scheme is always `http`: [`ClientOptions::tls`] decides about
/// TLS.
pub(crate) fn parse_address(address: &str) -> Result<Uri, ConnectError> {
    let bad = |reason: &str| ConnectError::Address {
        address: address.to_owned(),
        reason: reason.to_owned(),
    };
    let rest = without_scheme(address);
    let (host, port) = rest.rsplit_once(':').unwrap_or((rest, ""));
    if host.contains(':') && !host.starts_with('[') {
        return Err(bad(
            "an IPv6 address stands in brackets: write it as [::1]:7400",
        ));
    }
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if digits && !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(bad("a port is a number from 1 to 65535"));
    }
    let uri: Uri = format!("http://{rest}")
        .parse()
        .map_err(|_| bad("write it as host:port"))?;
    if uri.port_u16().is_none() {
        return Err(bad("the port is missing: write it as host:port"));
    }
    if uri.host().unwrap_or_default().is_empty() || !matches!(uri.path(), "" | "/") {
        return Err(bad("write it as host:port"));
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_nonsense_is_refused_with_advice() {
        assert_eq!(ClientOptions::new(["localhost:1"]).validate(), Ok(()));
        let none = ClientOptions::new(Vec::<String>::new());
        let no_address = ConnectError::Options(InvalidOption::NoAddress);
        assert_eq!(none.validate(), Err(no_address));
        let zero = ClientOptions {
            max_in_flight: 0,
            ..ClientOptions::new(["localhost:1"])
        };
        let max_in_flight = ConnectError::Options(InvalidOption::MaxInFlight);
        assert_eq!(zero.validate(), Err(max_in_flight));
    }

    #[test]
    fn each_fault_of_an_address_has_its_own_sentence() {
        for (address, words) in [
            ("a", "the port is missing"),
            ("a:", "the port is missing"),
            ("a:99999", "from 1 to 65535"),
            ("[::1]:0", "from 1 to 65535"),
            ("http://a:123456789012", "from 1 to 65535"),
            ("::1", "in brackets"),
            ("::1:7400", "in brackets"),
            ("fe80::1", "in brackets"),
            ("a b:1", "host:port"),
        ] {
            let error = parse_address(address).unwrap_err().to_string();
            assert!(error.contains(words), "{address}: {error}");
        }
    }

    #[test]
    fn addresses_are_host_and_port() {
        for good in [
            "a:1",
            "http://a.b.c:65535",
            "https://a.b.c:1",
            "127.0.0.1:80",
            "[::1]:7000",
        ] {
            assert!(parse_address(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a",
            "a:",
            "a:99999",
            "https://https://a:1",
            "ftp://a:1",
            "a:1/path",
            ":1",
            "a b:1",
        ] {
            assert!(
                matches!(parse_address(bad), Err(ConnectError::Address { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_scheme_must_agree_with_the_options() {
        let plain = ClientOptions::new(["a:1", "http://a:1"]);
        assert_eq!(plain.validate(), Ok(()));
        let tls = ClientOptions {
            tls: Some(TlsOptions::ca_file("ca.crt")),
            ..ClientOptions::new(["a:1", "https://a:1"])
        };
        assert_eq!(tls.validate(), Ok(()));
        for (options, address, words) in [
            (plain, "https://a:1", "give the cluster's (--ca"),
            (tls, "http://a:1", "write https://"),
        ] {
            let options = ClientOptions {
                addresses: vec![address.to_owned()],
                ..options
            };
            let error = options.validate().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
