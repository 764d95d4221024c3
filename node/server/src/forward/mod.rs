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
//! write keeps its session, so that the client may repeat it anywhere.

mod channels;
mod ctrl;
mod guide;
mod kv;

use std::time::Duration;

use api::v1::ErrorDetail;
use api::v1::error_detail::Kind;
use api::{NO_FORWARD_METADATA_KEY, error_detail, errors};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
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
const MAX_ATTEMPTS: u32 = 12;
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
    places: Semaphore,
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
            places: Semaphore::new(options.max_forwarded),
            most: options.max_forwarded,
        }
    }

    fn place(&self) -> Result<SemaphorePermit<'_>, ErrorDetail> {
        let full = |_| errors::overloaded("forwarded requests", self.most as u64, 20);
        self.places.try_acquire().map_err(full)
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

/// Whether a refusal means that another node would serve the request.
pub(crate) fn is_elsewhere(error: &ErrorDetail) -> bool {
    matches!(error.kind, Some(Kind::NotLeader(_) | Kind::WrongGroup(_)))
}

/// Passes a client's call on: as [`reach`], bounded and counted.
pub(crate) async fn call<T, F>(
    hub: &Hub,
    route: impl Fn() -> Result<Destination, ErrorDetail>,
    repeatable: bool,
    call: impl Fn(Channel) -> F,
) -> Result<T, ErrorDetail>
where
    F: Future<Output = Result<T, Status>>,
{
    let _place = hub.forwarding.place()?;
    hub.metrics.forwarded.inc();
    let result = reach(hub, route, repeatable, call).await;
    if result.is_err() {
        hub.metrics.forward_failures.inc();
    }
    result
}

/// Calls the leader of `route`'s group, which is looked up anew for each attempt. `repeatable`: carrying the call out twice
/// does no harm.
pub(crate) async fn reach<T, F>(
    hub: &Hub,
    route: impl Fn() -> Result<Destination, ErrorDetail>,
    repeatable: bool,
    call: impl Fn(Channel) -> F,
) -> Result<T, ErrorDetail>
where
    F: Future<Output = Result<T, Status>>,
{
    let forwarding = &hub.forwarding;
    let deadline = Instant::now() + hub.options.request_timeout;
    let mut pause = FIRST_PAUSE;
    let mut failure = None;
    for attempt in 0..MAX_ATTEMPTS {
        let to = route()?;
        let turn = attempt as usize;
        let Some(address) = forwarding.guide.pick(to.gid, &to.addresses, turn) else {
            return Err(failure.unwrap_or_else(|| nobody(to.gid)));
        };
        let channel = match timeout_at(deadline, forwarding.channels.get(&address)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(reason)) => {
                forwarding.guide.doubt(to.gid, &address);
                failure = Some(errors::unavailable(reason, 100));
                rest(&mut pause, deadline).await;
                continue;
            }
            Err(_) => break,
        };
        let status = match timeout_at(deadline, call(channel)).await {
            Ok(Ok(answer)) => {
                forwarding.guide.believe(to.gid, &address);
                return Ok(answer);
            }
            Ok(Err(status)) => status,
            Err(_) if repeatable => break,
            Err(_) => return Err(errors::outcome_unknown("")),
        };
        let Some(detail) = error_detail(&status) else {
            // The connection broke, or what answers is no node.
            forwarding.channels.discard(&address);
            forwarding.guide.doubt(to.gid, &address);
            if !repeatable {
                return Err(errors::outcome_unknown(""));
            }
            failure = Some(errors::unavailable(
                format!("{address}: {}", status.message()),
                100,
            ));
            rest(&mut pause, deadline).await;
            continue;
        };
        match &detail.kind {
            Some(Kind::NotLeader(hint)) => {
                forwarding.guide.doubt(to.gid, &address);
                if !hint.leader_address.is_empty() && hint.leader_address != address {
                    forwarding.guide.believe(to.gid, &hint.leader_address);
                }
                // A hint is followed at once, unless hints lead in a circle.
                if hint.leader_address.is_empty() || attempt > 1 {
                    rest(&mut pause, deadline).await;
                }
            }
            Some(Kind::WrongGroup(wrong)) => {
                let num = ConfigNum(wrong.config_num);
                if hub.configs.has(num) {
                    // It hasn't heard of the configuration that we go by.
                    rest(&mut pause, deadline).await;
                } else {
                    let news = hub.configs.reached(num);
                    let _ = timeout_at(deadline.min(Instant::now() + NEWS_PATIENCE), news).await;
                }
            }
            Some(Kind::Unavailable(_) | Kind::OutcomeUnknown(_)) if repeatable => {
                forwarding.guide.doubt(to.gid, &address);
                rest(&mut pause, deadline).await;
            }
            _ => return Err(detail),
        }
        failure = Some(detail);
    }
    Err(failure.unwrap_or_else(|| errors::unavailable("no answer came in time", 100)))
}

async fn rest(pause: &mut Duration, deadline: Instant) {
    let until = deadline.min(Instant::now() + *pause);
    tokio::time::sleep_until(until).await;
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}

fn nobody(gid: Gid) -> ErrorDetail {
    let what = if gid == Gid::NONE {
        "no other controller is known".to_owned()
    } else {
        format!("no other node of {gid} is known")
    };
    errors::unavailable(what, 100)
}
