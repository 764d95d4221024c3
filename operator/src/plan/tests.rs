//! Decisions as a table, and whole lives in a simulated world, with the operator killed after each action.

mod table;
mod world;

use world::{World, round, run};

use super::*;

/// What a script of the simulation does.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The user wants so many groups.
    Want(u32),
    /// The user pauses the cluster, until the next wish.
    Pause,
    /// The user deletes the resource.
    Delete,
    /// Groups stop handing over shards, or go on with it.
    Freeze(bool),
    /// The operator works until nothing changes any more.
    Settle,
}
use Step::{Delete, Freeze, Pause, Settle, Want};

/// A life, and what there must be at its end: the groups with StatefulSets, and the gids with volumes.
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

/// Runs a life; the operator dies after action `kill`, and where that asks the store, its answer is lost and, if `late`, the
/// request reaches the store only some time later.
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
            // What the world forbids (see `World::act`) is checked all along. Which gids are left depends on when it arrives.
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

/// Users who change their minds at any moment, and an operator that dies at any: what the world forbids is never asked, and
/// the last wish comes true.
#[test]
fn lives_of_chance_end_as_wished() {
    for seed in 0..2_000_u64 {
        // Knuth's generator: enough chance for choices, and the same everywhere.
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
