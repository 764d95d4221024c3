//! Streams of pages from a group's leader, and what to do when one breaks: what scans and exports share.

use std::time::Duration;

use api::v1::{ExportRequest, ScanRequest, ScanResponse};
use tokio::time::Instant;
use tonic::{Status, Streaming};
use types::{ConfigNum, Gid};

use crate::backoff::Backoff;
use crate::route::{Leader, Router, Slot};
use crate::verdict::{self, Action};
use crate::{ClientOptions, Error};

/// An open stream of pages.
pub(crate) struct Pages {
    leader: Leader,
    stream: Streaming<ScanResponse>,
}

/// What is asked for.
pub(crate) enum Ask {
    Scan(ScanRequest),
    Export(ExportRequest),
}

/// Why a stream broke, and whose it was.
pub(crate) struct Broken {
    leader: Option<Leader>,
    status: Status,
}

impl Pages {
    /// Asks the leader of a group.
    pub(crate) async fn open(
        router: &Router,
        gid: Gid,
        outage: Duration,
        ask: Ask,
    ) -> Result<Self, Broken> {
        let (leader, channel) = match router.connection(gid, Slot::Bulk, outage).await {
            Ok(connection) => connection,
            Err(why) => {
                return Err(Broken {
                    leader: None,
                    status: Status::unavailable(why),
                });
            }
        };
        let mut kv = router.kv(&leader, channel);
        let opening = async {
            match ask {
                Ask::Scan(request) => kv.scan(request).await,
                Ask::Export(request) => kv.export(request).await,
            }
        };
        match router.unless_superseded(&leader, opening).await {
            Ok(stream) => Ok(Self {
                leader,
                stream: stream.into_inner(),
            }),
            Err(status) => Err(Broken {
                leader: Some(leader),
                status,
            }),
        }
    }

    /// The next page; `None` at the end.
    pub(crate) async fn next(&mut self, router: &Router) -> Result<Option<ScanResponse>, Broken> {
        let Self { leader, stream } = self;
        let page = router.unless_superseded(leader, stream.message()).await;
        page.map_err(|status| Broken {
            leader: Some(leader.clone()),
            status,
        })
    }
}

/// The trouble that a reader is in.
pub(crate) struct Trouble {
    backoff: Backoff,
    since: Option<Instant>,
    /// What was said last, for the error of one who gives up.
    pub(crate) last: Option<String>,
}

/// How to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Ask again after a pause.
    Again(Duration),
    /// A shard is elsewhere, as this configuration says: route anew. The pause is for one that is no news.
    Elsewhere(ConfigNum, Duration),
}

impl Trouble {
    pub(crate) fn new(options: &ClientOptions) -> Self {
        Self {
            backoff: Backoff::new(options.min_backoff, options.max_backoff),
            since: None,
            last: None,
        }
    }

    /// All is well again.
    pub(crate) fn over(&mut self) {
        self.since = None;
        self.backoff.reset();
    }

    /// For how long nothing has come.
    pub(crate) fn age(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Judges a stream that broke, of a reader that goes by configuration `planned`.
    pub(crate) fn judge(
        &mut self,
        router: &Router,
        broken: &Broken,
        planned: ConfigNum,
    ) -> Result<Next, Error> {
        let Broken { leader, status } = broken;
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        self.last = Some(status.message().to_owned());
        let pause = match (verdict::of_status(status).action, leader) {
            (Action::Fail(error), _) => return Err(verdict::with_doubt(error, false)),
            (Action::WrongGroup(num), leader) => {
                if let Some(leader) = leader {
                    if router.has(num) {
                        // The group hasn't heard of it, or the address is another group's now.
                        router.failed(leader, None);
                    }
                    router.refresh(num, &leader.address);
                }
                let pause = self.backoff.pause_of(now - since, 0);
                return Ok(Next::Elsewhere(num, pause));
            }
            (Action::Wait(ms), _) => self.backoff.pause_at_least(now, ms),
            (Action::NotReady(ms), _) => self.backoff.pause_of(now - since, ms),
            (Action::Reroute(hint), Some(leader)) => {
                router.suspect(&leader.address, Slot::Bulk, status);
                router.failed(leader, hint.as_deref());
                self.backoff.pause(now)
            }
            _ => self.backoff.pause(now),
        };
        match router.config() {
            Some(config) if config.num() > planned => Ok(Next::Elsewhere(config.num(), pause)),
            _ => Ok(Next::Again(pause)),
        }
    }
}
