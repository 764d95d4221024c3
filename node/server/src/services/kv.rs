//! `shardkv.v1.Kv`: the service for applications.

use std::sync::Arc;
use std::time::Instant;

use api::v1::batch_item::Request as Item;
use api::v1::batch_result::Response as ItemResponse;
use api::v1::kv_server::Kv;
use api::v1::{self, ScanRequest};
use shardkv::GroupKind;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::answers::{AnswerQueue, Answers};
use super::batch::BatchReader;
use super::export::Exporter;
use super::items::Items;
use super::pages::Pages;
use super::scan::Scanner;
use super::{destination, export, scan, session};
use crate::convert::kv;
use crate::forward::{self, Forwarder, is_elsewhere, is_forbidden};
use crate::lifecycle::Lifecycle;
use crate::metrics::{Method, Metrics};
use crate::options::Limits;
use crate::peers::Peers;
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;

/// The service.
pub(crate) struct KvService {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) items: Arc<Items>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    pub(crate) scanner: Arc<Scanner>,
    pub(crate) exporter: Exporter,
}

impl KvService {
    /// Refuses a call for another destination. Otherwise returns true if the call must not be forwarded.
    fn admit(&self, metadata: &MetadataMap) -> Result<bool, Status> {
        match destination::check(&self.routing, metadata) {
            Ok(()) => Ok(is_forbidden(metadata)),
            Err(error) => Err(self.metrics.reject(&error)),
        }
    }

    /// Answers a request about one key, here or at the owner of the key.
    async fn call(&self, forbidden: bool, item: Item) -> Result<ItemResponse, Status> {
        let start = Instant::now();
        let method = Method::of(&item);
        let answer = self.items.answer(forbidden, start, item).await;
        let latency = start.elapsed().as_secs_f64();
        self.metrics.latency(method).observe(latency);
        answer.map_err(|error| self.metrics.reject(&error))
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    type ScanStream = Pages;
    type BatchStream = Answers;
    type ExportStream = Pages;

    async fn open_session(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        let forwarder = &self.forwarder;
        let may_forward = !self.admit(request.metadata())?;
        let asked = request.into_inner();
        let opened = match self.routing.kind() {
            GroupKind::Controller if may_forward => forward::open_session(forwarder, asked).await,
            GroupKind::Controller => Err(self.routing.wrong_group()),
            _ => match session::open(&self.replica, &forwarder.births, asked).await {
                Err(error) if is_elsewhere(&error) && may_forward => {
                    forward::open_session(forwarder, asked).await
                }
                opened => opened,
            },
        };
        opened
            .map(Response::new)
            .map_err(|error| self.metrics.reject(&error))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let forbidden = self.admit(request.metadata())?;
        match self
            .call(forbidden, Item::Get(request.into_inner()))
            .await?
        {
            ItemResponse::Get(answer) => Ok(Response::new(answer)),
            _ => Err(self.mismatch()),
        }
    }

    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let forbidden = self.admit(request.metadata())?;
        match self
            .call(forbidden, Item::Put(request.into_inner()))
            .await?
        {
            ItemResponse::Put(answer) => Ok(Response::new(answer)),
            _ => Err(self.mismatch()),
        }
    }

    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        let forbidden = self.admit(request.metadata())?;
        match self
            .call(forbidden, Item::Append(request.into_inner()))
            .await?
        {
            ItemResponse::Append(answer) => Ok(Response::new(answer)),
            _ => Err(self.mismatch()),
        }
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let forbidden = self.admit(request.metadata())?;
        match self
            .call(forbidden, Item::Delete(request.into_inner()))
            .await?
        {
            ItemResponse::Delete(answer) => Ok(Response::new(answer)),
            _ => Err(self.mismatch()),
        }
    }

    async fn compare_and_swap(
        &self,
        request: Request<v1::CompareAndSwapRequest>,
    ) -> Result<Response<v1::CompareAndSwapResponse>, Status> {
        let forbidden = self.admit(request.metadata())?;
        let item = Item::CompareAndSwap(request.into_inner());
        match self.call(forbidden, item).await? {
            ItemResponse::CompareAndSwap(answer) => Ok(Response::new(answer)),
            _ => Err(self.mismatch()),
        }
    }

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let forbidden = self.admit(request.metadata())?;
        match scan::open(&self.scanner, request.into_inner(), forbidden) {
            Ok(stream) => Ok(stream.into_response()),
            Err(error) => Err(self.metrics.reject(&error)),
        }
    }

    async fn export(
        &self,
        request: Request<v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let forbidden = self.admit(request.metadata())?;
        match export::open(&self.exporter, request.into_inner(), forbidden).await {
            Ok(stream) => Ok(stream.into_response()),
            Err(error) => Err(self.metrics.reject(&error)),
        }
    }

    async fn batch(
        &self,
        request: Request<Streaming<v1::BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        let forbidden = self.admit(request.metadata())?;
        if let Err(error) = self.replica.check_running() {
            return Err(self.metrics.reject(&error));
        }
        let answers = AnswerQueue::new(
            Arc::clone(&self.peers),
            Arc::clone(&self.items),
            Arc::clone(&self.metrics),
        );
        let reader = BatchReader {
            lifecycle: Arc::clone(&self.lifecycle),
            replica: Arc::clone(&self.replica),
            routing: Arc::clone(&self.routing),
            limits: self.limits,
            no_forward: forbidden,
            answers,
        };
        Ok(Response::new(reader.start(request.into_inner())))
    }
}

impl KvService {
    fn mismatch(&self) -> Status {
        self.metrics.reject(&kv::mismatch())
    }
}
