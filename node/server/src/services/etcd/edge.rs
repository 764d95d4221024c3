//! The edge of etcd's services: keeps what the gRPC library would drop of a request, and words the library's own refusals as etcd does.

use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Either};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response, header::HOST};
use tower::{Layer, Service};

/// The packages of etcd's services.
const PACKAGES: [&str; 3] = ["/etcdserverpb.", "/v3lockpb.", "/v3electionpb."];

/// The authority that a client dialled, with its port.
#[derive(Clone, Debug)]
pub(crate) struct Authority(pub(crate) String);

/// Adds [`EtcdEdge`] to a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EtcdLayer;

/// Handles the edge of calls to etcd's services. Other calls pass unchanged.
#[derive(Clone, Debug)]
pub(crate) struct EtcdEdge<S>(S);

impl<S> Layer<S> for EtcdLayer {
    type Service = EtcdEdge<S>;

    fn layer(&self, inner: S) -> Self::Service {
        EtcdEdge(inner)
    }
}

impl<S> Service<Request<Body>> for EtcdEdge<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if !is_etcds(request.uri().path()) {
            return Either::Left(self.0.call(request));
        }
        if let Some(authority) = authority(&request) {
            request.extensions_mut().insert(Authority(authority));
        }
        let answer = self.0.call(request);
        Either::Right(answer.map(|response| response.map(worded)).boxed())
    }
}

/// Returns true for the path of a method of etcd's services.
pub(crate) fn is_etcds(path: &str) -> bool {
    PACKAGES.iter().any(|package| path.starts_with(package))
}

fn authority<B>(request: &Request<B>) -> Option<String> {
    let dialled = request.uri().authority().map(|it| it.as_str().to_owned());
    dialled.or_else(|| {
        let host = request.headers().get(HOST)?.to_str().ok()?;
        Some(host.to_owned())
    })
}

/// Words a refusal that the library made by itself as etcd's library does.
fn worded(response: Response<Body>) -> Response<Body> {
    // The library keeps the status of a response that carries nothing else.
    let Some(status) = response.extensions().get::<Status>() else {
        return response;
    };
    if status.message().contains("message length too large") {
        let text = "grpc: received message larger than max";
        return Status::resource_exhausted(text).into_http();
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_of_etcds_services_is_told_by_its_path() {
        let table = [
            ("/etcdserverpb.KV/Range", true),
            ("/etcdserverpb.Watch/Watch", true),
            ("/v3lockpb.Lock/Lock", true),
            ("/v3electionpb.Election/Campaign", true),
            ("/shardkv.v1.Kv/Get", false),
            ("/grpc.health.v1.Health/Check", false),
            ("/", false),
        ];
        for (path, expected) in table {
            assert_eq!(is_etcds(path), expected, "{path}");
        }
    }

    #[test]
    fn the_authority_is_the_one_of_http2_and_else_the_host() {
        let dialled = Request::get("http://tenant-a:2379/x").body(()).unwrap();
        assert_eq!(authority(&dialled).as_deref(), Some("tenant-a:2379"));
        let host = Request::get("/x")
            .header(HOST, "tenant-b")
            .body(())
            .unwrap();
        assert_eq!(authority(&host).as_deref(), Some("tenant-b"));
        assert_eq!(authority(&Request::get("/x").body(()).unwrap()), None);
    }

    #[test]
    fn a_message_that_is_too_large_is_refused_as_etcds_library_does() {
        let large = Status::out_of_range(
            "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes",
        );
        let response = worded(large.into_http());
        let status = response.extensions().get::<Status>().unwrap();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(
            status
                .message()
                .starts_with("grpc: received message larger than max")
        );
    }
}
