//! The watch of the configuration: one task with one open `Shardctrler.Watch`.
//!
//! Every node serves the watch, so any address works. Addresses are tried one after the other; the next is tried when one fails
//! or is silent for a moment. The first node that answers is kept until its stream ends, it turns out to be behind (a group knows
//! a later configuration), or no node leads at the addresses of the configuration.
//!
//! # Invariants
//!
//! - Configurations are published with rising numbers, all of one cluster.
//! - A cluster of nodes that don't know `Shardctrler` is one group at the addresses of the options: configuration 0 with a group
//!   in it, which no controller makes.

use std::sync::Arc;
use std::time::Duration;

use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{WatchRequest, WatchResponse};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Streaming};
use types::{ClusterId, ConfigNum, Gid, MAX_GROUP_ADDRESSES, MAX_SHARDS, ShardConfig};

use super::ClusterMark;
use super::channels::{Channels, Slot, short};
use super::error::ChannelError;
use crate::ClientOptions;
use crate::clock::{Clock, backoff};

/// The most addresses that one round tries.
const MAX_ASKED: usize = 32;

/// The time after which the next address is tried as well.
const STAGGER: Duration = Duration::from_millis(50);

/// The time that an open watch may take to deliver a configuration that a group already has.
const PATIENCE: Duration = Duration::from_millis(20);

/// The least time for which a doubtful watch is kept, so that an election doesn't make the client switch between nodes.
const TRUST: Duration = Duration::from_secs(1);

/// The interval at which nodes that don't know `Shardctrler` are asked again: they may be upgraded.
const UPGRADE: Duration = Duration::from_secs(5);

/// Reports from the users of a configuration, which show that it may be old.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// The latest configuration that a group has.
    pub(crate) num: ConfigNum,
    /// The node that has it.
    pub(crate) from: Option<Arc<str>>,
    /// The number of times that no node led at the addresses of the configuration.
    pub(crate) doubts: u64,
}

/// The group of a cluster whose nodes don't know `Shardctrler`.
const SINGLE: Gid = Gid(1);

/// Returns true if the client made the configuration itself, because the nodes don't know configurations.
pub(crate) fn is_single(config: &ShardConfig) -> bool {
    config.num() == ConfigNum(0) && !config.groups().is_empty()
}

pub(crate) struct Watcher {
    pub(crate) options: Arc<ClientOptions>,
    pub(crate) channels: Arc<Channels>,
    pub(crate) configs: watch::Sender<Option<Arc<ShardConfig>>>,
    /// The cluster of the configurations, for the metadata of calls.
    pub(crate) cluster: ClusterMark,
    pub(crate) wanted: watch::Receiver<Wanted>,
    /// The reason why there is no configuration yet.
    pub(crate) trouble: watch::Sender<String>,
    pub(crate) place: Place,
}

/// The position of a watcher in its round over the addresses.
#[derive(Default)]
pub(crate) struct Place {
    /// The next address to try.
    turn: usize,
    /// The cluster of the configurations; 0 until a node has told it.
    cluster: u64,
    /// True to begin with a full configuration, because deltas didn't fit.
    afresh: bool,
}

impl Place {
    /// Returns the place of a watcher that takes configurations of `cluster` only, if it is given.
    pub(crate) fn of(cluster: Option<ClusterId>) -> Self {
        Self {
            cluster: cluster.map_or(0, |cluster| cluster.0),
            ..Self::default()
        }
    }
}

/// An open watch with its first message.
struct Opened {
    stream: Streaming<WatchResponse>,
    first: WatchResponse,
}

/// The reason why no watch could be opened.
enum OpenError {
    /// The node doesn't know `Shardctrler`.
    Older,
    Failed(WatchError),
}

/// The reason why a watch failed, or ended. Another node may do better.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum WatchError {
    #[error("{0}")]
    Channel(#[from] ChannelError),
    #[error("{0}")]
    Refused(String),
    #[error("no answer")]
    NoAnswer,
    #[error("the watch ended before its first message")]
    Empty,
    #[error("{address}: {error}")]
    At {
        address: Arc<str>,
        error: Box<WatchError>,
    },
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    All(Vec<WatchError>),
    #[error("the watch ended")]
    Ended,
    #[error("the watch is behind")]
    Behind,
    #[error("the client is closed")]
    Closed,
    #[error("the node belongs to cluster {theirs}, not {ours}")]
    OtherCluster { theirs: ClusterId, ours: ClusterId },
    #[error("the node doesn't tell its cluster")]
    UnknownCluster,
    #[error(transparent)]
    Config(#[from] types::ConfigError),
    #[error("the node doesn't know the number of shards")]
    UnknownShards,
    #[error("the node names {named} shards, but the cluster has {known}")]
    OtherShards { named: u32, known: u32 },
}

impl Watcher {
    /// Runs until all users of the configuration are gone.
    pub(crate) async fn run(mut self) {
        let mut users = self.wanted.clone();
        let gone = async move { while users.changed().await.is_ok() {} };
        tokio::select! {
            () = self.watch() => {}
            () = gone => {}
        }
    }

    async fn watch(&mut self) {
        let clock = Clock::start();
        let mut backoff = backoff(&self.options);
        loop {
            let ended = match self.open().await {
                Ok(opened) => {
                    let since = Instant::now();
                    let why = self.follow(opened).await;
                    if since.elapsed() >= TRUST {
                        backoff.reset();
                    }
                    why
                }
                Err(OpenError::Failed(why)) => why,
                Err(OpenError::Older) if self.options.cluster.is_some() => {
                    WatchError::UnknownCluster
                }
                Err(OpenError::Older) => {
                    self.publish_single();
                    sleep(UPGRADE).await;
                    continue;
                }
            };
            self.trouble.send_replace(ended.to_string());
            self.place.turn = self.place.turn.wrapping_add(1);
            sleep(backoff.pause(clock.now())).await;
        }
    }

    fn current(&self) -> Option<Arc<ShardConfig>> {
        self.configs.borrow().clone()
    }

    /// Returns the number of the known configuration.
    fn have(&self) -> ConfigNum {
        self.current().map_or(ConfigNum(0), |config| config.num())
    }

    /// Returns the addresses to ask, in order: the node that has a later configuration, then all in turn.
    fn candidates(&mut self) -> Vec<Arc<str>> {
        let mut all: Vec<Arc<str>> = self.options.addresses.iter().map(|it| short(it)).collect();
        if let Some(config) = self.current() {
            all.extend(config.all_addresses().map(|it| short(it)));
        }
        let turn = self.place.turn % all.len().max(1);
        all.rotate_left(turn);
        let wanted = self.wanted.borrow_and_update().clone();
        if let Some(from) = wanted.from.filter(|_| wanted.num > self.have()) {
            all.insert(0, from);
        }
        all.truncate(MAX_ASKED);
        all
    }

    async fn open(&mut self) -> Result<Opened, OpenError> {
        let have = self.have();
        let after = if self.place.afresh { 0 } else { have.0 };
        let mut more = self.candidates().into_iter();
        let (options, channels) = (&self.options, &self.channels);
        let mut asked = FuturesUnordered::new();
        let (mut said, mut older) = (Vec::new(), false);
        loop {
            match more.next() {
                Some(address) => asked.push(ask(options, channels, address, after)),
                None if asked.is_empty() && older => return Err(OpenError::Older),
                None if asked.is_empty() => {
                    return Err(OpenError::Failed(WatchError::All(said)));
                }
                None => {}
            }
            tokio::select! {
                Some(answer) = asked.next() => match answer {
                    Ok(opened) => return Ok(opened),
                    Err(OpenError::Older) => older = true,
                    Err(OpenError::Failed(why)) => said.push(why),
                },
                () = sleep(STAGGER), if more.len() > 0 => {}
            }
        }
    }

    /// Applies the messages of a watch until the watch ends or is behind. Returns the reason.
    async fn follow(&mut self, opened: Opened) -> WatchError {
        let Opened { mut stream, first } = opened;
        let since = Instant::now();
        let doubts = self.wanted.borrow().doubts;
        if let Err(why) = self.take(first) {
            self.place.afresh = true;
            return why;
        }
        self.place.afresh = false;
        let mut leave: Option<Instant> = None;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            if wanted.num > self.have() {
                leave.get_or_insert(Instant::now() + PATIENCE);
            } else if wanted.doubts > doubts {
                leave = Some((since + TRUST).max(Instant::now()));
            } else {
                leave = None;
            }
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(message)) => if let Err(why) = self.take(message) {
                        self.place.afresh = true;
                        return why;
                    },
                    Ok(None) => return WatchError::Ended,
                    Err(status) => return WatchError::Refused(status.message().to_owned()),
                },
                changed = self.wanted.changed() => if changed.is_err() {
                    return WatchError::Closed;
                },
                () = sleep_until(leave.unwrap_or(since)), if leave.is_some() => {
                    return WatchError::Behind;
                }
            }
        }
    }

    fn take(&mut self, message: WatchResponse) -> Result<(), WatchError> {
        let (ours, theirs) = (self.place.cluster, message.cluster_id);
        // An older node sends no cluster id.
        if theirs == 0 && self.options.cluster.is_some() {
            return Err(WatchError::UnknownCluster);
        }
        if ours != 0 && theirs != 0 && theirs != ours {
            let (theirs, ours) = (ClusterId(theirs), ClusterId(ours));
            return Err(WatchError::OtherCluster { theirs, ours });
        }
        let current = self.current().filter(|config| !is_single(config));
        let next = advance(current.as_deref(), message)?;
        if ours == 0 && theirs != 0 {
            self.place.cluster = theirs;
            super::set_mark(&self.cluster, theirs);
        }
        if let Some(next) = next {
            self.configs.send_replace(Some(Arc::new(next)));
        }
        Ok(())
    }

    fn publish_single(&self) {
        if self.current().is_some() {
            return;
        }
        let addresses = self
            .options
            .addresses
            .iter()
            .map(|it| short(it).to_string());
        let mut addresses: Vec<String> = addresses.collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MAX_GROUP_ADDRESSES);
        let groups = [(SINGLE, addresses)].into();
        match ShardConfig::new(ConfigNum(0), groups, [(1, SINGLE)]) {
            Ok(config) => drop(self.configs.send_replace(Some(Arc::new(config)))),
            Err(error) => drop(self.trouble.send_replace(error.to_string())),
        }
    }
}

async fn ask(
    options: &ClientOptions,
    channels: &Channels,
    address: Arc<str>,
    after: u64,
) -> Result<Opened, OpenError> {
    let failed = |error: WatchError| {
        OpenError::Failed(WatchError::At {
            address: Arc::clone(&address),
            error: Box::new(error),
        })
    };
    let asking = async {
        let channel = channels.channel(&address, Slot::Control).await;
        let channel = channel.map_err(|error| failed(error.into()))?;
        let mut controller =
            ShardctrlerClient::new(channel).max_decoding_message_size(options.max_message_bytes);
        let request = WatchRequest {
            after,
            ..WatchRequest::default()
        };
        let opening = async {
            let stream = controller.watch(request).await;
            let mut stream = stream?.into_inner();
            let first = stream.message().await?;
            Ok((stream, first))
        };
        opening.await.map_err(|status: tonic::Status| {
            if status.code() == Code::Unimplemented {
                return OpenError::Older;
            }
            if api::error_detail(&status).is_none() {
                channels.discard(&address, Slot::Control);
            }
            failed(WatchError::Refused(status.message().to_owned()))
        })
    };
    match timeout(options.connect_timeout, asking).await {
        Ok(Ok((stream, Some(first)))) => Ok(Opened { stream, first }),
        Ok(Ok((_, None))) => Err(failed(WatchError::Empty)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(failed(WatchError::NoAnswer)),
    }
}

/// Returns the configuration that a message leads to from `current`, if it is a later one.
fn advance(
    current: Option<&ShardConfig>,
    message: WatchResponse,
) -> Result<Option<ShardConfig>, WatchError> {
    let full = message.full.map(api::config_from_wire).transpose()?;
    let newer = |full: &ShardConfig| current.is_none_or(|it| full.num() > it.num());
    let mut next = match (full.filter(newer), current) {
        (Some(full), _) => full,
        (None, Some(current)) if message.deltas.is_empty() => {
            return checked(current, message.shards).map(|()| None);
        }
        (None, Some(current)) => current.clone(),
        (None, None) if (1..=MAX_SHARDS).contains(&message.shards) => {
            ShardConfig::empty(message.shards)
        }
        (None, None) => return Err(WatchError::UnknownShards),
    };
    checked(&next, message.shards)?;
    if let Some(current) = current {
        checked(current, next.shards())?;
    }
    for delta in message.deltas {
        let delta = api::delta_from_wire(delta)?;
        if delta.num > next.num() {
            next.apply(&delta)?;
        }
    }
    Ok(Some(next).filter(newer))
}

/// Refuses another number of shards than the cluster's, which never changes; 0 stands for unknown.
fn checked(config: &ShardConfig, shards: u32) -> Result<(), WatchError> {
    if shards == 0 || config.shards() == shards {
        return Ok(());
    }
    Err(WatchError::OtherShards {
        named: shards,
        known: config.shards(),
    })
}

#[cfg(test)]
mod tests {
    use types::ConfigDelta;

    use super::*;

    fn delta(before: &ShardConfig, owners: &[u64]) -> ConfigDelta {
        let owners: Vec<Gid> = owners.iter().copied().map(Gid).collect();
        let group = |gid: &Gid| (*gid, vec![format!("{gid}:1")]);
        ConfigDelta::between(before, &owners.iter().map(group).collect(), &owners)
    }

    fn message(full: Option<&ShardConfig>, deltas: &[&ConfigDelta]) -> WatchResponse {
        WatchResponse {
            full: full.map(api::config_to_wire),
            deltas: deltas.iter().map(|it| api::delta_to_wire(it)).collect(),
            cluster_id: 7,
            shards: 2,
            ..WatchResponse::default()
        }
    }

    #[test]
    fn configurations_follow_each_other_from_nothing_or_from_a_full_one() {
        let mut config = ShardConfig::empty(2);
        let one = delta(&config, &[1, 1]);
        config.apply(&one).unwrap();
        let two = delta(&config, &[1, 2]);
        let mut last = config.clone();
        last.apply(&two).unwrap();
        let expected = Ok(Some(last.clone()));
        assert_eq!(advance(None, message(None, &[&one, &two])), expected);
        assert_eq!(advance(None, message(Some(&config), &[&two])), expected);
        assert_eq!(
            advance(Some(&config), message(None, &[&one, &two])),
            expected
        );
        assert_eq!(advance(Some(&config), message(Some(&last), &[])), expected);
        assert_eq!(advance(Some(&last), message(Some(&config), &[])), Ok(None));
        assert_eq!(advance(Some(&last), message(None, &[])), Ok(None));
        let empty = ShardConfig::empty(2);
        assert_eq!(advance(None, message(None, &[])), Ok(Some(empty)));
        assert!(advance(None, message(None, &[&two])).is_err(), "a gap");
    }

    #[test]
    fn the_number_of_shards_never_changes() {
        let config = ShardConfig::empty(3);
        assert!(advance(Some(&config), message(None, &[])).is_err());
        let nobody_knows = WatchResponse::default();
        assert!(advance(None, nobody_knows).is_err());
    }
}
