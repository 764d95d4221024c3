//! Keeps the configuration current: one task with one open `Shardctrler.Watch`.
//!
//! Every node serves the watch, so any address will do. Addresses are tried one after the other, the next as soon as
//! one fails or says nothing for a moment, and the first that answers is kept until its stream ends, it turns out to be
//! behind (a group has told of a later configuration), or nobody leads where the configuration says.
//!
//! # Invariants
//!
//! - Configurations are published with rising numbers, all of one cluster.
//! - A cluster of nodes that know no `Shardctrler` is one group at the addresses of the options: configuration 0 with
//!   a group in it, which a real one never has.

use std::sync::Arc;
use std::time::Duration;

use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{WatchRequest, WatchResponse};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Streaming};
use types::{ConfigNum, Gid, MAX_GROUP_ADDRESSES, MAX_SHARDS, ShardConfig};

use super::ClusterMark;
use super::channels::{Channels, Slot, short};
use crate::ClientOptions;
use crate::backoff::Backoff;

/// The most addresses that one round tries.
const MAX_ASKED: usize = 32;

/// An address gets this long before the next is tried as well.
const STAGGER: Duration = Duration::from_millis(50);

/// How long an open watch may take to tell what a group already knows.
const PATIENCE: Duration = Duration::from_millis(20);

/// A doubtful watch is kept at least this long, so that an election doesn't make us run from node to node.
const TRUST: Duration = Duration::from_secs(1);

/// How often nodes that know no `Shardctrler` are asked again: they may be upgraded.
const UPGRADE: Duration = Duration::from_secs(5);

/// What the users of a configuration found out about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// A group told that there is at least this one.
    pub(crate) num: ConfigNum,
    /// Who told.
    pub(crate) from: Option<Arc<str>>,
    /// How often nobody led where the configuration says.
    pub(crate) doubts: u64,
}

/// The group of a cluster whose nodes know no `Shardctrler`.
const SINGLE: Gid = Gid(1);

/// Whether the configuration is ours, because the nodes know none.
pub(crate) fn is_single(config: &ShardConfig) -> bool {
    config.num() == ConfigNum(0) && !config.groups().is_empty()
}

pub(crate) struct Watcher {
    pub(crate) options: Arc<ClientOptions>,
    pub(crate) channels: Arc<Channels>,
    pub(crate) configs: watch::Sender<Option<Arc<ShardConfig>>>,
    /// Whose they are, for calls to tell.
    pub(crate) cluster: ClusterMark,
    pub(crate) wanted: watch::Receiver<Wanted>,
    /// Why there is no configuration yet.
    pub(crate) trouble: watch::Sender<String>,
    pub(crate) place: Place,
}

/// Where a watcher is in its round.
#[derive(Default)]
pub(crate) struct Place {
    /// The next address to try.
    turn: usize,
    /// Whose configurations these are; 0 until a node told.
    cluster: u64,
    /// Begin with a full configuration, because deltas didn't fit.
    afresh: bool,
}

/// An open watch with its first message.
struct Opened {
    stream: Streaming<WatchResponse>,
    first: WatchResponse,
}

enum Refused {
    /// The node knows no `Shardctrler`.
    Older,
    Failed(String),
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
        let mut backoff = Backoff::new(self.options.min_backoff, self.options.max_backoff);
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
                Err(Refused::Failed(why)) => why,
                Err(Refused::Older) => {
                    self.publish_single();
                    sleep(UPGRADE).await;
                    continue;
                }
            };
            self.trouble.send_replace(ended);
            self.place.turn = self.place.turn.wrapping_add(1);
            sleep(backoff.pause(Instant::now())).await;
        }
    }

    fn current(&self) -> Option<Arc<ShardConfig>> {
        self.configs.borrow().clone()
    }

    /// The number of the configuration that we have.
    fn have(&self) -> ConfigNum {
        self.current().map_or(ConfigNum(0), |config| config.num())
    }

    /// Whom to ask, in this order: who told of a later configuration, then everyone in turn.
    fn candidates(&mut self) -> Vec<Arc<str>> {
        let mut all: Vec<Arc<str>> = self.options.addresses.iter().map(|it| short(it)).collect();
        if let Some(config) = self.current() {
            all.extend(config.groups().values().flatten().map(|it| short(it)));
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

    async fn open(&mut self) -> Result<Opened, Refused> {
        let have = self.have();
        let after = if self.place.afresh { 0 } else { have.0 };
        let mut more = self.candidates().into_iter();
        let (options, channels) = (&self.options, &self.channels);
        let mut asked = FuturesUnordered::new();
        let (mut said, mut older) = (Vec::new(), false);
        loop {
            match more.next() {
                Some(address) => asked.push(ask(options, channels, address, after)),
                None if asked.is_empty() && older => return Err(Refused::Older),
                None if asked.is_empty() => return Err(Refused::Failed(said.join("; "))),
                None => {}
            }
            tokio::select! {
                Some(answer) = asked.next() => match answer {
                    Ok(opened) => return Ok(opened),
                    Err(Refused::Older) => older = true,
                    Err(Refused::Failed(why)) => said.push(why),
                },
                () = sleep(STAGGER), if more.len() > 0 => {}
            }
        }
    }

    /// Takes what a watch tells, until it ends or is no good any more. Returns why.
    async fn follow(&mut self, opened: Opened) -> String {
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
                    Ok(None) => return "the watch ended".to_owned(),
                    Err(status) => return status.message().to_owned(),
                },
                changed = self.wanted.changed() => if changed.is_err() {
                    return "nobody needs it any more".to_owned();
                },
                () = sleep_until(leave.unwrap_or(since)), if leave.is_some() => {
                    return "the watch is behind".to_owned();
                }
            }
        }
    }

    fn take(&mut self, message: WatchResponse) -> Result<(), String> {
        let (ours, theirs) = (self.place.cluster, message.cluster_id);
        // An older node tells none.
        if ours != 0 && theirs != 0 && theirs != ours {
            return Err("the node belongs to another cluster".to_owned());
        }
        let current = self.current().filter(|config| !is_single(config));
        let next = advance(current.as_deref(), message)?;
        if ours == 0 && theirs != 0 {
            self.place.cluster = theirs;
            if let Ok(mark) = format!("{theirs:016x}").parse() {
                // Set once: the watch has one cluster.
                let _ = self.cluster.set(mark);
            }
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
) -> Result<Opened, Refused> {
    let failed = |why: &str| Refused::Failed(format!("{address}: {why}"));
    let asking = async {
        let channel = channels.channel(&address, Slot::Control).await;
        let channel = channel.map_err(|why| failed(&why))?;
        let mut controller =
            ShardctrlerClient::new(channel).max_decoding_message_size(options.max_message_bytes);
        let request = WatchRequest {
            after,
            ..WatchRequest::default()
        };
        let told = async {
            let stream = controller.watch(request).await;
            let mut stream = stream?.into_inner();
            let first = stream.message().await?;
            Ok((stream, first))
        };
        told.await.map_err(|status: tonic::Status| {
            if status.code() == Code::Unimplemented {
                return Refused::Older;
            }
            if api::error_detail(&status).is_none() {
                channels.discard(&address, Slot::Control);
            }
            failed(status.message())
        })
    };
    match timeout(options.connect_timeout, asking).await {
        Ok(Ok((stream, Some(first)))) => Ok(Opened { stream, first }),
        Ok(Ok((_, None))) => Err(failed("the watch ended at once")),
        Ok(Err(refused)) => Err(refused),
        Err(_) => Err(failed("no answer")),
    }
}

/// The configuration that a message leads to from `current`, if it is a later one.
fn advance(
    current: Option<&ShardConfig>,
    message: WatchResponse,
) -> Result<Option<ShardConfig>, String> {
    let wrong = |error: types::ConfigError| error.to_string();
    let full = message.full.map(api::config_from_wire).transpose();
    let full = full.map_err(wrong)?;
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
        (None, None) => return Err("the node doesn't know the number of shards".to_owned()),
    };
    checked(&next, message.shards)?;
    if let Some(current) = current {
        checked(current, next.shards())?;
    }
    for delta in message.deltas {
        let delta = api::delta_from_wire(delta).map_err(wrong)?;
        if delta.num > next.num() {
            next.apply(&delta).map_err(wrong)?;
        }
    }
    Ok(Some(next).filter(newer))
}

/// The number of shards never changes; 0 says nothing.
fn checked(config: &ShardConfig, shards: u32) -> Result<(), String> {
    if shards == 0 || config.shards() == shards {
        return Ok(());
    }
    Err(format!(
        "the node tells of {shards} shards, and the cluster has {}",
        config.shards()
    ))
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
            latest: 0,
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
