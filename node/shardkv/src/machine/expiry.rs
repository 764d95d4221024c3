//! Forgetting sessions and journals that nobody uses any more.

use std::collections::BTreeSet;

use replica::{Applying, Transaction};
use types::{LogTime, ShardId};

use super::ShardKv;
use crate::bug::Bug;
use crate::journal::Rows;
use crate::upkeep::{Expire, MAX_FORGOTTEN, MAX_VISITED};
use crate::{Genesis, ShardState};

/// The most expired sessions that one write removes from one table. It exceeds the one session that a write may add, so
/// that tables shrink.
const EXPIRED_PER_WRITE: usize = 2;

impl ShardKv {
    /// Removes some expired sessions from the write's own table and from one other, and ends the journals of the two shards if they
    /// are expired. The other one rotates with the entry's index, so
    /// that a shard without writes forgets, too. The choice and the number depend on the log alone. Sessions of shards
    /// that aren't served don't change, because they are on their way.
    pub(super) fn forget_some(
        &mut self,
        own: ShardId,
        at: Applying,
        genesis: &Genesis,
        state: &mut Transaction<'_>,
    ) {
        let visited = at.entry.index.0 % u64::from(genesis.shards.max(1));
        let visited = u32::try_from(visited).map_or(own, ShardId);
        for shard in [own, visited] {
            if shard != own && self.ownership.check_served(shard).is_err() && !self.expires(shard) {
                continue;
            }
            self.forget(shard, EXPIRED_PER_WRITE, at, genesis, state);
        }
    }

    /// Removes what is expired at log time `now` of the shards that are served, within the bound of one entry.
    pub(super) fn expire(
        &mut self,
        expire: &Expire,
        at: Applying,
        genesis: &Genesis,
        state: &mut Transaction<'_>,
    ) {
        let mut left = MAX_FORGOTTEN;
        for shard in &expire.shards {
            if self.ownership.check_served(*shard).is_ok() {
                left -= self.forget(*shard, left, at, genesis, state);
            }
        }
    }

    /// Ends the shard's journal if it is expired, and removes at most `at_most` expired sessions. Returns their number.
    fn forget(
        &mut self,
        shard: ShardId,
        at_most: usize,
        at: Applying,
        genesis: &Genesis,
        state: &mut Transaction<'_>,
    ) -> usize {
        self.journals.expire(shard, at.time, state);
        let time = self.clocks.at(shard, at.time).time;
        let limits = genesis.session_limits();
        let expired = self.sessions.change_present(shard, |table| {
            let forgotten = table.expire(time, &limits, at_most);
            (forgotten, table.horizon())
        });
        let Some((forgotten, horizon)) = expired else {
            return 0;
        };
        self.clocks.raise(shard, horizon);
        for client in &forgotten {
            self.dirty.insert(shard);
            if !self.bugs.has(Bug::JournalMissesExpiry) {
                Rows::new(shard, &mut self.journals, state).name_session(*client);
            }
        }
        forgotten.len()
    }

    /// Looks for what is expired at log time `now`, at some tables after those of the search before. Changes nothing of the state.
    pub(super) fn search(&mut self, now: LogTime) -> Option<Expire> {
        let limits = self.genesis?.session_limits();
        let mut found: BTreeSet<ShardId> = self.journals.silent(now).collect();
        let (visited, next) = self.sessions.some_from(self.search_from, MAX_VISITED);
        let expired = visited.into_iter().filter(|(shard, table)| {
            let time = self.clocks.at(*shard, now).time;
            self.ownership.check_served(*shard).is_ok() && table.has_expired(time, &limits)
        });
        found.extend(expired.map(|(shard, _)| shard));
        self.search_from = next;
        let shards: Vec<ShardId> = found.into_iter().collect();
        (!shards.is_empty()).then_some(Expire { shards })
    }

    /// Returns true if sessions of the shard expire although it isn't served, as [`Bug::SessionsExpireInCopy`] has it.
    fn expires(&self, shard: ShardId) -> bool {
        let copying = matches!(
            self.ownership.state(shard),
            Some(ShardState::Copying { .. })
        );
        copying && self.bugs.has(Bug::SessionsExpireInCopy)
    }
}
