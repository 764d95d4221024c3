//! Checks the ownership of shards across groups and controllers.
//!
//! The world passes each applied operation once, in the order of each group's log, when the first replica applies it.
//! So the checker compares final decisions, not the views of replicas that lag.
//!
//! | invariant | check |
//! |---|---|
//! | configurations are final | their numbers rise by one, and the groups' shares differ by at most one after a rebalance |
//! | configurations are obeyed | a group serves a shard from configuration `n` on only if `n` gives it the shard |
//! | one owner at each configuration | by (shard, configuration): only one group begins to serve it |
//! | one server at a time | when a group begins to serve a shard, no other group's log leaves it served |
//! | fence, then install | a shard is installed for `n` only after its source fenced it for `n`, once, and by the group that the fence names |
//! | install, then delete | a source deletes a shard that it fenced for `n` only after it was installed for `n` |
//! | forgotten groups hold nobody up | a shard that a configuration gives from nobody needs no install, a shard that is fenced for a forgotten group may be deleted, and a forgotten group that doesn't know it yet doesn't count as a server |
//! | exactly once for changes | a change with a session always gets the same answer |
//!
//! From the rows on one server at a time and on fence, install and delete it follows that a shard's data has exactly
//! one owner at each configuration number: the intervals of configurations in which groups serve a shard follow each
//! other, from install to fence.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;
use std::sync::Arc;

use shardctrler::{Change, Command, Response};
use shardkv::{Ownership, Shard, ShardState};
use types::{ClientId, ConfigNum, Gid, Incarnation, Sequence, ShardConfig, ShardId};

use crate::machine::Reply;
use crate::recorder::AppliedOperation;
use crate::violation::{Checked, Violation};

/// The owners of all shards by all logs.
#[derive(Debug, Default)]
pub struct ShardChecker {
    configs: BTreeMap<ConfigNum, Arc<ShardConfig>>,
    changes: BTreeMap<(ClientId, Sequence), Response>,
    groups: BTreeMap<Gid, Arc<Ownership>>,
    /// The group that began to serve a shard with a configuration.
    served: BTreeMap<(ShardId, ConfigNum), Gid>,
    /// The group that serves a shard now.
    serving: BTreeMap<ShardId, Gid>,
    /// The number of times that a shard began to be served, or ceased to be.
    turns: u64,
    fenced: BTreeMap<(ShardId, ConfigNum), (Gid, Gid)>,
    installed: BTreeMap<(ShardId, ConfigNum), Gid>,
    deleted: BTreeSet<(ShardId, ConfigNum)>,
    /// The groups that were forgotten.
    forgotten: BTreeSet<(Gid, Incarnation)>,
    /// The steps since they were last taken.
    steps: Vec<MoveStep>,
}

/// A step of a shard in a group, from one state to another.
#[derive(Clone, Copy, Debug)]
pub struct MoveStep {
    /// The group.
    pub gid: Gid,
    /// The shard.
    pub shard: ShardId,
    /// True if only the cursor of a copy or of a pull moved.
    pub only_cursor: bool,
}

impl ShardChecker {
    /// Takes an operation that the first replica of a group applied.
    pub fn applied(&mut self, gid: Gid, operation: &AppliedOperation) -> Checked {
        if let Some(config) = &operation.config {
            self.forget(operation);
            self.configured(config)?;
        }
        if let Reply::Ctrl(
            response @ (Response::Changed { .. } | Response::Forgotten { .. } | Response::Retired),
        ) = &operation.response
        {
            self.changed(operation, response)?;
        }
        if let Some(ownership) = &operation.ownership {
            self.owned(gid, ownership)?;
        }
        Ok(())
    }

    /// Takes in a change that made a configuration, before that, if it forgot groups.
    fn forget(&mut self, operation: &AppliedOperation) {
        let command = Command::decode(operation.operation.clone());
        if let Ok(Command {
            change: Change::Forget { gids, .. },
            ..
        }) = command
        {
            for gid in gids {
                let group = self.config().and_then(|config| config.groups().get(&gid));
                if let Some(group) = group {
                    self.forgotten.insert((gid, group.incarnation));
                }
            }
        }
    }

    /// Returns true if the group that had this gid in configuration `num` was forgotten since.
    fn is_forgotten_since(&self, gid: Gid, num: ConfigNum) -> bool {
        let config = self.configs.get(&num);
        let group = config.and_then(|config| config.groups().get(&gid));
        group.is_some_and(|group| self.forgotten.contains(&(gid, group.incarnation)))
    }

    /// Returns true if a group was forgotten, and hasn't joined again.
    pub fn is_forgotten(&self, gid: Gid) -> bool {
        let is_part = |config: &Arc<ShardConfig>| config.groups().contains_key(&gid);
        let was_part = self.forgotten.iter().any(|(gone, _)| *gone == gid);
        was_part && !self.config().is_some_and(is_part)
    }

    /// Returns true if a group may give up a shard that it fenced in configuration `num` for `to`, although no group has installed it.
    fn may_give_up(
        &self,
        gid: Gid,
        shard: ShardId,
        (num, to): (ConfigNum, Gid),
        next: Option<&ShardState>,
    ) -> bool {
        if let Some(ShardState::Serving { config }) = next {
            let row = self.configs.get(config).map(|config| config.row(shard));
            return row.is_some_and(|row| row.owner == gid && row.previous == Gid::NONE);
        }
        let config = self.configs.get(&num);
        // It fenced the shard because it was forgotten itself.
        let was_part = config.is_some_and(|config| config.groups().contains_key(&gid));
        !was_part || self.is_forgotten_since(gid, num) || self.is_forgotten_since(to, num)
    }

    fn configured(&mut self, config: &Arc<ShardConfig>) -> Checked {
        let last = self.latest();
        if config.num() != last.next() {
            return Err(Violation::new(
                "configurations are final",
                format!("configuration {} followed {last}", config.num()),
            ));
        }
        // Only a change of the groups that take shards rebalances. Other changes keep the targets, or follow a move.
        let gids = |config: &ShardConfig| -> Vec<Gid> { config.members().collect() };
        if self.config().map(|before| gids(before)) != Some(gids(config)) {
            check_balance(config)?;
        }
        self.configs.insert(config.num(), Arc::clone(config));
        Ok(())
    }

    fn changed(&mut self, operation: &AppliedOperation, response: &Response) -> Checked {
        let command = Command::decode(operation.operation.clone());
        let Some(session) = command.ok().and_then(|command| command.session) else {
            return Ok(());
        };
        let name = (session.client, session.sequence);
        let first = self.changes.entry(name).or_insert_with(|| response.clone());
        if first == response {
            return Ok(());
        }
        Err(Violation::new(
            "exactly once for changes",
            format!(
                "change {} of {} was answered {first:?}, then {response:?}",
                session.sequence, session.client
            ),
        ))
    }

    fn owned(&mut self, gid: Gid, after: &Arc<Ownership>) -> Checked {
        let before = self.groups.insert(gid, Arc::clone(after));
        let before = before.unwrap_or_default();
        if Arc::ptr_eq(&before, after) {
            return Ok(());
        }
        for key in after
            .pending_deletes
            .keys()
            .filter(|key| !before.pending_deletes.contains_key(key))
        {
            self.install(gid, *key)?;
        }
        let shards: BTreeSet<ShardId> = before
            .shards
            .keys()
            .chain(after.shards.keys())
            .copied()
            .collect();
        for shard in shards {
            let (old, new) = (before.shards.get(&shard), after.shards.get(&shard));
            let same = match (old, new) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new) || old.state == new.state,
                _ => false,
            };
            if !same {
                self.moved(gid, shard, old.map(Arc::as_ref), new.map(Arc::as_ref))?;
            }
        }
        Ok(())
    }

    /// Checks the step of a shard from one state to another.
    fn moved(
        &mut self,
        gid: Gid,
        shard: ShardId,
        old: Option<&Shard>,
        new: Option<&Shard>,
    ) -> Checked {
        let (old, new) = (old.map(|shard| &shard.state), new.map(|shard| &shard.state));
        self.steps.push(MoveStep {
            gid,
            shard,
            only_cursor: old.map(discriminant) == new.map(discriminant),
        });
        if let Some(ShardState::Serving { .. }) = old
            && self.serving.get(&shard) == Some(&gid)
        {
            self.serving.remove(&shard);
            self.turns += 1;
        }
        if let Some(ShardState::Fenced { config, to }) = old
            && !self.may_give_up(gid, shard, (*config, *to), new)
        {
            self.delete(gid, shard, *config)?;
        }
        match new {
            Some(ShardState::Serving { config }) => self.serve(gid, shard, *config),
            Some(ShardState::Fenced { config, to }) => {
                self.fenced.insert((shard, *config), (gid, *to));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn serve(&mut self, gid: Gid, shard: ShardId, config: ConfigNum) -> Checked {
        let owner = self.configs.get(&config).map(|it| it.owner(shard));
        if owner != Some(gid) {
            return Err(Violation::new(
                "configurations are obeyed",
                format!(
                    "{gid} serves {shard} since configuration {config}, which gives it to {owner:?}"
                ),
            ));
        }
        if let Some(other) = self.served.insert((shard, config), gid) {
            return Err(Violation::new(
                "one owner at each configuration",
                format!("{other} began to serve {shard} of configuration {config}, then {gid}"),
            ));
        }
        self.turns += 1;
        if let Some(other) = self.serving.insert(shard, gid)
            && !self.hears_nothing(other)
        {
            return Err(Violation::new(
                "one server at a time",
                format!(
                    "{gid} begins to serve {shard} of configuration {config} while {other} does"
                ),
            ));
        }
        Ok(())
    }

    /// Returns true if a group was forgotten in the life in which its log has it.
    fn hears_nothing(&self, gid: Gid) -> bool {
        let group = self.groups.get(&gid).and_then(|it| it.groups.get(&gid));
        group.is_some_and(|group| self.forgotten.contains(&(gid, group.incarnation)))
    }

    fn install(&mut self, gid: Gid, (shard, config): (ShardId, ConfigNum)) -> Checked {
        let fence = self.fenced.get(&(shard, config));
        if fence.is_none_or(|(_, to)| *to != gid) {
            return Err(Violation::new(
                "fence, then install",
                format!("{gid} installed {shard} of configuration {config}; its fence: {fence:?}"),
            ));
        }
        if let Some(other) = self.installed.insert((shard, config), gid) {
            return Err(Violation::new(
                "fence, then install",
                format!("{other} installed {shard} of configuration {config}, then {gid}"),
            ));
        }
        Ok(())
    }

    fn delete(&mut self, gid: Gid, shard: ShardId, config: ConfigNum) -> Checked {
        self.deleted.insert((shard, config));
        if self.installed.contains_key(&(shard, config)) {
            return Ok(());
        }
        Err(Violation::new(
            "install, then delete",
            format!(
                "{gid} deleted {shard}, which no group has installed for configuration {config}"
            ),
        ))
    }

    /// Returns the number of the latest configuration.
    pub fn latest(&self) -> ConfigNum {
        let last = self.configs.last_key_value();
        last.map_or(ConfigNum(0), |(num, _)| *num)
    }

    /// Returns the latest configuration, or `None` before the first.
    pub fn config(&self) -> Option<&Arc<ShardConfig>> {
        self.configs.last_key_value().map(|(_, config)| config)
    }

    /// Returns a group's ownership, as of its most advanced replica.
    pub fn group(&self, gid: Gid) -> Option<&Arc<Ownership>> {
        self.groups.get(&gid)
    }

    /// Returns true if a group holds or owes a shard, is its target, or owns it in a configuration that it hasn't accepted yet.
    pub fn concerns(&self, gid: Gid, shard: ShardId) -> bool {
        let has = |it: &Arc<Ownership>| {
            it.shards.contains_key(&shard)
                || it
                    .pending_deletes
                    .keys()
                    .any(|(pending, _)| *pending == shard)
        };
        let group = self.groups.get(&gid);
        let accepted = group.map_or(ConfigNum(0), |it| it.config);
        let mut to_come = self.configs.range(accepted.next()..);
        let targeted = self.config().is_some_and(|it| it.target(shard) == gid);
        targeted || group.is_some_and(has) || to_come.any(|(_, config)| config.owner(shard) == gid)
    }

    /// Returns true if a group serves a shard.
    pub fn is_served(&self, shard: ShardId, gid: Gid) -> bool {
        self.serving.get(&shard) == Some(&gid)
    }

    /// Returns the number of times that a shard began to be served, or ceased to be.
    pub(crate) fn turns(&self) -> u64 {
        self.turns
    }

    /// Returns the group that serves a shard.
    pub(crate) fn server(&self, shard: ShardId) -> Option<Gid> {
        self.serving.get(&shard).copied()
    }

    /// Empties and returns the steps of shards.
    pub fn take_steps(&mut self) -> Vec<MoveStep> {
        std::mem::take(&mut self.steps)
    }

    /// Returns the number of complete hand-offs, from fence to delete.
    pub fn hand_offs(&self) -> u64 {
        self.deleted.len() as u64
    }
}

/// Checks that the groups' shares differ by at most one, so that no group has zero shards while another has two.
fn check_balance(config: &ShardConfig) -> Checked {
    let mut shares: BTreeMap<Gid, u64> = config.members().map(|gid| (gid, 0)).collect();
    for target in config.targets() {
        *shares.entry(*target).or_default() += 1;
    }
    let least = shares.values().min().copied().unwrap_or_default();
    let most = shares.values().max().copied().unwrap_or_default();
    if most - least <= 1 && !shares.contains_key(&Gid::NONE) {
        return Ok(());
    }
    Err(Violation::new(
        "shards are spread evenly",
        format!("configuration {} gives {shares:?}", config.num()),
    ))
}
