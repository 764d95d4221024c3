//! Unary mode: each call is a gRPC call of its own, under the rules of [`SingleCall`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::v1::OpenSessionRequest;
use api::v1::batch_item::Request as Wire;
use request::{Blocked, Bugs, Name, Next, Policy, SingleCall};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::call::{Answer, Request};
use crate::clock::{Clock, jitter};
use crate::failure;
use crate::pool::{GroupPool, Transport, UnarySessions};
use crate::route::{Leader, Router, Slot};
use crate::{ClientOptions, Error};

pub(crate) struct Unary {
    router: Router,
    clock: Clock,
    pool: Arc<GroupPool>,
    next: AtomicUsize,
}

/// Returns the rules of calls that are retried until their deadline.
pub(crate) fn policy(options: &ClientOptions) -> Policy {
    Policy {
        max_attempts: u32::MAX,
        reports_delays: false,
        min_backoff: options.min_backoff,
        max_backoff: options.max_backoff,
        doubling: false,
        bugs: Bugs::default(),
    }
}

/// Handles a failed attempt of a call that is routed by itself, and waits until the next may begin.
pub(crate) async fn failed(
    router: &Router,
    call: &mut SingleCall,
    leader: &Leader,
    slot: Slot,
    status: &Status,
) -> Result<(), request::Failure> {
    router.suspect(&leader.address, slot, status);
    let refused = api::refused_status(status);
    let hint = refused.refusal.hint().cloned();
    let news = hint.is_some_and(|hint| router.failed(leader, Some(&hint)));
    let known = router.config().map(|config| config.num());
    match call.handle_refusal(router.clock().now(), refused, known, news) {
        Next::Retry {
            pause,
            leader_failed,
        } => {
            if leader_failed {
                router.failed(leader, None);
            }
            sleep(pause).await;
        }
        Next::AwaitConfig {
            num,
            pause,
            leader_failed,
        } => {
            if leader_failed {
                router.failed(leader, None);
            }
            router.refresh(num, &leader.address);
            router.configured_at(num, pause).await;
        }
        Next::Fail(failure) => return Err(failure),
        // Never with this policy.
        Next::Report => return Err(call.handle_deadline()),
    }
    Ok(())
}

impl Unary {
    pub(crate) fn new(router: Router, pool: Arc<GroupPool>) -> Self {
        Self {
            clock: router.clock(),
            router,
            pool,
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
        let policy = policy(self.options());
        let mut call = SingleCall::new(request.repeat(), policy, jitter());
        let running = self.run(request, hash, &mut call);
        let result = match timeout_at(deadline, running).await {
            Ok(result) => result,
            Err(_) => Err(call.handle_deadline()),
        };
        result.map_err(|failure| failure::error(failure, timeout))
    }

    async fn run(
        &self,
        request: &Request,
        hash: u64,
        call: &mut SingleCall,
    ) -> Result<Answer, request::Failure> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = Slot::Calls(turn % self.options().connections);
        loop {
            let gid = self.router.owner(hash).await;
            let outage = call.outage(self.clock.now());
            let connected = self.router.connection(gid, slot, outage).await;
            let (leader, channel) = match connected {
                Ok(connected) => connected,
                Err(error) => {
                    let pause = call.handle_unreachable(self.clock.now(), error.to_string())?;
                    sleep(pause).await;
                    continue;
                }
            };
            match self.attempt(request, call, &leader, channel).await {
                Ok(answer) => return Ok(answer),
                Err(status) => failed(&self.router, call, &leader, slot, &status).await?,
            }
        }
    }

    /// Makes one attempt, under the call's name.
    async fn attempt(
        &self,
        request: &Request,
        call: &mut SingleCall,
        leader: &Leader,
        channel: Channel,
    ) -> Result<Answer, Status> {
        if request.is_write() && call.attempts.name.is_none() {
            let naming = self.name(leader, &channel);
            let name = self.router.unless_superseded(leader, naming).await?;
            call.attempts.name = Some(name);
        }
        let stamp = call.attempts.name.as_ref().and_then(Name::stamp);
        call.handle_sent();
        let attempt = self.send(leader, channel, request.to_wire(stamp));
        self.router.unless_superseded(leader, attempt).await
    }

    /// Gives a write its client id and sequence. Opens a session first if there is none, the current one gets old, or its
    /// window is full.
    async fn name(&self, leader: &Leader, channel: &Channel) -> Result<Name, Status> {
        let group = self.pool.group(leader.gid);
        let Transport::Unary(sessions) = &group.transport else {
            return Err(Status::internal("a batch stream names its writes itself"));
        };
        let UnarySessions {
            allocator,
            finished,
            opening,
        } = sessions;
        loop {
            let finished = finished.notified();
            tokio::pin!(finished);
            finished.as_mut().enable();
            let now = self.clock.now();
            let renew = allocator.sequences().wants_session(now);
            match allocator.allocate(now) {
                Ok(name) => {
                    if let (true, Ok(_alone)) = (renew, opening.try_lock()) {
                        // The old session stays valid for a while, so this failure can be ignored.
                        let _ = self.open_session(sessions, leader, channel).await;
                    }
                    return Ok(name);
                }
                Err(Blocked::WindowFull) if !renew => finished.await,
                Err(_) => {
                    let _alone = opening.lock().await;
                    let now = self.clock.now();
                    let wanted = allocator.sequences().wants_session(now);
                    if wanted {
                        self.open_session(sessions, leader, channel).await?;
                    }
                }
            }
        }
    }

    async fn open_session(
        &self,
        sessions: &UnarySessions,
        leader: &Leader,
        channel: &Channel,
    ) -> Result<(), Status> {
        let asked = self.clock.now();
        let mut kv = self.router.kv(leader, channel.clone());
        let opened = kv
            .open_session(OpenSessionRequest::default())
            .await?
            .into_inner();
        let ttl = Duration::from_millis(opened.ttl_ms);
        let mut sequences = sessions.allocator.sequences();
        sequences.session_opened(asked, opened.client_id, ttl);
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
