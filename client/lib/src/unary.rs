//! Each call as a gRPC call of its own. The rules of naming and retrying are those of [`crate::lane`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::v1::OpenSessionRequest;
use api::v1::batch_item::Request as Wire;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::Channel;
use tonic::{Response, Status};
use types::ConfigNum;

use crate::backoff::Backoff;
use crate::call::{Answer, Request, Trial};
use crate::gates::{Engine, Gates};
use crate::route::{Leader, Router, Slot};
use crate::session::{Blocked, Name, Naming};
use crate::verdict::{self, Action};
use crate::{ClientOptions, Error};

pub(crate) struct Unary {
    router: Router,
    gates: Arc<Gates>,
    next: AtomicUsize,
}

/// How to wait before the next attempt.
enum Pause {
    /// As long as seems right.
    Own,
    /// At least so many milliseconds.
    AtLeast(u32),
    /// The shard asked for so many milliseconds.
    Shard(u32),
    /// Until this configuration is known.
    Config(ConfigNum),
}

impl Unary {
    pub(crate) fn new(router: Router, gates: Arc<Gates>) -> Self {
        Self {
            router,
            gates,
            next: AtomicUsize::new(0),
        }
    }

    fn options(&self) -> &ClientOptions {
        self.router.options()
    }

    pub(crate) async fn call(
        &self,
        request: &Request,
        hash: u64,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let mut trial = Trial::default();
        let mut on_wire = false;
        let running = self.run(request, hash, &mut trial, &mut on_wire);
        let tried = timeout_at(deadline, running).await;
        tried.unwrap_or_else(|_| {
            let doubt = request.is_write() && (trial.doubt || on_wire);
            Err(verdict::timeout(timeout, doubt, trial.last.take()))
        })
    }

    async fn run(
        &self,
        request: &Request,
        hash: u64,
        trial: &mut Trial,
        on_wire: &mut bool,
    ) -> Result<Answer, Error> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = Slot::Calls(turn % self.options().connections);
        let mut backoff = Backoff::new(self.options().min_backoff, self.options().max_backoff);
        let mut outage = None;
        loop {
            let gid = self.router.owner(hash).await;
            let outage_now = outage.map_or(Duration::ZERO, |since: Instant| since.elapsed());
            let failed = match self.router.connection(gid, slot, outage_now).await {
                Ok((leader, channel)) => {
                    let attempt = self.attempt(request, trial, on_wire, &leader, channel);
                    match attempt.await {
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
                None => Pause::Own,
                Some((leader, status)) => self.judge(request, trial, &leader, slot, &status)?,
            };
            match pause {
                Pause::Own => sleep(backoff.pause(now)).await,
                Pause::AtLeast(ms) => sleep(backoff.pause_at_least(now, ms)).await,
                Pause::Shard(ms) => sleep(backoff.pause_of(trial.turn_away(now), ms)).await,
                Pause::Config(num) => {
                    let pause = backoff.pause_of(trial.turn_away(now), 0);
                    self.router.configured_at(num, pause).await;
                }
            }
        }
    }

    async fn attempt(
        &self,
        request: &Request,
        trial: &mut Trial,
        on_wire: &mut bool,
        leader: &Leader,
        channel: Channel,
    ) -> Result<Answer, Status> {
        if request.is_write() && trial.name.is_none() {
            let naming = self.name(leader, &channel);
            trial.name = Some(self.router.unless_superseded(leader, naming).await?);
        }
        let session = trial.name.as_ref().and_then(Name::stamp);
        *on_wire = true;
        let call = self.send(leader, channel, request.to_wire(session));
        let result = self.router.unless_superseded(leader, call).await;
        *on_wire = false;
        let failed = match result {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        trial.doubt |= request.is_write() && verdict::of_status(&failed).doubt;
        Err(failed)
    }

    /// What to do about a failed attempt: how to wait before the next, which goes to the leader as it is known then.
    fn judge(
        &self,
        request: &Request,
        trial: &mut Trial,
        leader: &Leader,
        slot: Slot,
        status: &Status,
    ) -> Result<Pause, Error> {
        trial.last = Some(status.message().to_owned());
        match verdict::of_status(status).action {
            Action::Reroute(hint) => {
                self.router.suspect(&leader.address, slot, status);
                self.router.failed(leader, hint.as_deref());
                Ok(Pause::Own)
            }
            Action::WrongGroup(num) => {
                if self.router.has(num) {
                    // The group hasn't heard of it, or the address is another group's now.
                    self.router.failed(leader, None);
                }
                self.router.refresh(num, &leader.address);
                Ok(Pause::Config(num))
            }
            Action::NotReady(ms) => Ok(Pause::Shard(ms)),
            Action::Wait(ms) => Ok(Pause::AtLeast(ms)),
            Action::NewSession => {
                if let Some(name) = trial.name.take() {
                    name.expire();
                }
                if trial.doubt {
                    return Err(verdict::expired());
                }
                Ok(Pause::AtLeast(0))
            }
            Action::Fail(error) => {
                let doubt = request.is_write() && trial.doubt;
                Err(verdict::with_doubt(error, doubt))
            }
        }
    }

    /// Names a write, after opening a session if there is none, the current one gets old or its window is shut.
    async fn name(&self, leader: &Leader, channel: &Channel) -> Result<Name, Status> {
        let gate = self.gates.of(leader.gid);
        let Engine::Unary(naming) = &gate.engine else {
            return Err(Status::internal("a lane names its writes itself"));
        };
        loop {
            let finished = naming.finished.notified();
            tokio::pin!(finished);
            finished.as_mut().enable();
            let now = Instant::now();
            let renew = naming.sessions().wants_another(now);
            match naming.begin(now) {
                Ok(name) => {
                    if let (true, Ok(_alone)) = (renew, naming.opening.try_lock()) {
                        // The old session is good for a while, so a failure is no trouble yet.
                        let _ = self.open_session(naming, leader, channel).await;
                    }
                    return Ok(name);
                }
                Err(Blocked::WindowFull) if !renew => finished.await,
                Err(_) => {
                    let _alone = naming.opening.lock().await;
                    let wanted = naming.sessions().wants_another(Instant::now());
                    if wanted {
                        self.open_session(naming, leader, channel).await?;
                    }
                }
            }
        }
    }

    async fn open_session(
        &self,
        naming: &Naming,
        leader: &Leader,
        channel: &Channel,
    ) -> Result<(), Status> {
        let asked = Instant::now();
        let mut kv = self.router.kv(leader, channel.clone());
        let opened = kv.open_session(OpenSessionRequest {}).await?.into_inner();
        let ttl = Duration::from_millis(opened.ttl_ms);
        naming.sessions().opened(asked, opened.client_id, ttl);
        Ok(())
    }

    async fn send(
        &self,
        leader: &Leader,
        channel: Channel,
        request: Wire,
    ) -> Result<Answer, Status> {
        let mut kv = self.router.kv(leader, channel);
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
