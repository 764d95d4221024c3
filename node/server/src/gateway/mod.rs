//! The JSON gateway: etcd's API over plain HTTP, on the same port as gRPC, for curl and for programs without a gRPC library.
//!
//! A request to a path of [`routes`] becomes a call of etcd's gRPC services within the process: the body is read as JSON and
//! encoded ([`json`]), and the frames of the answer become JSON again ([`frames`]). The gateway knows no service; it works by
//! the descriptors of the messages. So all that gRPC calls undergo, names of keyspaces, forwarding, limits, holds here, too. The
//! module [`health`] answers the paths of health checks. All other requests pass unchanged.

mod answer;
mod frames;
mod health;
mod json;
mod routes;

use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Either};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use routes::Route;

/// Adds [`Gateway`] to a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GatewayLayer;

/// Answers requests with JSON, by the gRPC services of `S`.
#[derive(Clone, Debug)]
pub(crate) struct Gateway<S>(S);

impl<S> Layer<S> for GatewayLayer {
    type Service = Gateway<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Gateway(inner)
    }
}

/// The gRPC services of a node.
pub(crate) trait Grpc:
    Service<Request<Body>, Response = Response<Body>, Future: Send> + Clone + Send + 'static
{
}

impl<S> Grpc for S where
    S: Service<Request<Body>, Response = Response<Body>, Future: Send> + Clone + Send + 'static
{
}

impl<S: Grpc> Service<Request<Body>> for Gateway<S>
where
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(route) = routes::of(&request).filter(|_| !is_grpc(&request)) else {
            return Either::Left(self.0.call(request));
        };
        // The one that is ready makes the call.
        let later = self.0.clone();
        let ready = std::mem::replace(&mut self.0, later);
        Either::Right(respond(ready, route, request).boxed())
    }
}

async fn respond<S: Grpc>(
    inner: S,
    route: Route,
    request: Request<Body>,
) -> Result<Response<Body>, S::Error> {
    match route {
        Route::Version => Ok(health::version()),
        Route::Check(check) => health::check(inner, check, request).await,
        Route::Refused(status) => Ok(answer::refusal(&status)),
        Route::Method(method) => match (method.streams_requests(), method.streams_answers()) {
            (false, false) => answer::one(inner, method, request).await,
            _ => answer::many(inner, method, request).await,
        },
    }
}

/// Returns true for a request that the gateway answers.
pub(crate) fn is_for<B>(request: &Request<B>) -> bool {
    !is_grpc(request) && routes::of(request).is_some()
}

/// Returns the answer to a request that is refused before it reaches the gateway.
pub(crate) fn refusal(status: &Status) -> Response<Body> {
    answer::refusal(status)
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

#[cfg(test)]
mod tests;
