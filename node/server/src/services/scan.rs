//! `Kv.Scan`: a range in key order, page by page. Each page is a linearizable read of its own.
//!
//! The replica's thread only confirms that it leads. Then a reader thread reads the page from the state as of one commit, and
//! checks in the same state that the shards are served here. So a page costs the replica's thread as much as a point look-up.
//! A page is read when the caller asks for it, holds a share of a budget until it was fetched, and is dropped when the caller goes.

use std::sync::Arc;

use api::errors;
use api::v1::{ErrorDetail, Pair, ScanRequest, ScanResponse};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _};
use shardkv::{
    GroupKind, MAX_KEY_BYTES, MAX_SCAN_PAIRS, PageRequest, Response as Outcome, read_page,
};
use shardkv_client::ScanOptions;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Streaming;
use types::{ClusterId, ShardSet};

use super::all_groups::AllGroups;
use super::pages::{PageSender, Pages, pages};
use crate::admission::Admission;
use crate::convert::kv;
use crate::forward::{self, Forwarder, is_elsewhere};
use crate::metrics::Metrics;
use crate::options::Limits;
use crate::page_budget::{PageBudget, PageShare};
use crate::reads::{ReadKind, Readers};
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;

/// The approximate memory of a pair beside its key and value, in bytes.
const PAIR_BYTES: usize = 64;

/// The bounds of reads of pages and of counts.
pub(crate) const fn read_kind(limits: &Limits) -> ReadKind {
    ReadKind {
        what: "reads of scans",
        // Fewer than cores, so that scans leave some to writes.
        max_running: 2,
        max_admitted: limits.max_scans,
    }
}

/// Serves scans.
pub(crate) struct Scanner {
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readers: Arc<Readers>,
    pub(crate) limits: Limits,
    pub(crate) all_groups: AllGroups,
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
    let (pages, stream) = pages("begin again after the last key that arrived");
    let scan = Scan {
        scanner: Arc::clone(scanner),
        left: match request.limit {
            0 => u64::MAX,
            limit => limit,
        },
        request,
        shards,
    };
    let admission = &scanner.admission;
    if here {
        tokio::spawn(scan.here(pages, admission.scan()?));
    } else if kind == GroupKind::Standalone {
        tokio::spawn(scan.here_or_at_the_leader(pages, admission.scan()?));
    } else {
        let slot = admission.relayed_scan()?;
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
    async fn here(mut self, mut pages: PageSender, _slot: OwnedSemaphorePermit) {
        match self.local(&mut pages).await {
            End::Over => pages.end().await,
            End::Gone => {}
            End::Refused(error) => self.refuse(pages, &error).await,
        }
    }

    async fn here_or_at_the_leader(mut self, mut pages: PageSender, _slot: OwnedSemaphorePermit) {
        let error = match self.local(&mut pages).await {
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
        let Some(room) = pages.room().await else {
            return;
        };
        let Some(opened) = room.unless_gone(self.open_relayed()).await else {
            return;
        };
        let Scanner {
            admission, metrics, ..
        } = &*self.scanner;
        match opened {
            Ok(opened) => relay(metrics, &admission.relayed_pages, opened, pages).await,
            Err(error) => self.refuse(pages, &error).await,
        }
    }

    /// Opens the scan at the leader. The stream comes with the share of its window.
    async fn open_relayed(&self) -> Result<(Streaming<ScanResponse>, PageShare), ErrorDetail> {
        let Scanner {
            admission,
            forwarder,
            ..
        } = &*self.scanner;
        let window = admission.relayed_window().await?;
        let stream = forward::scan(forwarder, self.request.clone()).await?;
        Ok((stream, window))
    }

    /// Sends the pairs of all groups: a client of its own reads them and merges the results.
    async fn everywhere(self, mut pages: PageSender, _slot: OwnedSemaphorePermit) {
        let configs = self.scanner.routing.configs();
        let (client, cluster) = match self.scanner.all_groups.client(configs) {
            Ok(client) => client,
            Err(error) => return self.refuse(pages, &error).await,
        };
        let mut pairs = client.scan(ScanOptions {
            start: self.request.start.clone(),
            end: self.request.end.clone(),
            limit: (self.request.limit != 0).then_some(self.request.limit),
            keys_only: self.request.keys_only,
        });
        let groups = client.config().map_or(0, |config| config.groups().len());
        let Some(room) = pages.room().await else {
            return;
        };
        // All at once: scans that hold a part and wait for the rest would wait for each other.
        let budget = &self.scanner.admission.merged_pages;
        let taken = budget.take(groups * self.bytes_of_group());
        let mut held = match room.unless_gone(taken).await {
            Some(Ok(share)) => share,
            Some(Err(error)) => return self.refuse(pages, &error).await,
            None => return,
        };
        loop {
            let Some(room) = pages.room().await else {
                return;
            };
            let gathered = self.gathered(&mut pairs, &mut held);
            let Some(page) = room.unless_gone(gathered).await else {
                return;
            };
            match page.and_then(|page| self.check_cluster(cluster).map(|()| page)) {
                Ok(None) => break,
                Ok(Some((page, share))) => room.send(response(page), Some(share)),
                Err(error) => return self.refuse(pages, &error).await,
            }
        }
        pages.end().await;
    }

    /// Fails if the node has learnt meanwhile that its group follows other controllers than those of `cluster`.
    fn check_cluster(&self, cluster: ClusterId) -> Result<(), ErrorDetail> {
        let known = self.scanner.routing.configs().known();
        if known.is_some_and(|known| known.cluster == cluster) {
            return Ok(());
        }
        let why = "the scan read from another cluster than the node's: begin anew";
        Err(errors::unavailable(why, 100))
    }

    /// Returns the next page with its share of the budget; `None` at the end. `held` is the share of the pages and windows of `pairs`.
    async fn gathered(
        &self,
        pairs: &mut shardkv_client::Scan,
        held: &mut PageShare,
    ) -> Result<Option<(Pairs, PageShare)>, ErrorDetail> {
        let page = self.gather(pairs).await;
        let page = page.map_err(|error| errors::unavailable(error, 100))?;
        if page.is_empty() {
            return Ok(None);
        }
        held.shrink(pairs.open_groups() * self.bytes_of_group());
        let pages = &self.scanner.admission.relayed_pages;
        let share = pages.take(size(&page)).await?;
        Ok(Some((page, share)))
    }

    /// Returns the bytes that a scan over all groups holds for one of them: a page, and the window of its stream.
    fn bytes_of_group(&self) -> usize {
        let window = self.scanner.admission.page_window_bytes;
        window as usize + self.scanner.limits.scan_page_bytes as usize
    }

    /// Returns the next page: at least one pair if there is one, and all further pairs that are there without waiting.
    async fn gather(
        &self,
        pairs: &mut shardkv_client::Scan,
    ) -> Result<Pairs, shardkv_client::Error> {
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
    async fn local(&mut self, pages: &mut PageSender) -> End {
        loop {
            let Some(room) = pages.room().await else {
                return End::Gone;
            };
            let Some(page) = room.unless_gone(self.page()).await else {
                return End::Gone;
            };
            let (pairs, more, share) = match page {
                Ok(page) => page,
                Err(error) => return End::Refused(error),
            };
            self.left = self.left.saturating_sub(pairs.len() as u64);
            let next = pairs.last().map(|(key, _)| after(key));
            if !pairs.is_empty() {
                room.send(response(pairs), Some(share));
            }
            match next {
                Some(next) if more && self.left > 0 => self.request.start = next,
                _ => return End::Over,
            }
        }
    }

    /// Reads the next page. The flag is true if there are more.
    async fn page(&self) -> Result<(Pairs, bool, PageShare), ErrorDetail> {
        let scanner = &self.scanner;
        let request = self.page_request();
        let mut share = scanner.admission.pages.take(self.most_bytes()).await?;
        scanner.replica.confirm().await?;
        let read = move |state: &dyn replica::StateReader| read_page(state, &request);
        let page = scanner.readers.read(read).await?;
        match page.map_err(|error| kv::kv_error(&error))? {
            Outcome::Page { pairs, more } => {
                share.shrink(size(&pairs));
                Ok((pairs, more, share))
            }
            _ => Err(kv::mismatch()),
        }
    }

    fn page_request(&self) -> PageRequest {
        let limits = &self.scanner.limits;
        let limit = u32::try_from(self.left).unwrap_or(u32::MAX);
        PageRequest {
            start: self.request.start.clone(),
            end: self.request.end.clone(),
            limit: limit.min(limits.scan_page_pairs),
            max_bytes: limits.scan_page_bytes,
            keys_only: self.request.keys_only,
            shards: self.shards.clone(),
        }
    }

    /// Returns the most bytes that the next page may have, of values within the present limit.
    fn most_bytes(&self) -> usize {
        let limits = &self.scanner.limits;
        let value = if self.request.keys_only {
            0
        } else {
            limits.max_value_bytes
        };
        let pairs = limits.scan_page_pairs.min(MAX_SCAN_PAIRS) as usize;
        limits.scan_page_bytes as usize + MAX_KEY_BYTES + value + pairs * PAIR_BYTES
    }
}

/// Relays another node's pages, at the pace at which the caller fetches them. The pages come with the share of their stream's window.
pub(crate) async fn relay(
    metrics: &Metrics,
    budget: &PageBudget,
    (mut from, _window): (Streaming<ScanResponse>, PageShare),
    mut to: PageSender,
) {
    loop {
        let Some(room) = to.room().await else {
            return;
        };
        let next = async {
            match from.message().await {
                Ok(Some(page)) => {
                    let bytes = prost::Message::encoded_len(&page);
                    Ok(Some((page, budget.take(bytes).await?)))
                }
                Ok(None) => Ok(None),
                Err(status) => {
                    let broke = || errors::unavailable(status.message(), 100);
                    Err(api::error_detail(&status).unwrap_or_else(broke))
                }
            }
        };
        let Some(next) = room.unless_gone(next).await else {
            return;
        };
        match next {
            Ok(Some((page, share))) => room.send(page, Some(share)),
            Ok(None) => return to.end().await,
            Err(error) => return to.fail(metrics.reject(&error)).await,
        }
    }
}

type Pairs = Vec<(Bytes, Bytes)>;

/// Returns the approximate memory of a page, in bytes.
fn size(pairs: &[(Bytes, Bytes)]) -> usize {
    let size = |(key, value): &(Bytes, Bytes)| key.len() + value.len() + PAIR_BYTES;
    pairs.iter().map(size).sum()
}

/// Converts a page to the wire.
pub(crate) fn response(pairs: Vec<(Bytes, Bytes)>) -> ScanResponse {
    let pair = |(key, value)| Pair { key, value };
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
