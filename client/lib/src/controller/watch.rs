//! The stream of configurations.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use api::v1::{WatchRequest, WatchResponse};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use request::{Action, Backoff, Rejection};
use tokio::time::{sleep, timeout};
use tonic::{Status, Streaming};
use types::{ConfigDelta, ConfigNum, ShardConfig};

use super::calls::ControllerCalls;
use crate::Error;
use crate::clock::{Clock, backoff};
use crate::failure;
use crate::route::Slot;

/// A step of the configuration: see [`crate::Controller::watch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigEvent {
    /// A whole configuration to begin with: the deltas from the known one are not kept any more.
    Full(ShardConfig),
    /// The difference from the configuration before.
    Delta(ConfigDelta),
}

/// The configurations in order, each as soon as it exists: a [`Stream`], to be read with [`futures::StreamExt`] or [`futures::TryStreamExt`].
pub struct ConfigWatch {
    events: BoxStream<'static, Result<ConfigEvent, Error>>,
}

impl std::fmt::Debug for ConfigWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigWatch").finish_non_exhaustive()
    }
}

impl ConfigWatch {
    pub(super) fn new(calls: Arc<ControllerCalls>, after: ConfigNum) -> Self {
        let watching = Watching {
            backoff: backoff(calls.router.options()),
            clock: calls.router.clock(),
            calls,
            have: after,
            stream: None,
            news: VecDeque::new(),
            over: false,
        };
        let events = stream::unfold(watching, async |mut watching| {
            let event = watching.next().await?;
            watching.over |= event.is_err();
            Some((event, watching))
        });
        Self {
            // A poll after the end returns `None` and does not panic.
            events: events.fuse().boxed(),
        }
    }
}

impl Stream for ConfigWatch {
    type Item = Result<ConfigEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.as_mut().poll_next(cx)
    }
}

struct Watching {
    calls: Arc<ControllerCalls>,
    clock: Clock,
    backoff: Backoff,
    /// The configuration of the last event.
    have: ConfigNum,
    stream: Option<(Arc<str>, Streaming<WatchResponse>)>,
    news: VecDeque<ConfigEvent>,
    over: bool,
}

impl Watching {
    async fn next(&mut self) -> Option<Result<ConfigEvent, Error>> {
        if self.over {
            return None;
        }
        loop {
            if let Some(event) = self.news.pop_front() {
                return Some(Ok(event));
            }
            let status = match self.message().await {
                Ok(message) => match self.take(message) {
                    Ok(()) => continue,
                    Err(why) => Status::unavailable(why.to_string()),
                },
                Err(status) => status,
            };
            if let Some((address, _)) = self.stream.take() {
                self.calls.bad(&address, None);
            }
            match api::refused_status(&status).refusal.judge().action {
                // Another node may have this configuration.
                Action::Fail(Rejection::NotFound { .. }) => {}
                Action::Fail(rejection) => return Some(Err(failure::rejected(rejection, false))),
                _ => {}
            }
            sleep(self.backoff.pause(self.clock.now())).await;
        }
    }

    async fn message(&mut self) -> Result<WatchResponse, Status> {
        let stream = match &mut self.stream {
            Some((_, stream)) => stream,
            none => {
                let address = self.calls.address();
                let patience = self.calls.router.options().connect_timeout * 2;
                let after = self.have.0;
                let opening = async {
                    let mut service = self.calls.service(&address).await?;
                    let request = WatchRequest {
                        after,
                        ..WatchRequest::default()
                    };
                    service.watch(request).await
                };
                let opened = match timeout(patience, opening).await {
                    Ok(opened) => opened,
                    Err(_) => Err(Status::unavailable("no answer in time")),
                };
                match opened {
                    Ok(stream) => &mut none.insert((address, stream.into_inner())).1,
                    Err(status) => {
                        self.calls.router.discard(&address, Slot::Control);
                        self.calls.bad(&address, None);
                        return Err(status);
                    }
                }
            }
        };
        let message = stream.message().await?;
        message.ok_or_else(|| Status::unavailable("the watch ended"))
    }

    fn take(&mut self, message: WatchResponse) -> Result<(), types::ConfigError> {
        if let Some(full) = message.full {
            let full = api::config_from_wire(full)?;
            if full.num() > self.have {
                self.have = full.num();
                self.news.push_back(ConfigEvent::Full(full));
            }
        }
        for delta in message.deltas {
            let delta = api::delta_from_wire(delta)?;
            if delta.num == self.have.next() {
                self.have = delta.num;
                self.news.push_back(ConfigEvent::Delta(delta));
            } else if delta.num > self.have {
                let (config, delta) = (self.have, delta.num);
                return Err(types::ConfigError::Number { config, delta });
            }
        }
        self.backoff.reset();
        Ok(())
    }
}
