//! Watch streams over a keyspace: a random history, and the rules one by one.

// A helper of tests may panic as tests do.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use changes::{
    Create, End, Feed, FeedLimits, NO_ID, PageLimits, Refused, Response, Step, Watches, read_page,
    read_previous,
};
use common::{Source, World, span};
use keyspace::{Effect, Event, Refusal};

const MAX_EVENTS: usize = 4;
const PAGE: PageLimits = PageLimits {
    events: 3,
    visited: 5,
    bytes: 64,
};

/// A stream and its client.
struct Client {
    watches: Watches,
    seen: BTreeMap<i64, Seen>,
}

/// The knowledge that a client has of a watch.
struct Seen {
    wants: Create,
    /// The revision from which it is to get events.
    start: i64,
    events: Vec<Event>,
    /// The revision up to which it was told to have everything.
    through: i64,
    compacted: Option<i64>,
}

impl Client {
    fn open(world: &mut World) -> Self {
        if world.feed.newest().is_none() {
            world.learn();
        }
        Self {
            watches: Watches::new(world.feed.newest().unwrap(), 8),
            seen: BTreeMap::new(),
        }
    }

    fn create(&mut self, world: &World, wants: Create) -> i64 {
        let newest = world.feed.newest().unwrap();
        let compacted = world.feed.compacted();
        self.watches.create(wants.clone(), newest, compacted);
        let Some(Response::Created { id, revision }) = self.watches.next_answer() else {
            panic!("it was refused");
        };
        assert_eq!(revision, newest);
        let start = if wants.start == 0 {
            newest + 1
        } else {
            wants.start
        };
        let seen = Seen {
            wants,
            start,
            events: Vec::new(),
            through: 0,
            compacted: None,
        };
        self.seen.insert(id, seen);
        id
    }

    /// Does one step. Returns it.
    fn step(&mut self, world: &mut World) -> Step {
        let step = self.watches.step(&world.feed, MAX_EVENTS);
        match &step {
            Step::Answer => {
                if let Some(answer) = self.watches.next_answer() {
                    self.take(world, answer);
                }
            }
            Step::Learn => world.learn(),
            Step::Page { from, spans } => {
                let page = read_page(&world.store, world.place, *from, spans, PAGE);
                match page.unwrap() {
                    Ok(page) => self.watches.take_page(page),
                    Err(Refusal::Compacted { compacted }) => {
                        assert!(self.watches.compact(compacted) > 0);
                    }
                    Err(refusal) => panic!("{refusal}"),
                }
            }
            Step::Wait | Step::End(_) => {}
        }
        step
    }

    fn settle(&mut self, world: &mut World) -> Step {
        for _ in 0..10_000 {
            let step = self.step(world);
            if matches!(step, Step::Wait | Step::End(_)) {
                return step;
            }
        }
        panic!("the stream does not settle");
    }

    fn take(&mut self, world: &World, answer: Response) {
        match answer {
            Response::Events {
                id,
                revision,
                events,
                ..
            } => {
                let seen = self.seen.get_mut(&id).unwrap();
                let first = events.first().unwrap().kv.mod_revision;
                assert!(first > seen.through, "an event comes once, in order");
                assert!(revision >= events.last().unwrap().kv.mod_revision);
                seen.events.extend(events);
                seen.through = revision;
                seen.check(world, revision);
            }
            Response::Compacted { id, compacted } => {
                let seen = self.seen.get_mut(&id).unwrap();
                assert!(compacted > seen.start.max(seen.through + 1));
                seen.compacted = Some(compacted);
            }
            Response::Progress { id, revision } => {
                for (other, seen) in &mut self.seen {
                    if id == NO_ID || id == *other {
                        assert!(revision >= seen.through, "progress doesn't go back");
                        seen.check(world, revision);
                        seen.through = revision;
                    }
                }
            }
            Response::Created { .. } | Response::Canceled { .. } | Response::Refused { .. } => {}
        }
    }
}

impl Seen {
    /// Checks that all events up to a revision have come.
    fn check(&self, world: &World, revision: i64) {
        if self.compacted.is_some() {
            return;
        }
        let due = world.log.iter().filter(|event| {
            let at = event.kv.mod_revision;
            let unwanted = if event.deleted {
                self.wants.no_delete
            } else {
                self.wants.no_put
            };
            at >= self.start
                && at <= revision
                && !unwanted
                && self.wants.span.contains(&event.kv.key)
        });
        let due: Vec<_> = due.cloned().collect();
        assert_eq!(self.events, due, "of {:?} up to {revision}", self.wants);
    }
}

fn random_write(world: &mut World, source: &mut Source) {
    let name = ["a", "b", "c", "d", "e"][source.below(5) as usize];
    match source.below(8) {
        0 => {
            world.delete("a", "c");
        }
        1 => {
            world.delete(name, "");
        }
        2 if world.revision > 3 => {
            let back = source.below(4) as i64;
            let revision = world.revision - back;
            if revision > world.compacted {
                world.compact(revision);
            }
        }
        _ => {
            world.put(name, &"v".repeat(source.below(30) as usize));
        }
    }
}

fn random_watch(world: &World, source: &mut Source) -> Create {
    let span = match source.below(4) {
        0 => span("a", "\0"),
        1 => span("b", "d"),
        _ => span(["a", "b", "c"][source.below(3) as usize], ""),
    };
    let newest = world.feed.newest().unwrap();
    let oldest = world.feed.compacted().max(1);
    let start = match source.below(4) {
        0 => newest + 2,
        1 => oldest + source.below((newest - oldest + 1).cast_unsigned()) as i64,
        _ => 0,
    };
    Create {
        start,
        no_delete: source.one_in(6),
        no_put: source.one_in(12),
        progress_notify: source.one_in(3),
        ..Create::new(span)
    }
}

/// Whatever comes between, a watch gets each event once and in order, and no notice of progress is ahead of its events.
#[test]
fn watches_are_complete_and_in_order() {
    let (mut compacted, mut events) = (0, 0);
    for seed in 0..400 {
        let mut source = Source(seed);
        let mut world = World::new();
        let mut client = Client::open(&mut world);
        for _ in 0..200 {
            match source.below(16) {
                0..5 => random_write(&mut world, &mut source),
                5..8 => world.hear(),
                8 if client.watches.is_idle() && world.feed.newest().is_some() => {
                    if client.watches.len() < 6 {
                        let wants = random_watch(&world, &mut source);
                        client.create(&world, wants);
                    } else if let Some(&id) = client.seen.keys().next() {
                        client.watches.cancel(id, 0);
                        client.watches.next_answer();
                        client.seen.remove(&id);
                    }
                }
                9 if source.one_in(4) => world.install_snapshot(),
                10 if source.one_in(2) => client.watches.let_go(),
                11 => client.watches.ask_progress(),
                12 => client.watches.notify_progress(),
                _ => {
                    client.step(&mut world);
                }
            }
        }
        world.hear_all();
        client.settle(&mut world);
        for seen in client.seen.values() {
            seen.check(&world, world.revision);
            compacted += usize::from(seen.compacted.is_some());
            events += seen.events.len();
        }
    }
    assert!(compacted > 10 && events > 1_000, "{compacted} {events}");
}

#[test]
fn all_events_of_a_revision_come_together() {
    let mut world = World::new();
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        world.put(name, "v");
    }
    let deleted = world.delete("a", "z");
    world.hear_all();
    world.install_snapshot();
    let mut client = Client::open(&mut world);
    // The page's bounds are smaller than the revision.
    let start = deleted;
    let all = Create {
        start,
        ..Create::new(span("a", "\0"))
    };
    client.create(&world, all);
    assert!(matches!(client.step(&mut world), Step::Page { .. }));
    assert!(matches!(client.watches.step(&world.feed, 1), Step::Answer));
    let Some(Response::Events { events, .. }) = client.watches.next_answer() else {
        panic!("no events");
    };
    assert_eq!(events.len(), 8);
}

#[test]
fn a_watch_from_now_on_sees_no_earlier_change() {
    let mut world = World::new();
    let mut client = Client::open(&mut world);
    client.create(&world, Create::new(span("b", "")));
    world.put("a", "1");
    world.hear_all();
    // The stream has not taken the put in yet.
    let id = client.create(&world, Create::new(span("a", "")));
    client.settle(&mut world);
    assert_eq!(client.seen[&id].events, []);
    world.put("a", "2");
    world.hear_all();
    client.settle(&mut world);
    assert_eq!(client.seen[&id].events.len(), 1);
}

#[test]
fn a_stream_answers_what_the_feed_has_before_it_ends() {
    for why in [End::Moved, End::Deleted] {
        let mut world = World::new();
        let mut client = Client::open(&mut world);
        let id = client.create(&world, Create::new(span("a", "")));
        world.put("a", "1");
        world.put("a", "2");
        world.hear_all();
        world.feed.end(why);
        let Step::End(ended) = client.settle(&mut world) else {
            panic!("it goes on");
        };
        assert_eq!(ended, why);
        assert_eq!(client.seen[&id].events.len(), 2);
    }
}

#[test]
fn progress_waits_for_watches_behind_and_is_not_told_before_the_start() {
    let mut world = World::new();
    for _ in 0..30 {
        world.put("a", "v");
    }
    world.hear_all();
    let mut client = Client::open(&mut world);
    let past = Create {
        start: 2,
        ..Create::new(span("a", ""))
    };
    client.create(&world, past);
    client.watches.ask_progress();
    client.settle(&mut world);
    let seen = client.seen.values().next().unwrap();
    assert_eq!((seen.events.len(), seen.through), (30, 31));
    let future = Create {
        start: 40,
        ..Create::new(span("a", ""))
    };
    client.create(&world, future);
    client.watches.ask_progress();
    assert!(matches!(client.watches.step(&world.feed, 9), Step::Wait));
    for _ in 0..9 {
        world.put("b", "v");
    }
    world.hear_all();
    client.settle(&mut world);
    client.watches.ask_progress();
    assert!(matches!(client.watches.step(&world.feed, 9), Step::Answer));
    let told = client.watches.next_answer();
    let revision = 40;
    assert_eq!(
        told,
        Some(Response::Progress {
            id: NO_ID,
            revision
        })
    );
}

#[test]
fn ids_are_chosen_by_the_client_or_the_stream() {
    let mut world = World::new();
    let mut client = Client::open(&mut world);
    let named = |id| Create {
        id,
        ..Create::new(span("a", ""))
    };
    let ids: Vec<_> = [1, 0, 0, 7]
        .map(|id| client.create(&world, named(id)))
        .into();
    assert_eq!(ids, [1, 0, 2, 7]);
    let reversed = Create::new(span("b", "a"));
    let negative = Create {
        start: -1,
        ..named(0)
    };
    for (wants, why) in [
        (named(7), Refused::DuplicateId),
        (reversed, Refused::EmptyRange),
        (negative, Refused::NegativeStart),
    ] {
        client.watches.create(wants, 1, -1);
        let revision = 1;
        let refused = Response::Refused { revision, why };
        assert_eq!(client.watches.next_answer(), Some(refused));
    }
    for _ in 0..4 {
        client.create(&world, named(0));
    }
    client.watches.create(named(0), 1, -1);
    let refused = client.watches.next_answer();
    assert!(matches!(
        refused,
        Some(Response::Refused {
            why: Refused::TooMany,
            ..
        })
    ));
    assert!(client.watches.cancel(7, 1));
    assert!(!client.watches.cancel(7, 1));
}

#[test]
fn a_watch_that_begins_before_the_compacted_revision_is_canceled() {
    let mut world = World::new();
    for _ in 0..5 {
        world.put("a", "v");
    }
    world.compact(4);
    world.hear_all();
    let mut client = Client::open(&mut world);
    for (start, lost) in [(3, true), (4, false), (5, false)] {
        let wants = Create {
            start,
            ..Create::new(span("a", ""))
        };
        let id = client.create(&world, wants);
        client.settle(&mut world);
        assert_eq!(client.seen[&id].compacted.is_some(), lost, "{start}");
    }
}

/// Watches that need different revisions share pages.
#[test]
fn watches_behind_catch_up_together() {
    let mut world = World::new();
    for _ in 0..40 {
        world.put("a", "v");
        world.put("b", "v");
    }
    world.hear_all();
    world.install_snapshot();
    let mut client = Client::open(&mut world);
    for start in [2, 20, 60] {
        let wants = Create {
            start,
            ..Create::new(span("a", ""))
        };
        client.create(&world, wants);
    }
    let mut froms = BTreeSet::new();
    loop {
        match client.step(&mut world) {
            Step::Page { from, .. } => assert!(froms.insert(from), "each page is read once"),
            Step::Wait => break,
            _ => {}
        }
    }
    for seen in client.seen.values() {
        seen.check(&world, world.revision);
    }
    assert_eq!(client.watches.position(), world.revision);
}

/// However many watches a delivery has, those behind and those in step take turns.
#[test]
fn watches_behind_and_watches_in_step_take_turns_while_changes_keep_coming() {
    for in_step in 1..=4 {
        let mut world = World::new();
        for _ in 0..200 {
            world.put("a", "v");
        }
        world.install_snapshot();
        let mut client = Client::open(&mut world);
        let wants = Create {
            start: 2,
            ..Create::new(span("a", ""))
        };
        client.create(&world, wants);
        for _ in 0..in_step {
            client.create(&world, Create::new(span("a", "")));
        }
        for _ in 0..400 {
            if client.watches.is_idle() {
                world.put("a", "v");
                world.hear();
            }
            client.step(&mut world);
        }
        let seen = client.seen.values().map(|seen| seen.events.len());
        let seen: Vec<_> = seen.collect();
        assert!(seen.iter().all(|events| *events > 30), "{seen:?}");
    }
}

/// A change that isn't the next one shows that changes are missing.
#[test]
fn a_feed_that_misses_a_change_keeps_nothing_before_it() {
    let mut world = World::new();
    let mut client = Client::open(&mut world);
    let id = client.create(&world, Create::new(span("a", "")));
    for _ in 0..3 {
        world.put("a", "v");
    }
    world.hear();
    world.unheard.pop_front();
    world.hear();
    let steps = [client.step(&mut world), client.step(&mut world)];
    assert!(
        matches!(steps, [Step::Page { from: 2, .. }, _]),
        "{steps:?}"
    );
    client.settle(&mut world);
    assert_eq!(client.seen[&id].events.len(), 3);
}

/// Otherwise a watch of a keyspace without further changes would not get those that the snapshot has brought.
#[test]
fn what_was_read_before_a_snapshot_is_not_learnt_after_it() {
    let mut world = World::new();
    let (generation, before) = (world.feed.generation(), world.revision);
    world.put("a", "v");
    world.install_snapshot();
    world.feed.learn(generation, before, -1);
    assert_eq!(world.feed.newest(), None);
    let mut client = Client::open(&mut world);
    let wants = Create {
        start: before + 1,
        ..Create::new(span("a", ""))
    };
    let id = client.create(&world, wants);
    client.settle(&mut world);
    assert_eq!(client.seen[&id].events.len(), 1);
}

#[test]
fn notices_of_progress_are_left_out_where_events_came() {
    let mut world = World::new();
    let mut client = Client::open(&mut world);
    let wants = Create {
        progress_notify: true,
        ..Create::new(span("a", ""))
    };
    let id = client.create(&world, wants);
    client.create(&world, Create::new(span("b", "")));
    client.watches.notify_progress();
    assert_eq!(client.watches.next_answer(), None, "the interval has begun");
    client.watches.notify_progress();
    let revision = 1;
    let told = Response::Progress { id, revision };
    assert_eq!(client.watches.next_answer(), Some(told));
    world.put("a", "v");
    world.hear_all();
    client.settle(&mut world);
    client.watches.notify_progress();
    assert_eq!(client.watches.next_answer(), None, "an event came");
    client.watches.notify_progress();
    let revision = 2;
    let told = Response::Progress { id, revision };
    assert_eq!(client.watches.next_answer(), Some(told));
}

#[test]
fn pairs_before_events_are_read_for_whole_revisions() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.put(name, "0123456789");
    }
    world.delete("a", "c");
    world.put("c", "new");
    let events = &world.log[3..];
    let previous = |max| read_previous(&world.store, world.place, events, max).unwrap();
    assert_eq!(previous(10), None);
    assert_eq!(previous(22).unwrap().len(), 2);
    let pairs = previous(33).unwrap();
    let keys: Vec<_> = pairs
        .iter()
        .map(|pair| &pair.as_ref().unwrap().key)
        .collect();
    assert_eq!(keys, ["a", "b", "c"]);
    let created = read_previous(&world.store, world.place, &world.log[..1], 0);
    assert_eq!(created.unwrap(), Some(vec![None]));
}

/// etcd's client compares the whole text, and opens the watch again after two of them.
#[test]
fn a_watch_without_permission_is_refused_in_the_words_of_gos_grpc_library() {
    let table = [
        (
            Refusal::PermissionDenied,
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
        ),
        (
            Refusal::UserNotFound,
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
        ),
        (
            Refusal::InvalidAuthToken,
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
        ),
        (
            Refusal::AuthOldRevision,
            "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old",
        ),
        (
            Refusal::UserEmpty,
            "rpc error: code = InvalidArgument desc = etcdserver: user name is empty",
        ),
    ];
    for (refusal, text) in table {
        assert_eq!(Refused::Access(refusal).text(), text);
    }
}

#[test]
fn a_feed_tells_that_permissions_may_have_changed() {
    let mut feed = Feed::default();
    let limits = FeedLimits {
        events: 1,
        bytes: 1,
    };
    assert_eq!(feed.permissions(), 0);
    feed.note(5, &[Effect::AuthChanged], limits);
    assert_eq!((feed.permissions(), feed.newest()), (1, None));
    feed.note(6, &[Effect::Compacted { compacted: 2 }], limits);
    assert_eq!(feed.permissions(), 1);
    // A snapshot may hold any change.
    feed.reset();
    assert_eq!(feed.permissions(), 2);
}
