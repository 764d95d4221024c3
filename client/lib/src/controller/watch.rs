//! Configurations as they come.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use api::v1::{WatchRequest, WatchResponse};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Status, Streaming};
use types::{ConfigDelta, ConfigNum, ShardConfig};

use super::centre::Centre;
use crate::Error;
use crate::backoff::Backoff;
use crate::route::Slot;
use crate::verdict::{self, Action};

/// News of the configuration: see [`crate::Controller::watch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigEvent {
    /// Where to begin: what was known before is too old to lead on from.
    Full(ShardConfig),
    /// What leads on from the configuration before.
    Delta(ConfigDelta),
}

/// Configurations as they come: a [`Stream`] that is to be read with [`futures::StreamExt`] or [`futures::TryStreamExt`].
pub struct ConfigWatch {
    events: BoxStream<'static, Result<ConfigEvent, Error>>,
}

impl std::fmt::Debug for ConfigWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigWatch").finish_non_exhaustive()
    }
}

impl ConfigWatch {
    pub(super) fn new(centre: Arc<Centre>, after: ConfigNum) -> Self {
        let options = centre.router.options();
        let watching = Watching {
            backoff: Backoff::new(options.min_backoff, options.max_backoff),
            centre,
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
            // Asking on after the end is not worth a panic.
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
    centre: Arc<Centre>,
    backoff: Backoff,
    /// The configuration up to which events were taken in.
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
                self.centre.bad(&address, None);
            }
            match verdict::of_status(&status).action {
                // What this node doesn't have, another may.
                Action::Fail(Error::NotFound { .. }) => {}
                Action::Fail(error) => return Some(Err(verdict::with_doubt(error, false))),
                _ => {}
            }
            sleep(self.backoff.pause(Instant::now())).await;
        }
    }

    async fn message(&mut self) -> Result<WatchResponse, Status> {
        let stream = match &mut self.stream {
            Some((_, stream)) => stream,
            none => {
                let address = self.centre.address();
                let patience = self.centre.router.options().connect_timeout * 2;
                let after = self.have.0;
                let opening = async {
                    let mut service = self.centre.node(&address).await?;
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
                        self.centre.router.discard(&address, Slot::Control);
                        self.centre.bad(&address, None);
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
