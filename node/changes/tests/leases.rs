//! The timers of leases, with a clock in the test's hand.

// A helper of tests may panic as tests do.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation
)]

mod common;

use changes::{Expiry, Renewal, Timers};
use common::World;
use keyspace::{Answer, Effect, Lease, LeaseId, Place, Refusal, Write, read_leases};
use raft::Term;
use types::ConfigNum;

const TERM: Term = Term(7);
const CONFIG: ConfigNum = ConfigNum(4);
const GRACE: u64 = 400;

/// Timers that lead and have the leases of a keyspace.
fn leading(world: &World, now: u64) -> Timers {
    let mut timers = Timers::new(GRACE);
    assert!(timers.lead(Some(TERM)));
    timers.begin(world.place, CONFIG);
    let leases = read_leases(&world.store, world.place, None, 100).unwrap();
    timers.load(world.place, &leases, now);
    timers.loaded(world.place);
    timers
}

fn hear(world: &mut World, timers: &mut Timers, now: u64) {
    for (_, effects) in world.unheard.drain(..) {
        timers.note(world.place, CONFIG, &effects, now);
    }
}

fn expire(world: &mut World, expiry: Expiry) -> Result<Answer, Refusal> {
    let Expiry {
        id,
        grant,
        term,
        config,
        ..
    } = expiry;
    world
        .write(Write::Expire {
            id,
            grant,
            term,
            config,
        })
        .answer
}

const ONE: LeaseId = LeaseId(1);

#[test]
fn a_lease_lives_for_its_term_and_longer_if_it_is_renewed() {
    let mut world = World::new();
    let mut timers = leading(&world, 0);
    world.grant(1, 5);
    hear(&mut world, &mut timers, 1_000);
    assert_eq!(timers.next_due(), Some(6_000));
    assert_eq!(timers.take_expired(5_999, 9), []);
    assert_eq!(
        timers.renew(world.place, ONE, 5_000),
        Renewal::Renewed { ttl: 5 }
    );
    assert_eq!(timers.take_expired(9_999, 9), []);
    assert_eq!(timers.remaining(world.place, ONE, 8_500).unwrap().left, 1);
    let expired = timers.take_expired(10_000, 9);
    assert_eq!(expired.len(), 1);
    assert_eq!(
        timers.renew(world.place, ONE, 10_000),
        Renewal::Expired,
        "it waits for the revoke"
    );
    assert!(expire(&mut world, expired[0]).is_ok());
    hear(&mut world, &mut timers, 10_001);
    assert_eq!(timers.renew(world.place, ONE, 10_001), Renewal::Unknown);
    assert!(timers.is_empty());
}

/// The leader before may have renewed the lease until a moment ago.
#[test]
fn a_new_leader_begins_with_full_terms_and_a_grace() {
    let mut world = World::new();
    world.grant(1, 5);
    let mut timers = leading(&world, 100_000);
    assert_eq!(timers.next_due(), Some(105_000 + GRACE));
    assert!(timers.take_expired(105_000 + GRACE - 1, 9).is_empty());
    assert_eq!(timers.take_expired(105_000 + GRACE, 9).len(), 1);
}

#[test]
fn a_renewal_never_shortens_a_lease() {
    let mut world = World::new();
    world.grant(1, 5);
    let mut timers = leading(&world, 0);
    let renewed = timers.renew(world.place, ONE, 100);
    assert_eq!(renewed, Renewal::Renewed { ttl: 5 });
    assert_eq!(timers.next_due(), Some(5_000 + GRACE));
}

#[test]
fn an_expiry_of_an_earlier_reign_changes_nothing() {
    let mut world = World::new();
    world.grant(1, 5);
    let mut timers = leading(&world, 0);
    let expired = timers.take_expired(10_000, 9)[0];
    // Leadership is lost, and gained again.
    assert!(!timers.lead(None));
    assert_eq!(timers.next_due(), None);
    assert_eq!(timers.renew(world.place, ONE, 10_000), Renewal::Elsewhere);
    assert!(timers.lead(Some(Term(9))));
    timers.begin(world.place, CONFIG);
    assert_eq!(timers.renew(world.place, ONE, 10_000), Renewal::Loading);
    let leases = read_leases(&world.store, world.place, None, 100).unwrap();
    timers.load(world.place, &leases, 10_000);
    timers.loaded(world.place);
    // The old expiry's outcome arrives: it says nothing about the new timer.
    timers.settled(&expired);
    timers.failed(&expired, 10_000);
    assert_eq!(timers.next_due(), Some(15_000 + GRACE));
    let stale = Expiry {
        term: Term(6),
        ..expired
    };
    assert_eq!(expire(&mut world, stale), Err(Refusal::StaleExpiry));
}

#[test]
fn a_lease_that_is_granted_again_has_a_timer_of_its_own() {
    let mut world = World::new();
    let mut timers = leading(&world, 0);
    world.grant(1, 5);
    hear(&mut world, &mut timers, 0);
    let expired = timers.take_expired(5_000, 9)[0];
    world.write(Write::Revoke { id: ONE });
    world.grant(1, 60);
    hear(&mut world, &mut timers, 5_000);
    timers.settled(&expired);
    assert_eq!(timers.next_due(), Some(65_000));
    assert_eq!(expire(&mut world, expired), Err(Refusal::StaleExpiry));
}

#[test]
fn changes_win_over_pages_that_are_older() {
    let mut world = World::new();
    world.grant(1, 5);
    world.grant(2, 5);
    let mut timers = Timers::new(GRACE);
    timers.lead(Some(TERM));
    timers.begin(world.place, CONFIG);
    world.unheard.clear();
    let page = read_leases(&world.store, world.place, None, 100).unwrap();
    world.write(Write::Revoke { id: ONE });
    world.write(Write::Revoke { id: LeaseId(2) });
    world.grant(2, 60);
    hear(&mut world, &mut timers, 0);
    timers.load(world.place, &page, 0);
    assert_eq!(timers.renew(world.place, ONE, 0), Renewal::Loading);
    timers.loaded(world.place);
    assert_eq!(timers.renew(world.place, ONE, 0), Renewal::Unknown);
    assert_eq!(
        timers.renew(world.place, LeaseId(2), 0),
        Renewal::Renewed { ttl: 60 }
    );
    assert_eq!(timers.len(), 1);
}

#[test]
fn an_expiry_that_was_not_carried_out_is_tried_again() {
    let mut world = World::new();
    world.grant(1, 5);
    let mut timers = leading(&world, 0);
    let expired = timers.take_expired(6_000, 9)[0];
    assert_eq!(timers.next_due(), None, "it is being proposed");
    timers.failed(&expired, 6_000);
    assert_eq!(timers.renew(world.place, ONE, 6_500), Renewal::Expired);
    assert_eq!(timers.take_expired(6_999, 9), []);
    assert_eq!(timers.take_expired(7_000, 9), [expired]);
    timers.settled(&expired);
    assert!(timers.is_empty());
}

#[test]
fn the_number_of_expiries_taken_at_once_is_bounded() {
    let mut world = World::new();
    for id in 1..=5 {
        world.grant(id, 4 + id);
    }
    let mut timers = leading(&world, 0);
    let ids = |expired: Vec<Expiry>| expired.iter().map(|it| it.id.0).collect::<Vec<_>>();
    assert_eq!(ids(timers.take_expired(60_000, 3)), [1, 2, 3]);
    assert_eq!(ids(timers.take_expired(60_000, 3)), [4, 5]);
}

#[test]
fn timers_end_with_the_shard_and_with_the_keyspace() {
    let mut world = World::new();
    world.grant(1, 5);
    let place = world.place;
    let mut timers = leading(&world, 0);
    timers.keep_served(|_| Some(CONFIG));
    assert_eq!(timers.len(), 1);
    // The shard went away and came back: its leases get their full terms.
    timers.keep_served(|_| Some(ConfigNum(9)));
    assert_eq!((timers.len(), timers.next_due()), (0, None));
    assert_eq!(timers.renew(place, ONE, 0), Renewal::Elsewhere);
    let mut timers = leading(&world, 0);
    timers.note(place, CONFIG, &[Effect::Deleted], 0);
    assert_eq!((timers.len(), timers.next_due()), (0, None));
    // A keyspace that is created now has no leases to be loaded.
    timers.note(place, CONFIG, &[Effect::Created], 0);
    assert_eq!(timers.renew(place, ONE, 0), Renewal::Unknown);
}

#[test]
fn no_term_is_too_long_for_the_clock() {
    let place = Place {
        shard: types::ShardId(1),
        id: keyspace::KeyspaceId(1),
    };
    let mut timers = Timers::new(GRACE);
    timers.lead(Some(TERM));
    timers.begin(place, CONFIG);
    let lease = Lease {
        id: ONE,
        ttl: i64::MAX,
        keys: 0,
        grant: 1,
    };
    timers.load(place, &[lease], u64::MAX - 1);
    timers.loaded(place);
    let renewed = timers.renew(place, ONE, u64::MAX - 1);
    assert_eq!(renewed, Renewal::Renewed { ttl: i64::MAX });
}
