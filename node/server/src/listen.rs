//! Accepts connections: bounds their number, and closes silent ones.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::metrics::{Metrics, set};

/// A connection that holds one of the allowed slots.
pub(crate) struct Connection {
    stream: TcpStream,
    /// Given back when the connection is dropped.
    _slot: Slot,
}

struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    open: Arc<Semaphore>,
    most: usize,
    metrics: Arc<Metrics>,
}

impl Slot {
    fn count(&self) {
        let open = self.most.saturating_sub(self.open.available_permits());
        set(&self.metrics.connections, open as u64);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.permit = None;
        self.count();
    }
}

/// Binds a listener. The address may be a name.
pub(crate) async fn bind(address: &str) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Returns the connections of a listener. Beyond `most` open connections new ones are closed at once; connections that send
/// nothing within `patience` are closed too. Dropping the stream stops accepting.
pub(crate) fn connections(
    listener: TcpListener,
    most: usize,
    patience: Duration,
    metrics: Arc<Metrics>,
) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, stream) = mpsc::channel(64);
    tokio::spawn(async move {
        let open = Arc::new(Semaphore::new(most));
        loop {
            let arrived = tokio::select! {
                arrived = listener.accept() => arrived,
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
            let Ok(permit) = Arc::clone(&open).try_acquire_owned() else {
                metrics.refused_connections.inc();
                continue;
            };
            let slot = Slot {
                permit: Some(permit),
                open: Arc::clone(&open),
                most,
                metrics: Arc::clone(&metrics),
            };
            slot.count();
            let accepted = accepted.clone();
            tokio::spawn(async move {
                // Nagle's algorithm would delay small answers.
                let ready = stream.set_nodelay(true).is_ok()
                    && matches!(timeout(patience, stream.readable()).await, Ok(Ok(())));
                if ready {
                    // If the receiver is gone, the server has stopped.
                    let _ = accepted
                        .send(Ok(Connection {
                            stream,
                            _slot: slot,
                        }))
                        .await;
                }
            });
        }
    });
    ReceiverStream::new(stream)
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
