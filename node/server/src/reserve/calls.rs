//! Calls over connections of the reserve: those of nodes and operators are served, and those of clients are refused. Only the former
//! keep a connection its place.
//!
//! The path tells a call of a node or an operator, and the user agent a request that a node forwards. Requests of the JSON gateway are
//! clients' calls. A client that claims to be a node is served: the reserve keeps out clients that are too many, not clients that lie.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use api::errors;
use api::v1::kv_server::SERVICE_NAME as KV;
use api::v1::shardctrler_server::SERVICE_NAME as CONTROLLERS;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Either, poll_fn};
use hyper::body::{Body as _, Frame};
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response, header::USER_AGENT};
use tower::{Layer, Service};

use super::{Call, Seat};
use crate::gateway;
use crate::metrics::Metrics;
use crate::services::etcd::edge::is_etcds;

/// The user agent of nodes.
pub(crate) const NODE: &str = "shardkv-node";
/// The time after which a refused client should try again, in milliseconds.
const RETRY_AFTER_MS: u32 = 1_000;

/// The most that is read of a refused request.
const MOST_READ_BYTES: usize = 1 << 20;
const MOST_READ_TIME: Duration = Duration::from_millis(100);

/// The connection that a call came over.
#[derive(Clone)]
pub(crate) struct Origin {
    /// Its place in the reserve; `None` for one with the slot of a client's connection.
    pub(crate) seat: Option<Seat>,
    /// The keyspace that its listener is bound to.
    pub(crate) keyspace: Option<Arc<str>>,
}

/// Adds [`ReserveService`] to a server.
#[derive(Clone)]
pub(crate) struct ReserveLayer {
    pub(crate) max_connections: usize,
    pub(crate) metrics: Arc<Metrics>,
}

/// Refuses clients' calls over connections of the reserve, and counts those of nodes and operators there.
#[derive(Clone)]
pub(crate) struct ReserveService<S> {
    inner: S,
    layer: ReserveLayer,
}

impl<S> Layer<S> for ReserveLayer {
    type Service = ReserveService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ReserveService {
            inner,
            layer: self.clone(),
        }
    }
}

impl<S> Service<Request<Body>> for ReserveService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let origin = request.extensions().get::<Origin>();
        let Some(seat) = origin.and_then(|origin| origin.seat.clone()) else {
            return Either::Left(self.inner.call(request));
        };
        if is_clients(&request) && !seat.become_clients() {
            let limit = self.layer.max_connections as u64;
            let error = errors::overloaded("connections", limit, RETRY_AFTER_MS);
            let status = self.layer.metrics.reject(&error);
            // A client of the gateway knows no status of gRPC.
            let refusal = if gateway::is_for(&request) {
                gateway::refusal(&status)
            } else {
                status.into_http()
            };
            let refused = async move {
                read_rest(request.into_body()).await;
                Ok(refusal)
            };
            return Either::Right(refused.boxed());
        }
        if !keeps_place(&request) {
            return Either::Left(self.inner.call(request));
        }
        let call = seat.begin();
        let answer = self.inner.call(request);
        let counted = async move {
            let response = answer.await?;
            Ok(response.map(|inner| Body::new(Counted { inner, _call: call })))
        };
        Either::Right(counted.boxed())
    }
}

/// Reads what is left of a request. Otherwise the library resets the stream, and a caller that still sends may miss the status.
async fn read_rest(mut body: Body) {
    let rest = async {
        let mut left = MOST_READ_BYTES;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            let Some(less) = left.checked_sub(bytes) else {
                return;
            };
            left = less;
        }
    };
    // A stream of requests doesn't end by itself, and its status is sent all the same.
    let _ = timeout(MOST_READ_TIME, rest).await;
}

/// Returns true for a call of a client: for keys, for keyspaces, or for the configurations.
fn is_clients<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    let of_clients = is_etcds(path)
        || gateway::is_for(request)
        || match path.trim_start_matches('/').split_once('/') {
            Some((service, method)) => service == KV || (service, method) == (CONTROLLERS, "Watch"),
            None => false,
        };
    of_clients && !is_of_node(request)
}

/// Returns true for a request of a node.
fn is_of_node<B>(request: &Request<B>) -> bool {
    let agent = request.headers().get(USER_AGENT);
    agent.is_some_and(|agent| is_nodes(agent.as_bytes()))
}

/// Returns true for the user agent of a node.
pub(crate) fn is_nodes(agent: &[u8]) -> bool {
    agent.starts_with(NODE.as_bytes())
}

/// Returns true for a call of the store's own services, or of etcd's. Health and reflection are served too, but any client may keep a call of
/// theirs open, so it doesn't keep the connection its place.
fn keeps_place<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    path.starts_with("/shardkv.") || is_etcds(path)
}

/// The body of a response, with its call.
struct Counted {
    inner: Body,
    _call: Call,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_for_keys_or_configurations_is_a_clients_unless_a_node_sends_it() {
        let request = |path: &str, agent: &str| {
            let request = Request::builder().uri(path).header(USER_AGENT, agent);
            request.body(()).unwrap()
        };
        // The gateway has paths of its own for `GET`.
        let table = [
            ("/health", true),
            ("/readyz?verbose", true),
            ("/livez", true),
            ("/version", true),
            ("/v3/kv/range", true),
            ("/v3beta/watch", true),
            ("/v3/nothing", true),
            ("/shardkv.v1.Kv/Put", true),
            ("/shardkv.v1.Kv/Batch", true),
            ("/etcdserverpb.KV/Range", true),
            ("/shardkv.v1.Shardctrler/Watch", true),
            ("/shardkv.v1.Shardctrler/Join", false),
            ("/shardkv.v1.Raft/Stream", false),
            ("/shardkv.v1.Handoff/Pull", false),
            ("/shardkv.v1.Admin/Status", false),
            ("/grpc.health.v1.Health/Check", false),
            ("/", false),
        ];
        for (path, expected) in table {
            let of_other = request(path, "grpc-go/1.60");
            assert_eq!(is_clients(&of_other), expected, "{path}");
            let of_node = request(path, "shardkv-node tonic/0.14");
            assert!(!is_clients(&of_node), "{path}");
        }
    }

    /// A service that never answers.
    #[derive(Clone)]
    struct Silent;

    impl Service<Request<Body>> for Silent {
        type Response = Response<Body>;
        type Error = std::convert::Infallible;
        type Future = std::future::Pending<Result<Response<Body>, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            std::future::pending()
        }
    }

    /// A body that never ends.
    struct Endless;

    impl hyper::body::Body for Endless {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn only_calls_of_nodes_and_operators_keep_a_connection_its_place() {
        let (node, other) = ("shardkv-node tonic/0.14", "grpc-go/1.60");
        let table = [
            ("/shardkv.v1.Raft/Stream", other, true),
            ("/shardkv.v1.Admin/Status", other, true),
            ("/shardkv.v1.Kv/Batch", other, false),
            ("/shardkv.v1.Kv/Batch", node, true),
            ("/etcdserverpb.Watch/Watch", node, true),
            ("/etcdserverpb.Lease/LeaseKeepAlive", node, true),
            ("/etcdserverpb.Watch/Watch", other, false),
            ("/v3/watch", other, false),
            ("/grpc.health.v1.Health/Watch", node, false),
            (
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                other,
                false,
            ),
        ];
        for (path, agent, keeps) in table {
            let clients = Arc::new(tokio::sync::Semaphore::new(0));
            let reserve = super::super::Reserve::new(1, clients);
            let layer = ReserveLayer {
                max_connections: 1,
                metrics: Arc::new(Metrics::new()),
            };
            let mut request = Request::builder()
                .uri(path)
                .header(USER_AGENT, agent)
                .body(Body::new(Endless))
                .unwrap();
            // The connection holds it, too.
            let seat = reserve.enter();
            request.extensions_mut().insert(Origin {
                seat: seat.clone(),
                keyspace: None,
            });
            let mut call = layer.layer(Silent).call(request);
            assert!((&mut call).now_or_never().is_none(), "{path} goes on");
            assert_eq!(reserve.enter().is_none(), keeps, "{path} of {agent}");
        }
    }

    #[tokio::test]
    async fn a_refused_request_of_the_gateway_gets_an_http_status() {
        let table = [
            ("/health", "application/json", 429),
            ("/v3/kv/range", "application/json", 429),
            ("/etcdserverpb.KV/Range", "application/grpc", 200),
        ];
        for (path, kind, expected) in table {
            let reserve = super::super::Reserve::new(1, Arc::new(tokio::sync::Semaphore::new(0)));
            let layer = ReserveLayer {
                max_connections: 1,
                metrics: Arc::new(Metrics::new()),
            };
            let mut request = Request::builder().uri(path).body(Body::empty()).unwrap();
            request.extensions_mut().insert(Origin {
                seat: reserve.enter(),
                keyspace: None,
            });
            let refused = layer.layer(Silent).call(request).await.unwrap();
            assert_eq!(refused.status(), expected, "{path}");
            let found = refused.headers().get("content-type").unwrap();
            assert_eq!(found, kind, "{path}");
        }
    }
}
