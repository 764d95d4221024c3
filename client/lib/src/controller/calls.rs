//! Calls of the controllers: chooses the node and the name of a call, and the next node when one fails.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{
    self, ConfigChanged, ForgetRequest, ForgetResponse, GroupAddresses, JoinRequest, LeaveRequest,
    MoveRequest, OpenSessionRequest, QueryRequest, QueryResponse, RetireRequest,
};
use request::{Action, Blocked, Failure, Name, Next, Repeat, SingleCall};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;
use tonic::transport::Channel;
use types::{Gid, Incarnation, ShardId};

use crate::Error;
use crate::call::session_to_wire;
use crate::clock::jitter;
use crate::failure;
use crate::pool::UnarySessions;
use crate::route::{Router, Slot, plausible, short};
use crate::unary::policy;

pub(super) type Service = ShardctrlerClient<Channel>;

/// A request to the controllers.
pub(super) enum ConfigRequest {
    Query(i64),
    /// With true if the groups need no proof.
    Join(Vec<GroupAddresses>, bool),
    Leave(Vec<u64>),
    Move(ShardId, Gid),
    /// With true if data may be lost.
    Forget(Vec<u64>, bool),
    Retire(Gid, Incarnation),
}

/// The answer to a [`ConfigRequest`].
pub(super) enum ConfigAnswer {
    Config(QueryResponse),
    Changed(ConfigChanged),
    Forgotten(ForgetResponse),
    Retired,
}

impl ConfigRequest {
    /// Returns true if the request changes something, and so needs a name.
    fn is_change(&self) -> bool {
        !matches!(self, Self::Query(_))
    }

    fn repeat(&self) -> Repeat {
        if self.is_change() {
            Repeat::ByName
        } else {
            Repeat::Freely
        }
    }

    async fn send(
        &self,
        mut service: Service,
        session: Option<v1::Session>,
    ) -> Result<ConfigAnswer, Status> {
        let changed = match self {
            Self::Query(num) => {
                let answer = service.query(QueryRequest { num: *num }).await?;
                return Ok(ConfigAnswer::Config(answer.into_inner()));
            }
            Self::Join(groups, force) => {
                let request = JoinRequest {
                    groups: groups.clone(),
                    session,
                    force: *force,
                };
                service.join(request).await?
            }
            Self::Leave(gids) => {
                let gids = gids.clone();
                service.leave(LeaveRequest { gids, session }).await?
            }
            Self::Move(shard, gid) => {
                let (shard, gid) = (shard.0, gid.0);
                let request = MoveRequest {
                    shard,
                    gid,
                    session,
                };
                service.r#move(request).await?
            }
            Self::Forget(gids, accept_data_loss) => {
                let request = ForgetRequest {
                    gids: gids.clone(),
                    accept_data_loss: *accept_data_loss,
                    session,
                };
                let answer = service.forget(request).await?;
                return Ok(ConfigAnswer::Forgotten(answer.into_inner()));
            }
            Self::Retire(gid, incarnation) => {
                let (gid, incarnation) = (gid.0, incarnation.0);
                let request = RetireRequest {
                    gid,
                    incarnation,
                    session,
                };
                service.retire(request).await?;
                return Ok(ConfigAnswer::Retired);
            }
        };
        Ok(ConfigAnswer::Changed(changed.into_inner()))
    }
}

/// The common state of one client's [`crate::Controller`] handles: the node that answers, and the session of the changes.
pub(crate) struct ControllerCalls {
    pub(super) router: Router,
    sessions: UnarySessions,
    place: Mutex<Place>,
}

#[derive(Default)]
struct Place {
    /// The node that answered last, or that was named as the leader.
    good: Option<Arc<str>>,
    /// The position of the next node to try if no node is known to answer.
    turn: usize,
}

impl ControllerCalls {
    pub(crate) fn new(router: Router) -> Arc<Self> {
        let window = router.options().max_unacknowledged;
        Arc::new(Self {
            router,
            sessions: UnarySessions::new(window),
            place: Mutex::default(),
        })
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        // Each change under this lock is one assignment, so a poisoned lock protects valid data.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the address to ask: the node that answered last, or the next of all nodes.
    pub(super) fn address(&self) -> Arc<str> {
        let mut place = self.place();
        if let Some(good) = &place.good {
            return Arc::clone(good);
        }
        let mut all: Vec<Arc<str>> = self.router.configured().collect();
        if let Some(config) = self.router.config() {
            // Nodes of groups forward the calls, in case none of the options' addresses is in use any more.
            all.extend(config.all_addresses().map(|it| short(it)));
        }
        let turn = place.turn % all.len().max(1);
        place.turn = place.turn.wrapping_add(1);
        all.into_iter().nth(turn).unwrap_or_else(|| short(""))
    }

    fn good(&self, address: &Arc<str>) {
        self.place().good = Some(Arc::clone(address));
    }

    /// Records that the node at `address` can't answer. The next call goes to the node that it named, or to the next node.
    /// Returns true if the named node is used.
    pub(super) fn bad(&self, address: &Arc<str>, hint: Option<&str>) -> bool {
        let mut place = self.place();
        if place.good.as_ref().is_some_and(|good| good != address) {
            return false;
        }
        let hint = hint.filter(|hint| plausible(hint)).map(short);
        place.good = hint.filter(|hint| hint != address);
        place.good.is_some()
    }

    pub(super) async fn service(&self, address: &Arc<str>) -> Result<Service, Status> {
        let channel = self.router.channel(address, Slot::Control).await;
        let channel =
            channel.map_err(|error| Status::unavailable(format!("{address}: {error}")))?;
        let most = self.router.options().max_message_bytes;
        Ok(ShardctrlerClient::new(channel)
            .max_decoding_message_size(most)
            .max_encoding_message_size(most))
    }

    /// Makes a call, with its retries, for `patience`.
    pub(super) async fn call(
        &self,
        patience: Duration,
        request: ConfigRequest,
    ) -> Result<ConfigAnswer, Error> {
        let deadline = Instant::now() + patience;
        let options = self.router.options();
        let mut call = SingleCall::new(request.repeat(), policy(options), jitter());
        loop {
            let address = self.address();
            let attempt = self.attempt(&address, &mut call, &request);
            // A node that hangs must not use up the whole time limit.
            let until = deadline.min(Instant::now() + options.connect_timeout * 2);
            let answer = timeout_at(until, attempt).await;
            let answer = answer.unwrap_or_else(|_| {
                let silent = format!("{address}: no answer in time");
                Err(Status::unavailable(silent))
            });
            let failed = match answer {
                Ok(answer) => {
                    self.good(&address);
                    return Ok(answer);
                }
                Err(status) => self.failed(&mut call, &address, &status),
            };
            let error = |failure| self.router.explain(failure::error(failure, patience));
            let next = failed.map_err(error)?;
            if Instant::now() + next >= deadline {
                return Err(error(call.handle_deadline()));
            }
            sleep(next).await;
        }
    }

    /// Handles a failed attempt. Returns the pause before the next.
    fn failed(
        &self,
        call: &mut SingleCall,
        address: &Arc<str>,
        status: &Status,
    ) -> Result<Duration, Failure> {
        if api::error_detail(status).is_none() {
            self.router.discard(address, Slot::Control);
        }
        let refused = api::refused_status(status);
        let elsewhere = matches!(
            refused.refusal.clone().judge().action,
            Action::Reroute(_) | Action::WrongGroup(_)
        );
        let hint = refused.refusal.hint().cloned();
        let news = elsewhere && self.bad(address, hint.as_deref());
        let now = self.router.clock().now();
        match call.handle_refusal(now, refused, None, news) {
            Next::Retry { pause, .. } | Next::AwaitConfig { pause, .. } => Ok(pause),
            Next::Fail(failure) => Err(failure),
            // Never with this policy.
            Next::Report => Err(call.handle_deadline()),
        }
    }

    /// Makes one attempt, under the call's name.
    async fn attempt(
        &self,
        address: &Arc<str>,
        call: &mut SingleCall,
        request: &ConfigRequest,
    ) -> Result<ConfigAnswer, Status> {
        let service = self.service(address).await?;
        if request.is_change() && call.attempts.name.is_none() {
            call.attempts.name = Some(self.name(service.clone()).await?);
        }
        let stamp = call.attempts.name.as_ref().and_then(Name::stamp);
        call.handle_sent();
        request.send(service, stamp.map(session_to_wire)).await
    }

    /// Gives a change its client id and sequence, after opening a session if there is no valid one.
    async fn name(&self, mut service: Service) -> Result<Name, Status> {
        let UnarySessions {
            allocator, opening, ..
        } = &self.sessions;
        let clock = self.router.clock();
        let _alone = opening.lock().await;
        let asked = clock.now();
        let wanted = allocator.sequences().wants_session(asked);
        if wanted {
            let opened = service.open_session(OpenSessionRequest::default()).await?;
            let opened = opened.into_inner();
            let ttl = Duration::from_millis(opened.ttl_ms);
            let mut sequences = allocator.sequences();
            sequences.session_opened(asked, opened.client_id, ttl);
        }
        allocator.allocate(clock.now()).map_err(|blocked| {
            Status::resource_exhausted(match blocked {
                Blocked::NoSession => "no session could be opened",
                Blocked::WindowFull => "too many changes at the same time",
            })
        })
    }
}
