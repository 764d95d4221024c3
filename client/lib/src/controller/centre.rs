//! Calls of the configuration centre: whom to ask, under which name, and what to do when it fails.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{
    self, ConfigChanged, GroupAddresses, JoinRequest, LeaveRequest, MoveRequest,
    OpenSessionRequest, QueryRequest, QueryResponse,
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;
use tonic::transport::Channel;
use types::{Gid, ShardId};

use crate::Error;
use crate::backoff::Backoff;
use crate::call::Trial;
use crate::route::{Router, Slot, plausible, short};
use crate::session::{Blocked, Name, Naming};
use crate::verdict::{self, Action};

pub(super) type Node = ShardctrlerClient<Channel>;

/// What is asked.
pub(super) enum Ask {
    Query(i64),
    Join(Vec<GroupAddresses>),
    Leave(Vec<u64>),
    Move(ShardId, Gid),
}

/// What is answered.
pub(super) enum Told {
    Config(QueryResponse),
    Changed(ConfigChanged),
}

impl Ask {
    /// Whether it changes something, and so needs a name.
    fn is_change(&self) -> bool {
        !matches!(self, Self::Query(_))
    }

    async fn send(&self, mut node: Node, session: Option<v1::Session>) -> Result<Told, Status> {
        let changed = match self {
            Self::Query(num) => {
                let answer = node.query(QueryRequest { num: *num }).await?;
                return Ok(Told::Config(answer.into_inner()));
            }
            Self::Join(groups) => {
                let groups = groups.clone();
                node.join(JoinRequest { groups, session }).await?
            }
            Self::Leave(gids) => {
                let gids = gids.clone();
                node.leave(LeaveRequest { gids, session }).await?
            }
            Self::Move(shard, gid) => {
                let (shard, gid) = (shard.0, gid.0);
                let request = MoveRequest {
                    shard,
                    gid,
                    session,
                };
                node.r#move(request).await?
            }
        };
        Ok(Told::Changed(changed.into_inner()))
    }
}

/// What the handles of one client share: whom to ask, and the session of the changes.
pub(crate) struct Centre {
    pub(super) router: Router,
    naming: Arc<Naming>,
    place: Mutex<Place>,
}

#[derive(Default)]
struct Place {
    /// Who answered last, or was named.
    good: Option<Arc<str>>,
    /// Whom to ask else.
    turn: usize,
}

impl Centre {
    pub(crate) fn new(router: Router) -> Arc<Self> {
        let window = router.options().max_unacknowledged;
        Arc::new(Self {
            router,
            naming: Naming::new(window),
            place: Mutex::default(),
        })
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        // Nothing is left half done under this lock.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom to ask: who was good before, or the next of all.
    pub(super) fn address(&self) -> Arc<str> {
        let mut place = self.place();
        if let Some(good) = &place.good {
            return Arc::clone(good);
        }
        let mut all: Vec<Arc<str>> = self.router.configured().collect();
        if let Some(config) = self.router.config() {
            // Nodes of groups pass calls on, should none of the options' addresses be left.
            all.extend(config.groups().values().flatten().map(|it| short(it)));
        }
        let turn = place.turn % all.len().max(1);
        place.turn = place.turn.wrapping_add(1);
        all.into_iter().nth(turn).unwrap_or_else(|| short(""))
    }

    fn good(&self, address: &Arc<str>) {
        self.place().good = Some(Arc::clone(address));
    }

    /// Asks another from now on: who is named, or the next.
    pub(super) fn bad(&self, address: &Arc<str>, hint: Option<&str>) {
        let mut place = self.place();
        if place.good.as_ref().is_none_or(|good| good == address) {
            let hint = hint.filter(|hint| plausible(hint)).map(short);
            place.good = hint.filter(|hint| hint != address);
        }
    }

    pub(super) async fn node(&self, address: &Arc<str>) -> Result<Node, Status> {
        let channel = self.router.channel(address, Slot::Control).await;
        let channel = channel.map_err(|why| Status::unavailable(format!("{address}: {why}")))?;
        let most = self.router.options().max_message_bytes;
        Ok(ShardctrlerClient::new(channel)
            .max_decoding_message_size(most)
            .max_encoding_message_size(most))
    }

    /// One call with its retries.
    pub(super) async fn call(&self, patience: Duration, ask: Ask) -> Result<Told, Error> {
        let deadline = Instant::now() + patience;
        let options = self.router.options();
        let mut backoff = Backoff::new(options.min_backoff, options.max_backoff);
        let mut trial = Trial::default();
        loop {
            let address = self.address();
            let attempt = self.attempt(&address, &mut trial, &ask);
            // A node that hangs must not take all the time.
            let until = deadline.min(Instant::now() + options.connect_timeout * 2);
            let answer = timeout_at(until, attempt).await;
            let answer = answer.unwrap_or_else(|_| {
                let silent = format!("{address}: no answer in time");
                Err((true, Status::unavailable(silent)))
            });
            let (sent, status) = match answer {
                Ok(answer) => {
                    self.good(&address);
                    return Ok(answer);
                }
                Err(failed) => failed,
            };
            let now = Instant::now();
            trial.last = Some(status.message().to_owned());
            let verdict = verdict::of_status(&status);
            trial.doubt |= ask.is_change() && sent && verdict.doubt;
            let pause = match verdict.action {
                Action::Wait(ms) | Action::NotReady(ms) => backoff.pause_at_least(now, ms),
                Action::Reroute(hint) => {
                    if api::error_detail(&status).is_none() {
                        self.router.discard(&address, Slot::Control);
                    }
                    self.bad(&address, hint.as_deref());
                    backoff.pause(now)
                }
                Action::WrongGroup(_) => {
                    self.bad(&address, None);
                    backoff.pause_at_least(now, 0)
                }
                Action::NewSession => {
                    if let Some(name) = trial.name.take() {
                        name.expire();
                    }
                    if trial.doubt {
                        return Err(verdict::expired());
                    }
                    backoff.pause_at_least(now, 0)
                }
                Action::Fail(error) => return Err(verdict::with_doubt(error, trial.doubt)),
            };
            if now + pause >= deadline {
                return Err(verdict::timeout(patience, trial.doubt, trial.last));
            }
            sleep(pause).await;
        }
    }

    /// One attempt. A failure tells whether the request itself may have been sent.
    async fn attempt(
        &self,
        address: &Arc<str>,
        trial: &mut Trial,
        ask: &Ask,
    ) -> Result<Told, (bool, Status)> {
        let node = self.node(address).await.map_err(|status| (false, status))?;
        if ask.is_change() && trial.name.is_none() {
            let name = self.name(node.clone()).await;
            trial.name = Some(name.map_err(|status| (false, status))?);
        }
        let session = trial.name.as_ref().and_then(Name::stamp);
        let answer = ask.send(node, session).await;
        answer.map_err(|status| (true, status))
    }

    /// Names a change, after opening a session if there is no good one.
    async fn name(&self, mut node: Node) -> Result<Name, Status> {
        let _alone = self.naming.opening.lock().await;
        let asked = Instant::now();
        if self.naming.sessions().wants_another(asked) {
            let opened = node.open_session(OpenSessionRequest {}).await?.into_inner();
            let ttl = Duration::from_millis(opened.ttl_ms);
            let mut sessions = self.naming.sessions();
            sessions.opened(asked, opened.client_id, ttl);
        }
        self.naming.begin(Instant::now()).map_err(|blocked| {
            Status::resource_exhausted(match blocked {
                Blocked::NoSession => "no session could be opened",
                Blocked::WindowFull => "too many changes at the same time",
            })
        })
    }
}
