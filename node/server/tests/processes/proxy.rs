//! A TCP relay in front of a node. It can deliver everything late, which looks like a slow network, and it can stop relaying while
//! its connections stay open, which looks like a half-open connection to both ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// A relay from one address to another.
pub(crate) struct Proxy {
    stalled: Arc<watch::Sender<bool>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Relays connections from `from` to `to`.
    pub(crate) async fn start(from: SocketAddr, to: SocketAddr) -> Self {
        Self::slow(from, to, Duration::ZERO).await
    }

    /// Does the same, and delivers what either end sends after `delay`.
    pub(crate) async fn slow(from: SocketAddr, to: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind(from).await.unwrap();
        let stalled = Arc::new(watch::channel(false).0);
        let relayed = stalled.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((inward, _)) = listener.accept().await {
                let stalled = relayed.subscribe();
                tokio::spawn(async move {
                    // While the relay stalls, a new connection is accepted, as a kernel does, and then gets no data.
                    flowing(&mut stalled.clone()).await;
                    let Ok(outward) = TcpStream::connect(to).await else {
                        return;
                    };
                    let (inward_read, inward_write) = inward.into_split();
                    let (outward_read, outward_write) = outward.into_split();
                    let there = relay(inward_read, outward_write, delay, stalled.clone());
                    tokio::spawn(there);
                    relay(outward_read, inward_write, delay, stalled).await;
                });
            }
        });
        Self { stalled, accepting }
    }

    /// Stops relaying in both directions, without closing connections.
    pub(crate) fn stall(&self) {
        self.stalled.send_replace(true);
    }

    /// Relays everything again, including the bytes that waited.
    pub(crate) fn flow(&self) {
        self.stalled.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One address in front of several nodes, like a service of Kubernetes: each connection goes to the next node.
pub(crate) struct Balancer {
    accepting: JoinHandle<()>,
}

impl Balancer {
    /// Relays connections from `from` to the addresses in `to` in turn. A connection to an address without a node is
    /// closed.
    pub(crate) async fn start(from: SocketAddr, to: Vec<SocketAddr>) -> Self {
        Self::start_with(from, to, false).await
    }

    /// Does the same, but skips an address without a node.
    pub(crate) async fn start_up_to_date(from: SocketAddr, to: Vec<SocketAddr>) -> Self {
        Self::start_with(from, to, true).await
    }

    async fn start_with(from: SocketAddr, mut to: Vec<SocketAddr>, up_to_date: bool) -> Self {
        let listener = TcpListener::bind(from).await.unwrap();
        let accepting = tokio::spawn(async move {
            while let Ok((mut inward, _)) = listener.accept().await {
                let mut turn = to.clone();
                turn.truncate(if up_to_date { to.len() } else { 1 });
                to.rotate_left(1);
                tokio::spawn(async move {
                    for to in turn {
                        if let Ok(mut outward) = TcpStream::connect(to).await {
                            // Either end may break the connection.
                            let _ = tokio::io::copy_bidirectional(&mut inward, &mut outward).await;
                            return;
                        }
                    }
                });
            }
        });
        Self { accepting }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn flowing(stalled: &mut watch::Receiver<bool>) {
    // An error means that the proxy was dropped. Its remaining connections may end.
    let _ = stalled.wait_for(|stalled| !stalled).await;
}

async fn relay(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    mut stalled: watch::Receiver<bool>,
) {
    // What is on its way. A link that is slow need not be narrow.
    let (sent, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(256);
    let reading = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + delay;
            if sent.send((due, buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = arriving.recv().await {
            sleep_until(due).await;
            flowing(&mut stalled).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}
