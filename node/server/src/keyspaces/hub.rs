//! The feeds of the keyspaces that are watched on this node.
//!
//! A feed lives while streams follow it. The replica's thread adds changes to it and holds locks only for that; a stream copies
//! batches out, and decides on its own what its watches get. All feeds together are bounded: one that is full drops its oldest
//! changes, and if all of them are too large, other feeds drop theirs.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use changes::{End, Feed, FeedLimits, Read, Source};
use keyspace::Place;
use shardkv::{KeyspaceChange, KeyspaceChanges, Ownership};
use tokio::sync::watch;
use types::ConfigNum;

/// The bounds of one feed.
const FEED: FeedLimits = FeedLimits {
    events: 4_096,
    bytes: 4 << 20,
};
/// The most bytes of all feeds together.
const MAX_BYTES: usize = 64 << 20;

/// The feeds of watched keyspaces.
pub(crate) struct Hub {
    owned: watch::Receiver<Arc<Ownership>>,
    feeds: Mutex<Feeds>,
}

#[derive(Default)]
struct Feeds {
    followed: BTreeMap<Place, Slot>,
    /// The bytes of all feeds.
    bytes: usize,
    /// The keyspace whose feed was the last to drop its changes for others.
    dropped: Option<Place>,
}

struct Slot {
    followed: Arc<Followed>,
    subscribers: usize,
}

/// A feed that streams follow.
pub(crate) struct Followed {
    place: Place,
    /// The configuration since which the group serves the shard.
    config: ConfigNum,
    feed: Mutex<Feed>,
    changed: watch::Sender<()>,
}

/// The right of a stream to a feed, given back on drop.
pub(crate) struct Subscription {
    hub: Arc<Hub>,
    pub(crate) followed: Arc<Followed>,
    changed: watch::Receiver<()>,
}

impl Hub {
    /// Creates a hub of a node that owns what `owned` says.
    pub(crate) fn new(owned: watch::Receiver<Arc<Ownership>>) -> Self {
        Self {
            owned,
            feeds: Mutex::default(),
        }
    }

    /// Follows a keyspace; `None` if the group doesn't serve its shard. Subscribe first and read the state then, so that no
    /// change in between is missed.
    pub(crate) fn follow(self: &Arc<Self>, place: Place) -> Option<Subscription> {
        let mut feeds = self.lock();
        // Under the lock: the ownership is published before the feeds that it ends are.
        let config = self.owned.borrow().served_since(place.shard)?;
        if feeds
            .followed
            .get(&place)
            .is_some_and(|slot| slot.followed.config != config)
        {
            feeds.end(place, End::Moved);
        }
        let slot = feeds.followed.entry(place).or_insert_with(|| Slot {
            followed: Arc::new(Followed::new(place, config)),
            subscribers: 0,
        });
        slot.subscribers += 1;
        let followed = Arc::clone(&slot.followed);
        Some(Subscription {
            hub: Arc::clone(self),
            changed: followed.changed.subscribe(),
            followed,
        })
    }

    /// Takes in the changes of a round.
    pub(crate) fn note(&self, changes: &KeyspaceChanges) {
        if changes.changes.is_empty() && !changes.replaced {
            return;
        }
        let mut feeds = self.lock();
        if changes.replaced {
            feeds.reset_all();
        }
        for change in &changes.changes {
            feeds.note(change);
        }
    }

    /// Ends the feeds of shards that the group doesn't serve any more, or serves since another configuration.
    pub(crate) fn keep_served(&self, ownership: &Ownership) {
        let mut feeds = self.lock();
        let gone = feeds.followed.iter().filter(|(place, slot)| {
            ownership.served_since(place.shard) != Some(slot.followed.config)
        });
        let gone: Vec<_> = gone.map(|(place, _)| *place).collect();
        for place in gone {
            feeds.end(place, End::Moved);
        }
    }

    /// Returns the number of feeds and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        let feeds = self.lock();
        (feeds.followed.len(), feeds.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Feeds> {
        // A feed that missed a change finds that out by the next revision.
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feeds {
    fn note(&mut self, change: &KeyspaceChange) {
        let Some(slot) = self.followed.get(&change.place) else {
            return;
        };
        let followed = Arc::clone(&slot.followed);
        let mut feed = followed.lock();
        let before = feed.bytes();
        feed.note(change.revision, &change.effects, FEED);
        self.bytes = (self.bytes + feed.bytes()).saturating_sub(before);
        if feed.ended().is_some() {
            self.bytes = self.bytes.saturating_sub(feed.bytes());
            self.followed.remove(&change.place);
        }
        drop(feed);
        self.shrink(MAX_BYTES);
        followed.changed.send_replace(());
    }

    /// Drops the changes of feeds, in turn, until all together have at most `most` bytes.
    fn shrink(&mut self, most: usize) {
        while self.bytes > most {
            let after = self.dropped.map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.followed.range((after, Bound::Unbounded)).next();
            let Some((place, slot)) = next.or_else(|| self.followed.iter().next()) else {
                return;
            };
            let mut feed = slot.followed.lock();
            self.bytes = self.bytes.saturating_sub(feed.bytes());
            while feed.drop_oldest() {}
            drop(feed);
            self.dropped = Some(*place);
        }
    }

    fn reset_all(&mut self) {
        for slot in self.followed.values() {
            slot.followed.lock().reset();
            slot.followed.changed.send_replace(());
        }
        self.bytes = 0;
    }

    /// Ends a feed. Its streams keep it until they have read what it has.
    fn end(&mut self, place: Place, why: End) {
        if let Some(slot) = self.followed.remove(&place) {
            let mut feed = slot.followed.lock();
            self.bytes = self.bytes.saturating_sub(feed.bytes());
            feed.end(why);
            drop(feed);
            slot.followed.changed.send_replace(());
        }
    }
}

impl Followed {
    fn new(place: Place, config: ConfigNum) -> Self {
        Self {
            place,
            config,
            feed: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Returns the newest and the compacted revision, if they are known.
    pub(crate) fn revisions(&self) -> Option<(i64, i64)> {
        let feed = self.lock();
        Some((feed.newest()?, feed.compacted()))
    }

    /// Returns the number of times that the permissions of the keyspace may have changed.
    pub(crate) fn permissions(&self) -> u64 {
        self.lock().permissions()
    }

    /// Returns the number for [`Followed::learn`]. Take it before the state is read.
    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation()
    }

    /// Takes in what a state that was read after the subscription says, in this generation.
    pub(crate) fn learn(&self, generation: u64, revision: i64, compacted: i64) {
        self.lock().learn(generation, revision, compacted);
    }

    fn lock(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Followed {
    fn read(&self, after: i64, max_events: usize) -> Read {
        self.lock().read(after, max_events)
    }

    fn ended(&self) -> Option<End> {
        self.lock().ended()
    }
}

impl Subscription {
    /// Resolves when the feed has changed since the last call.
    pub(crate) async fn changed(&mut self) {
        // The sender lives in the feed.
        let _ = self.changed.changed().await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let place = self.followed.place;
        let mut feeds = self.hub.lock();
        let Some(slot) = feeds.followed.get_mut(&place) else {
            return;
        };
        if !Arc::ptr_eq(&slot.followed, &self.followed) {
            return;
        }
        slot.subscribers = slot.subscribers.saturating_sub(1);
        if slot.subscribers == 0 {
            let bytes = self.followed.lock().bytes();
            feeds.bytes = feeds.bytes.saturating_sub(bytes);
            feeds.followed.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use keyspace::{Event, KeyValue, KeyspaceId};
    use types::ShardId;

    use super::*;

    fn change(id: u64, revision: i64) -> KeyspaceChange {
        let kv = KeyValue {
            value: vec![7; 1_000].into(),
            mod_revision: revision,
            ..KeyValue::default()
        };
        let event = Event {
            kv,
            deleted: false,
            position: 0,
        };
        KeyspaceChange {
            place: place(id),
            revision,
            effects: vec![keyspace::Effect::Changed(vec![event])],
        }
    }

    fn place(id: u64) -> Place {
        Place {
            shard: ShardId(1),
            id: KeyspaceId(id),
        }
    }

    #[test]
    fn feeds_drop_their_changes_in_turn_when_all_are_too_large() {
        let mut feeds = Feeds::default();
        for id in 1..=4 {
            let followed = Arc::new(Followed::new(place(id), ConfigNum(0)));
            let slot = Slot {
                followed,
                subscribers: 1,
            };
            feeds.followed.insert(place(id), slot);
            feeds.note(&change(id, 2));
        }
        let kept = |feeds: &Feeds| -> Vec<u64> {
            let full = feeds
                .followed
                .iter()
                .filter(|(_, slot)| slot.followed.lock().bytes() > 0);
            full.map(|(place, _)| place.id.0).collect()
        };
        let one = feeds.bytes / 4;
        feeds.shrink(3 * one);
        assert_eq!(kept(&feeds), [2, 3, 4]);
        feeds.note(&change(1, 3));
        feeds.shrink(3 * one);
        assert_eq!(kept(&feeds), [1, 3, 4]);
        feeds.shrink(0);
        assert_eq!((kept(&feeds), feeds.bytes), (vec![], 0));
    }
}
