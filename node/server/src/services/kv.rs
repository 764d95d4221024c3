//! `shardkv.v1.Kv`: what applications call.

use std::sync::Arc;
use std::time::Instant;

use api::v1::kv_server::Kv;
use api::v1::{self, ErrorDetail, Pair, ScanRequest, ScanResponse};
use api::{encode_client_id, error_status, errors};
use bytes::{Bytes, BytesMut};
use replica::{Answer, Request as ReplicaRequest};
use shardkv::{MAX_KEY_BYTES, Query, Response as Outcome, Written};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use types::ClientId;

use super::batch::{Answers, BatchStream};
use crate::convert::kv::{self, Checks, KvRequest};
use crate::hub::Hub;
use crate::metrics::Method;
use crate::random;

/// The service.
pub(crate) struct KvService {
    hub: Arc<Hub>,
    checks: Checks,
}

impl KvService {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self {
            checks: Checks::new(&hub.options.limits),
            hub,
        }
    }

    /// Asks the state machine.
    async fn ask(&self, request: Result<KvRequest, ErrorDetail>) -> Result<Outcome, ErrorDetail> {
        let result = self.hub.ask(request?).await?;
        kv::outcome(result, |node| self.hub.address_or_empty(node))
    }

    /// Asks, measures, and turns what is wrong into a status.
    async fn call<T>(
        &self,
        method: Method,
        request: Result<KvRequest, ErrorDetail>,
        read: impl FnOnce(Outcome) -> Option<T>,
    ) -> Result<Response<T>, Status> {
        let start = Instant::now();
        let outcome = self.ask(request).await;
        let latency = start.elapsed().as_secs_f64();
        self.hub.metrics.latency(method).observe(latency);
        let answer = outcome.and_then(|outcome| read(outcome).ok_or_else(kv::mismatch));
        match answer {
            Ok(answer) => Ok(Response::new(answer)),
            Err(error) => Err(reject(&self.hub, &error)),
        }
    }

    async fn open(&self) -> Result<v1::OpenSessionResponse, ErrorDetail> {
        let result = self.hub.ask(ReplicaRequest::LogTime).await?;
        let birth = match result {
            Ok(Answer::LogTime(time)) => time,
            Ok(_) => return Err(kv::mismatch()),
            Err(refusal) => {
                return Err(kv::refused(&refusal, |node| {
                    self.hub.address_or_empty(node)
                }));
            }
        };
        let Some(genesis) = self.hub.view().genesis else {
            return Err(errors::unavailable(
                "the group's settings aren't known yet",
                100,
            ));
        };
        let nonce = random::number().map_err(|error| {
            errors::unavailable(format!("the system has no randomness: {error}"), 1_000)
        })?;
        Ok(v1::OpenSessionResponse {
            client_id: encode_client_id(ClientId { birth, nonce }),
            ttl_ms: genesis.session_ttl_ms,
        })
    }
}

/// Counts an error and makes its status.
pub(crate) fn reject(hub: &Hub, error: &ErrorDetail) -> Status {
    hub.metrics.rejected(error);
    error_status(error)
}

#[tonic::async_trait]
impl Kv for KvService {
    type ScanStream = ReceiverStream<Result<ScanResponse, Status>>;
    type BatchStream = Answers;
    type ExportStream = ReceiverStream<Result<ScanResponse, Status>>;

    async fn open_session(
        &self,
        _request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        match self.open().await {
            Ok(opened) => Ok(Response::new(opened)),
            Err(error) => Err(reject(&self.hub, &error)),
        }
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let request = Checks::get(request.into_inner());
        self.call(Method::Get, request, |outcome| match outcome {
            Outcome::Value(value) => Some(kv::get_response(value)),
            _ => None,
        })
        .await
    }

    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let request = self.checks.put(request.into_inner());
        self.call(Method::Put, request, |outcome| match outcome {
            Outcome::Written(Written::Put) => Some(v1::PutResponse {}),
            _ => None,
        })
        .await
    }

    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        let request = self.checks.append(request.into_inner());
        self.call(Method::Append, request, |outcome| match outcome {
            Outcome::Written(Written::Append { length }) => Some(v1::AppendResponse { length }),
            _ => None,
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let request = Checks::delete(request.into_inner());
        self.call(Method::Delete, request, |outcome| match outcome {
            Outcome::Written(Written::Delete { existed }) => Some(v1::DeleteResponse { existed }),
            _ => None,
        })
        .await
    }

    async fn compare_and_swap(
        &self,
        request: Request<v1::CompareAndSwapRequest>,
    ) -> Result<Response<v1::CompareAndSwapResponse>, Status> {
        let request = self.checks.compare_and_swap(request.into_inner());
        self.call(Method::CompareAndSwap, request, |outcome| match outcome {
            Outcome::Written(Written::CompareAndSwap { swapped }) => {
                Some(v1::CompareAndSwapResponse { swapped })
            }
            _ => None,
        })
        .await
    }

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let request = request.into_inner();
        if let Err(error) = check_scan(&request) {
            return Err(reject(&self.hub, &error));
        }
        // One page waits while the one before it is sent: a client that doesn't fetch stops the scan.
        let (pages, stream) = mpsc::channel(1);
        tokio::spawn(scan(Arc::clone(&self.hub), request, pages));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn export(
        &self,
        _request: Request<v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        Err(reject(
            &self.hub,
            &errors::unavailable("exports are not served yet", 1_000),
        ))
    }

    async fn batch(
        &self,
        request: Request<Streaming<v1::BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        if let Err(error) = self.hub.check_running() {
            return Err(reject(&self.hub, &error));
        }
        let answers = BatchStream::open(Arc::clone(&self.hub), request.into_inner());
        Ok(Response::new(answers))
    }
}

fn check_scan(request: &ScanRequest) -> Result<(), ErrorDetail> {
    for (field, key) in [("start", &request.start), ("end", &request.end)] {
        // One byte more than a key: the bound after the longest key.
        if key.len() > MAX_KEY_BYTES + 1 {
            let limit = MAX_KEY_BYTES as u64 + 1;
            return Err(errors::too_large(field, key.len() as u64, limit));
        }
    }
    Ok(())
}

/// Sends a range page by page; each page is a linearizable read of its own.
async fn scan(
    hub: Arc<Hub>,
    request: ScanRequest,
    pages: mpsc::Sender<Result<ScanResponse, Status>>,
) {
    let mut start = request.start.clone();
    let mut left = match request.limit {
        0 => u64::MAX,
        limit => limit,
    };
    loop {
        // Room first, so that a page is read only when it can be sent.
        let Ok(room) = pages.reserve().await else {
            return;
        };
        let page = match page(&hub, start, request.end.clone(), left).await {
            Ok(page) => page,
            Err(error) => {
                room.send(Err(reject(&hub, &error)));
                return;
            }
        };
        let Page { pairs, more } = page;
        left = left.saturating_sub(pairs.len() as u64);
        let next = pairs.last().map(|(key, _)| after(key));
        let keys_only = request.keys_only;
        let pair = |(key, value)| Pair {
            key,
            value: if keys_only { Bytes::new() } else { value },
        };
        let pairs: Vec<Pair> = pairs.into_iter().map(pair).collect();
        if !pairs.is_empty() {
            room.send(Ok(ScanResponse { pairs }));
        }
        match next {
            Some(next) if more && left > 0 => start = next,
            _ => return,
        }
    }
}

struct Page {
    pairs: Vec<(Bytes, Bytes)>,
    more: bool,
}

async fn page(hub: &Hub, start: Bytes, end: Bytes, left: u64) -> Result<Page, ErrorDetail> {
    let limits = &hub.options.limits;
    let limit = u32::try_from(left).unwrap_or(u32::MAX);
    let query = Query::Scan {
        start,
        end,
        limit: limit.min(limits.scan_page_pairs),
        max_bytes: limits.scan_page_bytes,
        shards: None,
    };
    let result = hub.ask(ReplicaRequest::Read(query)).await?;
    match kv::outcome(result, |node| hub.address_or_empty(node))? {
        Outcome::Page { pairs, more } => Ok(Page { pairs, more }),
        _ => Err(kv::mismatch()),
    }
}

/// The smallest key after `key`.
fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.extend_from_slice(&[0]);
    next.freeze()
}
