//! The configuration centre: asking for configurations, changing them, and waiting until the shards have followed.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{
    self, ConfigChanged, GroupAddresses, JoinRequest, LeaveRequest, MoveRequest,
    OpenSessionRequest, QueryRequest, QueryResponse, WatchRequest, WatchResponse,
};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use types::{ClusterId, ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId};

use crate::Error;
use crate::backoff::Backoff;
use crate::call::{Trial, mismatch};
use crate::route::{Router, Slot, plausible, short};
use crate::session::{Blocked, Name, Naming};
use crate::verdict::{self, Action};

/// How often [`Controller::wait_settled`] asks.
const SETTLE_POLL: Duration = Duration::from_millis(200);

/// The configuration centre, made by [`crate::Client::controller`]. Cheap to clone.
///
/// Any node of the cluster takes the calls, so the addresses of the client's options will do. Calls are retried until the
/// client's deadline, and a change takes effect once however often it is retried. A cluster without controllers
/// answers queries for the one configuration that it is, and refuses changes with [`Error::Conflict`].
///
/// ```no_run
/// use client::{Client, Gid};
///
/// # async fn example(client: Client) -> Result<(), client::Error> {
/// let controller = client.controller();
/// let group = ["10.0.1.1:7000", "10.0.1.2:7000", "10.0.1.3:7000"].map(str::to_owned);
/// let change = controller.join([(Gid(2), group.to_vec())].into()).await?;
/// println!("{} shards move", change.moved_shards);
/// controller.wait_settled(change.num, |view| println!("{:?}", view.progress)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Controller {
    centre: Arc<Centre>,
    timeout: Duration,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").finish_non_exhaustive()
    }
}

/// A configuration and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigView {
    /// The configuration.
    pub config: ShardConfig,
    /// The number of the latest.
    pub latest: ConfigNum,
    /// The number of the oldest that is kept.
    pub oldest: ConfigNum,
    /// The controllers' incarnation: the same as long as the cluster lives.
    pub cluster_id: ClusterId,
    /// Of every group that is part of the cluster, or left and is not drained yet.
    pub progress: Vec<GroupProgress>,
}

/// How far a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupProgress {
    /// Which group.
    pub gid: Gid,
    /// All that configurations up to this one ask of it is done: pulled, handed over, deleted.
    pub settled: ConfigNum,
    /// The configuration in which it left; `None` while it is part of the cluster.
    pub left_in: Option<ConfigNum>,
}

/// What a change of the configuration did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    /// The configuration that it made, or the latest if it changed nothing.
    pub num: ConfigNum,
    /// Whether it changed anything.
    pub changed: bool,
    /// How many shards have another owner now.
    pub moved_shards: u32,
}

/// News of the configuration: see [`Controller::watch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigEvent {
    /// Where to begin: what was known before is too old to lead on from.
    Full(ShardConfig),
    /// What leads on from the configuration before.
    Delta(ConfigDelta),
}

impl ConfigView {
    /// Whether all is done that configurations up to `num` ask of any group: every shard is where it belongs and nothing is
    /// left where it was.
    pub fn is_settled(&self, num: ConfigNum) -> bool {
        let due = |group: &GroupProgress| group.left_in.map_or(num, |left| left.min(num));
        self.progress
            .iter()
            .all(|group| group.settled >= due(group))
    }

    /// Whether a group is not part of the cluster and holds nothing that others still need.
    pub fn is_drained(&self, gid: Gid) -> bool {
        let waits = |group: &GroupProgress| {
            group.gid == gid && group.left_in.is_none_or(|left| group.settled < left)
        };
        !self.config.groups().contains_key(&gid) && !self.progress.iter().any(waits)
    }
}

impl Controller {
    pub(crate) fn new(centre: Arc<Centre>, timeout: Duration) -> Self {
        Self { centre, timeout }
    }

    /// A configuration; `None` is the latest. Linearizable. One that isn't kept any more, or isn't made yet, is
    /// [`Error::NotFound`].
    pub async fn query(&self, num: Option<ConfigNum>) -> Result<ConfigView, Error> {
        let num = match num.map(|num| i64::try_from(num.0)) {
            None => -1,
            Some(Ok(num)) => num,
            Some(Err(_)) => i64::MAX,
        };
        let Told::Config(answer) = self.centre.call(self.timeout, Ask::Query(num)).await? else {
            return Err(mismatch(false));
        };
        let config = answer.config.ok_or_else(|| strange("no configuration"))?;
        let progress = answer.progress.into_iter().map(|it| GroupProgress {
            gid: Gid(it.gid),
            settled: ConfigNum(it.settled),
            left_in: (it.left_in != 0).then_some(ConfigNum(it.left_in)),
        });
        Ok(ConfigView {
            config: api::config_from_wire(config).map_err(strange)?,
            latest: ConfigNum(answer.latest),
            oldest: ConfigNum(answer.oldest),
            cluster_id: ClusterId(answer.cluster_id),
            progress: progress.collect(),
        })
    }

    /// Adds groups with the addresses of their nodes (`host:port`), or gives groups other addresses, and spreads the shards
    /// with the fewest moves.
    pub async fn join(&self, groups: BTreeMap<Gid, Vec<String>>) -> Result<ConfigChange, Error> {
        let groups = groups.into_iter();
        let groups = groups.map(|(gid, addresses)| GroupAddresses {
            gid: gid.0,
            addresses,
        });
        self.change(Ask::Join(groups.collect())).await
    }

    /// Takes groups away; their shards go to the others. The last group stays: [`Error::Conflict`].
    pub async fn leave(&self, gids: &[Gid]) -> Result<ConfigChange, Error> {
        let gids = gids.iter().map(|gid| gid.0);
        self.change(Ask::Leave(gids.collect())).await
    }

    /// Gives one shard to a group, until a rebalance must touch it.
    pub async fn move_shard(&self, shard: ShardId, gid: Gid) -> Result<ConfigChange, Error> {
        self.change(Ask::Move(shard, gid)).await
    }

    async fn change(&self, ask: Ask) -> Result<ConfigChange, Error> {
        match self.centre.call(self.timeout, ask).await? {
            Told::Changed(change) => Ok(ConfigChange {
                num: ConfigNum(change.num),
                changed: change.changed,
                moved_shards: change.moved_shards,
            }),
            Told::Config(_) => Err(mismatch(true)),
        }
    }

    /// Configurations as they come: first what leads on from configuration `after`, at once, then each as it is made. It
    /// goes on when a node is lost, without a gap, and never ends by itself except by an error that no retry cures.
    pub fn watch(&self, after: ConfigNum) -> ConfigWatch {
        let options = self.centre.router.options();
        let watching = Watching {
            backoff: Backoff::new(options.min_backoff, options.max_backoff),
            centre: Arc::clone(&self.centre),
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
        ConfigWatch {
            events: events.boxed(),
        }
    }

    /// Waits until all is done that configurations up to `num` ask of any group, and tells `progress` about how that goes,
    /// a few times a second. Has no deadline of its own: only a single question that stays unanswered
    /// ends it, with its error.
    pub async fn wait_settled(
        &self,
        num: ConfigNum,
        mut progress: impl FnMut(&ConfigView),
    ) -> Result<ConfigView, Error> {
        loop {
            let view = self.query(None).await?;
            progress(&view);
            if view.is_settled(num) {
                return Ok(view);
            }
            sleep(SETTLE_POLL).await;
        }
    }
}

fn strange(what: impl std::fmt::Display) -> Error {
    Error::Protocol {
        message: what.to_string(),
        maybe_applied: false,
    }
}

type Node = ShardctrlerClient<Channel>;

/// What is asked.
enum Ask {
    Query(i64),
    Join(Vec<GroupAddresses>),
    Leave(Vec<u64>),
    Move(ShardId, Gid),
}

/// What is answered.
enum Told {
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
    router: Router,
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
    fn address(&self) -> Arc<str> {
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
    fn bad(&self, address: &Arc<str>, hint: Option<&str>) {
        let mut place = self.place();
        if place.good.as_ref().is_none_or(|good| good == address) {
            let hint = hint.filter(|hint| plausible(hint)).map(short);
            place.good = hint.filter(|hint| hint != address);
        }
    }

    async fn node(&self, address: &Arc<str>) -> Result<Node, Status> {
        let channel = self.router.channel(address, Slot::Control).await;
        let channel = channel.map_err(|why| Status::unavailable(format!("{address}: {why}")))?;
        let most = self.router.options().max_message_bytes;
        Ok(ShardctrlerClient::new(channel)
            .max_decoding_message_size(most)
            .max_encoding_message_size(most))
    }

    /// One call with its retries.
    async fn call(&self, patience: Duration, ask: Ask) -> Result<Told, Error> {
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

/// Configurations as they come: a [`Stream`] that is to be read with [`futures::StreamExt`] or [`futures::TryStreamExt`].
pub struct ConfigWatch {
    events: BoxStream<'static, Result<ConfigEvent, Error>>,
}

impl std::fmt::Debug for ConfigWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigWatch").finish_non_exhaustive()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn view(progress: &[(u64, u64, u64)]) -> ConfigView {
        let groups = [(Gid(1), vec!["a:1".to_owned()])].into();
        let progress = progress.iter().map(|&(gid, settled, left)| GroupProgress {
            gid: Gid(gid),
            settled: ConfigNum(settled),
            left_in: (left != 0).then_some(ConfigNum(left)),
        });
        ConfigView {
            config: ShardConfig::new(ConfigNum(5), groups, [(4, Gid(1))]).unwrap(),
            latest: ConfigNum(5),
            oldest: ConfigNum(1),
            cluster_id: ClusterId(1),
            progress: progress.collect(),
        }
    }

    #[test]
    fn a_configuration_is_settled_when_every_group_has_done_its_part() {
        for (progress, settled) in [
            (&[(1, 5, 0)][..], true),
            (&[(1, 4, 0)], false),
            (&[(1, 5, 0), (2, 3, 4)], false),
            (&[(1, 5, 0), (2, 4, 4)], true),
            (&[(1, 9, 0), (2, 5, 9)], true),
            (&[], true),
        ] {
            let view = view(progress);
            assert_eq!(view.is_settled(ConfigNum(5)), settled, "{progress:?}");
        }
    }

    #[test]
    fn a_group_is_drained_when_it_left_and_nobody_needs_it() {
        assert!(!view(&[(1, 5, 0)]).is_drained(Gid(1)), "it is part of it");
        assert!(!view(&[(2, 3, 4)]).is_drained(Gid(2)));
        assert!(view(&[(2, 4, 4)]).is_drained(Gid(2)));
        assert!(view(&[]).is_drained(Gid(2)), "forgotten");
    }
}
