//! Each call as a gRPC call of its own. The rules of naming and retrying are those of [`crate::lane`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::v1::OpenSessionRequest;
use api::v1::batch_item::Request as Wire;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::backoff::Backoff;
use crate::call::{Answer, Request};
use crate::router::{Leader, Router, Slot};
use crate::session::{Blocked, Number, Sessions};
use crate::verdict::{self, Action};
use crate::{ClientOptions, Error};

pub(crate) struct Unary {
    options: Arc<ClientOptions>,
    router: Arc<Router>,
    next: AtomicUsize,
    sessions: Mutex<Sessions>,
    /// Told when a write ends, which may make room in the window.
    finished: Notify,
    /// Held while a session is opened.
    opening: tokio::sync::Mutex<()>,
}

/// What is known of a call while it is tried.
#[derive(Default)]
struct Trial<'a> {
    name: Option<Name<'a>>,
    doubt: bool,
    on_wire: bool,
    last: Option<String>,
}

/// A name that is finished when the call ends, however it ends.
struct Name<'a> {
    unary: &'a Unary,
    number: Number,
}

impl Drop for Name<'_> {
    fn drop(&mut self) {
        self.unary.sessions().finish(self.number);
        self.unary.finished.notify_waiters();
    }
}

impl Unary {
    pub(crate) fn new(options: Arc<ClientOptions>, router: Arc<Router>) -> Self {
        Self {
            sessions: Mutex::new(Sessions::new(options.max_unacknowledged)),
            options,
            router,
            next: AtomicUsize::new(0),
            finished: Notify::new(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // Nothing is left half done under this lock.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn call(
        &self,
        request: &Request,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let mut trial = Trial::default();
        let tried = timeout_at(deadline, self.run(request, &mut trial)).await;
        tried.unwrap_or_else(|_| {
            let doubt = request.is_write() && (trial.doubt || trial.on_wire);
            Err(verdict::timeout(timeout, doubt, trial.last.take()))
        })
    }

    async fn run<'a>(&'a self, request: &Request, trial: &mut Trial<'a>) -> Result<Answer, Error> {
        let slot =
            Slot::Calls(self.next.fetch_add(1, Ordering::Relaxed) % self.options.connections);
        let mut backoff = Backoff::new(self.options.min_backoff, self.options.max_backoff);
        let mut outage = None;
        loop {
            let failed = match self.find(slot, outage).await {
                Ok((leader, channel)) => {
                    match self.attempt(request, trial, &leader, channel).await {
                        Ok(answer) => return Ok(answer),
                        Err(status) => Some((leader, status)),
                    }
                }
                Err(why) => {
                    trial.last = Some(why);
                    None
                }
            };
            let now = Instant::now();
            outage.get_or_insert(now);
            let pause = match failed {
                None => backoff.pause(now),
                Some((leader, status)) => {
                    match self.judge(request, trial, &leader, slot, &status)? {
                        Some(ms) => backoff.pause_at_least(now, ms),
                        None => backoff.pause(now),
                    }
                }
            };
            sleep(pause).await;
        }
    }

    async fn find(&self, slot: Slot, outage: Option<Instant>) -> Result<(Leader, Channel), String> {
        let outage = outage.map_or(Duration::ZERO, |since| since.elapsed());
        let leader = self.router.leader(outage).await?;
        match self.router.channel(&leader.address, slot).await {
            Ok(channel) => Ok((leader, channel)),
            Err(why) => {
                self.router.failed(leader.epoch, None);
                Err(format!("{}: {why}", leader.address))
            }
        }
    }

    async fn attempt<'a>(
        &'a self,
        request: &Request,
        trial: &mut Trial<'a>,
        leader: &Leader,
        channel: Channel,
    ) -> Result<Answer, Status> {
        if request.is_write() && trial.name.is_none() {
            let naming = self.name(&channel);
            trial.name = Some(self.router.unless_superseded(leader, naming).await?);
        }
        let session = trial
            .name
            .as_ref()
            .and_then(|name| self.sessions().stamp(name.number));
        trial.on_wire = true;
        let call = self.send(channel, request.to_wire(session));
        let result = self.router.unless_superseded(leader, call).await;
        trial.on_wire = false;
        let failed = match result {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        trial.doubt |= request.is_write() && verdict::of_status(&failed).doubt;
        Err(failed)
    }

    /// What to do about a failed attempt: `Some` asks the same node after so many milliseconds, `None` the
    /// leader as it is known then.
    fn judge(
        &self,
        request: &Request,
        trial: &mut Trial<'_>,
        leader: &Leader,
        slot: Slot,
        status: &Status,
    ) -> Result<Option<u32>, Error> {
        trial.last = Some(status.message().to_owned());
        match verdict::of_status(status).action {
            Action::Reroute(hint) => {
                if api::error_detail(status).is_none() {
                    self.router.discard(&leader.address, slot);
                }
                self.router.failed(leader.epoch, hint.as_deref());
                Ok(None)
            }
            Action::Wait(ms) => Ok(Some(ms)),
            Action::NewSession => {
                if let Some(name) = trial.name.take() {
                    self.sessions().expire(name.number);
                }
                if trial.doubt {
                    return Err(verdict::expired());
                }
                Ok(Some(0))
            }
            Action::Fail(error) => {
                let doubt = request.is_write() && trial.doubt;
                Err(verdict::with_doubt(error, doubt))
            }
        }
    }

    /// Names a write, after opening a session if there is none or the current one gets old.
    async fn name(&self, channel: &Channel) -> Result<Name<'_>, Status> {
        loop {
            let finished = self.finished.notified();
            tokio::pin!(finished);
            finished.as_mut().enable();
            let now = Instant::now();
            let (named, renew) = {
                let mut sessions = self.sessions();
                let renew = sessions.wants_another(now);
                (sessions.begin(now), renew)
            };
            match named {
                Ok(number) => {
                    let name = Name {
                        unary: self,
                        number,
                    };
                    if let (true, Ok(_alone)) = (renew, self.opening.try_lock()) {
                        // The old session is good for a while, so a failure is no trouble yet.
                        let _ = self.open_session(channel).await;
                    }
                    return Ok(name);
                }
                Err(Blocked::WindowFull) => finished.await,
                Err(Blocked::NoSession) => {
                    let _alone = self.opening.lock().await;
                    let wanted = self.sessions().wants_another(Instant::now());
                    if wanted {
                        self.open_session(channel).await?;
                    }
                }
            }
        }
    }

    async fn open_session(&self, channel: &Channel) -> Result<(), Status> {
        let asked = Instant::now();
        let mut kv = self.router.kv(channel.clone());
        let opened = kv.open_session(OpenSessionRequest {}).await?.into_inner();
        let ttl = Duration::from_millis(opened.ttl_ms);
        self.sessions().opened(asked, opened.client_id, ttl);
        Ok(())
    }

    async fn send(&self, channel: Channel, request: Wire) -> Result<Answer, Status> {
        let mut kv = self.router.kv(channel);
        Ok(match request {
            Wire::Get(it) => {
                let it = kv.get(it).await.map(Response::into_inner)?;
                Answer::Value(it.found.then_some(it.value))
            }
            Wire::Put(it) => {
                kv.put(it).await?;
                Answer::Put
            }
            Wire::Append(it) => Answer::Length(kv.append(it).await?.into_inner().length),
            Wire::Delete(it) => Answer::Existed(kv.delete(it).await?.into_inner().existed),
            Wire::CompareAndSwap(it) => {
                Answer::Swapped(kv.compare_and_swap(it).await?.into_inner().swapped)
            }
        })
    }
}
