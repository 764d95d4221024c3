//! Scans: reads of ranges over all groups.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use api::v1::{self, ScanRequest, ScanResponse};
use bytes::Bytes;
use futures::future::try_join_all;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use tokio::time::{Instant, sleep, timeout_at};
use types::{ConfigNum, Gid};

use crate::Error;
use crate::failure;
use crate::pages::{Broken, Next, PageRequest, Pages, Trouble};
use crate::route::{Router, is_single};

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: Bytes,
    /// The value; empty when the scan asked for keys only.
    pub value: Bytes,
}

/// The extent of a scan. The default is all pairs.
///
/// ```
/// use shardkv_client::ScanOptions;
///
/// let users = ScanOptions::prefix("user/").limit(100).keys_only();
/// assert_eq!(users.end, "user0");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// The first key, inclusive; empty for the first of all.
    pub start: Bytes,
    /// The end, exclusive; empty for none.
    pub end: Bytes,
    /// The most pairs; `None` for all.
    pub limit: Option<u64>,
    /// True to leave values out.
    pub keys_only: bool,
}

impl ScanOptions {
    /// Selects all pairs.
    pub fn all() -> Self {
        Self::default()
    }

    /// Selects the pairs with `start <= key < end`; an empty `end` is no bound.
    pub fn range(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self {
            start: start.into(),
            end: end.into(),
            ..Self::default()
        }
    }

    /// Selects the pairs whose key starts with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = after_prefix(&start);
        Self::range(start, end)
    }

    /// Limits the scan to `limit` pairs.
    #[must_use]
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Leaves values out.
    #[must_use]
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }
}

/// Returns the least key that is greater than all keys that start with `prefix`; empty if there is none.
fn after_prefix(prefix: &Bytes) -> Bytes {
    let kept = prefix.iter().rposition(|&byte| byte != u8::MAX);
    let Some((last, head)) = kept
        .and_then(|at| prefix.get(..=at))
        .and_then(<[u8]>::split_last)
    else {
        return Bytes::new();
    };
    let mut end = head.to_vec();
    end.push(last + 1);
    end.into()
}

/// The pairs of a scan, in key order: a [`Stream`], to be read with [`futures::StreamExt`] or [`futures::TryStreamExt`].
///
/// The scan reads from all groups that own shards at once and merges their pairs. It holds about one page of each group in
/// memory, whatever the range's size: a slow reader slows the nodes down, by the flow control of HTTP/2. When a leader changes or
/// a shard moves, the scan continues after the last key that it returned. It ends after the first error.
pub struct Scan {
    pairs: BoxStream<'static, Result<Pair, Error>>,
    /// The number of sources that aren't finished.
    open_groups: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").finish_non_exhaustive()
    }
}

impl Stream for Scan {
    type Item = Result<Pair, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pairs.as_mut().poll_next(cx)
    }
}

impl Scan {
    /// Returns the number of groups from which the scan reads: those that have pairs left. The scan holds at most one page of each,
    /// and the window of its stream ([`crate::ClientOptions::scan_window_bytes`]). It is 0 before the first pair.
    pub fn open_groups(&self) -> usize {
        self.open_groups.load(Ordering::Relaxed)
    }

    pub(crate) fn new(router: Router, timeout: Duration, options: ScanOptions) -> Self {
        let open_groups = Arc::<AtomicUsize>::default();
        let merge = Merge {
            open_groups: Arc::clone(&open_groups),
            trouble: Trouble::new(&router),
            router,
            timeout,
            start: options.start,
            end: options.end,
            left: options.limit,
            keys_only: options.keys_only,
            planned: ConfigNum(0),
            sources: Vec::new(),
            heads: BinaryHeap::new(),
            hungry: false,
            over: false,
        };
        let pairs = stream::unfold(merge, async |mut merge| {
            let next = merge.next().await?;
            merge.over |= next.is_err();
            Some((next, merge))
        });
        Self {
            // A poll after the end returns `None` and does not panic.
            pairs: pairs.fuse().boxed(),
            open_groups,
        }
    }
}

/// The state of a scan: one source for each group that owns shards, merged in key order.
///
/// Invariant: no source has a pair before `start`, and each source that isn't finished has a head before the next pair is
/// returned. So a source that begins anew does so at `start`, and no pair is missed or doubled.
struct Merge {
    router: Router,
    /// The time that the next pair may take, retries included.
    timeout: Duration,
    trouble: Trouble,
    /// The lower bound of the keys that were not returned yet.
    start: Bytes,
    end: Bytes,
    left: Option<u64>,
    keys_only: bool,
    /// The configuration by which the sources were made.
    planned: ConfigNum,
    sources: Vec<Source>,
    /// The next key of each source, and its place in `sources`.
    heads: BinaryHeap<Reverse<(Bytes, usize)>>,
    open_groups: Arc<AtomicUsize>,
    /// True if a source must be filled before the next pair.
    hungry: bool,
    over: bool,
}

/// The pairs of one group's shards.
struct Source {
    gid: Gid,
    shards: Vec<v1::ShardRun>,
    pages: Option<Pages>,
    page: std::vec::IntoIter<v1::Pair>,
    /// The next pair, while its key is in the heap.
    head: Option<v1::Pair>,
    finished: bool,
    trouble: Trouble,
}

/// The reason why a source can't continue by itself.
enum Stop {
    Elsewhere(ConfigNum, Duration),
    Failed(Error),
}

impl Merge {
    async fn next(&mut self) -> Option<Result<Pair, Error>> {
        if self.over || self.left == Some(0) {
            return None;
        }
        if self.sources.is_empty() || self.hungry {
            let deadline = Instant::now() + self.timeout;
            match timeout_at(deadline, self.fill()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Some(Err(error)),
                Err(_) => return Some(Err(self.late())),
            }
        }
        let Reverse((_, at)) = self.heads.pop()?;
        let source = self.sources.get_mut(at)?;
        let pair = source.head.take()?;
        let next = source.raise_head();
        self.hungry |= source.is_empty();
        self.heads.extend(next.map(|key| Reverse((key, at))));
        Some(self.step(pair))
    }

    fn late(&mut self) -> Error {
        let waiting = self.sources.iter_mut().filter(|source| source.is_empty());
        let said = waiting.filter_map(|source| source.trouble.last.take());
        let last = said.chain(self.trouble.last.take()).next();
        let unrouted = self.sources.is_empty().then(|| self.router.unowned());
        let late = failure::timeout(self.timeout, false, last.or(unrouted));
        self.router.explain(late)
    }

    /// Moves behind a pair, and returns it.
    fn step(&mut self, pair: v1::Pair) -> Result<Pair, Error> {
        if pair.key < self.start || (!self.end.is_empty() && pair.key >= self.end) {
            return Err(Error::Protocol {
                message: "a scan returned a key out of order or out of its range".to_owned(),
                maybe_applied: false,
            });
        }
        let mut behind = Vec::with_capacity(pair.key.len() + 1);
        behind.extend_from_slice(&pair.key);
        behind.push(0);
        self.start = behind.into();
        self.left = self.left.map(|left| left.saturating_sub(1));
        Ok(Pair {
            key: pair.key,
            value: pair.value,
        })
    }

    /// Gets a head for each source that isn't finished.
    async fn fill(&mut self) -> Result<(), Error> {
        loop {
            if self.sources.is_empty() {
                self.route().await;
            }
            let ask = ScanRequest {
                start: self.start.clone(),
                end: self.end.clone(),
                limit: self.left.unwrap_or(0),
                keys_only: self.keys_only,
                shards: Vec::new(),
            };
            let (router, planned) = (&self.router, self.planned);
            let empty = self.sources.iter_mut().filter(|source| source.is_empty());
            let filled = try_join_all(empty.map(|source| source.fill(router, planned, &ask))).await;
            let (num, pause) = match filled {
                Ok(_) => break,
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Elsewhere(num, pause)) => (num, pause),
            };
            self.trouble.last = self
                .sources
                .iter_mut()
                .find_map(|source| source.trouble.last.take());
            self.sources.clear();
            self.heads.clear();
            self.router.configured_at(num, pause).await;
        }
        // If the source's head is in the heap already, there is nothing to add.
        for (at, source) in self.sources.iter_mut().enumerate() {
            if source.head.is_none() {
                let next = source.raise_head();
                self.heads.extend(next.map(|key| Reverse((key, at))));
            }
        }
        self.count_open();
        self.hungry = false;
        Ok(())
    }

    /// Counts the sources that hold a page or a window.
    fn count_open(&self) {
        let open = self.sources.iter().filter(|it| !it.finished).count();
        self.open_groups.store(open, Ordering::Relaxed);
    }

    /// Makes one source for each group that owns shards.
    async fn route(&mut self) {
        let config = self.router.routable().await;
        self.planned = config.num();
        let mut runs: BTreeMap<Gid, Vec<v1::ShardRun>> = BTreeMap::new();
        let mut first = 0;
        for (count, gid) in config.owner_runs() {
            runs.entry(gid)
                .or_default()
                .push(v1::ShardRun { first, count });
            first += count;
        }
        let owned = runs.into_iter().filter(|(gid, _)| *gid != Gid::NONE);
        let source = |(gid, shards)| Source {
            gid,
            // A node that doesn't know shards serves all keys.
            shards: if is_single(&config) {
                Vec::new()
            } else {
                shards
            },
            pages: None,
            page: Vec::new().into_iter(),
            head: None,
            finished: false,
            trouble: Trouble::new(&self.router),
        };
        self.sources = owned.map(source).collect();
    }
}

impl Source {
    /// Returns true if a page must come before the next pair is known.
    fn is_empty(&self) -> bool {
        !self.finished && self.head.is_none() && self.page.len() == 0
    }

    /// Makes the next pair the head, and returns its key.
    fn raise_head(&mut self) -> Option<Bytes> {
        self.head = self.page.next();
        self.head.as_ref().map(|pair| pair.key.clone())
    }

    /// Gets the next page, or finds that there is none.
    async fn fill(
        &mut self,
        router: &Router,
        planned: ConfigNum,
        ask: &ScanRequest,
    ) -> Result<(), Stop> {
        loop {
            let broken = match self.pull(router, ask).await {
                Ok(Some(page)) if page.pairs.is_empty() => continue,
                Ok(Some(page)) => {
                    self.trouble.over();
                    self.page = page.pairs.into_iter();
                    return Ok(());
                }
                Ok(None) => {
                    self.pages = None;
                    self.finished = true;
                    return Ok(());
                }
                Err(broken) => broken,
            };
            self.pages = None;
            match self.trouble.judge(router, &broken, planned) {
                Ok(Next::Again(pause)) => sleep(pause).await,
                Ok(Next::Elsewhere(num, pause)) => return Err(Stop::Elsewhere(num, pause)),
                Err(error) => return Err(Stop::Failed(error)),
            }
        }
    }

    async fn pull(
        &mut self,
        router: &Router,
        ask: &ScanRequest,
    ) -> Result<Option<ScanResponse>, Broken> {
        let pages = match &mut self.pages {
            Some(open) => open,
            none => {
                let request = ScanRequest {
                    shards: self.shards.clone(),
                    ..ask.clone()
                };
                let age = self.trouble.age();
                none.insert(Pages::open(router, self.gid, age, PageRequest::Scan(request)).await?)
            }
        };
        pages.next(router).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_range() {
        for (prefix, end) in [
            (&b"a"[..], &b"b"[..]),
            (b"a\xff", b"b"),
            (b"\xff\xff", b""),
            (b"", b""),
            (b"a\xfe\xff", b"a\xff"),
        ] {
            let options = ScanOptions::prefix(Bytes::copy_from_slice(prefix));
            assert_eq!(options.start, prefix);
            assert_eq!(options.end, end, "{prefix:?}");
        }
    }
}
