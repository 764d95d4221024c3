//! Feeds and timers where shards come and go.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use changes::{End, Read, Renewal, Source as _};
use futures::FutureExt as _;
use keyspace::{Effect, Event, KeyValue, KeyspaceId, Lease, LeaseId, Place};
use raft::Term;
use shardkv::{KeyspaceChange, KeyspaceChanges, Ownership, Shard, ShardState};
use tokio::sync::watch;
use types::{ConfigNum, LogTime, ShardId};

use super::Followers;
use super::clearing::Clearer;
use super::hub::Hub;
use super::lessor::Lessor;
use super::loading::{Queue, read_parts, set_timers};

const PLACE: Place = Place {
    shard: ShardId(3),
    id: KeyspaceId(1),
};
const ONE: LeaseId = LeaseId(1);

/// Followers of a group whose ownership is in the test's hand.
struct Node {
    owned: watch::Sender<Arc<Ownership>>,
    followers: Followers,
}

fn serving(since: Option<u64>) -> Arc<Ownership> {
    let mut ownership = Ownership::default();
    if let Some(since) = since {
        let config = ConfigNum(since);
        let shard = Shard::new(ShardState::Serving { config }, LogTime(0));
        ownership.shards.insert(PLACE.shard, Arc::new(shard));
    }
    Arc::new(ownership)
}

impl Node {
    fn new() -> Self {
        let (owned, receiver) = watch::channel(serving(Some(4)));
        let hub = Arc::new(Hub::new(receiver.clone()));
        let lessor = Arc::new(Lessor::new(receiver, Duration::ZERO));
        let clearer = Arc::new(Clearer::new());
        let followers = Followers {
            hub,
            lessor,
            clearer,
        };
        Self { owned, followers }
    }

    fn owns(&self, since: Option<u64>, term: Option<u64>) {
        self.owned.send_replace(serving(since));
        let none = KeyspaceChanges::default();
        self.note(&none, true, term);
    }

    fn note(&self, changes: &KeyspaceChanges, moved: bool, term: Option<u64>) {
        let ownership = Arc::clone(&self.owned.borrow());
        self.followers
            .note(changes, &ownership, moved, term.map(Term));
    }

    fn change(&self, revision: i64, effects: Vec<Effect>, term: Option<u64>) {
        self.note(&changes(revision, effects), false, term);
    }

    fn put(&self, revision: i64, bytes: usize) {
        let kv = KeyValue {
            key: "k".into(),
            value: vec![7; bytes].into(),
            mod_revision: revision,
            ..KeyValue::default()
        };
        let event = Event {
            kv,
            deleted: false,
            position: 0,
        };
        self.change(revision, vec![Effect::Changed(vec![event])], None);
    }
}

fn changes(revision: i64, effects: Vec<Effect>) -> KeyspaceChanges {
    let change = KeyspaceChange {
        place: PLACE,
        revision,
        effects,
    };
    KeyspaceChanges {
        replaced: false,
        changes: vec![change],
    }
}

fn revisions(read: Read) -> Vec<i64> {
    match read {
        Read::Batches(batches) => batches.iter().map(|batch| batch.revision).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_feed_lives_while_it_is_followed() {
    let node = Node::new();
    node.put(2, 10);
    assert_eq!(node.followers.hub.size(), (0, 0), "nobody watches");
    let mut first = node.followers.hub.follow(PLACE).unwrap();
    let second = node.followers.hub.follow(PLACE).unwrap();
    assert!(Arc::ptr_eq(&first.followed, &second.followed));
    first.followed.learn(0, 2, -1);
    node.put(3, 10);
    first.changed().await;
    assert_eq!(revisions(second.followed.read(2, 9)), [3]);
    assert!(node.followers.hub.size().1 > 10);
    drop(first);
    assert_eq!(node.followers.hub.size().0, 1);
    drop(second);
    assert_eq!(node.followers.hub.size(), (0, 0));
}

#[test]
fn a_feed_ends_with_the_configuration_and_gives_out_what_it_has() {
    let node = Node::new();
    let before = node.followers.hub.follow(PLACE).unwrap();
    before.followed.learn(0, 1, -1);
    node.put(2, 10);
    node.owns(None, None);
    assert_eq!(before.followed.ended(), Some(End::Moved));
    assert_eq!(revisions(before.followed.read(1, 9)), [2]);
    assert!(node.followers.hub.follow(PLACE).is_none());
    // The shard comes back: what it went through elsewhere isn't in the old feed.
    node.owns(Some(9), None);
    let after = node.followers.hub.follow(PLACE).unwrap();
    node.put(7, 10);
    assert_eq!(revisions(after.followed.read(6, 9)), [7]);
    assert_eq!(before.followed.read(2, 9), Read::UpToDate);
    drop(before);
    assert_eq!(node.followers.hub.size().0, 1, "the new feed stays");
}

#[test]
fn an_ownership_that_is_published_ends_feeds_that_are_not_told_yet() {
    let node = Node::new();
    let before = node.followers.hub.follow(PLACE).unwrap();
    node.owned.send_replace(serving(Some(9)));
    let after = node.followers.hub.follow(PLACE).unwrap();
    assert!(!Arc::ptr_eq(&before.followed, &after.followed));
    assert_eq!(before.followed.ended(), Some(End::Moved));
}

#[test]
fn a_snapshot_makes_feeds_forget() {
    let node = Node::new();
    let stream = node.followers.hub.follow(PLACE).unwrap();
    stream.followed.learn(0, 1, -1);
    node.put(2, 10);
    let replaced = KeyspaceChanges {
        replaced: true,
        changes: Vec::new(),
    };
    node.note(&replaced, false, None);
    assert_eq!(stream.followed.read(1, 9), Read::Unknown);
    assert_eq!(node.followers.hub.size(), (1, 0));
}

#[test]
fn a_deleted_keyspace_ends_its_feed_and_its_timers() {
    let node = Node::new();
    node.owns(Some(4), Some(7));
    node.change(1, vec![Effect::Created], Some(7));
    let stream = node.followers.hub.follow(PLACE).unwrap();
    assert_eq!(node.followers.lessor.renew(PLACE, ONE), Renewal::Unknown);
    node.change(1, vec![Effect::Deleted], Some(7));
    assert_eq!(stream.followed.ended(), Some(End::Deleted));
    assert_eq!(node.followers.hub.size(), (0, 0));
    assert_eq!(node.followers.lessor.renew(PLACE, ONE), Renewal::Elsewhere);
}

#[test]
fn timers_begin_only_where_the_shard_is_served_in_the_leaders_term() {
    let node = Node::new();
    let lessor = &node.followers.lessor;
    let term = Term(7);
    assert!(!lessor.begin(term, PLACE, ConfigNum(4)), "it doesn't lead");
    node.owns(Some(4), Some(7));
    assert!(!lessor.begin(Term(6), PLACE, ConfigNum(4)));
    assert!(!lessor.begin(term, PLACE, ConfigNum(3)));
    assert!(lessor.begin(term, PLACE, ConfigNum(4)));
    let lease = Lease {
        id: ONE,
        ttl: 60,
        keys: 0,
        grant: 1,
    };
    assert_eq!(lessor.renew(PLACE, ONE), Renewal::Loading);
    lessor.load(term, PLACE, &[lease], true);
    assert_eq!(lessor.renew(PLACE, ONE), Renewal::Renewed { ttl: 60 });
    // The shard is published as gone. The timers are told a moment later.
    node.owned.send_replace(serving(None));
    assert_eq!(lessor.renew(PLACE, ONE), Renewal::Elsewhere);
    node.owns(None, Some(7));
    assert_eq!(lessor.len(), 0);
}

#[test]
fn leases_of_a_shard_that_the_state_has_given_away_are_not_unknown() {
    let node = Node::new();
    let lessor = &node.followers.lessor;
    node.owns(Some(4), Some(7));
    assert!(lessor.begin(Term(7), PLACE, ConfigNum(4)));
    let mut queue = Queue::default();
    queue.add(PLACE);
    // The fence is committed, and the ownership isn't published yet.
    let loaded = read_parts(&queue.turn(), |_, _, _| Ok(None)).unwrap();
    set_timers(lessor, Term(7), &loaded);
    queue.settle(&loaded);
    assert!(queue.is_empty(), "it is listed anew if it comes back");
    assert_eq!(lessor.renew(PLACE, ONE), Renewal::Loading);
    node.owns(None, Some(7));
    assert_eq!(lessor.renew(PLACE, ONE), Renewal::Elsewhere);
}

#[test]
fn only_those_that_wait_for_a_lease_learn_that_it_is_gone() {
    let node = Node::new();
    let lessor = &node.followers.lessor;
    node.owns(Some(4), Some(7));
    let other = LeaseId(2);
    let mut waiting = [ONE, other].map(|id| lessor.wait(PLACE, id));
    let mut woken = || {
        waiting
            .each_mut()
            .map(|it| it.changed().now_or_never().is_some())
    };
    node.change(2, vec![Effect::Revoked { id: ONE }], Some(7));
    assert_eq!(woken(), [true, false]);
    assert!(lessor.begin(Term(7), PLACE, ConfigNum(4)));
    lessor.load(Term(7), PLACE, &[], true);
    assert_eq!(woken(), [true, true]);
    node.owns(Some(4), None);
    assert_eq!(woken(), [true, true]);
    node.change(3, vec![Effect::Revoked { id: other }], None);
    assert_eq!(woken(), [false, false]);
}

/// Adds a keyspace to clear when it is woken.
struct AddsWhenWoken(Arc<Clearer>);

impl Wake for AddsWhenWoken {
    fn wake(self: Arc<Self>) {
        self.0.add(Term(7), PLACE);
    }
}

#[test]
fn a_keyspace_that_is_added_as_soon_as_the_term_is_known_is_cleared() {
    let node = Node::new();
    let clearer = &node.followers.clearer;
    let waker = Waker::from(Arc::new(AddsWhenWoken(Arc::clone(clearer))));
    let mut terms = node.followers.lessor.watch_term();
    let mut changed = pin!(terms.changed());
    let polled = changed.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    node.owns(Some(4), Some(7));
    assert_eq!(clearer.len(), 1);
}

#[test]
fn a_compaction_in_the_round_in_which_the_shard_goes_leaves_nothing_to_clear() {
    let node = Node::new();
    let compacted = || vec![Effect::Compacted { compacted: 1 }];
    node.owns(Some(4), Some(7));
    node.change(2, compacted(), Some(7));
    assert_eq!(node.followers.clearer.len(), 1);
    node.owned.send_replace(serving(None));
    node.note(&changes(2, compacted()), true, Some(7));
    assert_eq!(node.followers.clearer.len(), 0);
}
