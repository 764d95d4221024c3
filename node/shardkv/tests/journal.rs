//! The rules and bounds of journals, one by one.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Replica, SHARDS_GENESIS, put};
use raft::Index;
use replica::{StateStore, Table};
use shardkv::{
    Chunk, Command, Configure, CopyCursor, CopyId, CopyRequest, Cursor, JOURNAL_TTL_MS, Journal,
    JournalError, JournalStep, KvError, MAX_GENERATIONS, MAX_JOURNALS, MAX_KEY_BYTES,
    MAX_NAMED_BYTES, Next, Position, Query, Response, SessionClock, Step, Target, Write,
};
use types::{ClusterId, ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId, shard_of};

const OWN: Gid = Gid(1);
const OTHER: Gid = Gid(2);
const THIRD: Gid = Gid(3);

struct Group {
    replica: Replica,
    config: ShardConfig,
    time: u64,
}

impl Group {
    /// A group that serves all shards.
    fn new(shards: u32) -> Self {
        let mut group = Self::without_shards(shards);
        group.configure(OWN, OWN);
        group
    }

    fn without_shards(shards: u32) -> Self {
        let genesis = shardkv::Genesis {
            shards,
            ..SHARDS_GENESIS
        };
        Self {
            replica: Replica::new(genesis),
            config: ShardConfig::empty(shards),
            time: 1_000,
        }
    }

    /// Makes the next configuration, in which all shards have this target and this owner.
    fn plan(&mut self, target: Gid, owner: Gid) {
        let groups = [OWN, OTHER, THIRD].map(|gid| (gid, vec![format!("{gid}:1")].into()));
        let all = |gid| vec![gid; self.config.shards() as usize];
        let (targets, owners) = (all(target), all(owner));
        let delta = ConfigDelta::new(&self.config, &groups.into(), &targets, &owners);
        self.config.apply(&delta).unwrap();
    }

    /// Takes up the latest configuration, whatever is between.
    fn take_up(&mut self) {
        let ownership = self.replica.machine.ownership();
        let step = Configure::to(&self.config, OWN, ClusterId(77), &ownership);
        let step = Step::Configure(step);
        assert_eq!(self.replica.step(self.time, &step), Response::Stepped);
    }

    fn configure(&mut self, target: Gid, owner: Gid) {
        self.plan(target, owner);
        self.take_up();
    }

    /// The target of all shards.
    fn target(&self) -> Target {
        let row = self.config.row(SHARD);
        let (to, since) = (row.target, row.target_since);
        Target { to, since }
    }

    fn step(&mut self, step: JournalStep) -> Result<(), JournalError> {
        match self.replica.apply_bytes(self.time, 100, step.encode()) {
            Response::Stepped | Response::Begun { .. } => Ok(()),
            Response::Refused(KvError::Journal { error, .. }) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    /// Begins the journal for a copy to the other group.
    fn begin(&mut self, shard: ShardId) -> Index {
        if self.target().to != OTHER {
            self.configure(OTHER, OWN);
        }
        let target = self.target();
        self.step(JournalStep::Begin { shard, target }).unwrap();
        self.journal(shard).unwrap().id
    }

    fn journal(&self, shard: ShardId) -> Option<&Journal> {
        self.replica.machine.journals().get(shard)
    }

    fn copy(&self, shard: ShardId, journal: Index, after: CopyCursor) -> Result<(), JournalError> {
        let since = self.target().since;
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
    let shard = SHARD;
    let begin = |target| JournalStep::Begin { shard, target };
    group.plan(OTHER, OWN);
    let target = group.target();
    let refused = |accepted| Err(JournalError::OtherTarget { accepted });
    assert_eq!(group.step(begin(target)), refused(None));
    group.take_up();
    let since = ConfigNum(1);
    let other = Target { since, ..target };
    assert_eq!(group.step(begin(other)), refused(Some(target)));
    assert_eq!(group.step(begin(target)), Ok(()));
    let id = group.journal(SHARD).unwrap().id;
    // A second one changes nothing.
    assert_eq!(group.step(begin(target)), Ok(()));
    assert_eq!(group.journal(SHARD).unwrap().id, id);
    // It survives a restart, and ends with its target, also if the same group is the target again.
    group.replica.restart();
    assert_eq!(group.journal(SHARD).unwrap().id, id);
    group.plan(OWN, OWN);
    group.plan(OTHER, OWN);
    group.take_up();
    assert_eq!(group.journal(SHARD), None);
    let journal = id;
    assert_eq!(
        group.copy(SHARD, id, CopyCursor::default()),
        Err(JournalError::Unknown { journal })
    );
    assert_eq!(group.step(begin(group.target())), Ok(()));
    assert_eq!(
        group.copy(SHARD, id, CopyCursor::default()),
        Err(JournalError::Ended { journal })
    );
    // Another target ends it, and so does the owner as the target.
    for to in [THIRD, OWN] {
        group.begin(SHARD);
        group.configure(to, OWN);
        assert_eq!(group.journal(SHARD), None);
    }
}

/// A journal proves that the group serves the shard, and so that the owner before has fenced it.
#[test]
fn a_journal_begins_only_while_the_shard_is_served() {
    let mut group = Group::without_shards(1);
    let shard = SHARD;
    let begin = |group: &mut Group| {
        let target = group.target();
        let step = JournalStep::Begin { shard, target };
        group.replica.apply_bytes(1_000, 100, step.encode())
    };
    let is_refused = |group: &mut Group, error: KvError| {
        assert_eq!(begin(group), Response::Refused(error));
        assert_eq!(group.journal(shard), None);
    };
    group.configure(OTHER, OTHER);
    let wrong_group = |group: &Group| {
        let config = group.config.num();
        KvError::WrongGroup { shard, config }
    };
    let error = wrong_group(&group);
    is_refused(&mut group, error);
    // It waits for the shard, which is to go on.
    group.configure(OWN, OWN);
    let config = group.config.num();
    group.configure(OTHER, OWN);
    let chunk = |after, next| {
        Step::Install(Chunk {
            shard,
            config,
            after,
            pairs: Vec::new(),
            sessions: Vec::new(),
            rows: Vec::new(),
            next,
        })
    };
    is_refused(&mut group, KvError::ShardNotReady { shard });
    let half = Cursor::Sessions(None);
    let first = chunk(Cursor::default(), Next::Chunk(half.clone()));
    assert_eq!(group.replica.step(1_000, &first), Response::Stepped);
    is_refused(&mut group, KvError::ShardNotReady { shard });
    // It has arrived. That the owner before has not deleted it yet doesn't matter.
    let (clock, ttl_ms) = (SessionClock::default(), 1);
    let last = chunk(half, Next::Done { clock, ttl_ms });
    assert_eq!(group.replica.step(1_000, &last), Response::Stepped);
    let owes = |group: &Group| !group.replica.machine.ownership().pending_deletes.is_empty();
    assert!(owes(&group));
    let id = group.begin(shard);
    group.replica.step(1_000, &Step::Deleted { shard, config });
    assert!(!owes(&group));
    assert_eq!(group.journal(shard).unwrap().id, id);
    // It is fenced.
    group.configure(OTHER, OTHER);
    group.configure(THIRD, OTHER);
    let error = wrong_group(&group);
    assert_eq!(begin(&mut group), Response::Refused(error));
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
    group.configure(OTHER, OTHER);
    assert_eq!(group.copy(shard, journal, page(limit + 2)), Ok(()));
    group.step(seal(limit + 2)).unwrap();
    group.time += JOURNAL_TTL_MS + 1;
    group.replica.apply(group.time, None, put("k", "v"));
    // The target after the next one doesn't matter.
    let cut = Some(group.config.num());
    for target in [THIRD, OWN] {
        group.configure(target, OTHER);
        let fenced = group.journal(shard).unwrap();
        assert_eq!((fenced.open, fenced.fence), (limit + 2, cut));
    }
}

/// A destination that lost its disks begins again. It lacks what it had dropped here, so the journal is of no use to it.
#[test]
fn a_journal_of_which_something_was_dropped_does_not_begin_again() {
    let mut group = Group::new(1);
    let shard = SHARD;
    group.begin(shard);
    let journal = group.journal(shard).unwrap().id;
    let target = group.target();
    let begin = JournalStep::Begin { shard, target };
    let generation = 1;
    let seal = JournalStep::Seal {
        shard,
        journal,
        generation,
    };
    let drop = JournalStep::Drop {
        shard,
        journal,
        generation,
    };
    assert_eq!(group.step(seal), Ok(()));
    assert_eq!(group.step(begin), Ok(()));
    assert_eq!(group.journal(shard).unwrap().id, journal);
    assert_eq!(group.step(drop), Ok(()));
    assert_eq!(group.step(begin), Ok(()));
    assert!(group.journal(shard).unwrap().id > journal);
    assert_eq!(
        group.copy(shard, journal, page(2)),
        Err(JournalError::Ended { journal })
    );
}

#[test]
fn a_fence_for_another_group_ends_the_journal() {
    let mut group = Group::new(1);
    group.begin(SHARD);
    let target = group.target();
    group.replica.apply(1_000, None, put("a", "1"));
    group.configure(THIRD, THIRD);
    assert_eq!(group.journal(SHARD), None);
    assert_eq!(group.names(), 0);
    let shard = SHARD;
    let begin = JournalStep::Begin { shard, target };
    assert!(matches!(
        group.replica.apply_bytes(1_000, 100, begin.encode()),
        Response::Refused(KvError::WrongGroup { .. })
    ));
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
    // A name that fills it exactly, and one more.
    let overhead = each - MAX_KEY_BYTES as u64;
    let rest = usize::try_from(MAX_NAMED_BYTES - last * each - overhead).unwrap();
    group.replica.apply(1_000, None, put(&"r".repeat(rest), ""));
    assert_eq!(group.journal(SHARD).unwrap().named_bytes(), MAX_NAMED_BYTES);
    group.replica.apply(1_000, None, put("k", ""));
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
    assert_eq!(group.replica.machine.journals().iter().count(), limit);
    let (shard, target) = (SHARD, group.target());
    let begin = JournalStep::Begin { shard, target };
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
    let (to, since) = (Gid(2), ConfigNum(5));
    let target = Target { to, since };
    for step in [
        JournalStep::Begin { shard, target },
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
