//! The rules and bounds of journals, one by one.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{Replica, SHARDS_GENESIS, put};
use raft::Index;
use replica::{StateMachine, StateStore, Table, Transaction};
use shardkv::{
    Command, CopyCursor, CopyId, CopyRequest, JOURNAL_TTL_MS, Journal, JournalError, JournalStep,
    KvError, MAX_GENERATIONS, MAX_JOURNALS, MAX_KEY_BYTES, MAX_NAMED_BYTES, PlannedMove, Position,
    Query, Response, Step, Target, Write,
};
use types::{ClusterId, ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId, shard_of};

const TARGET: Target = Target {
    to: Gid(2),
    since: ConfigNum(5),
};

struct Group {
    replica: Replica,
    config: ShardConfig,
    time: u64,
}

impl Group {
    fn new(shards: u32) -> Self {
        let genesis = shardkv::Genesis {
            shards,
            ..SHARDS_GENESIS
        };
        let mut group = Self {
            replica: Replica::new(genesis),
            config: ShardConfig::empty(shards),
            time: 1_000,
        };
        let begin = Step::Begin {
            gid: Gid(1),
            controller: ClusterId(77),
            num: ConfigNum(0),
            groups: BTreeMap::new(),
        };
        assert_eq!(group.replica.step(1_000, &begin), Response::Stepped);
        group.configure(Gid(1));
        group
    }

    /// Gives all shards to a group.
    fn configure(&mut self, owner: Gid) {
        let owners = vec![owner; self.config.shards() as usize];
        let groups = [(owner, vec![format!("{owner}:1")])].into();
        let delta = ConfigDelta::between(&self.config, &groups, &owners);
        self.config.apply(&delta).unwrap();
        let controller = ClusterId(77);
        let step = Step::Configure { controller, delta };
        assert_eq!(self.replica.step(self.time, &step), Response::Stepped);
    }

    fn aim(&mut self, shard: ShardId, target: Option<Target>) {
        let Replica { machine, state, .. } = &mut self.replica;
        let mut transaction = Transaction::new(&*state);
        let planned = target.map(|target| PlannedMove {
            owner: Gid(1),
            owner_since: ConfigNum(1),
            target,
        });
        machine.plan(shard, planned, &mut transaction);
        machine.finish_batch(&mut transaction).unwrap();
        let batch = transaction.into_batch();
        let applied = state.applied();
        state.commit(batch, applied).unwrap();
    }

    fn step(&mut self, step: JournalStep) -> Result<(), JournalError> {
        match self.replica.apply_bytes(self.time, 100, step.encode()) {
            Response::Stepped | Response::Begun { .. } => Ok(()),
            Response::Refused(KvError::Journal { error, .. }) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn begin(&mut self, shard: ShardId) -> Index {
        self.aim(shard, Some(TARGET));
        let target = TARGET;
        self.step(JournalStep::Begin { shard, target }).unwrap();
        self.journal(shard).unwrap().id
    }

    fn journal(&self, shard: ShardId) -> Option<&Journal> {
        self.replica.machine.journals().get(shard)
    }

    fn copy(&self, shard: ShardId, journal: Index, after: CopyCursor) -> Result<(), JournalError> {
        let since = TARGET.since;
        let request = CopyRequest {
            shard,
            copy: CopyId { since, journal },
            fence: None,
            after,
            max_bytes: 100,
        };
        match self.replica.query(&Query::Copy(request)) {
            Response::Part(_) => Ok(()),
            Response::Refused(KvError::Journal { error, .. }) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn names(&self) -> usize {
        let pairs = self.replica.state.pairs();
        pairs
            .keys()
            .filter(|(table, _)| *table == Table::Journal)
            .count()
    }
}

fn page(generation: u64) -> CopyCursor {
    CopyCursor::Page {
        generation,
        after: Position::default(),
    }
}

const SHARD: ShardId = ShardId(0);

#[test]
fn a_journal_begins_for_exactly_the_accepted_target() {
    let mut group = Group::new(1);
    let other = Target {
        since: ConfigNum(4),
        ..TARGET
    };
    let begin = |target| JournalStep::Begin {
        shard: SHARD,
        target,
    };
    let accepted = None;
    assert_eq!(
        group.step(begin(TARGET)),
        Err(JournalError::OtherTarget { accepted })
    );
    group.aim(SHARD, Some(TARGET));
    let accepted = Some(TARGET);
    assert_eq!(
        group.step(begin(other)),
        Err(JournalError::OtherTarget { accepted })
    );
    assert_eq!(group.step(begin(TARGET)), Ok(()));
    let id = group.journal(SHARD).unwrap().id;
    // A second one changes nothing.
    assert_eq!(group.step(begin(TARGET)), Ok(()));
    assert_eq!(group.journal(SHARD).unwrap().id, id);
    // It survives a restart, and ends with its target.
    group.replica.restart();
    assert_eq!(group.journal(SHARD).unwrap().id, id);
    group.aim(SHARD, Some(other));
    assert_eq!(group.journal(SHARD), None);
    assert_eq!(
        group.copy(SHARD, id, CopyCursor::default()),
        Err(JournalError::Unknown { journal: id })
    );
    assert_eq!(group.step(begin(other)), Ok(()));
    assert_eq!(
        group.copy(SHARD, id, CopyCursor::default()),
        Err(JournalError::Ended { journal: id })
    );
}

#[test]
fn pages_exist_from_their_seal_to_their_drop() {
    let mut group = Group::new(1);
    let (shard, journal) = (SHARD, group.begin(SHARD));
    let seal = |generation| JournalStep::Seal {
        shard,
        journal,
        generation,
    };
    let drop = |generation| JournalStep::Drop {
        shard,
        journal,
        generation,
    };
    group.replica.apply(1_000, None, put("a", "1"));
    let not_sealed = |generation| Err(JournalError::NotSealed { generation });
    assert_eq!(group.copy(shard, journal, page(1)), not_sealed(1));
    // The open generation isn't dropped, and only it is sealed.
    group.step(drop(1)).unwrap();
    group.step(seal(2)).unwrap();
    assert_eq!(group.journal(shard).unwrap().open, 1);
    group.step(seal(1)).unwrap();
    group.step(seal(1)).unwrap();
    assert_eq!(group.journal(shard).unwrap().open, 2);
    assert_eq!(group.copy(shard, journal, page(1)), Ok(()));
    assert_eq!(group.copy(shard, journal, page(2)), not_sealed(2));
    group.replica.apply(1_000, None, put("b", "1"));
    assert_eq!(group.names(), 2);
    group.step(drop(1)).unwrap();
    assert_eq!(group.names(), 1);
    let generation = 1;
    assert_eq!(
        group.copy(shard, journal, page(1)),
        Err(JournalError::Dropped { generation })
    );
    // Too many generations that nobody reads.
    let limit = MAX_GENERATIONS;
    for generation in 2..=limit {
        group.step(seal(generation)).unwrap();
    }
    assert_eq!(
        group.step(seal(limit + 1)),
        Err(JournalError::TooManyGenerations { limit })
    );
    group.replica.restart();
    group.step(drop(limit)).unwrap();
    group.step(seal(limit + 1)).unwrap();
    // The fence seals the last one. Nothing is named afterwards, and neither seals nor expiry change anything.
    group.configure(Gid(2));
    assert_eq!(group.copy(shard, journal, page(limit + 2)), Ok(()));
    group.step(seal(limit + 2)).unwrap();
    group.time += JOURNAL_TTL_MS + 1;
    group.replica.apply(group.time, None, put("k", "v"));
    group.aim(shard, None);
    let fenced = group.journal(shard).unwrap();
    assert_eq!((fenced.open, fenced.fence), (limit + 2, Some(ConfigNum(2))));
}

#[test]
fn a_fence_for_another_group_ends_the_journal() {
    let mut group = Group::new(1);
    group.begin(SHARD);
    group.replica.apply(1_000, None, put("a", "1"));
    group.configure(Gid(3));
    assert_eq!(group.journal(SHARD), None);
    // What the configuration says of the target comes after the fence. Nothing begins here meanwhile.
    let begin = JournalStep::Begin {
        shard: SHARD,
        target: TARGET,
    };
    assert!(matches!(
        group.replica.apply_bytes(1_000, 100, begin.encode()),
        Response::Refused(KvError::WrongGroup { .. })
    ));
    group.aim(SHARD, None);
    assert_eq!(group.names(), 0);
}

#[test]
fn a_journal_expires_by_log_time_unless_it_is_renewed() {
    let mut group = Group::new(1);
    let (shard, journal) = (SHARD, group.begin(SHARD));
    let write = |group: &mut Group| group.replica.apply(group.time, None, put("k", "v"));
    group.time += JOURNAL_TTL_MS;
    write(&mut group);
    group.step(JournalStep::Renew { shard, journal }).unwrap();
    group.time += JOURNAL_TTL_MS;
    write(&mut group);
    assert!(group.journal(shard).is_some());
    group.time += 1;
    write(&mut group);
    assert_eq!(group.journal(shard), None);
    assert_eq!(group.names(), 0, "this write isn't named");
    let unknown = Err(JournalError::Unknown { journal });
    assert_eq!(group.step(JournalStep::Renew { shard, journal }), unknown);
}

#[test]
fn a_journal_ends_when_its_names_exceed_their_bound() {
    let mut group = Group::new(1);
    group.begin(SHARD);
    let key = Bytes::from(vec![b'k'; MAX_KEY_BYTES]);
    let write = || Write::Put {
        key: key.clone(),
        value: Bytes::new(),
    };
    group.replica.apply(1_000, None, write());
    let each = group.journal(SHARD).unwrap().named_bytes();
    let last = MAX_NAMED_BYTES / each;
    let operation = Command {
        session: None,
        write: write(),
    }
    .encode();
    let first = group.replica.state.applied().last.index.0 + 1;
    let steps: Vec<_> = (first..first + last - 1)
        .map(|index| common::Step {
            index,
            time: group.time,
            max_value_bytes: 100,
            operation: operation.clone(),
        })
        .collect();
    group.replica.batch(&steps);
    assert_eq!(group.journal(SHARD).unwrap().named_bytes(), last * each);
    group.replica.apply(1_000, None, write());
    assert_eq!(group.journal(SHARD), None);
    assert_eq!(group.names(), 0);
    group.replica.restart();
    assert_eq!(group.journal(SHARD), None);
}

#[test]
fn a_group_has_a_bounded_number_of_journals() {
    let limit = MAX_JOURNALS;
    let shards = u32::try_from(limit).unwrap() + 1;
    let mut group = Group::new(shards);
    for shard in 1..shards {
        group.begin(ShardId(shard));
    }
    group.aim(SHARD, Some(TARGET));
    let begin = JournalStep::Begin {
        shard: SHARD,
        target: TARGET,
    };
    assert_eq!(
        group.step(begin),
        Err(JournalError::TooManyJournals { limit })
    );
}

#[test]
fn only_the_shard_of_a_journal_is_named() {
    let mut group = Group::new(2);
    let own = shard_of(b"a", 2);
    group.begin(ShardId(1 - own.0));
    group.replica.apply(1_000, None, put("a", "1"));
    assert_eq!(group.names(), 0);
    group.begin(own);
    group.replica.apply(1_000, None, put("a", "2"));
    assert_eq!(group.names(), 1);
}

#[test]
fn steps_decode_to_what_was_encoded() {
    let (shard, journal, generation) = (ShardId(300), Index(70_000), 129);
    for step in [
        JournalStep::Begin {
            shard,
            target: TARGET,
        },
        JournalStep::Seal {
            shard,
            journal,
            generation,
        },
        JournalStep::Drop {
            shard,
            journal,
            generation,
        },
        JournalStep::Renew { shard, journal },
    ] {
        let encoded = step.encode();
        assert_eq!(JournalStep::decode(encoded.clone()), Ok(step));
        for length in 0..encoded.len() {
            assert!(JournalStep::decode(encoded.slice(..length)).is_err());
        }
    }
    assert!(JournalStep::decode(Bytes::from_static(&[1, 35, 0, 0, 1])).is_err());
    assert!(JournalStep::decode(Bytes::from_static(&[1, 99, 0, 0, 0])).is_err());
}
