//! Accepts connections: bounds their number, and closes silent ones. Connections beyond the limit enter the [`reserve`](crate::reserve).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::poll_fn;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::metrics::{Metrics, set};
use crate::reserve::calls::Origin;
use crate::reserve::{Reserve, Seat};

/// A connection that holds one of the allowed slots, or a place in the reserve.
pub(crate) struct Connection {
    stream: TcpStream,
    /// The keyspace that the listener is bound to.
    keyspace: Option<Arc<str>>,
    /// Given back when the connection is dropped.
    slot: Slot,
}

/// A listener, and the keyspace that it is bound to.
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) keyspace: Option<Arc<str>>,
}

/// The bounds of all listeners together.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// The most connections of clients.
    pub(crate) most: usize,
    /// The places in the reserve.
    pub(crate) reserved: usize,
    /// The maximum time until a connection sends something.
    pub(crate) patience: Duration,
    /// The time between two probes of a silent connection, and the time after which one is closed whose other end doesn't answer
    /// them.
    pub(crate) probe_every: Duration,
    pub(crate) probe_patience: Duration,
}

/// The slots of clients' connections and the reserve.
struct Slots {
    most: usize,
    open: Arc<Semaphore>,
    reserve: Arc<Reserve>,
    metrics: Arc<Metrics>,
}

struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    seat: Option<Seat>,
    slots: Arc<Slots>,
}

impl Slots {
    /// Gives a new connection its slot or place. Returns `None` if there is none.
    fn take(self: &Arc<Self>) -> Option<Slot> {
        let permit = Arc::clone(&self.open).try_acquire_owned().ok();
        let seat = match permit {
            Some(_) => None,
            None => Some(self.reserve.enter()?),
        };
        self.count();
        Some(Slot {
            permit,
            seat,
            slots: Arc::clone(self),
        })
    }

    fn count(&self) {
        let clients = self.most.saturating_sub(self.open.available_permits());
        let open = clients + self.reserve.taken();
        set(&self.metrics.connections, open as u64);
    }
}

impl Slot {
    /// Returns ready when the connection must end, because it has lost its place.
    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.seat {
            Some(seat) => seat.poll_closed(cx),
            None => Poll::Pending,
        }
    }

    /// Returns an error when the connection must end. Otherwise one whose other end reads nothing would wait for it.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.poll_closed(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.permit = None;
        self.seat = None;
        self.slots.count();
    }
}

/// Binds a listener. The address may be a name.
pub(crate) async fn bind(address: &str) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Returns the connections of listeners within their bounds. Connections that send nothing in time are closed. Dropping the stream
/// stops accepting.
pub(crate) fn connections(
    listeners: Vec<Listener>,
    bounds: Bounds,
    metrics: Arc<Metrics>,
) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, stream) = mpsc::channel(64);
    let Bounds {
        most,
        reserved,
        patience,
        probe_every,
        probe_patience,
    } = bounds;
    let open = Arc::new(Semaphore::new(most));
    let slots = Arc::new(Slots {
        most,
        reserve: Reserve::new(reserved, Arc::clone(&open)),
        open,
        metrics,
    });
    let entry = Entry {
        patience,
        probes: probes(probe_every, probe_patience),
        slots,
        accepted,
    };
    for listener in listeners {
        tokio::spawn(accept(listener, entry.clone()));
    }
    ReceiverStream::new(stream)
}

/// Returns the probes of TCP. Without them a client that vanishes in the middle of a request or of a watch would keep its slot for
/// ever: over HTTP/1 there are no others.
fn probes(every: Duration, patience: Duration) -> TcpKeepalive {
    // TCP counts whole seconds, and at most 127 probes.
    let every = every.max(Duration::from_secs(1));
    let retries = patience.as_secs().div_ceil(every.as_secs()).clamp(3, 100);
    TcpKeepalive::new()
        .with_time(every)
        .with_interval(every)
        .with_retries(u32::try_from(retries).unwrap_or(3))
}

/// Gives a new connection its options.
fn set_options(stream: &TcpStream, probes: &TcpKeepalive) -> io::Result<()> {
    // Nagle's algorithm would delay small answers.
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(probes)
}

/// The way of new connections into the server.
#[derive(Clone)]
struct Entry {
    patience: Duration,
    probes: TcpKeepalive,
    slots: Arc<Slots>,
    accepted: mpsc::Sender<io::Result<Connection>>,
}

async fn accept(listener: Listener, entry: Entry) {
    let Listener { socket, keyspace } = listener;
    let Entry {
        patience,
        probes,
        slots,
        accepted,
    } = entry;
    loop {
        let arrived = tokio::select! {
            arrived = socket.accept() => arrived,
            () = accepted.closed() => return,
        };
        let stream = match arrived {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most likely the process has no file descriptors left. An immediate retry would only burn the CPU.
                tracing::warn!("can't accept a connection: {error}");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(slot) = slots.take() else {
            slots.metrics.refused_connections.inc();
            continue;
        };
        let (accepted, keyspace) = (accepted.clone(), keyspace.clone());
        let set = set_options(&stream, &probes);
        tokio::spawn(async move {
            let begun = tokio::select! {
                begun = timeout(patience, stream.readable()) => matches!(begun, Ok(Ok(()))),
                () = poll_fn(|cx| slot.poll_closed(cx)) => false,
            };
            if set.is_ok() && begun {
                let connection = Connection {
                    stream,
                    keyspace,
                    slot,
                };
                // If the receiver is gone, the server has stopped.
                let _ = accepted.send(Ok(connection)).await;
            }
        });
    }
}

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        Origin {
            seat: self.slot.seat.clone(),
            keyspace: self.keyspace.clone(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.slot.poll_closed(context).is_ready() {
            // The end of what the caller sends.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.slot.poll_writable(context))?;
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.slot.poll_writable(context))?;
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.slot.poll_writable(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio_stream::StreamExt as _;

    use super::*;

    fn bounds(most: usize, reserved: usize) -> Bounds {
        Bounds {
            most,
            reserved,
            patience: Duration::from_secs(10),
            probe_every: Duration::from_secs(2),
            probe_patience: Duration::from_secs(9),
        }
    }

    #[tokio::test]
    async fn the_kernel_probes_a_silent_connection() {
        let (socket, address) = bind("127.0.0.1:0").await.unwrap();
        let listener = Listener {
            socket,
            keyspace: None,
        };
        let metrics = Arc::new(Metrics::new());
        let mut arriving = connections(vec![listener], bounds(1, 0), metrics);
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"x").await.unwrap();
        let connection = arriving.next().await.unwrap().unwrap();
        let socket = SockRef::from(&connection.stream);
        assert!(socket.keepalive().unwrap());
        let two = Duration::from_secs(2);
        assert_eq!(socket.tcp_keepalive_time().unwrap(), two);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), two);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 5);
    }

    #[tokio::test]
    async fn a_connection_that_lost_its_place_ends_though_its_other_end_reads_nothing() {
        let (listener, address) = bind("127.0.0.1:0").await.unwrap();
        let bounds = bounds(0, 1);
        let listener = Listener {
            socket: listener,
            keyspace: None,
        };
        let mut arriving = connections(vec![listener], bounds, Arc::new(Metrics::new()));
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(b"x").await.unwrap();
        let mut connection = arriving.next().await.unwrap().unwrap();
        let data = vec![0; 64 << 10];
        let blocked = poll_fn(|cx| {
            // Until the kernel takes no more.
            while let Poll::Ready(written) = Pin::new(&mut connection).poll_write(cx, &data) {
                written.unwrap();
            }
            Poll::Ready(())
        });
        blocked.await;
        let _newer = TcpStream::connect(address).await.unwrap();
        let written = timeout(Duration::from_secs(10), connection.write(&data)).await;
        let error = written.expect("the write ends").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        let flushed = timeout(Duration::from_secs(10), connection.flush()).await;
        assert!(flushed.expect("the flush ends").is_err());
    }
}
