//! Faults at the steps of moves: when a shard took a step, a call of before comes late, a leader that takes part in the move is
//! struck, or the shard gets another target.
//!
//! Faults that recur hit a step by chance. A move takes a fraction of a second, so many steps would see few of them.

use shardctrler::Change;
use types::{Gid, ShardId};

use super::World;
use crate::group::GroupId;
use crate::network::HostId;
use crate::queue::{MILLI, SECOND};
use crate::shard_checker::MoveStep;

/// The part of the faults that happen when only a copy's cursor moved: one of so many.
const SELDOM: u32 = 8;

impl World {
    /// Lets faults happen at the steps that shards took in the last event.
    pub(super) fn strike_steps(&mut self) {
        for step in self.shard_checker.take_steps() {
            let Some(cluster) = &self.scenario.cluster else {
                return;
            };
            let mut shares = cluster.at_steps;
            if !self.faults_happen() {
                continue;
            }
            if step.only_cursor {
                shares.late_calls /= SELDOM;
                shares.strikes /= SELDOM;
                shares.targets /= SELDOM;
            }
            if self.step_rng.chance(shares.late_calls) {
                for _ in 0..self.step_rng.between(1, 4) {
                    self.repeat_call(Some(step.shard), SECOND);
                }
            }
            if self.step_rng.chance(shares.strikes) {
                self.strike_move(&step);
            }
            if self.step_rng.chance(shares.targets) {
                self.change_target(step.shard);
            }
        }
    }

    /// Cuts off, kills or pauses a leader that takes part in a move.
    fn strike_move(&mut self, step: &MoveStep) {
        let mut gids = vec![step.gid, step.gid, Gid::NONE];
        if let Some(config) = self.shard_checker.config() {
            let row = config.row(step.shard);
            gids.extend([row.owner, row.target]);
        }
        let gid = self.step_rng.pick(&gids).copied().unwrap_or(step.gid);
        let lasts = self.step_rng.magnitude(10 * MILLI, SECOND);
        if let Some(group) = self.group_of(gid) {
            self.count("strikes at a step of a move");
            self.disturb_leader_of(group, lasts);
        }
    }

    /// Cuts the power of a leader that asks for the seal of a generation, at one of its next writes: the page before may be on its
    /// way to the log, and must be there to be read again.
    pub(super) fn strike_seal(&mut self, number: HostId) {
        let cluster = self.scenario.cluster.as_ref();
        let share = cluster.map_or(0, |cluster| cluster.at_steps.strikes);
        if self.faults_happen() && self.step_rng.chance(share) {
            self.count("leaders struck at a seal");
            let operations = u32::try_from(self.step_rng.below(4)).unwrap_or(0);
            self.hosts[number].disk.arm_crash(operations);
        }
    }

    /// Moves a shard elsewhere, or back, in the middle of its move.
    fn change_target(&mut self, shard: ShardId) {
        let Some(config) = self.shard_checker.config() else {
            return;
        };
        let gids: Vec<Gid> = config.members().collect();
        let number = self.step_rng.index(self.config_clients.len());
        let (Some(gid), Some(client)) = (
            self.step_rng.pick(&gids).copied(),
            self.config_clients
                .get_mut(number)
                .filter(|it| it.is_idle()),
        ) else {
            return;
        };
        client.queue(Change::Move { shard, gid });
        self.count("targets changed at a step of a move");
        self.plan_config_client(number);
    }

    fn group_of(&self, gid: Gid) -> Option<GroupId> {
        self.groups.iter().position(|group| group.gid == gid)
    }
}
