//! Requests that aren't this node's own: passed on to whoever leads the group that they belong to.
//!
//! A forwarded call says so ([`NO_FORWARD_METADATA_KEY`]) and is answered or refused where it arrives, so there is one
//! hop at most. The bounds: calls on their way (`max_forwarded`), their bytes (the node's budget), and a few attempts
//! within the request's own time.
//!
//! # What is tried again
//!
//! A refusal that says that nothing was done (`NotLeader`, `WrongGroup`, no connection) is followed to where it points. A
//! call that may have been carried out is only repeated if that does no harm: reads, and writes with a session. A forwarded
//! write keeps its session, so that the client may repeat it anywhere. When one of its attempts is in doubt, a refusal of a
//! later one doesn't say that nothing was done, so the client is told that the outcome is unknown.

mod channels;
mod ctrl;
mod guide;
mod kv;

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use api::v1::error_detail::Kind;
use api::v1::{ErrorDetail, Session};
use api::{CLUSTER_METADATA_KEY, GID_METADATA_KEY, NO_FORWARD_METADATA_KEY, error_detail, errors};
use shardkv::GroupKind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};
use types::{ConfigNum, Gid};

pub(crate) use channels::Channels;
pub(crate) use ctrl::{Ask, controllers, controllers_at_once};
pub(crate) use guide::Guide;
pub(crate) use kv::{export, item, open_session, own_group, scan};

use crate::hub::Hub;

/// Attempts of one call.
const MAX_ATTEMPTS: usize = 12;
/// Hints that are followed without a pause.
const MAX_HINTS: u32 = 2;
/// The first pause between attempts; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// How long a configuration that a group has already may take to come here.
const NEWS_PATIENCE: Duration = Duration::from_secs(1);

/// What forwarding needs: connections, guesses and the bound.
#[derive(Debug)]
pub(crate) struct Forwarding {
    pub(crate) channels: Channels,
    pub(crate) guide: Guide,
    places: Arc<Semaphore>,
    /// Scans last as long as their callers like: they have places of their own.
    scans: Arc<Semaphore>,
    most: usize,
}

/// Whom a call is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The group; [`Gid::NONE`] for the controllers.
    pub(crate) gid: Gid,
    /// Where its nodes are.
    pub(crate) addresses: Vec<String>,
}

impl Forwarding {
    pub(crate) fn new(options: &crate::options::Options) -> Self {
        Self {
            channels: Channels::new(options.network),
            guide: Guide::default(),
            places: Arc::new(Semaphore::new(options.max_forwarded)),
            scans: Arc::new(Semaphore::new(options.max_forwarded)),
            most: options.max_forwarded,
        }
    }

    /// Room for a request that is passed on.
    pub(crate) fn place(&self) -> Result<OwnedSemaphorePermit, ErrorDetail> {
        self.take(&self.places, "forwarded requests")
    }

    /// Room for a scan over all groups.
    pub(crate) fn scan_place(&self) -> Result<OwnedSemaphorePermit, ErrorDetail> {
        self.take(&self.scans, "scans over all groups")
    }

    fn take(
        &self,
        places: &Arc<Semaphore>,
        what: &str,
    ) -> Result<OwnedSemaphorePermit, ErrorDetail> {
        let full = |_| errors::overloaded(what, self.most as u64, 20);
        Arc::clone(places).try_acquire_owned().map_err(full)
    }
}

/// Whether a call forbids forwarding: it was forwarded, or its sender routes by itself.
pub(crate) fn is_forbidden(metadata: &MetadataMap) -> bool {
    metadata.contains_key(NO_FORWARD_METADATA_KEY)
}

/// A request that is not to be forwarded again.
pub(crate) fn once<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert(NO_FORWARD_METADATA_KEY, MetadataValue::from_static("1"));
    request
}

/// The same for a group: it says whom it is meant for, so that no stranger at an address that is used again takes it.
pub(crate) fn once_for<T>(hub: &Hub, gid: Gid, message: T) -> Request<T> {
    let mut request = once(message);
    let metadata = request.metadata_mut();
    metadata.insert(GID_METADATA_KEY, MetadataValue::from(gid.0));
    let cluster = match hub.kind() {
        GroupKind::Shards => hub.configs.known().map(|known| known.cluster),
        GroupKind::Standalone | GroupKind::Controller => hub.identity.cluster(),
    };
    let cluster = cluster.and_then(|it| format!("{:016x}", it.0).parse().ok());
    if let Some(cluster) = cluster {
        metadata.insert(CLUSTER_METADATA_KEY, cluster);
    }
    request
}

/// Whether a refusal means that another node would serve the request.
pub(crate) fn is_elsewhere(error: &ErrorDetail) -> bool {
    matches!(error.kind, Some(Kind::NotLeader(_) | Kind::WrongGroup(_)))
}

/// Whether a call may be made again when it isn't known what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or the same again.
    Freely,
    /// It is a write with a session: carried out once however often it comes, but it may have been.
    ByName,
    /// It is a write that nobody would recognise.
    Never,
}

impl Repeat {
    /// That of a write.
    pub(crate) fn of_write(session: Option<&Session>) -> Self {
        match session {
            Some(_) => Self::ByName,
            None => Self::Never,
        }
    }
}

/// Passes a client's call on: as [`reach`], bounded and counted.
pub(crate) async fn call<T, F>(
    hub: &Hub,
    route: impl Fn() -> Result<Destination, ErrorDetail>,
    repeat: Repeat,
    call: impl Fn(Channel, Gid) -> F,
) -> Result<T, ErrorDetail>
where
    F: Future<Output = Result<T, Status>>,
{
    let _place = hub.forwarding.place()?;
    hub.metrics.forwarded.inc();
    let result = reach(hub, route, repeat, call).await;
    if result.is_err() {
        hub.metrics.forward_failures.inc();
    }
    result
}

/// Calls the leader of `route`'s group, which is looked up anew for each attempt.
pub(crate) async fn reach<T, F>(
    hub: &Hub,
    route: impl Fn() -> Result<Destination, ErrorDetail>,
    repeat: Repeat,
    call: impl Fn(Channel, Gid) -> F,
) -> Result<T, ErrorDetail>
where
    F: Future<Output = Result<T, Status>>,
{
    let mut course = Course::new(hub);
    let result = travel(&mut course, route, repeat, call).await;
    let doubt = course.doubt && repeat == Repeat::ByName;
    result.map_err(|error| if doubt { in_doubt(error) } else { error })
}

async fn travel<T, F>(
    course: &mut Course<'_>,
    route: impl Fn() -> Result<Destination, ErrorDetail>,
    repeat: Repeat,
    call: impl Fn(Channel, Gid) -> F,
) -> Result<T, ErrorDetail>
where
    F: Future<Output = Result<T, Status>>,
{
    let forwarding = &course.hub.forwarding;
    let repeatable = repeat != Repeat::Never;
    for attempt in 0..MAX_ATTEMPTS {
        let to = route()?;
        let Some(address) = forwarding.guide.pick(to.gid, &to.addresses, attempt) else {
            return Err(course.failure.take().unwrap_or_else(|| nobody(to.gid)));
        };
        let channel = match timeout_at(course.deadline, forwarding.channels.get(&address)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(reason)) => {
                forwarding.guide.doubt(to.gid, &address);
                course.failed(errors::unavailable(reason, 100));
                course.rest().await;
                continue;
            }
            Err(_) => break,
        };
        let status = match timeout_at(course.deadline, call(channel, to.gid)).await {
            Ok(Ok(answer)) => {
                forwarding.guide.believe(to.gid, &address);
                return Ok(answer);
            }
            Ok(Err(status)) => status,
            Err(_) if repeatable => {
                course.doubt = true;
                break;
            }
            Err(_) => return Err(errors::outcome_unknown("")),
        };
        let detail = error_detail(&status);
        let unsent = detail.is_none() && was_unsent(&status);
        course.doubt |= !unsent && detail.as_ref().is_none_or(is_doubtful);
        match detail {
            Some(detail) if is_followed(&detail, repeatable) => {
                course.follow(&to, &address, detail).await;
            }
            Some(detail) => return Err(detail),
            // The connection broke, or what answers is no node.
            None => {
                forwarding.channels.discard(&address);
                forwarding.guide.doubt(to.gid, &address);
                tracing::debug!(
                    address,
                    unsent,
                    "a call that was passed on failed: {status:?}"
                );
                if !repeatable && !unsent {
                    return Err(errors::outcome_unknown(""));
                }
                let what = format!("{address}: {}", status.message());
                course.failed(errors::unavailable(what, 100));
                course.rest().await;
            }
        }
    }
    let late = || errors::unavailable("no answer came in time", 100);
    Err(course.failure.take().unwrap_or_else(late))
}

/// Whether a refusal points elsewhere, or to later.
fn is_followed(detail: &ErrorDetail, repeatable: bool) -> bool {
    match detail.kind {
        Some(Kind::NotLeader(_) | Kind::WrongGroup(_) | Kind::WrongCluster(_)) => true,
        Some(Kind::Unavailable(_) | Kind::OutcomeUnknown(_)) => repeatable,
        _ => false,
    }
}

/// Whether a call never left this node: nobody was there, or the connection that it was queued for ended first, because its
/// node said goodbye, most often.
fn was_unsent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return error.is_canceled();
        }
        cause = error.source();
    }
    false
}

/// Whether a refused attempt may have taken effect all the same: a node that stops can't tell, and a kind of error that
/// this version doesn't know may mean anything.
fn is_doubtful(detail: &ErrorDetail) -> bool {
    let kind = detail.kind.as_ref();
    kind.is_none_or(|kind| matches!(kind, Kind::Unavailable(_) | Kind::OutcomeUnknown(_)))
}

/// What a write is told whose last attempt got this answer, and an earlier one none.
fn in_doubt(error: ErrorDetail) -> ErrorDetail {
    match error.kind {
        // It says so itself.
        Some(Kind::SessionExpired(_) | Kind::OutcomeUnknown(_)) => error,
        _ => errors::outcome_unknown(""),
    }
}

/// The attempts of one call.
struct Course<'a> {
    hub: &'a Hub,
    deadline: Instant,
    pause: Duration,
    /// Hints that were followed at once.
    hints: u32,
    /// What the last attempt was told.
    failure: Option<ErrorDetail>,
    /// Whether an attempt may have taken effect.
    doubt: bool,
}

impl<'a> Course<'a> {
    fn new(hub: &'a Hub) -> Self {
        Self {
            hub,
            deadline: Instant::now() + hub.options.request_timeout,
            pause: FIRST_PAUSE,
            hints: 0,
            failure: None,
            doubt: false,
        }
    }

    fn failed(&mut self, detail: ErrorDetail) {
        self.failure = Some(detail);
    }

    async fn rest(&mut self) {
        let until = self.deadline.min(Instant::now() + self.pause);
        sleep_until(until).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// Goes where a refusal points.
    async fn follow(&mut self, to: &Destination, address: &str, detail: ErrorDetail) {
        let guide = &self.hub.forwarding.guide;
        match &detail.kind {
            Some(Kind::NotLeader(hint)) => {
                guide.doubt(to.gid, address);
                let named = hint.leader_address.as_str();
                let news = !named.is_empty() && named != address;
                if news {
                    guide.believe(to.gid, named);
                }
                // Hints may lead in a circle while an election goes on.
                if news && self.hints < MAX_HINTS {
                    self.hints += 1;
                } else {
                    self.rest().await;
                }
            }
            Some(Kind::WrongGroup(wrong)) => {
                let num = ConfigNum(wrong.config_num);
                let configs = &self.hub.configs;
                if configs.has(num) {
                    // It hasn't heard of the configuration that we go by, or is of another group now.
                    guide.doubt(to.gid, address);
                    self.rest().await;
                } else {
                    let patience = self.deadline.min(Instant::now() + NEWS_PATIENCE);
                    // Late news are waited for again.
                    let _ = timeout_at(patience, configs.reached(num)).await;
                }
            }
            kind => {
                if matches!(kind, Some(Kind::WrongCluster(_))) {
                    // The name is resolved again.
                    self.hub.forwarding.channels.discard(address);
                }
                guide.doubt(to.gid, address);
                self.rest().await;
            }
        }
        self.failed(detail);
    }
}

fn nobody(gid: Gid) -> ErrorDetail {
    let what = if gid == Gid::NONE {
        "no other controller is known".to_owned()
    } else {
        format!("no other node of {gid} is known")
    };
    errors::unavailable(what, 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_followed_unless_harm_could_be_done() {
        let cases = [
            (errors::not_leader("a:1"), true, true),
            (errors::wrong_group(7), true, true),
            (errors::wrong_cluster("a", "b"), true, true),
            (errors::outcome_unknown(""), false, true),
            (errors::unavailable("stopping", 1), false, true),
            (errors::shard_not_ready(20), false, false),
            (errors::overloaded("requests", 1, 1), false, false),
            (errors::session_expired(), false, false),
        ];
        for (detail, always, repeatable) in cases {
            assert_eq!(is_followed(&detail, false), always, "{detail:?}");
            assert_eq!(is_followed(&detail, true), repeatable, "{detail:?}");
        }
    }

    #[test]
    fn no_refusal_hides_that_an_earlier_attempt_is_in_doubt() {
        for detail in [
            errors::wrong_group(7),
            errors::not_leader("a:1"),
            errors::shard_not_ready(20),
            errors::overloaded("requests", 1, 1),
            errors::disk_full(),
        ] {
            assert!(!is_doubtful(&detail), "{detail:?}");
            let told = in_doubt(detail);
            assert!(matches!(told.kind, Some(Kind::OutcomeUnknown(_))));
        }
        assert_eq!(
            in_doubt(errors::session_expired()),
            errors::session_expired()
        );
        assert!(is_doubtful(&errors::outcome_unknown("")));
        assert!(is_doubtful(&errors::unavailable("stopping", 1)));
    }

    #[test]
    fn what_is_passed_on_says_so() {
        assert!(is_forbidden(once(()).metadata()));
        assert!(!is_forbidden(Request::new(()).metadata()));
    }
}
