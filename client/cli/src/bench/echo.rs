//! The least that a gRPC call costs here: an echo of bytes, by tonic, without protobuf.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};
use tonic::{Request, Response, Status};

const PATH: &str = "/shardkv.bench.Echo/Echo";

/// Messages that are bytes as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = input.remaining();
        Ok(Some(input.copy_to_bytes(length)))
    }
}

/// The service: answers what it is asked.
#[derive(Clone, Copy, Debug)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "shardkv.bench.Echo";
}

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = std::future::Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move { Ok(tonic::server::Grpc::new(Plain).unary(Self, request).await) })
    }
}

/// Serves echoes on loopback, in a thread of its own as another process would, until the returned address's
/// user ends. The thread lives as long as the process.
pub(super) fn serve() -> std::io::Result<SocketAddr> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let incoming = {
        let _within = runtime.enter();
        TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?.with_nodelay(Some(true))
    };
    let address = incoming.local_addr()?;
    std::thread::Builder::new()
        .name("echo".to_owned())
        .spawn(move || {
            let served = runtime.block_on(
                Server::builder()
                    .add_service(Echo)
                    .serve_with_incoming(incoming),
            );
            if let Err(error) = served {
                eprintln!("the echo service ended: {error}");
            }
        })?;
    Ok(address)
}

/// A client of [`serve`].
#[derive(Clone, Debug)]
pub(super) struct EchoClient(Grpc<Channel>);

impl EchoClient {
    /// Connects.
    pub(super) async fn connect(address: SocketAddr) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
        Ok(Self(Grpc::new(endpoint.connect().await?)))
    }

    /// One call; the answer is as long as the request.
    pub(super) async fn echo(&mut self, bytes: Bytes) -> Result<Bytes, Status> {
        let ready = self.0.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = http::uri::PathAndQuery::from_static(PATH);
        self.0
            .unary(Request::new(bytes), path, Plain)
            .await
            .map(Response::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_come_back() {
        let mut client = EchoClient::connect(serve().unwrap()).await.unwrap();
        for bytes in [&b""[..], b"a", &vec![0xff; 100_000]] {
            assert_eq!(
                client.echo(Bytes::copy_from_slice(bytes)).await.unwrap(),
                bytes
            );
        }
    }
}
