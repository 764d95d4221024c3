//! The controllers: queries and changes of the configuration, and waiting until the shards have followed.

mod calls;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::v1::{self, GroupAddresses};
use tokio::time::sleep;
use types::{ClusterId, ConfigNum, Gid, Incarnation, ShardConfig, ShardId, ShardSet};

pub(crate) use self::calls::ControllerCalls;
use self::calls::{ConfigAnswer, ConfigRequest};
pub use self::watch::{ConfigEvent, ConfigWatch};
use crate::Error;
use crate::failure::mismatch;

/// The pause between two questions of [`Controller::wait_settled`].
const SETTLE_POLL: Duration = Duration::from_millis(200);

/// The controllers of the cluster: reads and changes the configuration. Made by [`crate::Client::controller`]. Cheap to clone.
///
/// Any node of the cluster forwards the calls, so the addresses of the client's options suffice. Calls are retried until the
/// client's deadline, and a change takes effect once however often it is retried. A cluster without controllers has one fixed
/// configuration: it answers queries, and refuses changes with [`Error::Conflict`].
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
    calls: Arc<ControllerCalls>,
    timeout: Duration,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").finish_non_exhaustive()
    }
}

/// A configuration and the progress of the groups towards it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigView {
    /// The configuration.
    pub config: ShardConfig,
    /// The number of the latest configuration.
    pub latest: ConfigNum,
    /// The number of the oldest configuration that the controllers keep.
    pub oldest: ConfigNum,
    /// The id of the cluster: the same as long as the cluster lives.
    pub cluster_id: ClusterId,
    /// The progress of every group that is part of the cluster, leaving ones included.
    pub progress: Vec<GroupProgress>,
    /// The groups that were drained or forgotten last, by gid.
    pub drained: BTreeMap<Gid, DrainedGroup>,
}

/// A group that left and handed over all that it had, or that was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainedGroup {
    /// The incarnation; all earlier ones of the gid are gone, too.
    pub incarnation: Incarnation,
    /// The first configuration without the group.
    pub gone_in: ConfigNum,
    /// True if the group handed nothing over, because it is gone for good. Then it isn't drained: see [`ConfigView::is_drained`].
    pub forgotten: bool,
    /// True if no group may join under the gid any more.
    pub retired: bool,
}

/// The progress of a group in following the configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupProgress {
    /// The group.
    pub gid: Gid,
    /// The configuration up to which the group has done its part: pulled, handed over and deleted shards.
    pub settled: ConfigNum,
    /// The last configuration that gave the group a shard or took one from it.
    pub due: ConfigNum,
}

/// The effect of a change of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    /// The configuration that the change made, or the latest if it changed nothing.
    pub num: ConfigNum,
    /// True if it changed anything.
    pub changed: bool,
    /// The number of shards that get another target.
    pub moved_shards: u32,
}

/// The effect of forgetting groups that are gone for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// The configuration without the groups.
    pub num: ConfigNum,
    /// The shards that begin empty, except those that their owners had already taken over without having reported it.
    pub emptied: ShardList,
    /// The shards that are served again by the groups that had them before, as they were when they were handed over.
    pub returned: ShardList,
}

/// Shards, of which only the first runs are listed if there are very many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardList {
    /// The number of shards.
    pub count: u32,
    /// The shards that are listed.
    pub listed: ShardSet,
}

impl ConfigView {
    /// Returns true if every group has done its part of all configurations up to `num`: every shard is at its owner, and no
    /// former owner has data of it. Shards may still have to go on to their targets: see [`ConfigView::is_reached`].
    pub fn is_settled(&self, num: ConfigNum) -> bool {
        self.progress.iter().all(|group| group.settled >= num)
    }

    /// Returns true if the targets that configurations up to `num` set are reached: the shards have these owners, and every
    /// group has done its part.
    pub fn is_reached(&self, num: ConfigNum) -> bool {
        let last = self.config.reached_in(num);
        last.is_some_and(|last| self.is_settled(last))
    }

    /// Returns true if the controllers know that a group left and holds nothing that other groups still need. Only this, and
    /// never its absence, permits to delete its data. A forgotten group isn't drained: nothing says that its data are elsewhere.
    pub fn is_drained(&self, gid: Gid) -> bool {
        let removed = self.drained.get(&gid);
        let drained = removed.is_some_and(|it| !it.forgotten);
        drained && !self.config.groups().contains_key(&gid)
    }
}

impl Controller {
    pub(crate) fn new(calls: Arc<ControllerCalls>, timeout: Duration) -> Self {
        Self { calls, timeout }
    }

    /// Returns configuration `num`, or the latest for `None`. Linearizable. A configuration that the controllers don't keep any
    /// more, or that doesn't exist yet, is [`Error::NotFound`].
    pub async fn query(&self, num: Option<ConfigNum>) -> Result<ConfigView, Error> {
        let num = match num.map(|num| i64::try_from(num.0)) {
            None => -1,
            Some(Ok(num)) => num,
            Some(Err(_)) => i64::MAX,
        };
        let request = ConfigRequest::Query(num);
        let ConfigAnswer::Config(answer) = self.calls.call(self.timeout, request).await? else {
            return Err(mismatch(false));
        };
        let config = answer.config.ok_or_else(|| malformed("no configuration"))?;
        let progress = answer.progress.into_iter().map(|it| GroupProgress {
            gid: Gid(it.gid),
            settled: ConfigNum(it.settled),
            due: ConfigNum(it.due),
        });
        let drained = answer.drained.into_iter().map(|it| {
            let group = DrainedGroup {
                incarnation: Incarnation(it.incarnation),
                gone_in: ConfigNum(it.gone_in),
                forgotten: it.forgotten,
                retired: it.retired,
            };
            (Gid(it.gid), group)
        });
        Ok(ConfigView {
            config: api::config_from_wire(config).map_err(malformed)?,
            latest: ConfigNum(answer.latest),
            oldest: ConfigNum(answer.oldest),
            cluster_id: ClusterId(answer.cluster_id),
            progress: progress.collect(),
            drained: drained.collect(),
        })
    }

    /// Adds groups with the addresses of their nodes (`host:port`), or gives groups other addresses, and rebalances the shards
    /// with the fewest moves. [`Error::Conflict`], which says what was found at each address, unless a quorum of the addresses
    /// of each group answers as nodes of that group that follow these controllers, and no address is something else.
    pub async fn join(&self, groups: BTreeMap<Gid, Vec<String>>) -> Result<ConfigChange, Error> {
        self.join_groups(groups, false).await
    }

    /// As [`Self::join`], without asking the addresses. For tests: a group that doesn't exist keeps the shards that it is to get
    /// from moving, and shards without an owner wait for it.
    pub async fn join_unproven(
        &self,
        groups: BTreeMap<Gid, Vec<String>>,
    ) -> Result<ConfigChange, Error> {
        self.join_groups(groups, true).await
    }

    async fn join_groups(
        &self,
        groups: BTreeMap<Gid, Vec<String>>,
        force: bool,
    ) -> Result<ConfigChange, Error> {
        let groups = groups.into_iter();
        let groups = groups.map(|(gid, addresses)| GroupAddresses {
            gid: gid.0,
            addresses,
            ..GroupAddresses::default()
        });
        let groups = groups.collect();
        self.change(ConfigRequest::Join(groups, force)).await
    }

    /// Makes groups leave; their shards go to the other groups, and each is gone once it is drained. The last group can't leave: [`Error::Conflict`].
    pub async fn leave(&self, gids: &[Gid]) -> Result<ConfigChange, Error> {
        let gids = gids.iter().map(|gid| gid.0);
        self.change(ConfigRequest::Leave(gids.collect())).await
    }

    /// Gives one shard to a group, until a rebalance must move it.
    pub async fn move_shard(&self, shard: ShardId, gid: Gid) -> Result<ConfigChange, Error> {
        self.change(ConfigRequest::Move(shard, gid)).await
    }

    /// Removes groups that are gone for good, with all that only they had. Stop their nodes first. If any shard is concerned it is
    /// [`Error::Conflict`], which says what would be lost, unless `accept_data_loss` is true.
    pub async fn forget(&self, gids: &[Gid], accept_data_loss: bool) -> Result<Forgotten, Error> {
        let gids = gids.iter().map(|gid| gid.0).collect();
        let request = ConfigRequest::Forget(gids, accept_data_loss);
        let ConfigAnswer::Forgotten(answer) = self.calls.call(self.timeout, request).await? else {
            return Err(mismatch(true));
        };
        let list = |list: Option<v1::ShardList>| {
            let list = list.unwrap_or_default();
            Ok(ShardList {
                count: list.count,
                listed: api::shards_from_wire(&list.listed).map_err(malformed)?,
            })
        };
        Ok(Forgotten {
            num: ConfigNum(answer.num),
            emptied: list(answer.emptied)?,
            returned: list(answer.returned)?,
        })
    }

    /// Retires the gid of a drained or forgotten group: no group joins under it any more. [`Error::Conflict`] unless this incarnation,
    /// or a later one, is drained ([`ConfigView::drained`]).
    pub async fn retire(&self, gid: Gid, incarnation: Incarnation) -> Result<(), Error> {
        let request = ConfigRequest::Retire(gid, incarnation);
        match self.calls.call(self.timeout, request).await? {
            ConfigAnswer::Retired => Ok(()),
            _ => Err(mismatch(true)),
        }
    }

    async fn change(&self, request: ConfigRequest) -> Result<ConfigChange, Error> {
        match self.calls.call(self.timeout, request).await? {
            ConfigAnswer::Changed(change) => Ok(ConfigChange {
                num: ConfigNum(change.num),
                changed: change.changed,
                moved_shards: change.moved_shards,
            }),
            _ => Err(mismatch(true)),
        }
    }

    /// Streams the configurations after configuration `after`: those that exist at once, then each as it is made. The stream
    /// continues without a gap when a node is lost, and ends only with an error that no retry cures.
    pub fn watch(&self, after: ConfigNum) -> ConfigWatch {
        ConfigWatch::new(Arc::clone(&self.calls), after)
    }

    /// Waits until the targets that configurations up to `num` set are reached, and calls `progress` a few times a second.
    /// Has no deadline of its own: it fails only when a single query fails, with that error.
    pub async fn wait_settled(
        &self,
        num: ConfigNum,
        mut progress: impl FnMut(&ConfigView),
    ) -> Result<ConfigView, Error> {
        loop {
            let view = self.query(None).await?;
            progress(&view);
            if view.is_reached(num) {
                return Ok(view);
            }
            sleep(SETTLE_POLL).await;
        }
    }
}

fn malformed(what: impl std::fmt::Display) -> Error {
    Error::Protocol {
        message: what.to_string(),
        maybe_applied: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(progress: &[(u64, u64)], drained: &[u64]) -> ConfigView {
        let groups = [(Gid(1), vec!["a:1".to_owned()])].into();
        let progress = progress.iter().map(|&(gid, settled)| GroupProgress {
            gid: Gid(gid),
            settled: ConfigNum(settled),
            due: ConfigNum(0),
        });
        ConfigView {
            config: ShardConfig::new(ConfigNum(5), groups, [(4, Gid(1))]).unwrap(),
            latest: ConfigNum(5),
            oldest: ConfigNum(1),
            cluster_id: ClusterId(1),
            progress: progress.collect(),
            drained: drained
                .iter()
                .map(|gid| (Gid(*gid), removed(false)))
                .collect(),
        }
    }

    fn removed(forgotten: bool) -> DrainedGroup {
        DrainedGroup {
            incarnation: Incarnation(1),
            gone_in: ConfigNum(2),
            forgotten,
            retired: false,
        }
    }

    #[test]
    fn a_configuration_is_settled_when_every_group_has_done_its_part() {
        for (progress, settled) in [
            (&[(1, 5)][..], true),
            (&[(1, 4)], false),
            (&[(1, 5), (2, 4)], false),
            (&[], true),
        ] {
            let view = view(progress, &[]);
            assert_eq!(view.is_settled(ConfigNum(5)), settled, "{progress:?}");
            assert_eq!(view.is_reached(ConfigNum(5)), settled, "{progress:?}");
        }
    }

    #[test]
    fn a_group_is_drained_only_if_the_controllers_say_so() {
        assert!(!view(&[(1, 5)], &[1]).is_drained(Gid(1)), "it is back");
        assert!(!view(&[], &[]).is_drained(Gid(2)), "absence proves nothing");
        assert!(view(&[], &[2]).is_drained(Gid(2)));
        let mut forgotten = view(&[], &[]);
        forgotten.drained = [(Gid(2), removed(true))].into();
        assert!(!forgotten.is_drained(Gid(2)), "it handed nothing over");
    }
}
