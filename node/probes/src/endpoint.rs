//! The HTTP endpoint for metrics and health: `/metrics`, `/livez` and `/readyz`, without TLS.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::process;

/// The maximum number of open connections; the oldest is closed for a new one. A metrics server and a kubelet need few, and whoever
/// leaves connections open must not keep them out.
const MAX_CONNECTIONS: usize = 64;
/// The maximum time for receiving a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The reason why a program is not ready, for `/readyz` and the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotReady(String);

impl NotReady {
    /// Creates the error from a reason.
    pub fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

/// A program that is observed. Its methods run on the network's thread, so they must not block.
pub trait Probe: Send + Sync + 'static {
    /// Returns all metrics as `OpenMetrics` text.
    fn metrics(&self) -> Result<String, fmt::Error>;

    /// Returns an error if only a restart may help. The program counts as alive while it answers, unless it says otherwise.
    fn alive(&self) -> Result<(), NotReady> {
        Ok(())
    }

    /// Returns an error if the program can't do its work yet.
    fn ready(&self) -> Result<(), NotReady>;
}

/// Serves the endpoint for as long as the future is polled.
pub async fn serve<P: Probe>(probe: Arc<P>, listener: TcpListener) {
    let mut open = VecDeque::<AbortHandle>::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("can't accept a connection to the metrics: {error}");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let probe = Arc::clone(&probe);
        let connection = tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&*probe, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!("a connection to the metrics failed: {error}");
            }
        });
        open.push_back(connection.abort_handle());
    }
}

fn answer<B>(probe: &impl Probe, request: &Request<B>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
    }
    match request.uri().path() {
        "/metrics" => match probe.metrics() {
            Ok(mut metrics) => {
                process::append(&mut metrics);
                let mut response = Response::new(Full::new(metrics.into()));
                let value = hyper::header::HeaderValue::from_static(OPEN_METRICS);
                response.headers_mut().insert(CONTENT_TYPE, value);
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        "/livez" => health("alive", probe.alive()),
        "/readyz" => health("ready", probe.ready()),
        _ => text(StatusCode::NOT_FOUND, "try /metrics, /livez or /readyz\n"),
    }
}

fn health(what: &str, state: Result<(), NotReady>) -> Response<Full<Bytes>> {
    match state {
        Ok(()) => text(StatusCode::OK, format!("{what}\n")),
        Err(why) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not {what}: {why}\n"),
        ),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    struct Thing(Result<(), NotReady>);

    struct Hanging;

    impl Probe for Hanging {
        fn metrics(&self) -> Result<String, fmt::Error> {
            Ok("# EOF\n".to_owned())
        }

        fn alive(&self) -> Result<(), NotReady> {
            Err(NotReady::new("a thread hangs"))
        }

        fn ready(&self) -> Result<(), NotReady> {
            self.alive()
        }
    }

    impl Probe for Thing {
        fn metrics(&self) -> Result<String, fmt::Error> {
            Ok("# EOF\n".to_owned())
        }

        fn ready(&self) -> Result<(), NotReady> {
            self.0.clone()
        }
    }

    async fn ask(thing: &impl Probe, method: Method, path: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(path).body(());
        let response = answer(thing, &request.unwrap());
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn each_path_answers_for_itself() {
        let ready = Thing(Ok(()));
        let waits = Thing(Err(NotReady::new("it has no leader")));
        for (thing, method, path, status, body) in [
            (&ready, Method::GET, "/livez", 200, "alive\n"),
            (&waits, Method::GET, "/livez", 200, "alive\n"),
            (&ready, Method::HEAD, "/readyz", 200, "ready\n"),
            (
                &waits,
                Method::GET,
                "/readyz",
                503,
                "not ready: it has no leader\n",
            ),
            (
                &ready,
                Method::GET,
                "/",
                404,
                "try /metrics, /livez or /readyz\n",
            ),
            (
                &ready,
                Method::POST,
                "/livez",
                405,
                "only GET is served here\n",
            ),
        ] {
            let answered = ask(thing, method, path).await;
            assert_eq!(answered, (status, body.to_owned()), "{path}");
        }
        let (status, metrics) = ask(&ready, Method::GET, "/metrics").await;
        assert!(
            status == 200 && metrics.starts_with("# HELP process_") && metrics.ends_with("# EOF\n")
        );
        let answered = ask(&Hanging, Method::GET, "/livez").await;
        assert_eq!(answered, (503, "not alive: a thread hangs\n".to_owned()));
    }

    /// Whoever leaves connections open keeps nobody out.
    #[tokio::test]
    async fn the_oldest_connection_makes_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(Arc::new(Thing(Ok(()))), listener));
        let mut idle = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut last = TcpStream::connect(address).await.unwrap();
        let request = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        last.write_all(request).await.unwrap();
        let mut answer = String::new();
        last.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("200 OK"), "{answer}");
        assert_eq!(idle[0].read(&mut [0]).await.unwrap_or(0), 0, "it is closed");
        server.abort();
    }
}
