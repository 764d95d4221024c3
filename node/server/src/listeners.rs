//! The node's bound sockets and the address that it advertises.

use std::net::SocketAddr;

use storage::Cause;
use tokio::net::TcpListener;

use crate::exit::{ExitCode, Fatal};
use crate::listen::{self, Listener};
use crate::options::Options;

/// The bound listeners and the advertised address.
pub(crate) struct Listeners {
    /// The listener for clients and peers, and those of single keyspaces.
    pub(crate) grpc: Vec<Listener>,
    /// The address of the first.
    pub(crate) bound: SocketAddr,
    /// The address that other nodes use.
    pub(crate) advertised: String,
    pub(crate) metrics: Option<(TcpListener, SocketAddr)>,
}

impl Listeners {
    /// Binds the sockets that the options ask for.
    pub(crate) async fn bind(options: &Options) -> Result<Self, Fatal> {
        let (socket, bound) = bind("listen", &options.listen).await?;
        let mut grpc = vec![Listener {
            socket,
            keyspace: None,
        }];
        for (keyspace, address) in &options.keyspaces.listen {
            let (socket, bound) = bind("keyspace-listen", address).await?;
            tracing::info!("etcd's clients of the keyspace {keyspace} may dial {bound}");
            grpc.push(Listener {
                socket,
                keyspace: Some(keyspace.as_str().into()),
            });
        }
        let advertised = advertised(options, bound)?;
        let metrics = match &options.metrics_listen {
            Some(address) => Some(bind("metrics-listen", address).await?),
            None => None,
        };
        Ok(Self {
            grpc,
            bound,
            advertised,
            metrics,
        })
    }
}

async fn bind(option: &str, address: &str) -> Result<(TcpListener, SocketAddr), Fatal> {
    listen::bind(address).await.map_err(|error| {
        let message = format!("--{option} {address}: {error}");
        match Cause::of(&message) {
            Cause::OpenFiles | Cause::Memory => Fatal::of_system(message, ExitCode::CannotListen),
            _ => Fatal::message(ExitCode::CannotListen, message),
        }
    })
}

/// Returns the address that other nodes use. A port of zero is replaced by the bound port.
fn advertised(options: &Options, bound: SocketAddr) -> Result<String, Fatal> {
    match &options.advertise {
        Some(address) => Ok(match address.strip_suffix(":0") {
            Some(host) => format!("{host}:{}", bound.port()),
            None => address.clone(),
        }),
        None if bound.ip().is_unspecified() => Err(Fatal::message(
            ExitCode::BadOptions,
            "--advertise: is required when the node listens on all interfaces",
        )),
        // The option as written, so that a name stays a name. Its port may be zero.
        None => match options.listen.strip_suffix(":0") {
            Some(host) => Ok(format!("{host}:{}", bound.port())),
            None => Ok(options.listen.clone()),
        },
    }
}
