//! The port for machines that watch: `/metrics`, `/livez` and `/readyz` over plain HTTP.

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
use tokio::sync::Semaphore;
use tokio::time::sleep;

/// Open connections; watchers are few.
const MAX_CONNECTIONS: usize = 64;
/// How long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of a head.
const MAX_HEAD_BYTES: usize = 16 << 10;
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is watched. Asked on the network's thread, so nothing here may wait.
pub trait Watched: Send + Sync + 'static {
    /// All metrics as `OpenMetrics` text.
    fn metrics(&self) -> Result<String, fmt::Error>;

    /// Whether it does its part; an error says why it doesn't, for people.
    fn ready(&self) -> Result<(), String>;
}

/// Serves for as long as it is polled. It is alive as long as it answers.
pub async fn serve<W: Watched>(watched: Arc<W>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("can't accept a connection to the metrics: {error}");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let watched = Arc::clone(&watched);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&*watched, &request);
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
            drop(place);
        });
    }
}

fn answer<B>(watched: &impl Watched, request: &Request<B>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
    }
    match request.uri().path() {
        "/metrics" => match watched.metrics() {
            Ok(metrics) => {
                let mut response = Response::new(Full::new(metrics.into()));
                let value = hyper::header::HeaderValue::from_static(OPEN_METRICS);
                response.headers_mut().insert(CONTENT_TYPE, value);
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        "/livez" => text(StatusCode::OK, "alive\n"),
        "/readyz" => match watched.ready() {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(why) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {why}\n"),
            ),
        },
        _ => text(StatusCode::NOT_FOUND, "try /metrics, /livez or /readyz\n"),
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

    use super::*;

    struct Thing(Result<(), String>);

    impl Watched for Thing {
        fn metrics(&self) -> Result<String, fmt::Error> {
            Ok("# EOF\n".to_owned())
        }

        fn ready(&self) -> Result<(), String> {
            self.0.clone()
        }
    }

    async fn ask(thing: &Thing, method: Method, path: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(path).body(());
        let response = answer(thing, &request.unwrap());
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn each_path_answers_for_itself() {
        let ready = Thing(Ok(()));
        let waits = Thing(Err("it has no leader".to_owned()));
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
            (&ready, Method::GET, "/metrics", 200, "# EOF\n"),
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
    }
}
