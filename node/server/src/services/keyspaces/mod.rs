//! `shardkv.v1.Keyspaces`: creates, lists, changes and deletes keyspaces.
//!
//! A call is answered by the leader of the group that owns the keyspace's shard. Another node forwards it there, once. Changes of options
//! and deletions name the keyspace by its random cluster id, so they never hit a later keyspace with the same name. In doubt, only a deletion is
//! repeated: new options would replace those that another client has set since. A
//! node makes a creation once. Its caller may make it again, and finds what an earlier attempt has made.

mod calls;
mod convert;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::errors;
use api::v1::error_detail::Kind;
use api::v1::keyspaces_client::KeyspacesClient;
use api::v1::keyspaces_server::Keyspaces;
use api::v1::{self, ErrorDetail};
use shardkv::GroupKind;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use types::ShardId;

use super::destination;
use super::etcd::serve::EtcdServices;
use super::etcd::store;
use crate::forward::{self, Repeat, is_elsewhere, is_forbidden, is_on_its_way, once_for};

/// The pause between attempts while a shard is on its way here.
const ON_ITS_WAY_PAUSE: Duration = Duration::from_millis(20);

/// The service.
pub(crate) struct KeyspacesService(pub(crate) Arc<EtcdServices>);

/// The shard that a call is about.
enum Subject<'a> {
    /// That of the keyspace with this name.
    Name(&'a str),
    Shard(ShardId),
}

/// A call of the service.
trait Call: Clone + Send + Sync + Sized + 'static {
    type Answer: Send;

    /// Returns the shard that it is about.
    fn subject(&self) -> Subject<'_>;

    /// Returns the right to make it again although an attempt is in doubt.
    fn repeat(&self) -> Repeat;

    /// Answers it at the leader of the group that owns the shard.
    fn here(
        self,
        keyspaces: &store::Keyspaces,
    ) -> impl Future<Output = Result<Self::Answer, ErrorDetail>> + Send;

    /// Sends it to another node.
    fn there(
        request: Request<Self>,
        client: KeyspacesClient<Channel>,
    ) -> impl Future<Output = Result<Self::Answer, Status>> + Send;
}

impl KeyspacesService {
    /// Answers a call here or at the node that can.
    async fn serve<C: Call>(&self, request: Request<C>) -> Result<Response<C::Answer>, Status> {
        let arrived = Instant::now();
        let metadata = request.metadata();
        let admitted = destination::check(&self.0.keyspaces.routing, metadata);
        let forbidden = is_forbidden(metadata);
        let answer = match admitted {
            Ok(()) => self.answer(request.into_inner(), forbidden, arrived).await,
            Err(error) => Err(error),
        };
        let answer = answer.map(Response::new);
        answer.map_err(|error| self.0.metrics.reject(&told(error)))
    }

    async fn answer<C: Call>(
        &self,
        call: C,
        forbidden: bool,
        arrived: Instant,
    ) -> Result<C::Answer, ErrorDetail> {
        let routing = &self.0.keyspaces.routing;
        if routing.kind() == GroupKind::Controller {
            if forbidden {
                return Err(routing.wrong_group());
            }
            return self.elsewhere(call, arrived).await;
        }
        if forbidden {
            return call.here(&self.0.keyspaces).await;
        }
        let deadline = self.0.forwarder.deadline(arrived).into_std();
        let mut waiting = None;
        loop {
            let error = match call.clone().here(&self.0.keyspaces).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if is_elsewhere(&error) {
                drop(waiting);
                return self.elsewhere(call, arrived).await;
            }
            // The shard is on its way here, so the call waits for it, unless too many do.
            if waiting.is_none() && is_on_its_way(&error) {
                waiting = self.0.forwarder.wait_here(0);
            }
            if waiting.is_none() || !is_on_its_way(&error) || Instant::now() >= deadline {
                return Err(error);
            }
            let pause = tokio::time::sleep(ON_ITS_WAY_PAUSE);
            if self.0.lifecycle.unless_draining(pause).await.is_none() {
                return Err(error);
            }
        }
    }

    /// Passes a call to the leader of the group that owns its shard.
    async fn elsewhere<C: Call>(
        &self,
        call: C,
        arrived: Instant,
    ) -> Result<C::Answer, ErrorDetail> {
        let forwarder = &self.0.forwarder;
        let shard = match call.subject() {
            Subject::Name(name) => self.0.keyspaces.shard(name)?,
            Subject::Shard(shard) => shard,
        };
        let ask = |channel, gid| {
            let request = once_for(forwarder, gid, call.clone());
            C::there(request, KeyspacesClient::new(channel))
        };
        let terms = (call.repeat(), 0);
        let answer = forward::keyspace(forwarder, shard, terms, arrived, ask).await?;
        answer.map_err(|status| errors::unavailable(status.message(), 100))
    }
}

/// Says of an unknown outcome what the caller of this service can do.
fn told(mut error: ErrorDetail) -> ErrorDetail {
    if let Some(Kind::OutcomeUnknown(_)) = error.kind {
        let text = "leadership was lost before the outcome was known: look with Get; only a deletion may be repeated without a look, with its cluster id";
        text.clone_into(&mut error.message);
    }
    error
}

#[tonic::async_trait]
impl Keyspaces for KeyspacesService {
    async fn create(
        &self,
        request: Request<v1::CreateKeyspaceRequest>,
    ) -> Result<Response<v1::Keyspace>, Status> {
        self.serve(request).await
    }

    async fn get(
        &self,
        request: Request<v1::GetKeyspaceRequest>,
    ) -> Result<Response<v1::Keyspace>, Status> {
        self.serve(request).await
    }

    async fn list(
        &self,
        request: Request<v1::ListKeyspacesRequest>,
    ) -> Result<Response<v1::ListKeyspacesResponse>, Status> {
        self.serve(request).await
    }

    async fn set_options(
        &self,
        request: Request<v1::SetKeyspaceOptionsRequest>,
    ) -> Result<Response<v1::Keyspace>, Status> {
        self.serve(request).await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteKeyspaceRequest>,
    ) -> Result<Response<v1::DeleteKeyspaceResponse>, Status> {
        self.serve(request).await
    }
}
