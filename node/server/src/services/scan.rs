//! `Kv.Scan`: a range in key order, page by page. Each page is a linearizable read of its own.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use api::errors;
use api::v1::{ErrorDetail, Pair, ScanRequest, ScanResponse};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _};
use shardkv::{GroupKind, MAX_KEY_BYTES, Query, Response as Outcome};
use shardkv_client::{Client, ClientOptions, ConnectError, ScanOptions};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Streaming;
use types::ShardSet;

use super::pages::{PageSender, Pages, pages};
use crate::convert::kv;
use crate::forward::{self, Forwarder, is_elsewhere};
use crate::metrics::Metrics;
use crate::options::Limits;
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;

/// Serves scans.
pub(crate) struct Scanner {
    replica: Arc<ReplicaHandle>,
    routing: Arc<Routing>,
    forwarder: Arc<Forwarder>,
    metrics: Arc<Metrics>,
    limits: Limits,
    /// The addresses that the client below begins with.
    seeds: Vec<String>,
    request_timeout: Duration,
    /// A client that reads from all groups; created at the first scan that needs it.
    all_groups: OnceLock<Result<Client, ConnectError>>,
}

impl Scanner {
    /// Creates a scanner. `seeds` are the addresses of the controllers, or of this group's nodes.
    pub(crate) fn new(
        replica: Arc<ReplicaHandle>,
        routing: Arc<Routing>,
        forwarder: Arc<Forwarder>,
        metrics: Arc<Metrics>,
        limits: Limits,
        seeds: Vec<String>,
        request_timeout: Duration,
    ) -> Self {
        Self {
            replica,
            routing,
            forwarder,
            metrics,
            limits,
            seeds,
            request_timeout,
            all_groups: OnceLock::new(),
        }
    }

    /// Returns the client that reads from all groups.
    fn all_groups(&self) -> Result<Client, ErrorDetail> {
        let create = || {
            let mut options = ClientOptions::new(self.seeds.clone());
            options.request_timeout = self.request_timeout;
            Client::lazy(options)
        };
        let client = self.all_groups.get_or_init(create).clone();
        client.map_err(|error| errors::unavailable(error, 1_000))
    }
}

/// Starts a scan.
pub(crate) fn open(
    scanner: &Arc<Scanner>,
    request: ScanRequest,
    forbidden: bool,
) -> Result<Pages, ErrorDetail> {
    check_bounds(&request.start, &request.end)?;
    let shards = api::shards_from_wire(&request.shards)
        .map_err(|error| errors::bad_request("shards", error))?;
    let shards = (!shards.is_empty()).then_some(shards);
    let kind = scanner.routing.kind();
    let controller = kind == GroupKind::Controller;
    // Named shards are read from this very group.
    let here = forbidden || shards.is_some();
    if controller && here {
        return Err(scanner.routing.wrong_group());
    }
    let (pages, stream) = pages();
    let scan = Scan {
        scanner: Arc::clone(scanner),
        left: match request.limit {
            0 => u64::MAX,
            limit => limit,
        },
        request,
        shards,
    };
    if here {
        tokio::spawn(scan.here(pages));
    } else if kind == GroupKind::Standalone {
        tokio::spawn(scan.here_or_at_the_leader(pages));
    } else {
        let slot = scanner.forwarder.scan_permit()?;
        scanner.metrics.forwarded.inc();
        tokio::spawn(scan.everywhere(pages, slot));
    }
    Ok(stream)
}

/// Refuses bounds that are longer than any key.
pub(crate) fn check_bounds(start: &Bytes, end: &Bytes) -> Result<(), ErrorDetail> {
    for (field, key) in [("start", start), ("end", end)] {
        // One byte more than a key: the bound after the longest key.
        if key.len() > MAX_KEY_BYTES + 1 {
            let limit = MAX_KEY_BYTES as u64 + 1;
            return Err(errors::too_large(field, key.len() as u64, limit));
        }
    }
    Ok(())
}

/// A scan and its remaining range.
struct Scan {
    scanner: Arc<Scanner>,
    /// The request. Its start moves on with each page.
    request: ScanRequest,
    /// The number of pairs that may still be sent.
    left: u64,
    shards: Option<ShardSet>,
}

/// The result of a scan of the own group's state.
enum End {
    Over,
    /// The caller has stopped fetching. The stream must not end as complete, because the caller may still come back to it.
    Gone,
    Refused(ErrorDetail),
}

impl Scan {
    async fn here(mut self, pages: PageSender) {
        match self.local(&pages).await {
            End::Over => pages.end().await,
            End::Gone => {}
            End::Refused(error) => self.refuse(pages, &error).await,
        }
    }

    async fn here_or_at_the_leader(mut self, pages: PageSender) {
        let error = match self.local(&pages).await {
            End::Over => return pages.end().await,
            End::Gone => return,
            End::Refused(error) => error,
        };
        if !is_elsewhere(&error) {
            return self.refuse(pages, &error).await;
        }
        self.request.limit = if self.request.limit == 0 {
            0
        } else {
            self.left
        };
        match forward::scan(&self.scanner.forwarder, self.request.clone()).await {
            Ok(stream) => relay(&self.scanner.metrics, stream, pages).await,
            Err(error) => self.refuse(pages, &error).await,
        }
    }

    /// Sends the pairs of all groups: a client of its own reads them and merges the results.
    async fn everywhere(self, pages: PageSender, _slot: OwnedSemaphorePermit) {
        let client = match self.scanner.all_groups() {
            Ok(client) => client,
            Err(error) => return self.refuse(pages, &error).await,
        };
        let mut pairs = client.scan(ScanOptions {
            start: self.request.start.clone(),
            end: self.request.end.clone(),
            limit: (self.request.limit != 0).then_some(self.request.limit),
            keys_only: self.request.keys_only,
        });
        loop {
            let Some(room) = pages.room().await else {
                return;
            };
            match self.gather(&mut pairs).await {
                Ok(page) if page.is_empty() => break,
                Ok(page) => room.send(response(page, false)),
                Err(error) => {
                    drop(room);
                    return self.refuse(pages, &errors::unavailable(error, 100)).await;
                }
            }
        }
        pages.end().await;
    }

    /// Returns the next page: at least one pair if there is one, and all further pairs that are there without waiting.
    async fn gather(
        &self,
        pairs: &mut shardkv_client::Scan,
    ) -> Result<Vec<(Bytes, Bytes)>, shardkv_client::Error> {
        let limits = &self.scanner.limits;
        let mut page = Vec::new();
        let mut bytes = 0;
        let mut next = pairs.next().await;
        while let Some(pair) = next {
            let pair = pair?;
            bytes += pair.key.len() + pair.value.len();
            page.push((pair.key, pair.value));
            if bytes >= limits.scan_page_bytes as usize
                || page.len() >= limits.scan_page_pairs as usize
            {
                break;
            }
            next = pairs.next().now_or_never().flatten();
        }
        Ok(page)
    }

    async fn refuse(&self, pages: PageSender, error: &ErrorDetail) {
        pages.fail(self.scanner.metrics.reject(error)).await;
    }

    /// Sends the pairs of this node's group while the node leads.
    async fn local(&mut self, pages: &PageSender) -> End {
        loop {
            // The slot comes first, so that a page is read only when it can be sent.
            let Some(room) = pages.room().await else {
                return End::Gone;
            };
            let (pairs, more) = match self.page().await {
                Ok(page) => page,
                Err(error) => return End::Refused(error),
            };
            self.left = self.left.saturating_sub(pairs.len() as u64);
            let next = pairs.last().map(|(key, _)| after(key));
            if !pairs.is_empty() {
                room.send(response(pairs, self.request.keys_only));
            }
            match next {
                Some(next) if more && self.left > 0 => self.request.start = next,
                _ => return End::Over,
            }
        }
    }

    async fn page(&self) -> Result<(Vec<(Bytes, Bytes)>, bool), ErrorDetail> {
        let limits = &self.scanner.limits;
        let limit = u32::try_from(self.left).unwrap_or(u32::MAX);
        let query = Query::Scan {
            start: self.request.start.clone(),
            end: self.request.end.clone(),
            limit: limit.min(limits.scan_page_pairs),
            max_bytes: limits.scan_page_bytes,
            shards: self.shards.clone(),
        };
        let result = self.scanner.replica.ask(kv::read(query)).await?;
        match kv::outcome(result, |node| self.scanner.replica.address_or_empty(node))? {
            Outcome::Page { pairs, more } => Ok((pairs, more)),
            _ => Err(kv::mismatch()),
        }
    }
}

/// Relays another node's pages, at the pace at which the caller fetches them.
pub(crate) async fn relay(metrics: &Metrics, mut from: Streaming<ScanResponse>, to: PageSender) {
    loop {
        let page = match from.message().await {
            Ok(Some(page)) => page,
            Ok(None) => return to.end().await,
            Err(status) => {
                let detail = api::error_detail(&status);
                let broke = || errors::unavailable(status.message(), 100);
                let detail = detail.unwrap_or_else(broke);
                return to.fail(metrics.reject(&detail)).await;
            }
        };
        match to.room().await {
            Some(room) => room.send(page),
            None => return,
        }
    }
}

/// Converts a page to the wire.
pub(crate) fn response(pairs: Vec<(Bytes, Bytes)>, keys_only: bool) -> ScanResponse {
    let pair = |(key, value)| Pair {
        key,
        value: if keys_only { Bytes::new() } else { value },
    };
    ScanResponse {
        pairs: pairs.into_iter().map(pair).collect(),
    }
}

/// Returns the smallest key after `key`.
fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.extend_from_slice(&[0]);
    next.freeze()
}
