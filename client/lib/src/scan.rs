//! Reading ranges.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use api::v1::{self, ScanRequest, ScanResponse};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Status, Streaming};

use crate::backoff::Backoff;
use crate::router::{Leader, Router, Slot};
use crate::verdict::{self, Action};
use crate::{ClientOptions, Error};

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
/// use client::ScanOptions;
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
/// It holds about one page in memory, whatever the range's size: a reader that is slow slows the nodes down, by the flow
/// control of HTTP/2. When the leader changes it goes on behind the last key that it returned. It
/// ends after the first error.
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
    pub(crate) fn new(
        settings: &ClientOptions,
        router: Arc<Router>,
        timeout: Duration,
        options: ScanOptions,
    ) -> Self {
        let cursor = Cursor {
            router,
            timeout,
            backoff: Backoff::new(settings.min_backoff, settings.max_backoff),
            outage: None,
            last: None,
            start: options.start,
            end: options.end,
            left: options.limit,
            keys_only: options.keys_only,
            pages: None,
            page: Vec::new().into_iter(),
            done: false,
        };
        let pairs = futures::stream::unfold(cursor, |mut cursor| async move {
            let next = cursor.next().await?;
            cursor.done |= next.is_err();
            Some((next, cursor))
        });
        Self {
            pairs: pairs.boxed(),
        }
    }
}

/// How far a scan has come.
struct Cursor {
    router: Arc<Router>,
    /// How long a page may take, retries included.
    timeout: Duration,
    backoff: Backoff,
    outage: Option<Instant>,
    last: Option<String>,
    /// The first key that was not returned yet may be this one.
    start: Bytes,
    end: Bytes,
    left: Option<u64>,
    keys_only: bool,
    pages: Option<(Leader, Streaming<ScanResponse>)>,
    page: std::vec::IntoIter<v1::Pair>,
    done: bool,
}

impl Cursor {
    async fn next(&mut self) -> Option<Result<Pair, Error>> {
        loop {
            if self.done || self.left == Some(0) {
                return None;
            }
            if let Some(pair) = self.page.next() {
                return Some(self.step(pair));
            }
            let deadline = Instant::now() + self.timeout;
            match timeout_at(deadline, self.turn()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Some(Err(error)),
                Err(_) => {
                    let last = self.last.take();
                    return Some(Err(verdict::timeout(self.timeout, false, last)));
                }
            }
        }
    }

    /// Takes one pair of the page and moves behind it.
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

    /// Gets the next page, or finds that there is none.
    async fn turn(&mut self) -> Result<(), Error> {
        loop {
            let (leader, failed) = match self.pull().await {
                Ok(Some(page)) => {
                    self.outage = None;
                    self.backoff.reset();
                    self.page = page.pairs.into_iter();
                    return Ok(());
                }
                Ok(None) => {
                    self.done = true;
                    return Ok(());
                }
                Err(failed) => failed,
            };
            self.pages = None;
            let now = Instant::now();
            self.outage.get_or_insert(now);
            self.last = Some(failed.message().to_owned());
            let pause = match (verdict::of_status(&failed).action, leader) {
                (Action::Fail(error), _) => return Err(verdict::with_doubt(error, false)),
                (Action::Wait(ms), _) => self.backoff.pause_at_least(now, ms),
                (Action::Reroute(hint), Some(leader)) => {
                    if api::error_detail(&failed).is_none() {
                        self.router.discard(&leader.address, Slot::Control);
                    }
                    self.router.failed(leader.epoch, hint.as_deref());
                    self.backoff.pause(now)
                }
                _ => self.backoff.pause(now),
            };
            sleep(pause).await;
        }
    }

    async fn pull(&mut self) -> Result<Option<ScanResponse>, (Option<Leader>, Status)> {
        let router = Arc::clone(&self.router);
        let (leader, pages) = match &mut self.pages {
            Some(open) => open,
            none => none.insert(
                open(
                    &router,
                    self.outage,
                    ScanRequest {
                        start: self.start.clone(),
                        end: self.end.clone(),
                        limit: self.left.unwrap_or(0),
                        keys_only: self.keys_only,
                        shards: Vec::new(),
                    },
                )
                .await?,
            ),
        };
        let page = router.unless_superseded(leader, pages.message()).await;
        page.map_err(|status| (Some(leader.clone()), status))
    }
}

async fn open(
    router: &Router,
    outage: Option<Instant>,
    request: ScanRequest,
) -> Result<(Leader, Streaming<ScanResponse>), (Option<Leader>, Status)> {
    let outage = outage.map_or(Duration::ZERO, |since| since.elapsed());
    let leader = match router.leader(outage).await {
        Ok(leader) => leader,
        Err(why) => return Err((None, Status::unavailable(why))),
    };
    let channel = match router.channel(&leader.address, Slot::Control).await {
        Ok(channel) => channel,
        Err(why) => return Err((Some(leader), Status::unavailable(why))),
    };
    let mut kv = router.kv(channel);
    match router.unless_superseded(&leader, kv.scan(request)).await {
        Ok(pages) => Ok((leader, pages.into_inner())),
        Err(status) => Err((Some(leader), status)),
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
