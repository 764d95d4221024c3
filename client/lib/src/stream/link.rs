//! A stream's link to its group's leader: down, connecting, or up.

use std::time::Duration;

use api::v1::{BatchRequest, BatchResponse, OpenSessionResponse};
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};
use types::Gid;

use crate::route::{Leader, Router, Slot};

pub(super) enum Link {
    Down,
    Connecting(BoxFuture<'static, Result<(Leader, Channel), ConnectFailure>>),
    Up(Box<Up>),
}

pub(super) struct ConnectFailure {
    /// The leader that was found but could not be reached.
    pub(super) leader: Option<Leader>,
    pub(super) why: String,
}

pub(super) struct Up {
    pub(super) leader: Leader,
    pub(super) channel: Channel,
    pub(super) outbox: mpsc::Sender<BatchRequest>,
    pub(super) input: Input,
    /// The request for a session in progress.
    pub(super) opening: Option<BoxFuture<'static, SessionResult>>,
    /// The status calls to the other nodes, one of which may lead in a later term.
    pub(super) asking: Option<BoxFuture<'static, bool>>,
}

pub(super) type SessionResult = Result<Response<OpenSessionResponse>, Status>;

pub(super) enum Input {
    Opening(BoxFuture<'static, Result<Response<Streaming<BatchResponse>>, Status>>),
    Open(Box<Streaming<BatchResponse>>),
}

pub(super) enum Event {
    Connected(Result<(Leader, Channel), ConnectFailure>),
    Message(Result<Option<BatchResponse>, Status>),
    Session(Result<OpenSessionResponse, Status>),
    NewerLeader(bool),
    Writable,
}

impl Link {
    /// Waits for the next event of the link. May be dropped and called again at any time.
    pub(super) async fn next_event(&mut self, has_batch: bool) -> Event {
        match self {
            Self::Down => std::future::pending().await,
            Self::Connecting(connecting) => Event::Connected(connecting.await),
            Self::Up(up) => up.next_event(has_batch).await,
        }
    }
}

impl Up {
    async fn next_event(&mut self, has_batch: bool) -> Event {
        let Self {
            input,
            opening,
            asking,
            outbox,
            ..
        } = self;
        tokio::select! {
            // Read the node's last message first: it says why the outbox closed.
            biased;
            message = input.next() => Event::Message(message),
            result = finished(opening) => Event::Session(result.map(Response::into_inner)),
            newer = finished(asking) => Event::NewerLeader(newer),
            room = outbox.reserve(), if has_batch => match room {
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

/// Waits for the result of a request in progress; for ever, if there is none.
async fn finished<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    let Some(request) = slot else {
        return std::future::pending().await;
    };
    let result = request.await;
    *slot = None;
    result
}

/// Finds the group's leader and connects to it.
pub(super) async fn connect(
    router: Router,
    gid: Gid,
    slot: Slot,
    outage: Duration,
) -> Result<(Leader, Channel), ConnectFailure> {
    let leader = router
        .leader(gid, outage)
        .await
        .map_err(|error| ConnectFailure {
            leader: None,
            why: error.to_string(),
        })?;
    match router.channel(&leader.address, slot).await {
        Ok(channel) => Ok((leader, channel)),
        Err(error) => Err(ConnectFailure {
            why: format!("{}: {error}", leader.address),
            leader: Some(leader),
        }),
    }
}
