//! A lane's link to its group's leader: down, being raised, or up.

use std::time::Duration;

use api::v1::{BatchRequest, BatchResponse, OpenSessionResponse};
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};
use types::Gid;

use crate::route::{Leader, Router, Slot};

pub(super) enum Link {
    Down,
    Raising(BoxFuture<'static, Result<(Leader, Channel), Failure>>),
    Up(Box<Up>),
}

pub(super) struct Failure {
    pub(super) leader: Option<Leader>,
    pub(super) why: String,
}

pub(super) struct Up {
    pub(super) leader: Leader,
    pub(super) channel: Channel,
    pub(super) outbox: mpsc::Sender<BatchRequest>,
    pub(super) input: Input,
    /// When the node last answered, or when something was sent to it after it had answered all.
    pub(super) heard: Instant,
    pub(super) opening: Option<Opening>,
    /// Asks the others whether this leader is superseded.
    pub(super) doubting: Option<BoxFuture<'static, Option<Leader>>>,
    pub(super) doubted: Instant,
}

pub(super) type SessionResult = Result<Response<OpenSessionResponse>, Status>;

/// A session that was asked for, and when.
pub(super) type Opening = (Instant, BoxFuture<'static, SessionResult>);

pub(super) enum Input {
    Opening(BoxFuture<'static, Result<Response<Streaming<BatchResponse>>, Status>>),
    Open(Box<Streaming<BatchResponse>>),
}

pub(super) enum Event {
    Raised(Result<(Leader, Channel), Failure>),
    Message(Result<Option<BatchResponse>, Status>),
    Session(Instant, Result<OpenSessionResponse, Status>),
    Superseded(bool),
    Writable,
}

impl Link {
    /// The next thing that happens to the link. May be dropped and called again at any time.
    pub(super) async fn next_event(&mut self, has_ready: bool) -> Event {
        match self {
            Self::Down => std::future::pending().await,
            Self::Raising(raising) => Event::Raised(raising.await),
            Self::Up(up) => up.next_event(has_ready).await,
        }
    }
}

impl Up {
    async fn next_event(&mut self, has_ready: bool) -> Event {
        let Self {
            input,
            opening,
            doubting,
            outbox,
            ..
        } = self;
        tokio::select! {
            // What the node said comes first: it tells why the outbox closed.
            biased;
            message = input.next() => Event::Message(message),
            (asked, result) = opened(opening) => Event::Session(asked, result.map(Response::into_inner)),
            newer = answered(doubting) => Event::Superseded(newer.is_some()),
            room = outbox.reserve(), if has_ready => match room {
                Ok(_) => Event::Writable,
                Err(_) => Event::Message(Ok(None)),
            },
        }
    }
}

impl Input {
    async fn next(&mut self) -> Result<Option<BatchResponse>, Status> {
        if let Self::Opening(opening) = self {
            let stream = opening.await?.into_inner();
            *self = Self::Open(Box::new(stream));
        }
        match self {
            Self::Open(stream) => stream.message().await,
            Self::Opening(_) => Ok(None),
        }
    }
}

/// The session that is being opened; for ever, if none is.
async fn opened(slot: &mut Option<Opening>) -> (Instant, SessionResult) {
    let Some((asked, opening)) = slot else {
        return std::future::pending().await;
    };
    let result = (*asked, opening.await);
    *slot = None;
    result
}

/// The answer of a question that may have been asked; for ever, if not.
async fn answered<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    let Some(asking) = slot else {
        return std::future::pending().await;
    };
    let result = asking.await;
    *slot = None;
    result
}

pub(super) async fn raise(
    router: Router,
    gid: Gid,
    slot: Slot,
    outage: Duration,
) -> Result<(Leader, Channel), Failure> {
    let leader = router
        .leader(gid, outage)
        .await
        .map_err(|why| Failure { leader: None, why })?;
    match router.channel(&leader.address, slot).await {
        Ok(channel) => Ok((leader, channel)),
        Err(why) => Err(Failure {
            why: format!("{}: {why}", leader.address),
            leader: Some(leader),
        }),
    }
}
