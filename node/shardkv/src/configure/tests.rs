//! Steps hold only what is news, come in parts, and follow groups that end and begin.

mod skips;

use types::{ConfigDelta, Incarnation};

use super::*;
use crate::bug::Bugs;
use crate::{GroupKind, Step};

const CONTROLLER: ClusterId = ClusterId(7);
const OWN: Gid = Gid(1);
const GIDS: [Gid; 4] = [OWN, Gid(2), Gid(3), Gid(4)];
const SHARDS: u32 = 6;

const GENESIS: Genesis = Genesis {
    kind: GroupKind::Shards,
    shards: SHARDS,
    session_ttl_ms: 10_000,
    max_sessions_per_shard: 6,
    max_results_per_session: 4,
};

fn shards() -> impl Iterator<Item = ShardId> {
    (0..SHARDS).map(ShardId)
}

fn take(ownership: &mut Ownership, step: &Step, time: u64) {
    assert_eq!(Step::decode(step.encode()).as_ref(), Ok(step));
    let verdict = ownership.judge(step, &GENESIS, Bugs::default());
    assert_eq!(verdict, Verdict::Due, "{step:?} {ownership:?}");
    ownership.take(step, LogTime(time), Bugs::default());
}

fn follow(ownership: &mut Ownership, config: &ShardConfig, time: u64) {
    let step = Configure::to(config, OWN, CONTROLLER, ownership);
    take(ownership, &Step::Configure(step), time);
    assert_eq!(ownership.config, config.num());
    assert_eq!(*ownership.groups, *config.groups());
    // Nothing of it is news any more.
    let again = Configure::to(config, OWN, CONTROLLER, ownership);
    assert_eq!((again.rows, again.groups), (Vec::new(), BTreeMap::new()));
}

#[test]
fn a_step_has_the_rows_that_are_news_in_runs() {
    let groups = GIDS.map(|gid| (gid, vec![format!("{gid}:1")].into()));
    let groups: BTreeMap<Gid, Group> = groups.into();
    let mut config = ShardConfig::empty(SHARDS);
    let mut next = |targets: [u64; 6], owners: [u64; 6], groups: &BTreeMap<Gid, Group>| {
        let delta = ConfigDelta::new(&config, groups, &targets.map(Gid), &owners.map(Gid));
        config.apply(&delta).unwrap();
        config.clone()
    };
    let runs = |step: &Configure| -> Vec<(u32, u32)> {
        let runs = step.rows.iter();
        runs.map(|(run, _)| (run.first.0, run.count)).collect()
    };
    let mut ownership = Ownership::default();
    let first = next([1, 1, 2, 1, 3, 3], [1, 1, 2, 1, 3, 3], &groups);
    let step = Configure::to(&first, OWN, CONTROLLER, &ownership);
    assert_eq!(runs(&step), [(0, 2), (3, 1)]);
    assert_eq!(step.groups.len(), 4);
    follow(&mut ownership, &first, 1);
    // What others do among themselves, and groups that stay as they are, are no news.
    next([1, 1, 3, 1, 3, 3], [1, 1, 3, 1, 3, 3], &groups);
    let mut fewer = groups;
    fewer.remove(&Gid(4));
    let third = next([1, 1, 1, 2, 2, 2], [1, 1, 3, 1, 3, 3], &fewer);
    let step = Configure::to(&third, OWN, CONTROLLER, &ownership);
    assert_eq!((step.after, step.num), (ConfigNum(1), ConfigNum(3)));
    assert_eq!(runs(&step), [(2, 1), (3, 1)], "different rows");
    assert_eq!(step.groups, [(Gid(4), None)].into());
    follow(&mut ownership, &third, 1);
    // Each row is as it is in the configuration.
    for (run, row) in &step.rows {
        assert!(run.shards().all(|shard| third.row(shard) == *row));
    }
}

/// A group of two of the nodes 1 to 5, which joined in configuration `incarnation`.
fn incarnation(incarnation: u64, nodes: [u64; 2]) -> Group {
    Group {
        incarnation: Incarnation(incarnation),
        ..nodes.map(|node| format!("node-{node}:1")).to_vec().into()
    }
}

/// Configurations in which group 2 owns all shards but those that the own group owns.
struct Lives {
    config: ShardConfig,
    own: Ownership,
}

impl Lives {
    /// The own group has nodes 1 and 2, and serves shard 0 since configuration 1.
    fn new() -> Self {
        let mut lives = Self {
            config: ShardConfig::empty(SHARDS),
            own: Ownership::default(),
        };
        lives.next(Some(incarnation(1, [1, 2])), OWN);
        lives.follow();
        assert!(lives.own.check_served(ShardId(0)).is_ok());
        lives
    }

    /// Makes the next configuration: the gid's group, and the owner of shard 0.
    fn next(&mut self, own: Option<Group>, owner: Gid) {
        let mut groups = BTreeMap::from([(Gid(2), incarnation(1, [4, 5]))]);
        groups.extend(own.map(|own| (OWN, own)));
        let mut owners = vec![Gid(2); SHARDS as usize];
        owners[0] = owner;
        let same = self.config.groups().get(&OWN).map(|it| it.incarnation)
            == groups.get(&OWN).map(|it| it.incarnation);
        if !same && self.config.groups().contains_key(&OWN) && groups.contains_key(&OWN) {
            // A gid is free for a while.
            self.next(None, Gid(2));
        }
        let delta = ConfigDelta::new(&self.config, &groups, &owners, &owners);
        self.config.apply(&delta).unwrap();
    }

    fn follow(&mut self) {
        follow(&mut self.own, &self.config, 1);
    }
}

#[test]
fn nodes_of_an_earlier_incarnation_do_not_take_part_as_another_group_of_their_gid() {
    for skips in [false, true] {
        let mut lives = Lives::new();
        // The group is forgotten, and other nodes join under its gid. It may hear of both at once.
        lives.next(None, Gid(2));
        if !skips {
            lives.follow();
        }
        let other = incarnation(3, [3, 4]);
        lives.next(Some(other.clone()), OWN);
        lives.follow();
        assert!(matches!(
            lives.own.state(ShardId(0)),
            Some(ShardState::Fenced { .. })
        ));
        assert_eq!(lives.own.former, Some(incarnation(1, [1, 2])));
        // It stays so, also if a node's address goes to the other group.
        let settled = lives.own.settled();
        for nodes in [[3, 5], [2, 3]] {
            let changed = Group {
                addresses: incarnation(3, nodes).addresses,
                ..other.clone()
            };
            lives.next(Some(changed), OWN);
            lives.follow();
            assert!(lives.own.check_served(ShardId(0)).is_err());
            assert!(lives.own.planned.is_empty());
        }
        assert_eq!(lives.own.settled(), settled);
    }
}

#[test]
fn a_group_that_joins_again_with_one_of_its_nodes_begins_with_nothing() {
    for skips in [false, true] {
        let mut lives = Lives::new();
        lives.next(None, Gid(2));
        if !skips {
            lives.follow();
        }
        lives.next(Some(incarnation(3, [2, 3])), OWN);
        let step = Configure::to(&lives.config, OWN, CONTROLLER, &lives.own);
        let mut changed = Changed::default();
        let mut own = lives.own.clone();
        own.take_configure(&step, LogTime(1), &mut changed);
        assert!(changed.cleared.contains(&ShardId(0)), "{changed:?}");
        lives.follow();
        assert_eq!(lives.own.former, None);
        // Group 2 had the shard meanwhile.
        assert!(matches!(
            lives.own.state(ShardId(0)),
            Some(ShardState::Pulling { source: Gid(2), .. })
        ));
    }
}

/// The most shards, in rows that all differ from their neighbours.
fn scattered() -> (ShardConfig, Genesis) {
    let genesis = Genesis {
        shards: types::MAX_SHARDS,
        ..GENESIS
    };
    let groups = GIDS.map(|gid| (gid, incarnation(1, [gid.0, gid.0 + 10])));
    let rows = (0..types::MAX_SHARDS).map(|shard| {
        let moves = shard % 2 == 0;
        let row = Assignment {
            owner: OWN,
            owner_since: ConfigNum(1),
            previous: Gid::NONE,
            target: if moves { Gid(2) } else { OWN },
            target_since: ConfigNum(if moves { 2 } else { 1 }),
        };
        (1, row)
    });
    let config = ShardConfig::from_rows(ConfigNum(2), groups.into(), rows).unwrap();
    (config, genesis)
}

#[test]
fn a_step_with_the_most_shards_comes_in_parts() {
    let (config, genesis) = scattered();
    let mut whole = Ownership::default();
    let step = Configure::to(&config, OWN, CONTROLLER, &whole);
    let parts = ConfigurePart::cut(&step, 512 << 10).unwrap();
    assert!(parts.len() > 16, "{}", parts.len());
    let mut own = Ownership::default();
    let take = |own: &mut Ownership, part: &ConfigurePart, expected: &Verdict| {
        let step = Step::ConfigurePart(part.clone());
        assert_eq!(Step::decode(step.encode()).as_ref(), Ok(&step));
        let verdict = own.judge(&step, &genesis, Bugs::default());
        assert_eq!(verdict, *expected, "{:?} {}", part.whole, part.index);
        if verdict == Verdict::Due {
            own.take(&step, LogTime(1), Bugs::default());
        }
    };
    // Those of another leader with another checksum, and some late ones.
    let mut other = parts.clone();
    for part in &mut other {
        part.whole.checksum ^= 1;
    }
    for part in &other {
        let last = part.index + 1 == part.whole.count;
        let damaged = nonsense("checksum is out of range");
        let due = Verdict::Due;
        if last {
            let verdict = own.judge(
                &Step::ConfigurePart(part.clone()),
                &genesis,
                Bugs::default(),
            );
            assert!(
                matches!(verdict, Verdict::Refused(_)),
                "{verdict:?} {damaged:?}"
            );
        } else {
            take(&mut own, part, &due);
        }
    }
    take(&mut own, &parts[1], &Verdict::Idle);
    for part in &parts {
        take(&mut own, part, &Verdict::Due);
        if part.index + 1 < part.whole.count {
            take(&mut own, part, &Verdict::Idle);
            assert_eq!((own.config, own.shards.len()), (ConfigNum(0), 0));
        }
    }
    whole.take_configure(&step, LogTime(1), &mut Changed::default());
    assert_eq!(own, whole);
    assert_eq!((own.parts.as_ref(), own.shards.len()), (None, 1_000_000));
    take(&mut own, &parts[0], &Verdict::Idle);
}

/// Returns the configuration in which these groups are left and all shards belong to `owner`, from nobody if `reset`.
fn all_to(before: &ShardConfig, gids: &[Gid], owner: Gid, reset: bool) -> ShardConfig {
    let mut config = before.clone();
    let groups = gids.iter().map(|gid| {
        let address = format!("{gid}:1");
        let joined = before.groups().get(gid).map(|it| it.incarnation);
        let group = Group {
            incarnation: joined.unwrap_or(Incarnation(before.num().next().0)),
            ..vec![address].into()
        };
        (*gid, group)
    });
    let owners = [owner; SHARDS as usize];
    let delta = ConfigDelta::new(before, &groups.collect(), &owners, &owners);
    let resets = shards().filter(|_| reset).collect();
    let delta = delta.with_resets(before, &owners, &resets);
    config.apply(&delta).unwrap();
    config
}

/// Takes a configuration. Returns the shards whose content was cleared.
fn cleared_by(ownership: &mut Ownership, config: &ShardConfig) -> usize {
    let step = Step::Configure(Configure::to(config, OWN, CONTROLLER, ownership));
    assert_eq!(
        ownership.judge(&step, &GENESIS, Bugs::default()),
        Verdict::Due
    );
    let changed = ownership.take(&step, LogTime(1), Bugs::default());
    changed.cleared.len()
}

#[test]
fn only_a_fence_for_the_forgotten_group_is_served_again() {
    let (second, third) = (Gid(2), Gid(3));
    let empty = ShardConfig::empty(SHARDS);
    let first = all_to(&empty, &[OWN, second, third], OWN, false);
    let given = all_to(&first, &[OWN, second, third], second, false);
    let mut group = Ownership::default();
    for config in [&first, &given] {
        assert_eq!(cleared_by(&mut group, config), 0);
    }
    let mut other = group.clone();
    // The group that has the shards is forgotten: they come back with all that they had.
    let back = all_to(&given, &[OWN, third], OWN, true);
    assert_eq!(cleared_by(&mut group, &back), 0);
    // They went on to another group, which is forgotten: what this group has is old.
    let on = all_to(&given, &[OWN, second, third], third, false);
    let lost = all_to(&on, &[OWN, second], OWN, true);
    assert_eq!(cleared_by(&mut other, &lost), SHARDS as usize);
    for group in [group, other] {
        let serves = |shard| matches!(group.state(shard), Some(ShardState::Serving { .. }));
        assert!(shards().all(serves));
    }
}

#[test]
fn a_forgotten_group_asks_for_no_deletes() {
    let second = Gid(2);
    let empty = ShardConfig::empty(SHARDS);
    let first = all_to(&empty, &[OWN, second], OWN, false);
    let mut group = Ownership::default();
    cleared_by(&mut group, &first);
    Arc::make_mut(&mut group.pending_deletes).insert((ShardId(0), first.num()), second);
    let forgotten = all_to(&first, &[second], second, true);
    cleared_by(&mut group, &forgotten);
    assert!(group.pending_deletes.is_empty());
}
