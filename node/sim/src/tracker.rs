//! What a process follows of its keyspaces, as a server does: the latest changes of those that are watched here, and on a leader the
//! timers of leases.

use std::collections::BTreeMap;
use std::sync::Arc;

use changes::{End, Expiry, Feed, FeedLimits, Renewal, Timers};
use keyspace::{Place, list, read_leases, record};
use raft::{StoreError, Term};
use replica::{PairReader, RequestId, StateReader};
use shardkv::{KeyspaceChanges, Ownership, read_keyspaces};
use types::{ConfigNum, ShardId};

use crate::bug::ProcessBug;
use crate::machine::LeaseOf;

/// The bounds of a feed: few, so that watches fall behind.
const FEED: FeedLimits = FeedLimits {
    events: 6,
    bytes: 4_096,
};
/// The time by which a new leader extends each lease, in milliseconds; also the age at which a proof of leadership is too old.
pub(crate) const GRACE_MS: u64 = 500;
/// More than there are in a shard.
const MANY: usize = 10_000;

/// The feed of a keyspace, and the configuration since which the group serves its shard.
#[derive(Debug, Default)]
pub(crate) struct Tracked {
    pub(crate) config: ConfigNum,
    pub(crate) feed: Feed,
}

/// What one process follows.
#[derive(Debug)]
pub(crate) struct Tracker {
    pub(crate) feeds: BTreeMap<Place, Tracked>,
    pub(crate) timers: Timers,
    /// Expiries that are decided, and the moments at which they are proposed.
    pub(crate) decided: Vec<(u64, Expiry)>,
    /// Expiries that are proposed.
    pub(crate) proposed: BTreeMap<RequestId, Expiry>,
    /// Renewals that wait for a confirmation, with the time at which they came.
    pub(crate) renewals: BTreeMap<RequestId, (LeaseOf, u64)>,
    /// The term and the ownership for which leases were read last.
    loaded: Option<(Option<Term>, Arc<Ownership>)>,
    shards: u32,
    bug: Option<ProcessBug>,
}

impl Tracker {
    /// Creates the tracker of a process that has just started, in a cluster of this number of shards.
    pub(crate) fn new(shards: u32, bug: Option<ProcessBug>) -> Self {
        Self {
            loaded: None,
            shards,
            feeds: BTreeMap::new(),
            timers: Timers::new(GRACE_MS),
            decided: Vec::new(),
            proposed: BTreeMap::new(),
            renewals: BTreeMap::new(),
            bug,
        }
    }

    fn has(&self, bug: ProcessBug) -> bool {
        self.bug == Some(bug)
    }

    /// Takes in the changes of a poll, in the order of the server. `term` is that in which this node leads.
    pub(crate) fn note(
        &mut self,
        changes: &KeyspaceChanges,
        ownership: &Arc<Ownership>,
        term: Option<Term>,
        now_ms: u64,
        state: &dyn StateReader,
    ) -> Result<(), StoreError> {
        if changes.replaced && !self.has(ProcessBug::FeedSurvivesSnapshot) {
            for tracked in self.feeds.values_mut() {
                tracked.feed.reset();
            }
        }
        let follows = term.is_some() || !self.has(ProcessBug::OnlyLeadersFeed);
        for change in changes.changes.iter().filter(|_| follows) {
            if let Some(tracked) = self.feeds.get_mut(&change.place) {
                tracked.feed.note(change.revision, &change.effects, FEED);
            }
        }
        let served = |shard: ShardId| ownership.served_since(shard);
        for (place, tracked) in &mut self.feeds {
            if served(place.shard) != Some(tracked.config) {
                tracked.feed.end(End::Moved);
            }
        }
        self.timers.keep_served(served);
        self.timers.lead(term);
        for change in &changes.changes {
            if let Some(config) = served(change.place.shard) {
                self.timers
                    .note(change.place, config, &change.effects, now_ms);
            }
        }
        if changes.replaced {
            self.loaded = None;
        }
        self.load(ownership, now_ms, state)
    }

    /// Reads the leases of keyspaces that have no timers yet.
    fn load(
        &mut self,
        ownership: &Arc<Ownership>,
        now_ms: u64,
        state: &dyn StateReader,
    ) -> Result<(), StoreError> {
        let seen = (self.timers.term(), Arc::clone(ownership));
        let is_same = |(term, owned): &(Option<Term>, Arc<Ownership>)| {
            *term == seen.0 && Arc::ptr_eq(owned, ownership)
        };
        if seen.0.is_none() || self.loaded.as_ref().is_some_and(is_same) {
            return Ok(());
        }
        self.loaded = Some(seen);
        for shard in (0..self.shards).map(ShardId) {
            let Some(config) = ownership.served_since(shard) else {
                continue;
            };
            let found = read_keyspaces(state, shard, |reader| list(reader, shard, None, MANY))?;
            for (id, record) in found.unwrap_or_default() {
                let place = Place { shard, id };
                if record.deleted {
                    continue;
                }
                let leases = read_keyspaces(state, shard, |reader| {
                    read_leases(reader, place, None, MANY)
                })?;
                self.timers.begin(place, config);
                self.timers.load(place, &leases.unwrap_or_default(), now_ms);
                self.timers.loaded(place);
            }
        }
        Ok(())
    }

    /// Gives a lease its full term again, if leadership was confirmed after `came_ms` and not long ago.
    pub(crate) fn renew(&mut self, lease: LeaseOf, came_ms: u64, now_ms: u64) -> Renewal {
        if now_ms.saturating_sub(came_ms) >= GRACE_MS {
            return Renewal::Elsewhere;
        }
        self.timers.renew(lease.place, lease.id, now_ms)
    }

    /// Begins with the feed of a keyspace whose shard is served since this configuration, and whose state has these revisions. Returns
    /// the newest revision of the feed.
    pub(crate) fn begin(
        &mut self,
        place: Place,
        config: ConfigNum,
        (newest, compacted): (i64, i64),
    ) -> i64 {
        let tracked = self.feeds.entry(place).or_default();
        if tracked.feed.ended().is_some() || tracked.config != config {
            let feed = Feed::default();
            *tracked = Tracked { config, feed };
        }
        let generation = tracked.feed.generation();
        tracked.feed.learn(generation, newest, compacted);
        tracked.feed.newest().unwrap_or(newest)
    }

    /// Takes expiries whose proposal is due.
    pub(crate) fn due(&mut self, now_ms: u64) -> Vec<Expiry> {
        let decided = std::mem::take(&mut self.decided);
        let (due, later) = decided.into_iter().partition(|(at, _)| *at <= now_ms);
        self.decided = later;
        let due: Vec<(u64, Expiry)> = due;
        due.into_iter().map(|(_, expiry)| expiry).collect()
    }
}

/// Reads the newest and the compacted revision of a keyspace; `None` if it is gone.
pub(crate) fn revisions(
    state: &dyn StateReader,
    place: Place,
) -> Result<Option<(i64, i64)>, StoreError> {
    let read = |reader: &dyn PairReader| record(reader, place);
    let found = read_keyspaces(state, place.shard, read)?;
    let record = found.ok().and_then(Result::ok);
    Ok(record.map(|record| (record.revision, record.compacted)))
}
