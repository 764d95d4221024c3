//! Random commands.

use std::collections::{BTreeMap, BTreeSet};

use shardctrler::{Change, Command, SessionRef};
use types::{ClientId, ConfigNum, Gid, Incarnation, JournalId, LogTime, Sequence, ShardId};

use crate::common::{GENESIS, Random, addresses};
use crate::model::Model;

/// Draws commands as people and groups with unreliable networks would send them.
pub(crate) struct Source {
    pub(crate) random: Random,
    pub(crate) clients: Vec<(ClientId, u64)>,
    pub(crate) sent: Vec<Command>,
    /// A group that isn't heard of for a while.
    pub(crate) silent: Gid,
}

impl Source {
    pub(crate) fn command(&mut self, time: u64, model: &Model) -> Command {
        if !self.sent.is_empty() && self.random.one_in(5) {
            let at = self.random.below(self.sent.len() as u64) as usize;
            return self.sent[at].clone();
        }
        if self.random.one_in(40) {
            self.silent = Gid(self.random.below(8));
        }
        let change = self.change(model);
        let session = match change {
            Change::Report { .. } | Change::Cut { .. } => None,
            _ if self.random.one_in(4) => None,
            _ => Some(self.session(time)),
        };
        let command = Command { session, change };
        self.sent.push(command.clone());
        if self.sent.len() > 20 {
            self.sent.remove(0);
        }
        command
    }

    pub(crate) fn change(&mut self, model: &Model) -> Change {
        let gid = Gid(self.random.below(8));
        match self.random.below(16) {
            14 => {
                let gids: BTreeSet<Gid> = (0..=self.random.below(2))
                    .map(|_| Gid(self.random.below(8)))
                    .collect();
                Change::Forget {
                    gids,
                    accept_data_loss: !self.random.one_in(3),
                }
            }
            15 => {
                let known = model.drained.get(&gid).map_or(1, |it| it.incarnation.0);
                // Seldom what works: the gid is of no use afterwards.
                let more = u64::from(!self.random.one_in(4));
                let incarnation = Incarnation(known + more);
                Change::Retire { gid, incarnation }
            }
            0 | 1 => {
                let count = self.random.below(3) + u64::from(!self.random.one_in(8));
                let groups = (0..count).map(|_| self.group()).collect();
                Change::Join { groups }
            }
            2 | 3 => {
                let gids: BTreeSet<Gid> = (0..self.random.below(3))
                    .map(|_| Gid(self.random.below(8)))
                    .collect();
                Change::Leave { gids }
            }
            4 | 5 => Change::Move {
                shard: ShardId(self.random.below(u64::from(GENESIS.shards) + 1) as u32),
                gid,
            },
            6 | 7 => self.cuts(model),
            _ => {
                let settled = match self.random.below(10) {
                    0 => model.num() + 1,
                    1 | 2 => self.random.below(model.num() + 1),
                    _ => model.num(),
                };
                // News of a silent group is news of another.
                let gid = if gid == self.silent { Gid(9) } else { gid };
                let settled = ConfigNum(settled);
                Change::Report {
                    gid,
                    settled,
                    held: settled,
                }
            }
        }
    }

    /// Cuts of some of the shards that move, now and then with a field that is wrong.
    pub(crate) fn cuts(&mut self, model: &Model) -> Change {
        let config = model.latest();
        let mut cuts = BTreeMap::new();
        for (shard, row) in (0..).map(ShardId).zip(config.rows()) {
            if !row.is_moving() || self.random.one_in(3) {
                continue;
            }
            let journal = JournalId(self.random.below(9));
            let mut cut = config.cut_of(shard, journal).unwrap();
            match self.random.below(30) {
                0 => cut.owner = Gid(self.random.below(8)),
                1 => cut.owner_incarnation.0 ^= 1,
                2 => cut.owner_since.0 ^= 1,
                3 => cut.target = Gid(self.random.below(8)),
                4 => cut.target_incarnation.0 ^= 1,
                5 => cut.target_since.0 ^= 1,
                _ => {}
            }
            cuts.insert(shard, cut);
        }
        Change::Cut { cuts }
    }

    /// A group with its usual addresses, rarely others, and rarely those of another group.
    pub(crate) fn group(&mut self) -> (Gid, Vec<String>) {
        let gid = 1 + self.random.below(7);
        let gid = if self.random.one_in(30) { 0 } else { gid };
        let addresses = match self.random.below(10) {
            0 => vec![format!("moved-{gid}-{}:1", self.random.below(2))],
            1 => addresses(1 + self.random.below(7)),
            _ => addresses(gid),
        };
        (Gid(gid), addresses)
    }

    pub(crate) fn session(&mut self, time: u64) -> SessionRef {
        if self.clients.len() < 3 || self.random.one_in(30) {
            let client = ClientId {
                birth: LogTime(time),
                nonce: self.random.next(),
            };
            self.clients.push((client, 0));
        }
        let at = self.random.below(self.clients.len().min(5) as u64) as usize;
        let at = self.clients.len() - 1 - at;
        let (client, sequence) = &mut self.clients[at];
        *sequence += 1;
        let acked_below = sequence.saturating_sub(self.random.below(4)).max(1);
        SessionRef {
            client: *client,
            sequence: Sequence(*sequence),
            acked_below: Sequence(acked_below),
        }
    }
}
