//! Exports: consistent cuts, shard by shard.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use api::v1::{ExportRequest, ScanResponse};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use tokio::time::{Instant, sleep, timeout_at};
use types::{ConfigNum, Gid, ShardId, ShardSet};

use crate::failure;
use crate::pages::{Broken, Next, PageRequest, Pages, Trouble};
use crate::route::Router;
use crate::{Error, Pair};

/// The number of times that the cut of one shard begins anew before the export gives up.
const MAX_RESTARTS: u64 = 100;

/// The extent of an export. The default is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// The first key, inclusive; empty for the first of all.
    pub start: Bytes,
    /// The end, exclusive; empty for none.
    pub end: Bytes,
    /// The shards to export; `None` for all.
    pub shards: Option<ShardSet>,
}

/// An event of an export.
///
/// Each shard gives `Begin`, any number of `Pairs`, `End`, and the next shard begins after that. A shard that moves, or whose
/// node is lost, before its `End` begins anew with another `Begin`: a cut can't be resumed, because it is lost with the node
/// that held it. **The pairs since the last `Begin` are then void**, and the reader must drop them: by truncating its file, or by
/// keeping each shard in memory until its `End`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportEvent {
    /// A shard's cut begins.
    Begin {
        /// The shard.
        shard: ShardId,
        /// The number of times that this shard began before; if not 0, its pairs so far are void.
        restarts: u64,
    },
    /// Pairs of the shard that began last, in key order.
    Pairs(Vec<Pair>),
    /// The shard is complete: its pairs are its contents at one moment between its last `Begin` and now.
    End {
        /// The shard.
        shard: ShardId,
        /// The number of pairs of its cut.
        pairs: u64,
    },
}

/// A consistent cut of each shard, one shard after the other: a [`Stream`], to be read with [`futures::StreamExt`] or
/// [`futures::TryStreamExt`].
///
/// Each shard is one cut; shards are cut at different moments, so the whole is not one cut. The stream holds about two pages in
/// memory: a slow reader slows the nodes down, by the flow control of HTTP/2. The stream ends after the first error.
pub struct Export {
    events: BoxStream<'static, Result<ExportEvent, Error>>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").finish_non_exhaustive()
    }
}

impl Stream for Export {
    type Item = Result<ExportEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.as_mut().poll_next(cx)
    }
}

impl Export {
    pub(crate) fn new(router: Router, timeout: Duration, options: ExportOptions) -> Self {
        let cutter = Cutter {
            trouble: Trouble::new(&router),
            router,
            timeout,
            options,
            next: ShardId(0),
            cut: None,
            over: false,
        };
        let events = stream::unfold(cutter, async |mut cutter| {
            let event = cutter.next().await?;
            cutter.over |= event.is_err();
            Some((event, cutter))
        });
        Self {
            // A poll after the end returns `None` and does not panic.
            events: events.fuse().boxed(),
        }
    }
}

struct Cutter {
    router: Router,
    /// The time that the next event may take, retries included.
    timeout: Duration,
    trouble: Trouble,
    options: ExportOptions,
    /// The first shard that was not begun.
    next: ShardId,
    cut: Option<Cut>,
    over: bool,
}

/// The shard that is being cut.
struct Cut {
    shard: ShardId,
    restarts: u64,
    /// True if the reader got the present `Begin`.
    begun: bool,
    pairs: u64,
    /// The least key that the next pair may have.
    start: Bytes,
    /// The configuration by which its owner was found.
    planned: ConfigNum,
    pages: Option<Pages>,
}

impl Cutter {
    async fn next(&mut self) -> Option<Result<ExportEvent, Error>> {
        if self.over {
            return None;
        }
        let deadline = Instant::now() + self.timeout;
        match timeout_at(deadline, self.event()).await {
            Ok(Ok(event)) => event.map(Ok),
            Ok(Err(error)) => Some(Err(error)),
            Err(_) => {
                let last = self.trouble.last.take();
                let last = last.unwrap_or_else(|| self.router.unowned());
                let late = failure::timeout(self.timeout, false, Some(last));
                Some(Err(self.router.explain(late)))
            }
        }
    }

    async fn event(&mut self) -> Result<Option<ExportEvent>, Error> {
        if self.cut.is_none() {
            let Some(shard) = self.shard().await else {
                return Ok(None);
            };
            self.next = ShardId(shard.0.saturating_add(1));
            self.cut = Some(Cut::new(shard, &self.options.start));
        }
        loop {
            let Some(cut) = &mut self.cut else {
                return Ok(None);
            };
            let broken = match cut
                .pull(&self.router, &self.options, self.trouble.age())
                .await
            {
                Ok(Pulled::Begun) => {
                    let (shard, restarts) = (cut.shard, cut.restarts);
                    return Ok(Some(ExportEvent::Begin { shard, restarts }));
                }
                Ok(Pulled::Page(page)) => {
                    self.trouble.over();
                    let pairs = cut.take(page, &self.options.end)?;
                    return Ok(Some(ExportEvent::Pairs(pairs)));
                }
                Ok(Pulled::End) => {
                    self.trouble.over();
                    let (shard, pairs) = (cut.shard, cut.pairs);
                    self.cut = None;
                    return Ok(Some(ExportEvent::End { shard, pairs }));
                }
                Err(broken) => broken,
            };
            let next = self.trouble.judge(&self.router, &broken, cut.planned)?;
            cut.restart(&self.options.start);
            if cut.restarts > MAX_RESTARTS {
                let last = self.trouble.last.take().unwrap_or_default();
                let last = format!("{} broke {MAX_RESTARTS} times: {last}", cut.shard);
                return Err(failure::timeout(self.timeout, false, Some(last)));
            }
            match next {
                Next::Again(pause) => sleep(pause).await,
                Next::Elsewhere(num, pause) => self.router.configured_at(num, pause).await,
            }
        }
    }

    /// Returns the next shard to cut.
    async fn shard(&self) -> Option<ShardId> {
        let all = self.router.routable().await.shards();
        let wanted = |shard: &ShardId| match &self.options.shards {
            Some(shards) => shards.contains(*shard),
            None => true,
        };
        (self.next.0..all).map(ShardId).find(wanted)
    }
}

/// The next piece of a shard.
enum Pulled {
    Begun,
    Page(ScanResponse),
    End,
}

impl Cut {
    fn new(shard: ShardId, start: &Bytes) -> Self {
        Self {
            shard,
            restarts: 0,
            begun: false,
            pairs: 0,
            start: start.clone(),
            planned: ConfigNum(0),
            pages: None,
        }
    }

    /// Begins anew, because the cut is lost.
    fn restart(&mut self, start: &Bytes) {
        self.restarts += u64::from(self.begun);
        self.begun = false;
        self.pairs = 0;
        self.start = start.clone();
        self.pages = None;
    }

    async fn pull(
        &mut self,
        router: &Router,
        options: &ExportOptions,
        age: Duration,
    ) -> Result<Pulled, Broken> {
        let pages = match &mut self.pages {
            Some(pages) => pages,
            none => {
                let (gid, planned) = owner(router, self.shard).await;
                self.planned = planned;
                let request = ExportRequest {
                    shard: self.shard.0,
                    start: options.start.clone(),
                    end: options.end.clone(),
                };
                none.insert(Pages::open(router, gid, age, PageRequest::Export(request)).await?)
            }
        };
        if !self.begun {
            self.begun = true;
            return Ok(Pulled::Begun);
        }
        loop {
            match pages.next(router).await? {
                Some(page) if page.pairs.is_empty() => {}
                Some(page) => return Ok(Pulled::Page(page)),
                None => return Ok(Pulled::End),
            }
        }
    }

    /// Takes the pairs of a page, which must follow the pairs before.
    fn take(&mut self, page: ScanResponse, end: &Bytes) -> Result<Vec<Pair>, Error> {
        let mut pairs = Vec::with_capacity(page.pairs.len());
        let mut before: Option<&Bytes> = None;
        for pair in &page.pairs {
            let follows = match before {
                Some(before) => pair.key > *before,
                None => pair.key >= self.start,
            };
            if !follows || (!end.is_empty() && pair.key >= *end) {
                return Err(Error::Protocol {
                    message: "an export returned a key out of order or out of its range".to_owned(),
                    maybe_applied: false,
                });
            }
            before = Some(&pair.key);
        }
        if let Some(last) = before {
            self.start = [&last[..], &[0]].concat().into();
        }
        self.pairs += page.pairs.len() as u64;
        pairs.extend(page.pairs.into_iter().map(|pair| Pair {
            key: pair.key,
            value: pair.value,
        }));
        Ok(pairs)
    }
}

/// Waits until a group owns the shard. Returns the group and the configuration that says so.
async fn owner(router: &Router, shard: ShardId) -> (Gid, ConfigNum) {
    let mut configs = router.configs();
    loop {
        let config = router.routable().await;
        let gid = config.owner(shard);
        if gid != Gid::NONE {
            return (gid, config.num());
        }
        if configs.changed().await.is_err() {
            // No other configuration will come, so the caller's deadline ends the wait.
            return std::future::pending().await;
        }
    }
}
