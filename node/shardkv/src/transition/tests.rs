//! The table of states and steps, cell by cell, and what else a step changes.

use std::collections::BTreeMap;

use bytes::Bytes;
use types::{ClusterId, ShardMove, ShardRun};

use super::*;
use crate::GroupKind;

/// This group, another, and a third.
const OWN: Gid = Gid(1);
const OTHER: Gid = Gid(2);
const THIRD: Gid = Gid(3);

const CONTROLLER: ClusterId = ClusterId(7);
/// The configuration that the group has accepted.
const ACCEPTED: ConfigNum = ConfigNum(9);
/// The shard that it is about.
const SHARD: ShardId = ShardId(2);
/// A part of it has arrived already.
const ARRIVED: Cursor = Cursor::Data(Bytes::from_static(b"arrived"));

const GENESIS: Genesis = Genesis {
    kind: GroupKind::Shards,
    shards: 4,
    session_ttl_ms: 10_000,
    max_sessions_per_shard: 6,
    max_results_per_session: 4,
};

fn addresses(gid: Gid) -> Vec<String> {
    vec![format!("{gid}:1")]
}

fn all_groups() -> BTreeMap<Gid, Vec<String>> {
    [OWN, OTHER, THIRD]
        .into_iter()
        .map(|gid| (gid, addresses(gid)))
        .collect()
}

fn go(config: u64) -> QueuedStep {
    QueuedStep {
        config: ConfigNum(config),
        from: OWN,
        to: THIRD,
    }
}

fn come(config: u64) -> QueuedStep {
    QueuedStep {
        config: ConfigNum(config),
        from: THIRD,
        to: OWN,
    }
}

/// `pulling5,go7` and the like.
fn ownership_of(name: &str) -> Ownership {
    let mut ownership = Ownership {
        gid: OWN,
        controller: Some(CONTROLLER),
        config: ACCEPTED,
        groups: Arc::new(all_groups()),
        ..Ownership::default()
    };
    let mut words = name.split(',');
    let config = ConfigNum(5);
    let state = match words.next() {
        Some("serving5") => ShardState::Serving { config },
        Some("pulling5") => ShardState::Pulling {
            config,
            source: OTHER,
            after: ARRIVED,
            bytes: 100,
        },
        Some("fenced5") => ShardState::Fenced { config, to: OTHER },
        _ => return ownership,
    };
    let queue = words.map(|word| match word {
        "go7" => go(7),
        "come7" => come(7),
        "come9" => come(9),
        "go9" => go(9),
        _ => panic!("{word}"),
    });
    let shard = Shard {
        state,
        queue: queue.collect(),
        since: LogTime(1),
        clock: LogTime(50),
    };
    ownership.shards.insert(SHARD, Arc::new(shard));
    ownership
}

/// The reverse.
fn name(ownership: &Ownership) -> String {
    let Some(shard) = ownership.shards.get(&SHARD) else {
        return "absent".to_owned();
    };
    let mut name = match &shard.state {
        ShardState::Serving { config } => format!("serving{config}"),
        ShardState::Pulling { config, after, .. } if *after == ARRIVED => {
            format!("pulling{config}")
        }
        ShardState::Pulling { config, after, .. } if *after == Cursor::default() => {
            format!("pulling{config}!")
        }
        ShardState::Pulling { config, .. } => format!("pulling{config}+"),
        ShardState::Fenced { config, .. } => format!("fenced{config}"),
        ShardState::Copying { copy, .. } => format!("copying{}", copy.since),
        ShardState::Completing { config, .. } => format!("completing{config}"),
    };
    for step in &shard.queue {
        let word = if step.from == OWN { "go" } else { "come" };
        name = format!("{name},{word}{}", step.config);
    }
    name
}

fn configure(num: u64, from: Gid, to: Gid) -> Step {
    let run = ShardRun {
        first: SHARD,
        count: 1,
    };
    Step::Configure {
        controller: CONTROLLER,
        delta: ConfigDelta {
            num: ConfigNum(num),
            groups: BTreeMap::new(),
            targets: Vec::new(),
            moves: vec![ShardMove { run, from, to }],
        },
    }
}

fn install(config: u64, after: Cursor, next: Next) -> Step {
    Step::Install(Chunk {
        shard: SHARD,
        config: ConfigNum(config),
        after,
        pairs: Vec::new(),
        sessions: Vec::new(),
        next,
    })
}

fn step(name: &str) -> Step {
    let next = || Next::Chunk(Cursor::Sessions(None));
    let done = || Next::Done {
        clock: LogTime(2_000),
        ttl_ms: GENESIS.session_ttl_ms,
    };
    let delete = |config| Step::Delete {
        shard: SHARD,
        config: ConfigNum(config),
    };
    match name {
        "begin" => Step::Begin {
            gid: OWN,
            controller: CONTROLLER,
            num: ConfigNum(3),
            groups: all_groups(),
        },
        "nobody-gives" => configure(10, Gid::NONE, OWN),
        "gives" => configure(10, OTHER, OWN),
        "takes" => configure(10, OWN, OTHER),
        "elsewhere" => configure(10, OTHER, THIRD),
        "gives-again" => configure(9, OTHER, OWN),
        "gives-later" => configure(11, OTHER, OWN),
        "takes-later" => configure(11, OWN, OTHER),
        "part4" => install(4, ARRIVED, next()),
        "part5" => install(5, ARRIVED, next()),
        "first5" => install(5, Cursor::default(), Next::Chunk(ARRIVED)),
        "backwards5" => install(5, ARRIVED, Next::Chunk(Cursor::default())),
        "last5" => install(5, ARRIVED, done()),
        "last7" => install(7, ARRIVED, done()),
        "early-last5" => install(5, Cursor::default(), done()),
        "delete4" => delete(4),
        "delete5" => delete(5),
        "delete7" => delete(7),
        "delete10" => delete(10),
        "deleted5" => Step::Deleted {
            shard: SHARD,
            config: ConfigNum(5),
        },
        _ => panic!("{name}"),
    }
}

/// `=`: nothing changes; `!`: refused as nonsense; `~`: refused as not ready; otherwise what the shard becomes. In a cell `pulling5!`
/// nothing has arrived, in `pulling5+` more than before.
const TABLE: &str = "
step           absent     pulling5      serving5 fenced5          pulling5,go7         fenced5,come7      pulling5,go7,come9     fenced5,come7,go9
begin          =          =             =        =                =                    =                  =                      =
nobody-gives   serving10  !             !        fenced5,come10   pulling5,go7,come10  !                  !                      fenced5,come7,go9,come10
gives          pulling10! !             !        fenced5,come10   pulling5,go7,come10  !                  !                      fenced5,come7,go9,come10
takes          !          pulling5,go10 fenced10 !                !                    fenced5,come7,go10 pulling5,go7,come9,go10 !
elsewhere      absent     pulling5      serving5 fenced5          pulling5,go7         fenced5,come7      pulling5,go7,come9     fenced5,come7,go9
gives-again    =          =             =        =                =                    =                  =                      =
gives-later    =          =             =        =                =                    =                  =                      =
takes-later    =          =             =        =                =                    =                  =                      =
part4          =          =             =        =                =                    =                  =                      =
part5          =          pulling5+     =        =                pulling5+,go7        =                  pulling5+,go7,come9    =
first5         =          =             =        =                =                    =                  =                      =
backwards5     =          !             =        =                !                    =                  !                      =
last5          =          serving5      =        =                fenced7              =                  fenced7,come9          =
last7          =          =             =        =                =                    =                  =                      =
early-last5    =          =             =        =                =                    =                  =                      =
delete4        =          =             =        =                =                    =                  =                      =
delete5        =          ~             ~        absent           ~                    pulling7!          ~                      pulling7!,go9
delete7        =          ~             ~        ~                ~                    ~                  ~                      ~
delete10       ~          ~             ~        ~                ~                    ~                  ~                      ~
deleted5       =          =             =        =                =                    =                  =                      =
";

#[test]
fn each_state_takes_each_step_as_the_table_says() {
    let mut lines = TABLE.lines().filter(|line| !line.is_empty());
    let states: Vec<&str> = lines.next().unwrap().split_whitespace().skip(1).collect();
    let mut cells = 0;
    for line in lines {
        let mut words = line.split_whitespace();
        let step_name = words.next().unwrap();
        let step = step(step_name);
        for (state, expected) in states.iter().zip(words) {
            let before = ownership_of(state);
            assert_eq!(name(&before), *state);
            let mut after = before.clone();
            let verdict = before.judge(&step, &GENESIS, Bugs::default());
            let found = match verdict {
                Verdict::Idle => "=".to_owned(),
                Verdict::Refused(KvError::ShardNotReady { shard: SHARD }) => "~".to_owned(),
                Verdict::Refused(KvError::Malformed(_)) => "!".to_owned(),
                Verdict::Refused(other) => panic!("{other:?}"),
                Verdict::Due => {
                    let changed = after.take(&step, LogTime(9_000), &GENESIS, Bugs::default());
                    assert_ne!(after, before, "{state} {step_name} was due");
                    assert_recorded(&before, &after, &changed);
                    name(&after)
                }
            };
            assert_eq!(found, expected, "{state} takes {step_name}");
            cells += 1;
        }
    }
    assert_eq!(cells, 8 * 20);
}

/// All that differs is among what `changed` names, or it would be lost at the next start.
fn assert_recorded(before: &Ownership, after: &Ownership, changed: &Changed) {
    let group = |of: &Ownership| (of.gid, of.controller, of.config);
    assert!(changed.group || group(before) == group(after));
    for shard in (0..GENESIS.shards).map(ShardId) {
        let same = before.shards.get(&shard) == after.shards.get(&shard);
        assert!(same || changed.shards.contains(&shard), "{shard}");
    }
    let pending = before
        .pending_deletes
        .keys()
        .chain(after.pending_deletes.keys());
    for key in pending {
        let same = before.pending_deletes.get(key) == after.pending_deletes.get(key);
        assert!(same || changed.pending_deletes.contains(key), "{key:?}");
    }
    for gid in before.groups.keys().chain(after.groups.keys()) {
        let of = |ownership: &Ownership| {
            (
                ownership.groups.get(gid).cloned(),
                ownership.left.contains(gid),
            )
        };
        let same = of(before) == of(after);
        assert!(same || changed.groups.contains(gid), "{gid}");
    }
}

fn take(ownership: &mut Ownership, step: &Step, time: u64) {
    let verdict = ownership.judge(step, &GENESIS, Bugs::default());
    assert_eq!(verdict, Verdict::Due, "{step:?}");
    ownership.take(step, LogTime(time), &GENESIS, Bugs::default());
}

#[test]
fn a_group_begins_once_and_follows_one_controller() {
    let mut ownership = Ownership::default();
    let judge = |ownership: &Ownership, step| ownership.judge(&step, &GENESIS, Bugs::default());
    assert_eq!(judge(&ownership, step("gives")), Verdict::Idle);
    take(&mut ownership, &step("begin"), 1);
    assert_eq!((ownership.gid, ownership.config), (OWN, ConfigNum(3)));
    assert_eq!(ownership.settled(), ConfigNum(3));
    assert_eq!(judge(&ownership, step("begin")), Verdict::Idle);
    let foreign = Step::Configure {
        controller: ClusterId(8),
        delta: ConfigDelta {
            num: ConfigNum(4),
            ..ConfigDelta::default()
        },
    };
    assert!(matches!(judge(&ownership, foreign), Verdict::Refused(_)));
    let nobody = Step::Begin {
        gid: Gid::NONE,
        controller: CONTROLLER,
        num: ConfigNum(0),
        groups: BTreeMap::new(),
    };
    let refused = judge(&Ownership::default(), nobody);
    assert!(matches!(refused, Verdict::Refused(_)));
}

#[test]
fn a_configuration_of_more_shards_than_the_group_has_is_refused() {
    let far = ShardMove {
        run: ShardRun {
            first: ShardId(3),
            count: 2,
        },
        from: OTHER,
        to: THIRD,
    };
    let step = Step::Configure {
        controller: CONTROLLER,
        delta: ConfigDelta {
            num: ACCEPTED.next(),
            groups: BTreeMap::new(),
            targets: Vec::new(),
            moves: vec![far],
        },
    };
    let verdict = ownership_of("absent").judge(&step, &GENESIS, Bugs::default());
    let Verdict::Refused(KvError::Malformed(why)) = verdict else {
        panic!("{verdict:?}");
    };
    assert!(why.contains("4 shards"), "{why}");
}

#[test]
fn clocks_rise_at_the_fence_and_come_with_the_shard() {
    let clock = |ownership: &Ownership| ownership.shards.get(&SHARD).unwrap().clock;
    let mut serving = ownership_of("serving5");
    take(&mut serving, &step("takes"), 40);
    assert_eq!(clock(&serving), LogTime(50), "the table may be ahead");
    let mut serving = ownership_of("serving5");
    take(&mut serving, &step("takes"), 60);
    assert_eq!(clock(&serving), LogTime(60));
    let mut pulling = ownership_of("pulling5");
    take(&mut pulling, &step("last5"), 60);
    assert_eq!(clock(&pulling), LogTime(2_000));
    // Fenced again at once, by a log that is behind or ahead of the shard.
    for (time, expected) in [(60, 2_000), (3_000, 3_000)] {
        let mut passing = ownership_of("pulling5,go7");
        take(&mut passing, &step("last5"), time);
        assert_eq!(clock(&passing), LogTime(expected));
    }
    let mut returning = ownership_of("fenced5,come7");
    take(&mut returning, &step("delete5"), 60);
    assert_eq!(clock(&returning), LogTime(0), "of a table that is gone");
}

#[test]
fn what_the_source_may_have_forgotten_stays_forgotten() {
    let own = GENESIS.session_ttl_ms;
    for (source_ttl, expected) in [(own, 100_000), (own - 7, 100_007), (own + 7, 99_993)] {
        let clock = clock_here(LogTime(100_000), source_ttl, own);
        assert_eq!(clock, LogTime(expected));
        // The oldest birth that is taken for new is the same in both groups.
        assert_eq!(clock.0 - own, 100_000 - source_ttl);
    }
    assert_eq!(clock_here(LogTime(5), 100, 20), LogTime(0));
    let end = LogTime(u64::MAX);
    assert_eq!(clock_here(end, 0, 20), end);
}

#[test]
fn settled_stays_below_what_is_unfinished() {
    for (state, settled) in [
        ("absent", 9),
        ("serving5", 9),
        ("pulling5", 4),
        ("fenced5", 4),
        ("fenced5,come7,go9", 4),
    ] {
        assert_eq!(ownership_of(state).settled(), ConfigNum(settled), "{state}");
    }
    let mut deleting = ownership_of("pulling5,go7");
    take(&mut deleting, &step("last5"), 60);
    assert_eq!(name(&deleting), "fenced7");
    assert_eq!(
        deleting.pending_deletes,
        [((SHARD, ConfigNum(5)), OTHER)].into()
    );
    assert_eq!(deleting.settled(), ConfigNum(4));
    take(&mut deleting, &step("deleted5"), 60);
    assert_eq!(deleting.settled(), ConfigNum(6));
    take(&mut deleting, &step("delete7"), 60);
    assert_eq!(deleting.settled(), ConfigNum(9));
}

/// A configuration in which `gone` aren't any more.
fn leave(num: u64, gone: &[Gid]) -> Step {
    Step::Configure {
        controller: CONTROLLER,
        delta: ConfigDelta {
            num: ConfigNum(num),
            groups: gone.iter().map(|gid| (*gid, None)).collect(),
            targets: Vec::new(),
            moves: Vec::new(),
        },
    }
}

#[test]
fn addresses_are_kept_as_long_as_a_hand_off_needs_them() {
    let mut ownership = ownership_of("pulling5,go7,come9");
    take(&mut ownership, &leave(10, &[OTHER, THIRD, Gid(4)]), 60);
    // The one is pulled from, the other will be.
    assert_eq!(*ownership.groups, all_groups());
    assert_eq!(ownership.left, [OTHER, THIRD].into());
    take(&mut ownership, &step("last5"), 60);
    assert_eq!(ownership.left, [OTHER, THIRD].into(), "a delete is pending");
    take(&mut ownership, &step("deleted5"), 60);
    assert_eq!(ownership.left, [THIRD].into());
    assert!(!ownership.groups.contains_key(&OTHER));
    // It joins again, elsewhere.
    let back = vec!["back:1".to_owned()];
    let join = Step::Configure {
        controller: CONTROLLER,
        delta: ConfigDelta {
            num: ConfigNum(11),
            groups: [(THIRD, Some(back.clone().into()))].into(),
            targets: Vec::new(),
            moves: Vec::new(),
        },
    };
    take(&mut ownership, &join, 60);
    assert_eq!(ownership.left, BTreeSet::new());
    assert_eq!(ownership.groups.get(&THIRD), Some(&back));
    // With nothing to do with it, it is forgotten at once.
    let mut idle = ownership_of("serving5");
    take(&mut idle, &leave(10, &[THIRD]), 60);
    assert_eq!(idle.left, BTreeSet::new());
    assert!(!idle.groups.contains_key(&THIRD));
}

/// The controllers don't wait for a group that has nothing, so what lies between may be gone.
#[test]
fn a_group_that_has_nothing_may_begin_again_further_on() {
    let begin = |controller, num| Step::Begin {
        gid: OWN,
        controller,
        num: ConfigNum(num),
        groups: [(THIRD, addresses(THIRD))].into(),
    };
    let judge = |ownership: &Ownership, step| ownership.judge(&step, &GENESIS, Bugs::default());
    let mut absent = ownership_of("absent");
    absent.left.insert(OTHER);
    for (controller, num) in [(CONTROLLER, 9), (CONTROLLER, 3), (ClusterId(8), 12)] {
        assert_eq!(judge(&absent, begin(controller, num)), Verdict::Idle);
    }
    let serving = ownership_of("serving5");
    assert_eq!(judge(&serving, begin(CONTROLLER, 12)), Verdict::Idle);
    let mut deleting = absent.clone();
    deleting
        .pending_deletes
        .insert((SHARD, ConfigNum(5)), OTHER);
    assert_eq!(judge(&deleting, begin(CONTROLLER, 12)), Verdict::Idle);

    let step = begin(CONTROLLER, 12);
    assert_eq!(judge(&absent, step.clone()), Verdict::Due);
    let changed = absent.take(&step, LogTime(1), &GENESIS, Bugs::default());
    assert_eq!(absent.config, ConfigNum(12));
    assert_eq!(*absent.groups, [(THIRD, addresses(THIRD))].into());
    assert!(absent.left.is_empty());
    // The records of groups that it doesn't know any more go.
    assert_eq!(changed.groups, [OWN, OTHER, THIRD].into());
}
