//! The caller's side of a connection, as a connector for channels of gRPC.
//!
//! In TLS 1.3 a caller ends its part of the handshake before the server has seen the caller's certificate. The refusal would arrive
//! when requests are under way, and nobody could tell whether they were read. So the connector sends the preface of HTTP/2 itself, and
//! waits for the server's first bytes: a connection that it returns was accepted.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;
use types::Gid;

use crate::client::ClientCredentials;
use crate::credentials::Shared;
use crate::verdict::Words;

/// The first bytes of a caller of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The most bytes that are read before the connection is given away. The server's first frame is smaller.
const FIRST_BYTES: usize = 256;

/// Makes connections over TLS for [`tonic`'s](https://docs.rs/tonic) `Endpoint::connect_with_connector`. The endpoint's URI has the
/// scheme `http`, because the library's own TLS is off; its origin should have `https`.
#[derive(Clone, Debug)]
pub struct Connector {
    tcp: HttpConnector,
    trust: Trust,
}

#[derive(Clone, Debug)]
enum Trust {
    /// A node of this group, which is [`Gid::NONE`] for the controllers.
    Member(Arc<Shared>, Gid),
    /// A server with the name that is dialed.
    Host(ClientCredentials),
}

/// The reason why there is no connection. Nothing but the handshake was sent.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct ConnectError {
    text: String,
    refusal: bool,
}

impl ConnectError {
    /// Returns true if the server was reached, and there was no agreement over TLS.
    pub fn is_refusal(&self) -> bool {
        self.refusal
    }

    fn unreachable(error: &dyn std::error::Error) -> Self {
        Self {
            text: chain(error),
            refusal: false,
        }
    }

    fn refused(text: String) -> Self {
        Self {
            text,
            refusal: true,
        }
    }
}

/// A connection over TLS.
#[derive(Debug)]
pub struct Stream {
    inner: TlsStream<TcpStream>,
    /// The server's first bytes.
    first: Vec<u8>,
    /// The bytes of the preface that the library will write, and that have been sent.
    preface_left: usize,
}

impl Connector {
    /// Returns a connector for a node that dials the nodes of a group, or the controllers ([`Gid::NONE`]).
    pub fn to_member(own: Arc<Shared>, gid: Gid) -> Self {
        Self::new(Trust::Member(own, gid))
    }

    /// Returns a connector for a client, which checks the host name.
    pub fn to_host(credentials: ClientCredentials) -> Self {
        Self::new(Trust::Host(credentials))
    }

    fn new(trust: Trust) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        Self { tcp, trust }
    }

    fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        match &self.trust {
            Trust::Member(own, gid) => own.current().to_member(*gid).map(Arc::new),
            Trust::Host(credentials) => Ok(Arc::clone(&credentials.0)),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Stream>, ConnectError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        let ready = self.tcp.poll_ready(cx);
        ready.map_err(|error| ConnectError::unreachable(&error))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let config = self.config();
        let host = uri.host().unwrap_or_default();
        // An IPv6 address has brackets in a URI.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned());
        let connecting = self.tcp.call(uri);
        Box::pin(async move {
            let name = name.map_err(|error| ConnectError::unreachable(&error))?;
            let config = config.map_err(|error| ConnectError::refused(error.to_string()))?;
            let tcp = connecting
                .await
                .map_err(|error| ConnectError::unreachable(&error))?
                .into_inner();
            let stream = handshake(config, name, tcp)
                .await
                .map_err(|error| ConnectError::refused(sentence(&error)))?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// Returns an error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

async fn handshake(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tcp: TcpStream,
) -> io::Result<Stream> {
    let mut inner = TlsConnector::from(config).connect(name, tcp).await?;
    inner.write_all(PREFACE).await?;
    inner.flush().await?;
    let mut first = vec![0; FIRST_BYTES];
    let read = inner.read(&mut first).await?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    first.truncate(read);
    Ok(Stream {
        inner,
        first,
        preface_left: PREFACE.len(),
    })
}

/// Says why a handshake failed, and what to do.
fn sentence(error: &io::Error) -> String {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::AlertReceived(alert)) => refused_by_server(*alert).to_owned(),
        Some(error @ Error::InvalidCertificate(reason)) => {
            let words = Words(error);
            let cure = match reason {
                CertificateError::UnknownIssuer => {
                    ". The bundle of authorities must have the one that signed it"
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    ". Dial a name that its certificate has"
                }
                _ => "",
            };
            format!("the server is refused, because {words}{cure}")
        }
        Some(Error::InvalidMessage(_)) => {
            "the server doesn't speak TLS: it is another program, or a node without certificates"
                .to_owned()
        }
        Some(error) => format!("no connection over TLS 1.3 is possible ({error})"),
        None => format!(
            "the server closed the connection during the handshake ({error}): it takes no TLS, or is overloaded"
        ),
    }
}

/// Says in words why the server refused the caller.
fn refused_by_server(alert: AlertDescription) -> &'static str {
    use AlertDescription as A;
    match alert {
        A::CertificateRequired => {
            "the server demands a certificate: give one with its private key (--cert and --key)"
        }
        A::UnknownCA => {
            "the server refused this certificate, because it knows no authority that signed it: use a certificate of this \
             cluster, or add the authority to the server's bundle"
        }
        A::CertificateExpired => {
            "the server refused this certificate, because it has expired or is not valid yet: renew it, and compare the clocks"
        }
        A::CertificateRevoked => "the server refused this certificate, because it was revoked",
        A::CertificateUnknown | A::AccessDenied => {
            "the server refused this certificate, because it names another cluster or a role that its authority may not give: use \
             a certificate of this cluster. The server's log has the names"
        }
        A::UnsupportedCertificate => {
            "the server refused this certificate, because it is not made for callers: it needs the extended key usage clientAuth"
        }
        A::BadCertificate | A::DecryptError => {
            "the server refused this certificate, because it is malformed or was changed"
        }
        A::ProtocolVersion | A::HandshakeFailure => "the server doesn't speak TLS 1.3",
        A::NoApplicationProtocol => "the server speaks TLS, and not HTTP/2: it is another program",
        _ => "the server refused the connection during the handshake. Its log may have the reason",
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buffer);
        }
        let fitting = self.first.len().min(buffer.remaining());
        let rest = self.first.split_off(fitting);
        buffer.put_slice(&self.first);
        self.first = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = self.preface_left.min(data.len());
        if sent > 0 {
            self.preface_left -= sent;
            return Poll::Ready(Ok(sent));
        }
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.preface_left > 0 {
            let first = data.iter().find(|slice| !slice.is_empty());
            return self.poll_write(cx, first.map_or(&[], |slice| slice));
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
