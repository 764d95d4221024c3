//! Tests of decisions as a table, and of whole lifecycles in a simulated cluster where the operator is killed after
//! each action.

mod edges;
mod rollout;
mod table;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use world::{World, round, run};

use super::*;
use crate::crd::Retention;

/// A step of a simulated lifecycle.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The user asks for this many groups.
    Want(u32),
    /// The user pauses the cluster, until the next `Want`.
    Pause,
    /// The user deletes the resource.
    Delete,
    /// Groups stop handing over shards (true), or resume (false).
    Freeze(bool),
    /// The operator runs rounds until nothing changes any more.
    Settle,
}
use Step::{Delete, Freeze, Pause, Settle, Want};

/// A name, the steps of a lifecycle, and the expected end: groups with `StatefulSet`s, and gids with volumes.
type Life = (
    &'static str,
    &'static [Step],
    &'static [u64],
    &'static [u64],
);

#[rustfmt::skip]
const LIVES: &[Life] = &[
    ("create", &[Want(3), Settle], &[1, 2, 3], &[1, 2, 3]),
    ("scale out", &[Want(1), Settle, Want(3), Settle], &[1, 2, 3], &[1, 2, 3]),
    ("scale in", &[Want(3), Settle, Want(1), Settle], &[1], &[1]),
    ("gids are not used again", &[Want(2), Settle, Want(1), Settle, Want(3), Settle], &[1, 3, 4], &[1, 3, 4]),
    ("a drain is cancelled", &[Want(3), Settle, Freeze(true), Want(1), Settle, Want(3), Settle, Freeze(false), Settle], &[1, 2, 3], &[1, 2, 3]),
    ("half of a drain is cancelled", &[Want(3), Settle, Freeze(true), Want(1), Settle, Want(2), Settle, Freeze(false), Settle], &[1, 2], &[1, 2]),
    ("delete", &[Want(2), Settle, Delete, Settle], &[], &[]),
    ("delete during a drain", &[Want(3), Settle, Freeze(true), Want(1), Settle, Delete, Settle], &[], &[]),
    ("delete while paused", &[Want(2), Settle, Pause, Settle, Delete, Settle], &[], &[]),
    ("delete at once", &[Delete, Settle], &[], &[]),
];

/// Runs a lifecycle. The operator dies after action `kill`; if that action is a request to the store, the operator
/// misses the answer and, if `late`, the request reaches the store only some rounds later.
fn live(life: &Life, retention: Retention, kill: Option<usize>, late: bool) -> World {
    let mut world = World::new(retention, kill, late);
    for step in life.1 {
        match step {
            Want(groups) => world.seen.intent = Intent::Run(*groups),
            Pause => world.seen.intent = Intent::Pause,
            Delete => world.seen.intent = Intent::Delete,
            Freeze(frozen) => world.frozen = *frozen,
            Settle => run(&mut world),
        }
    }
    world
}

#[test]
fn lives_end_alike_wherever_the_operator_was_killed() {
    for life in LIVES {
        let (name, _, sets, volumes) = life;
        let calm = live(life, Retention::Delete, None, false);
        assert!(calm.done > 0, "{name}");
        for kill in (0..calm.done).map(Some).chain([None]) {
            let world = live(life, Retention::Delete, kill, false);
            assert_eq!(world.sets(), *sets, "{name}, killed after {kill:?}");
            assert_eq!(
                world.live_volumes(),
                *volumes,
                "{name}, killed after {kill:?}"
            );
            assert_eq!(world.members(), *sets, "{name}, killed after {kill:?}");
            assert_eq!(
                world.finished,
                sets.is_empty(),
                "{name}, killed after {kill:?}"
            );
        }
    }
}

#[test]
fn a_request_that_arrives_after_its_operators_death_does_no_harm() {
    for life in LIVES {
        let calm = live(life, Retention::Retain, None, false);
        for kill in 0..calm.done {
            // `World::act` checks every action against its rules. The remaining gids depend on the arrival of the late
            // request.
            let world = live(life, Retention::Retain, Some(kill), true);
            assert_eq!(
                world.sets().len(),
                life.2.len(),
                "{}, killed after {kill}",
                life.0
            );
            assert_eq!(
                world.finished,
                life.2.is_empty(),
                "{}, killed after {kill}",
                life.0
            );
        }
    }
}

#[test]
fn volumes_stay_unless_the_user_says_otherwise() {
    for life in LIVES {
        let world = live(life, Retention::Retain, None, false);
        let made = world.ever.iter().copied().collect::<Vec<_>>();
        assert_eq!(world.live_volumes(), made, "{}", life.0);
    }
}

#[test]
fn a_fixed_point_asks_for_nothing() {
    for life in LIVES {
        let mut world = live(life, Retention::Delete, None, false);
        let done = world.done;
        run(&mut world);
        assert_eq!(world.done, done, "{}", life.0);
    }
}

/// The user's goal changes at random moments and the operator dies at random actions: the operator never breaks the
/// rules of `World::act`, and the cluster reaches the last goal.
#[test]
fn lives_of_chance_end_as_wished() {
    for seed in 0..2_000_u64 {
        // Knuth's generator: random enough for these choices, and reproducible on every platform.
        let mut state = seed;
        let mut below = move |bound: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let retention = if below(2) == 0 {
            Retention::Retain
        } else {
            Retention::Delete
        };
        let mut world = World::new(retention, None, false);
        world.kills = (0..300).filter(|_| below(4) == 0).collect();
        for _ in 0..below(40) {
            match below(8) {
                0 => world.seen.intent = Intent::Pause,
                1 | 2 => world.frozen = !world.frozen,
                _ => world.seen.intent = Intent::Run(u32::try_from(below(5)).unwrap() + 1),
            }
            for _ in 0..below(5) {
                round(&mut world);
            }
        }
        world.frozen = false;
        let groups = below(6);
        world.seen.intent = match u32::try_from(groups).unwrap() {
            0 => Intent::Delete,
            groups => Intent::Run(groups),
        };
        run(&mut world);
        assert_eq!(world.sets().len() as u64, groups, "seed {seed}");
        assert_eq!(world.members(), world.sets(), "seed {seed}");
        assert_eq!(world.finished, groups == 0, "seed {seed}");
    }
}
