//! The configuration as this node knows it. Routing uses it, and watchers get it.
//!
//! Controllers take it from their own state. Nodes of replica groups follow the controllers ([`follow`](mod@follow)). Their
//! copy may be a moment old, which costs a detour and never correctness: the groups' logs decide who owns a shard.

pub(crate) mod follow;
pub(crate) mod kept;
pub(crate) mod standalone;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::v1;
use api::{config_to_wire, delta_to_wire};
use tokio::sync::watch;
use types::{ClusterId, ConfigDelta, ConfigError, ConfigNum, MAX_SHARDS, ShardConfig};

/// The maximum number of recent steps that are kept for watchers. A watcher that is further behind gets the whole
/// configuration.
const MAX_RECENT: usize = 1_024;
/// The maximum sum of changes in these steps, in shard runs and groups: one step may move very many shards one by one.
const MAX_RECENT_CHANGES: usize = 1 << 18;
/// The maximum number of changes in a message to a watcher, unless a single step has more. Each slow watcher holds one
/// message in memory.
const MAX_TOLD_CHANGES: usize = 1 << 14;

/// The latest configuration that this node knows.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// The id of the controllers' cluster.
    pub(crate) cluster: ClusterId,
    pub(crate) config: Arc<ShardConfig>,
}

/// The configurations that this node knows.
///
/// Invariant: once the group's own state names its controllers, the known configuration and the steps are theirs.
#[derive(Debug, Default)]
pub(crate) struct Configs {
    known: watch::Sender<Option<Known>>,
    /// Locked while the known configuration is changed.
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    /// The cluster of the controllers that the group follows, once its own state names it.
    followed: Option<ClusterId>,
    /// The latest steps, oldest first, without a gap. Empty on nodes that don't follow controllers.
    recent: VecDeque<Arc<ConfigDelta>>,
}

/// The reason why a message of the controllers was not taken. The watch ends, and the next controller is tried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdvanceError {
    /// The message comes from another cluster's controllers than before.
    #[error("the controllers belong to cluster {theirs}, but this node follows cluster {ours}")]
    Stranger { theirs: ClusterId, ours: ClusterId },
    /// The message doesn't continue the known configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Configs {
    /// Returns the latest configuration.
    pub(crate) fn known(&self) -> Option<Known> {
        self.known.borrow().clone()
    }

    /// Subscribes to changes of the latest configuration.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Known>> {
        self.known.subscribe()
    }

    /// Returns true if configuration `num` or a later one is known.
    pub(crate) fn has(&self, num: ConfigNum) -> bool {
        has(self.known.borrow().as_ref(), num)
    }

    /// Resolves when configuration `num` is known, or a later one.
    pub(crate) async fn reached(&self, num: ConfigNum) {
        let mut known = self.known.subscribe();
        // The sender lives in `self`, so waiting can't fail.
        let _ = known.wait_for(|known| has(known.as_ref(), num)).await;
    }

    /// Replaces the configuration.
    pub(crate) fn replace(&self, cluster: ClusterId, config: Arc<ShardConfig>) {
        self.known.send_replace(Some(Known { cluster, config }));
    }

    /// Takes in that the group follows the controllers of `cluster`. What other controllers told this node before is forgotten.
    /// Returns true if anything was.
    pub(crate) fn follow_only(&self, cluster: ClusterId) -> bool {
        let mut history = self.lock();
        history.followed = Some(cluster);
        let foreign = |known: &Known| known.cluster != cluster;
        let forgets = self.known.borrow().as_ref().is_some_and(foreign);
        if forgets {
            history.recent.clear();
            self.known.send_replace(None);
        }
        forgets
    }

    /// Applies a message of the controllers. Steps that are known already are skipped.
    pub(crate) fn advance(
        &self,
        cluster: ClusterId,
        shards: u32,
        full: Option<ShardConfig>,
        deltas: Vec<ConfigDelta>,
    ) -> Result<(), AdvanceError> {
        let mut history = self.lock();
        let before = self.known();
        let ours = history.followed.or(before.as_ref().map(|it| it.cluster));
        if let Some(ours) = ours.filter(|ours| *ours != cluster) {
            return Err(AdvanceError::Stranger {
                theirs: cluster,
                ours,
            });
        }
        // The number comes from the network and decides the size of an allocation.
        if !(1..=MAX_SHARDS).contains(&shards) {
            return Err(ConfigError::ShardCount(shards.into()).into());
        }
        let mut config = match &before {
            Some(known) => (*known.config).clone(),
            None => ShardConfig::empty(shards),
        };
        let started = before.is_none();
        let from = config.num();
        let full = full.filter(|full| full.num() > from);
        let begins = full.is_some();
        config = full.unwrap_or(config);
        let mut new = Vec::new();
        for delta in deltas {
            if delta.num <= config.num() {
                continue;
            }
            config.apply(&delta)?;
            new.push(Arc::new(delta));
        }
        // The state changes only here: after an error nothing has changed.
        if begins {
            history.recent.clear();
        }
        history.recent.extend(new);
        bound(&mut history.recent);
        if started || config.num() > from {
            self.replace(cluster, Arc::new(config));
        }
        drop(history);
        Ok(())
    }

    /// Returns the configurations that a watcher with configuration `after` lacks, or the first of them, and the number
    /// that the watcher then has. Returns `None` if nothing is known.
    pub(crate) fn since(&self, after: ConfigNum) -> Option<(v1::WatchResponse, ConfigNum)> {
        let history = self.lock();
        let recent = &history.recent;
        let Known { cluster, config } = self.known()?;
        let latest = config.num();
        let mut response = v1::WatchResponse {
            cluster_id: cluster.0,
            shards: config.shards(),
            latest: latest.0,
            settled: latest.0,
            held: 0,
            ..v1::WatchResponse::default()
        };
        if after >= latest {
            return Some((response, after));
        }
        let next = after.next();
        let kept = recent.front().is_some_and(|oldest| oldest.num <= next);
        if !kept {
            drop(history);
            response.full = Some(config_to_wire(&config));
            return Some((response, latest));
        }
        let mut sum = 0;
        let lacking = recent.iter().filter(|delta| delta.num >= next);
        let lacking = lacking.take_while(|delta| {
            let fits = sum == 0 || sum + changes(delta) <= MAX_TOLD_CHANGES;
            sum += changes(delta).max(1);
            fits
        });
        let lacking: Vec<Arc<ConfigDelta>> = lacking.cloned().collect();
        drop(history);
        let last = lacking.last().map_or(latest, |delta| delta.num);
        response.deltas = lacking.iter().map(|delta| delta_to_wire(delta)).collect();
        Some((response, last))
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        // Steps are added one by one, so the queue has no gap between any two statements.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the number of changes in a step, in shard runs and groups.
fn changes(delta: &ConfigDelta) -> usize {
    delta.moves.len() + delta.targets.len() + delta.groups.len()
}

/// Drops the oldest steps beyond the bounds.
fn bound(recent: &mut VecDeque<Arc<ConfigDelta>>) {
    let mut sum: usize = recent.iter().map(|delta| changes(delta)).sum();
    while recent.len() > MAX_RECENT || sum > MAX_RECENT_CHANGES {
        let Some(oldest) = recent.pop_front() else {
            return;
        };
        sum -= changes(&oldest);
    }
}

fn has(known: Option<&Known>, num: ConfigNum) -> bool {
    known.is_some_and(|known| known.config.num() >= num)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use types::Gid;

    use super::*;

    const CLUSTER: ClusterId = ClusterId(7);

    fn deltas(count: u64) -> Vec<ConfigDelta> {
        let mut config = ShardConfig::empty(4);
        (1..=count)
            .map(|num| {
                let gid = Gid(num % 2 + 1);
                let groups = [1, 2].map(|n| (Gid(n), vec![format!("h{n}:1")]));
                let delta = ConfigDelta::between(&config, &groups.into(), &[gid; 4]);
                config.apply(&delta).unwrap();
                delta
            })
            .collect()
    }

    #[test]
    fn watchers_get_what_they_lack() {
        let configs = Configs::default();
        assert!(configs.since(ConfigNum(0)).is_none());
        configs.advance(CLUSTER, 4, None, Vec::new()).unwrap();
        let (first, have) = configs.since(ConfigNum(0)).unwrap();
        assert_eq!((first.latest, first.shards, have), (0, 4, ConfigNum(0)));
        configs.advance(CLUSTER, 4, None, deltas(3)).unwrap();
        configs.advance(CLUSTER, 4, None, deltas(3)).unwrap();
        let (message, have) = configs.since(ConfigNum(1)).unwrap();
        let nums: Vec<u64> = message.deltas.iter().map(|delta| delta.num).collect();
        assert_eq!((nums, have), (vec![2, 3], ConfigNum(3)));
        assert!(message.full.is_none());
        let (ahead, have) = configs.since(ConfigNum(9)).unwrap();
        assert!(ahead.deltas.is_empty() && ahead.full.is_none());
        assert_eq!(have, ConfigNum(9));
    }

    #[test]
    fn who_is_too_far_behind_gets_the_whole() {
        let configs = Configs::default();
        let all = deltas(3);
        let mut full = ShardConfig::empty(4);
        full.apply(&all[0]).unwrap();
        configs
            .advance(CLUSTER, 4, Some(full), all[1..].to_vec())
            .unwrap();
        let (message, have) = configs.since(ConfigNum(0)).unwrap();
        assert_eq!(message.full.unwrap().num, 3);
        assert_eq!(have, ConfigNum(3));
        assert_eq!(configs.since(ConfigNum(1)).unwrap().0.deltas.len(), 2);
    }

    /// Returns three steps, each of which changes target and owner of all of `shards` one by one.
    fn scattered(shards: usize) -> Configs {
        let shards = u32::try_from(shards).unwrap();
        let mut config = ShardConfig::empty(shards);
        let configs = Configs::default();
        let groups: BTreeMap<_, _> = [1, 2].map(|n| (Gid(n), vec![format!("h{n}:1")])).into();
        configs.advance(CLUSTER, shards, None, Vec::new()).unwrap();
        for num in 0..3 {
            // Neighbours never move together.
            let owners: Vec<Gid> = (0..u64::from(shards))
                .map(|shard| Gid((shard + num) % 2 + 1))
                .collect();
            let delta = ConfigDelta::between(&config, &groups, &owners);
            config.apply(&delta).unwrap();
            configs.advance(CLUSTER, shards, None, vec![delta]).unwrap();
        }
        assert_eq!(configs.known().unwrap().config.num(), ConfigNum(3));
        configs
    }

    #[test]
    fn large_steps_are_told_one_by_one() {
        let configs = scattered(MAX_TOLD_CHANGES / 2);
        for after in 0..3 {
            let (message, have) = configs.since(ConfigNum(after)).unwrap();
            assert!(message.full.is_none());
            assert_eq!((message.deltas.len(), have), (1, ConfigNum(after + 1)));
        }
    }

    #[test]
    fn few_large_steps_are_kept() {
        let configs = scattered(MAX_RECENT_CHANGES / 2);
        assert_eq!(configs.lock().recent.len(), 1);
        let lacking = |after| configs.since(ConfigNum(after)).unwrap().0;
        assert_eq!(lacking(2).deltas.len(), 1);
        assert!(lacking(1).full.is_some());
    }

    /// Returns a step that leads to a configuration.
    fn delta_to(num: u64) -> ConfigDelta {
        ConfigDelta {
            num: ConfigNum(num),
            ..ConfigDelta::default()
        }
    }

    #[test]
    fn strangers_and_gaps_are_refused() {
        let configs = Configs::default();
        let all = deltas(3);
        configs
            .advance(CLUSTER, 4, None, all[..1].to_vec())
            .unwrap();
        assert!(configs.advance(ClusterId(8), 4, None, Vec::new()).is_err());
        for shards in [0, u32::MAX] {
            let none = Configs::default();
            assert!(none.advance(CLUSTER, shards, None, Vec::new()).is_err());
            assert!(none.known().is_none());
        }
        assert!(
            configs
                .advance(CLUSTER, 4, None, all[2..].to_vec())
                .is_err()
        );
        let gap = vec![all[1].clone(), delta_to(4)];
        assert!(configs.advance(CLUSTER, 4, None, gap).is_err());
        assert_eq!(configs.lock().recent.len(), 1, "nothing of it is kept");
        assert!(configs.has(ConfigNum(1)) && !configs.has(ConfigNum(2)));
    }

    #[test]
    fn what_strangers_told_is_forgotten_once_the_groups_state_names_its_controllers() {
        let (ours, strangers) = (CLUSTER, ClusterId(8));
        let configs = Configs::default();
        configs.advance(strangers, 4, None, deltas(3)).unwrap();
        let mut watch = configs.watch();
        assert!(configs.follow_only(ours));
        assert!(watch.has_changed().unwrap() && watch.borrow_and_update().is_none());
        // A message of theirs that was on its way changes nothing.
        assert!(configs.advance(strangers, 4, None, deltas(3)).is_err());
        assert!(configs.since(ConfigNum(0)).is_none());
        configs.advance(ours, 4, None, deltas(1)).unwrap();
        assert!(!configs.follow_only(ours), "there is nothing to forget");
        let (message, have) = configs.since(ConfigNum(0)).unwrap();
        assert_eq!((message.cluster_id, have), (ours.0, ConfigNum(1)));
    }
}
