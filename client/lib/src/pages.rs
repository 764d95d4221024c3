//! Streams of pages from a group's leader, and the recovery when a stream breaks: the common part of scans and exports.

use std::time::Duration;

use api::v1::{ExportRequest, ScanRequest, ScanResponse};
use request::{Action, Backoff, Time};
use tonic::{Status, Streaming};
use types::{ConfigNum, Gid};

use crate::Error;
use crate::clock::{Clock, backoff};
use crate::failure;
use crate::route::{Leader, Router, Slot};

/// An open stream of pages.
pub(crate) struct Pages {
    leader: Leader,
    stream: Streaming<ScanResponse>,
}

/// The request of a stream of pages.
pub(crate) enum PageRequest {
    Scan(ScanRequest),
    Export(ExportRequest),
}

/// The reason why a stream broke, and the leader that it came from.
pub(crate) struct Broken {
    leader: Option<Leader>,
    status: Status,
}

impl Pages {
    /// Asks the leader of a group for pages.
    pub(crate) async fn open(
        router: &Router,
        gid: Gid,
        outage: Duration,
        request: PageRequest,
    ) -> Result<Self, Broken> {
        let (leader, channel) = match router.connection(gid, Slot::Bulk, outage).await {
            Ok(connection) => connection,
            Err(error) => {
                return Err(Broken {
                    leader: None,
                    status: Status::unavailable(error.to_string()),
                });
            }
        };
        let mut kv = router.kv(&leader, channel);
        let opening = async {
            match request {
                PageRequest::Scan(request) => kv.scan(request).await,
                PageRequest::Export(request) => kv.export(request).await,
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

    /// Returns the next page; `None` at the end.
    pub(crate) async fn next(&mut self, router: &Router) -> Result<Option<ScanResponse>, Broken> {
        let Self { leader, stream } = self;
        let page = router.unless_superseded(leader, stream.message()).await;
        page.map_err(|status| Broken {
            leader: Some(leader.clone()),
            status,
        })
    }
}

/// The failures of a reader since its last page.
pub(crate) struct Trouble {
    clock: Clock,
    backoff: Backoff,
    since: Option<Time>,
    /// The text of the last failure, for the error of a reader that gives up.
    pub(crate) last: Option<String>,
}

/// The next step after a stream broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Ask again after a pause.
    Again(Duration),
    /// Route anew: this configuration gives a shard to another group. If the configuration is known already, wait for the pause.
    Elsewhere(ConfigNum, Duration),
}

impl Trouble {
    pub(crate) fn new(router: &Router) -> Self {
        Self {
            clock: router.clock(),
            backoff: backoff(router.options()),
            since: None,
            last: None,
        }
    }

    /// Clears the failures, because a page arrived.
    pub(crate) fn over(&mut self) {
        self.since = None;
        self.backoff.reset();
    }

    /// Returns the time since the first failure.
    pub(crate) fn age(&self) -> Duration {
        self.age_at(self.clock.now())
    }

    fn age_at(&self, now: Time) -> Duration {
        let age = |since| now.saturating_sub(since);
        self.since.map_or(Duration::ZERO, age)
    }

    /// Decides the next step after a stream ended. `planned` is the configuration by which the reader was routed.
    pub(crate) fn judge(
        &mut self,
        router: &Router,
        broken: &Broken,
        planned: ConfigNum,
    ) -> Result<Next, Error> {
        let Broken { leader, status } = broken;
        let now = self.clock.now();
        self.since.get_or_insert(now);
        let age = self.age_at(now);
        self.last = Some(status.message().to_owned());
        let verdict = api::refused_status(status).refusal.judge();
        let pause = match (verdict.action, leader) {
            (Action::Fail(rejection), _) => return Err(failure::rejected(rejection, false)),
            (Action::WrongGroup(num), leader) => {
                if let Some(leader) = leader {
                    if router.has(num) {
                        // The group has not accepted the configuration yet, or the address belongs to another group now.
                        router.failed(leader, None);
                    }
                    router.refresh(num, &leader.address);
                }
                let pause = self.backoff.pause_of(age, Duration::ZERO);
                return Ok(Next::Elsewhere(num, pause));
            }
            (Action::Wait(asked), _) => self.backoff.pause_at_least(now, asked),
            (Action::AwaitShard(asked), _) => self.backoff.pause_of(age, asked),
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
