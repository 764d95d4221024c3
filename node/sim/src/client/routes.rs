//! How a client finds who serves a key: by a configuration that may be old, and by what it was told before.
//!
//! In a world of one group there are no controllers, and that group has all shards.

use std::collections::BTreeMap;
use std::sync::Arc;

use replica::{Answer, Request, RequestId};
use types::{ConfigNum, Gid, ShardConfig, ShardId, ShardSet, shard_of};

use super::{Outgoing, Surroundings};
use crate::dice::Dice;
use crate::host::host_at;
use crate::machine::{Outcome, Reply, to_ctrl};
use crate::network::HostId;
use crate::queue::{MILLI, Micros};

/// The one group of a world without controllers.
const ONLY: Gid = Gid(1);

/// What a client knows of the cluster.
#[derive(Debug, Default)]
pub(super) struct Routes {
    config: Option<Arc<ShardConfig>>,
    /// Who led which group, as far as the client was told.
    leaders: BTreeMap<Gid, HostId>,
    /// A question for a newer configuration, and when to ask again.
    asked: Option<(RequestId, Micros)>,
    /// At least this one is wanted.
    wanted: ConfigNum,
}

impl Routes {
    /// Who owns a key's shard, as far as is known.
    pub(super) fn owner(&self, key: &[u8], around: &Surroundings<'_>) -> Option<Gid> {
        if around.controllers.is_empty() {
            return Some(ONLY);
        }
        let owner = self.config.as_ref()?.owner(shard_of(key, around.shards));
        (owner != Gid::NONE).then_some(owner)
    }

    /// The number of the known configuration.
    pub(super) fn num(&self) -> ConfigNum {
        let config = self.config.as_ref();
        config.map_or(ConfigNum(0), |config| config.num())
    }

    /// Some group, and of its shards those that a scan asks for; no shards where one group has all.
    pub(super) fn any_group(
        &self,
        dice: &mut Dice,
        around: &Surroundings<'_>,
    ) -> Option<(Gid, Option<ShardSet>)> {
        if around.controllers.is_empty() {
            return Some((ONLY, None));
        }
        let config = self.config.as_ref()?;
        let groups: Vec<Gid> = config.groups().keys().copied().collect();
        let gid = *dice.pick(&groups)?;
        Some((gid, Some(config.owned_by(gid))))
    }

    fn hosts_of(&self, gid: Gid, around: &Surroundings<'_>) -> Vec<HostId> {
        if around.controllers.is_empty() {
            return (0..around.hosts).collect();
        }
        let addresses = self.config.as_ref().and_then(|it| it.groups().get(&gid));
        let addresses = addresses.map(Vec::as_slice).unwrap_or_default();
        addresses.iter().filter_map(|it| host_at(it)).collect()
    }

    /// Where to ask a group.
    pub(super) fn target(&mut self, gid: Gid, around: &Surroundings<'_>) -> HostId {
        let first = || self.hosts_of(gid, around).first().copied().unwrap_or(0);
        let target = self.leaders.get(&gid).copied().unwrap_or_else(first);
        self.leaders.insert(gid, target);
        target
    }

    /// Asks another node of the group from now on.
    pub(super) fn elsewhere(&mut self, gid: Gid, dice: &mut Dice, around: &Surroundings<'_>) {
        let hosts = self.hosts_of(gid, around);
        if let Some(host) = dice.pick(&hosts) {
            self.leaders.insert(gid, *host);
        }
    }

    /// This one leads. Whether that is news.
    pub(super) fn leads(&mut self, gid: Gid, host: HostId) -> bool {
        self.leaders.insert(gid, host) != Some(host)
    }

    /// The connection broke: goes on at this host, if it is of use.
    pub(super) fn lost_connection(&mut self, host: HostId) {
        for target in self.leaders.values_mut() {
            *target = host;
        }
    }

    /// Wants a newer configuration, unless one is asked for already. `id` is the name of the question.
    pub(super) fn refresh(
        &mut self,
        id: RequestId,
        patience: Micros,
        dice: &mut Dice,
        around: &mut Surroundings<'_>,
    ) {
        if self.asked.is_some_and(|(_, again)| around.now < again) || around.controllers.is_empty()
        {
            return;
        }
        self.asked = Some((id, around.now + patience));
        let query = shardctrler::Query::Config { num: None };
        // A controller that doesn't lead tells what it knows, which may be old.
        let local = dice.coin();
        let request = if local {
            Request::ReadLocal(query)
        } else {
            Request::Read(query)
        };
        let to = around.controllers.start + dice.index(around.controllers.len());
        around.out.push(Outgoing {
            to,
            id,
            request: to_ctrl(request),
            delay: 0,
        });
    }

    /// This one is wanted, or a later one.
    pub(super) fn want(&mut self, num: ConfigNum) {
        self.wanted = self.wanted.max(num);
    }

    /// When to ask again, if there is something to ask for.
    pub(super) fn due(&self) -> Option<Micros> {
        let lacks = self.wanted > self.num();
        lacks.then(|| self.asked.map_or(0, |(_, again)| again))
    }

    /// Whether this is the name of the question for a configuration.
    pub(super) fn is_asked(&self, id: RequestId) -> bool {
        self.asked.is_some_and(|(asked, _)| asked == id)
    }

    /// A controller answered.
    pub(super) fn answered(&mut self, outcome: Outcome, now: Micros) {
        let Some((_, again)) = &mut self.asked else {
            return;
        };
        let Ok(Answer::Machine(Reply::Ctrl(shardctrler::Response::Config(answer)))) = outcome
        else {
            *again = now + 20 * MILLI;
            return;
        };
        self.asked = None;
        if answer.config.num() > self.num() {
            self.config = Some(answer.config);
        }
    }

    /// Which keys a scan of these shards covers.
    pub(super) fn covers(shards: Option<&ShardSet>, key: &[u8], count: u32) -> bool {
        let shard: ShardId = shard_of(key, count);
        shards.is_none_or(|shards| shards.contains(shard))
    }
}
