//! The configuration by which a client routes, which may be old.
//!
//! In a world of one group there are no controllers, and that group has all shards.

use std::sync::Arc;

use replica::{Answer, Request, RequestId};
use types::{ConfigNum, Gid, ShardConfig, ShardSet, shard_of};

use super::context::{ClientContext, Outgoing};
use crate::machine::{Outcome, Reply, to_ctrl};
use crate::network::address;
use crate::queue::{MILLI, Micros};
use crate::rng::SimRng;

/// The one group of a world without controllers.
const ONLY: Gid = Gid(1);

/// The known configuration, and the query for a newer one.
#[derive(Debug, Default)]
pub(super) struct Routes {
    config: Option<Arc<ShardConfig>>,
    /// The query for a newer configuration, and the time of its retry.
    asked: Option<(RequestId, Micros)>,
    /// The lowest configuration number that the client needs.
    wanted: ConfigNum,
}

impl Routes {
    /// Returns the known configuration. In a world without controllers it is one group that has all hosts and shards.
    pub(super) fn config(&self, context: &ClientContext<'_>) -> Option<Arc<ShardConfig>> {
        if !context.controllers.is_empty() {
            return self.config.clone();
        }
        let addresses = (0..context.hosts).map(address).collect();
        let groups = [(ONLY, addresses)].into();
        let config = ShardConfig::new(ConfigNum(0), groups, [(context.shards, ONLY)]);
        config.ok().map(Arc::new)
    }

    /// Returns the owner of a key's shard, as far as is known.
    pub(super) fn owner(&self, key: &[u8], context: &ClientContext<'_>) -> Option<Gid> {
        if context.controllers.is_empty() {
            return Some(ONLY);
        }
        let owner = self.config.as_ref()?.owner(shard_of(key, context.shards));
        (owner != Gid::NONE).then_some(owner)
    }

    /// Returns the number of the known configuration.
    pub(super) fn num(&self) -> ConfigNum {
        let config = self.config.as_ref();
        config.map_or(ConfigNum(0), |config| config.num())
    }

    /// Draws a group, and returns its shards for a scan; no shards where one group has all.
    pub(super) fn any_group(
        &self,
        rng: &mut SimRng,
        context: &ClientContext<'_>,
    ) -> Option<(Gid, Option<ShardSet>)> {
        if context.controllers.is_empty() {
            return Some((ONLY, None));
        }
        let config = self.config.as_ref()?;
        let groups: Vec<Gid> = config.groups().keys().copied().collect();
        let gid = *rng.pick(&groups)?;
        Some((gid, Some(config.owned_by(gid))))
    }

    /// Returns the addresses of a group's nodes.
    pub(super) fn addresses(&self, gid: Gid, context: &ClientContext<'_>) -> Vec<String> {
        let config = self.config(context);
        config.map_or(Vec::new(), |it| it.addresses(gid).to_vec())
    }

    /// Queries a newer configuration, unless a query is in flight. `id` is the id of the query.
    pub(super) fn refresh(
        &mut self,
        id: RequestId,
        patience: Micros,
        rng: &mut SimRng,
        context: &mut ClientContext<'_>,
    ) {
        if self.asked.is_some_and(|(_, again)| context.now < again)
            || context.controllers.is_empty()
        {
            return;
        }
        self.asked = Some((id, context.now + patience));
        let query = shardctrler::Query::Config { num: None };
        // A local read at any controller may return an old configuration.
        let local = rng.coin();
        let request = if local {
            Request::ReadLocal(query)
        } else {
            Request::Read(query)
        };
        let to = context.controllers.start + rng.index(context.controllers.len());
        context.out.push(Outgoing {
            to,
            id,
            request: to_ctrl(request),
            delay: 0,
        });
    }

    /// Requires this configuration, or a later one.
    pub(super) fn want(&mut self, num: ConfigNum) {
        self.wanted = self.wanted.max(num);
    }

    /// Returns the time of the next query, if one is needed.
    pub(super) fn due(&self) -> Option<Micros> {
        let lacks = self.wanted > self.num();
        lacks.then(|| self.asked.map_or(0, |(_, again)| again))
    }

    /// Returns true if `id` is the id of the query for a configuration.
    pub(super) fn is_asked(&self, id: RequestId) -> bool {
        self.asked.is_some_and(|(asked, _)| asked == id)
    }

    /// Takes in a controller's answer. Returns true if it brings a newer configuration.
    pub(super) fn answered(&mut self, outcome: Outcome, now: Micros) -> bool {
        let Some((_, again)) = &mut self.asked else {
            return false;
        };
        let Ok(Answer::Machine(Reply::Ctrl(shardctrler::Response::Config(answer)))) = outcome
        else {
            *again = now + 20 * MILLI;
            return false;
        };
        self.asked = None;
        let newer = self.config.is_none() || answer.config.num() > self.num();
        if newer {
            self.config = Some(answer.config);
        }
        newer
    }
}
