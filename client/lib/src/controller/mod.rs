//! The configuration centre: asking for configurations, changing them, and waiting until the shards have followed.

mod centre;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::v1::GroupAddresses;
use tokio::time::sleep;
use types::{ClusterId, ConfigNum, Gid, ShardConfig, ShardId};

pub(crate) use self::centre::Centre;
use self::centre::{Ask, Told};
pub use self::watch::{ConfigEvent, ConfigWatch};
use crate::Error;
use crate::call::mismatch;

/// How often [`Controller::wait_settled`] asks.
const SETTLE_POLL: Duration = Duration::from_millis(200);

/// The configuration centre, made by [`crate::Client::controller`]. Cheap to clone.
///
/// Any node of the cluster takes the calls, so the addresses of the client's options will do. Calls are retried until the
/// client's deadline, and a change takes effect once however often it is retried. A cluster without controllers
/// answers queries for the one configuration that it is, and refuses changes with [`Error::Conflict`].
///
/// ```no_run
/// use shardkv_client::{Client, Gid};
///
/// # async fn example(client: Client) -> Result<(), shardkv_client::Error> {
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
        ConfigWatch::new(Arc::clone(&self.centre), after)
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
