//! Reading ranges.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::pin::Pin;
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
use crate::pages::{Ask, Broken, Next, Pages, Trouble};
use crate::route::{Router, is_single};
use crate::verdict;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: Bytes,
    /// The value; empty when the scan asked for keys only.
    pub value: Bytes,
}

/// Which pairs a scan returns. The default is all.
///
/// ```
/// use shardkv_client::ScanOptions;
///
/// let users = ScanOptions::prefix("user/").limit(100).keys_only();
/// assert_eq!(users.end, "user0");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// The first key, inclusive; empty for the very first.
    pub start: Bytes,
    /// The end, exclusive; empty for none.
    pub end: Bytes,
    /// The most pairs; `None` for all.
    pub limit: Option<u64>,
    /// Leave values out.
    pub keys_only: bool,
}

impl ScanOptions {
    /// All pairs.
    pub fn all() -> Self {
        Self::default()
    }

    /// Pairs with `start <= key < end`; an empty `end` is no bound.
    pub fn range(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self {
            start: start.into(),
            end: end.into(),
            ..Self::default()
        }
    }

    /// Pairs whose key starts with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = after_prefix(&start);
        Self::range(start, end)
    }

    /// At most `limit` pairs.
    #[must_use]
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Without values.
    #[must_use]
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }
}

/// The least key that is greater than all keys that start with `prefix`; empty if there is none.
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

/// The pairs of a scan, in key order: a [`Stream`] that is to be read with
/// [`futures::StreamExt`] or [`futures::TryStreamExt`].
///
/// It reads from all groups that own shards at once and merges what they send. It holds about one page of each in memory,
/// whatever the range's size: a reader that is slow slows the nodes down, by the flow control of HTTP/2. When a leader
/// changes or a shard moves it goes on behind the last key that it returned. It ends after the first error.
pub struct Scan {
    pairs: BoxStream<'static, Result<Pair, Error>>,
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
    pub(crate) fn new(router: Router, timeout: Duration, options: ScanOptions) -> Self {
        let gather = Gather {
            trouble: Trouble::new(router.options()),
            router,
            timeout,
            start: options.start,
            end: options.end,
            left: options.limit,
            keys_only: options.keys_only,
            planned: ConfigNum(0),
            parts: Vec::new(),
            heads: BinaryHeap::new(),
            hungry: false,
            over: false,
        };
        let pairs = stream::unfold(gather, async |mut gather| {
            let next = gather.next().await?;
            gather.over |= next.is_err();
            Some((next, gather))
        });
        Self {
            // Asking on after the end is not worth a panic.
            pairs: pairs.fuse().boxed(),
        }
    }
}

/// How far a scan has come: one stream of each group that owns shards, merged in key order.
///
/// Invariant: no part has a pair before `start`, and each part that isn't finished has a head before the next pair is
/// returned. So a part that begins anew does so at `start`, and nothing is missed or doubled.
struct Gather {
    router: Router,
    /// How long the next pair may take, retries included.
    timeout: Duration,
    trouble: Trouble,
    /// The first key that was not returned yet may be this one.
    start: Bytes,
    end: Bytes,
    left: Option<u64>,
    keys_only: bool,
    /// The configuration that the parts are made by.
    planned: ConfigNum,
    parts: Vec<Part>,
    /// The next key of each part, and its place in `parts`.
    heads: BinaryHeap<Reverse<(Bytes, usize)>>,
    /// Whether a part must be filled before the next pair.
    hungry: bool,
    over: bool,
}

/// The shards of one group.
struct Part {
    gid: Gid,
    shards: Vec<v1::ShardRun>,
    pages: Option<Pages>,
    page: std::vec::IntoIter<v1::Pair>,
    /// The pair of its head, while it has one.
    head: Option<v1::Pair>,
    finished: bool,
    trouble: Trouble,
}

/// Why a part can't go on by itself.
enum Stop {
    Elsewhere(ConfigNum, Duration),
    Failed(Error),
}

impl Gather {
    async fn next(&mut self) -> Option<Result<Pair, Error>> {
        if self.over || self.left == Some(0) {
            return None;
        }
        if self.parts.is_empty() || self.hungry {
            let deadline = Instant::now() + self.timeout;
            match timeout_at(deadline, self.fill()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Some(Err(error)),
                Err(_) => return Some(Err(self.late())),
            }
        }
        let Reverse((_, at)) = self.heads.pop()?;
        let part = self.parts.get_mut(at)?;
        let pair = part.head.take()?;
        let next = part.raise_head();
        self.hungry |= part.is_empty();
        self.heads.extend(next.map(|key| Reverse((key, at))));
        Some(self.step(pair))
    }

    fn late(&mut self) -> Error {
        let waiting = self.parts.iter_mut().filter(|part| part.is_empty());
        let said = waiting.filter_map(|part| part.trouble.last.take());
        let last = said.chain(self.trouble.last.take()).next();
        let unrouted = self.parts.is_empty().then(|| self.router.unowned());
        verdict::timeout(self.timeout, false, last.or(unrouted))
    }

    /// Moves behind a pair.
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

    /// Gets a head for each part that isn't finished.
    async fn fill(&mut self) -> Result<(), Error> {
        loop {
            if self.parts.is_empty() {
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
            let empty = self.parts.iter_mut().filter(|part| part.is_empty());
            let filled = try_join_all(empty.map(|part| part.fill(router, planned, &ask))).await;
            let (num, pause) = match filled {
                Ok(_) => break,
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Elsewhere(num, pause)) => (num, pause),
            };
            self.trouble.last = self
                .parts
                .iter_mut()
                .find_map(|part| part.trouble.last.take());
            self.parts.clear();
            self.heads.clear();
            self.router.configured_at(num, pause).await;
        }
        // A part whose head is in the heap already has none to raise.
        for (at, part) in self.parts.iter_mut().enumerate() {
            if part.head.is_none() {
                let next = part.raise_head();
                self.heads.extend(next.map(|key| Reverse((key, at))));
            }
        }
        self.hungry = false;
        Ok(())
    }

    /// One part for each group that owns shards.
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
        let options = self.router.options();
        let owned = runs.into_iter().filter(|(gid, _)| *gid != Gid::NONE);
        let part = |(gid, shards)| Part {
            gid,
            // Nodes that know of no shards have all of them.
            shards: if is_single(&config) {
                Vec::new()
            } else {
                shards
            },
            pages: None,
            page: Vec::new().into_iter(),
            head: None,
            finished: false,
            trouble: Trouble::new(options),
        };
        self.parts = owned.map(part).collect();
    }
}

impl Part {
    /// Whether a page must come before it is known what comes next.
    fn is_empty(&self) -> bool {
        !self.finished && self.head.is_none() && self.page.len() == 0
    }

    /// The next pair becomes the head. Returns its key.
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
                none.insert(Pages::open(router, self.gid, age, Ask::Scan(request)).await?)
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
