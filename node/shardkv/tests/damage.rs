//! Bytes that aren't an operation never panic, and change nothing; nor do parts of shards that no source would cut; and
//! damaged records are found at the start.

// Random bytes are truncated on purpose, and helpers of tests may panic as tests do.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{GENESIS, Random, Replica, SHARDS_GENESIS, append, cas, delete, put, session};
use raft::{Index, StoreError};
use replica::memory::MemoryState;
use replica::{Applied, StateMachine, StateStore, Table, WriteBatch};
use shardkv::{
    Chunk, Command, Configure, CopyId, CopyStep, Cursor, Expire, KvError, Next, Ownership, Query,
    Response, SessionClock, ShardKv, ShardState, Step, read_session_clock,
};
use types::{
    Assignment, ClientId, ClusterId, ConfigNum, DecodeError, Gid, Group, LogTime, ShardId,
    ShardRun, shard_of,
};

fn commands() -> Vec<Command> {
    let writes = [
        put("key", "value"),
        append("key", ""),
        delete("k"),
        cas("key", None, Some("new")),
        cas("key", Some("old"), None),
        cas("", None, None),
    ];
    let sessions = [None, session(1, 1, 1), session(u64::MAX, u64::MAX, 0)];
    let pairs = writes.iter().flat_map(|write| {
        sessions.map(|session| Command {
            session,
            write: write.clone(),
        })
    });
    pairs.collect()
}

#[test]
fn commands_round_trip_and_share_memory() {
    for command in commands() {
        let encoded = command.encode();
        let decoded = Command::decode(encoded.clone()).unwrap();
        assert_eq!(decoded, command);
        let (all, key) = (encoded.as_ptr_range(), decoded.write.key().as_ptr());
        assert!(decoded.write.key().is_empty() || all.contains(&key));
    }
}

#[test]
fn cut_flipped_and_random_bytes_are_refused_or_commands() {
    let mut replica = Replica::new(GENESIS);
    let mut random = Random(3);
    let mut attempts = Vec::new();
    for command in commands() {
        let encoded = command.encode();
        for length in 0..encoded.len() {
            let cut = encoded.slice(..length);
            assert!(Command::decode(cut.clone()).is_err(), "cut at {length}");
            attempts.push(cut);
        }
        let mut longer = encoded.to_vec();
        longer.push(0);
        assert!(Command::decode(longer.into()).is_err(), "a byte too many");
        for bit in 0..encoded.len() * 8 {
            let mut flipped = encoded.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            attempts.push(flipped.into());
        }
    }
    for _ in 0..20_000 {
        let length = random.below(60);
        let mut bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        // Most get past the first checks.
        for (byte, bound) in bytes.iter_mut().zip([2, 6, 3]) {
            *byte = random.below(bound) as u8;
        }
        attempts.push(bytes.into());
    }
    let mut malformed = 0;
    for operation in attempts {
        let before = replica.state.pairs().clone();
        let valid = Command::decode(operation.clone());
        if let Ok(command) = &valid {
            // An accepted operation has one meaning: it survives re-encoding.
            assert_eq!(Command::decode(command.encode()).as_ref(), Ok(command));
        }
        let is_upkeep = Expire::decode(operation.clone()).is_ok();
        let response = replica.apply_bytes(1, 100, operation);
        if let Response::Refused(KvError::Malformed(_)) = response {
            malformed += 1;
            assert!(valid.is_err() && !is_upkeep);
            assert_eq!(*replica.state.pairs(), before);
        } else {
            assert!(valid.is_ok() || is_upkeep);
        }
    }
    assert!(malformed > 10_000, "{malformed}");
}

#[test]
fn unknown_versions_and_kinds_are_refused() {
    let unknown = "unknown value";
    for (position, value, expected) in [
        (0, 0, unknown),
        (
            0,
            2,
            "operation version is 2, and this version of the program knows 1",
        ),
        (1, 0, unknown),
        (1, 11, unknown),
        (2, 2, unknown),
    ] {
        let mut operation = commands()[0].encode().to_vec();
        operation[position] = value;
        let response = Replica::new(GENESIS).apply_bytes(1, 100, Bytes::from(operation));
        let Response::Refused(KvError::Malformed(why)) = response else {
            panic!("{response:?}");
        };
        assert!(why.contains(expected), "{why}");
    }
}

const CONTROLLER: ClusterId = ClusterId(5);
const SHARD: ShardId = ShardId(3);
const SHARDS: u32 = SHARDS_GENESIS.shards;

/// The `nth` key of the shard.
fn key(nth: usize) -> Bytes {
    let keys = (0..).map(|n| Bytes::from(format!("k{n:04}")));
    let mut own = keys.filter(|key| shard_of(key, SHARDS) == SHARD);
    own.nth(nth).unwrap()
}

/// A row: the owner and since when, the owner before, the target and since when.
fn row(owner: (u64, u64), previous: u64, target: (u64, u64)) -> Assignment {
    Assignment {
        owner: Gid(owner.0),
        owner_since: ConfigNum(owner.1),
        previous: Gid(previous),
        target: Gid(target.0),
        target_since: ConfigNum(target.1),
    }
}

/// The step of a group from the configuration before to `num`, with these rows of shards.
fn rows(gid: u64, num: u64, rows: &[(u32, Assignment)]) -> Step {
    let group = |gid| -> Option<Group> {
        Some(vec![format!("host{gid}:1"), format!("host{gid}:2")].into())
    };
    let rows = rows.iter().map(|(shard, row)| {
        let (first, count) = (ShardId(*shard), 1);
        (ShardRun { first, count }, *row)
    });
    Step::Configure(Configure {
        gid: Gid(gid),
        controller: CONTROLLER,
        after: ConfigNum(num - 1),
        num: ConfigNum(num),
        groups: [(Gid(1), group(1)), (Gid(2), group(2)), (Gid(9), None)].into(),
        rows: rows.collect(),
    })
}

/// The same for shards that change their owner.
fn configure(gid: u64, num: u64, moves: &[(u32, u64, u64)]) -> Step {
    let moves = moves.iter();
    let moves = moves.map(|(shard, from, to)| (*shard, row((*to, num), *from, (*to, num))));
    rows(gid, num, &moves.collect::<Vec<_>>())
}

/// All parts of a shard with 20 pairs and 4 sessions.
fn parts(max_bytes: u32) -> Vec<Chunk> {
    let mut source = Replica::new(SHARDS_GENESIS);
    source.step(1, &configure(2, 1, &[(3, 0, 2)]));
    for n in 0..20 {
        let write = shardkv::Write::Put {
            key: key(n),
            value: Bytes::from(format!("value {n}")),
        };
        source.apply(
            100,
            session(1 + n as u64 % 4, 1 + n as u64 / 4, 1 + n as u64 / 4),
            write,
        );
    }
    source.step(100, &configure(2, 2, &[(3, 2, 1)]));
    let mut parts: Vec<Chunk> = Vec::new();
    let mut after = Cursor::default();
    loop {
        let pull = Query::Pull {
            shard: SHARD,
            config: ConfigNum(2),
            after,
            max_bytes,
        };
        let Response::Chunk(chunk) = source.query(&pull) else {
            panic!("it is fenced");
        };
        let next = chunk.next.clone();
        parts.push(*chunk);
        match next {
            Next::Chunk(cursor) => after = cursor,
            Next::Done { .. } => return parts,
        }
    }
}

/// A group that pulls the shard.
fn pulling() -> Replica {
    let mut group = Replica::new(SHARDS_GENESIS);
    let first = configure(1, 1, &[(0, 0, 1), (3, 0, 2), (4, 0, 1)]);
    for step in [first, configure(1, 2, &[(3, 2, 1), (4, 1, 2)])] {
        assert_eq!(group.step(1, &step), Response::Stepped);
    }
    group
}

fn steps() -> Vec<Step> {
    let (shard, config) = (SHARD, ConfigNum(300));
    let mut steps = vec![
        configure(1, 1, &[]),
        configure(1, 3, &[(0, 1, 2), (1, 0, 1)]),
        rows(
            1,
            3,
            &[(0, row((1, 1), 0, (2, 3))), (1, row((2, 3), 0, (1, 3)))],
        ),
        Step::Delete { shard, config },
        Step::Deleted { shard, config },
    ];
    steps.extend(parts(90).into_iter().map(Step::Install));
    steps
}

#[test]
fn steps_round_trip() {
    for step in steps() {
        assert_eq!(Step::decode(step.encode()), Ok(step.clone()));
        assert_eq!(step.frees_space(), !matches!(step, Step::Install(_)));
    }
}

#[test]
fn cut_and_flipped_steps_are_refused_or_steps() {
    let mut random = Random(5);
    let mut attempts = Vec::new();
    for step in steps() {
        let encoded = step.encode();
        for length in 0..encoded.len() {
            assert!(Step::decode(encoded.slice(..length)).is_err(), "{length}");
            attempts.push(encoded.slice(..length));
        }
        let mut longer = encoded.to_vec();
        longer.push(0);
        assert!(Step::decode(longer.into()).is_err(), "a byte too many");
        for bit in 0..encoded.len() * 8 {
            let mut flipped = encoded.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            attempts.push(flipped.into());
        }
        for _ in 0..200 {
            let mut torn = encoded.to_vec();
            for _ in 0..=random.below(4) {
                let at = random.below(torn.len() as u64) as usize;
                torn[at] = random.below(256) as u8;
            }
            attempts.push(torn.into());
        }
    }
    for _ in 0..20_000 {
        let length = random.below(80);
        let mut bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        for (byte, value) in bytes.iter_mut().zip([1, 5 + random.below(5) as u8]) {
            *byte = value;
        }
        attempts.push(bytes.into());
    }
    let (mut malformed, mut taken) = (0, 0);
    let mut replica = pulling();
    for operation in attempts {
        let before = replica.state.pairs().clone();
        let valid = Step::decode(operation.clone());
        if let Ok(step) = &valid {
            assert_eq!(Step::decode(step.encode()).as_ref(), Ok(step));
        }
        match replica.apply_bytes(100, 100, operation.clone()) {
            Response::Refused(_) => {
                malformed += 1;
                assert_eq!(*replica.state.pairs(), before);
            }
            _ if *replica.state.pairs() != before => {
                taken += 1;
                assert!(valid.is_ok() || Command::decode(operation).is_ok());
                // A restart reads back the ownership that the operation changed.
                let live = replica.machine.ownership();
                replica.restart();
                assert_eq!(replica.machine.ownership(), live);
                replica = pulling();
            }
            _ => {
                let is_step = valid.is_ok() || Command::decode(operation.clone()).is_ok();
                assert!(is_step || Expire::decode(operation).is_ok());
            }
        }
    }
    assert!(malformed > 20_000 && taken > 20, "{malformed} {taken}");
}

#[test]
fn a_flipped_bit_on_the_way_is_found() {
    for chunk in parts(200) {
        let encoded = chunk.encode();
        assert_eq!(Chunk::decode(encoded.clone()), Ok(chunk));
        for bit in 0..encoded.len() * 8 {
            let mut flipped = encoded.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = Chunk::decode(flipped.into());
            assert_eq!(error, Err(DecodeError::OutOfRange("checksum")));
        }
    }
}

#[test]
fn cursors_round_trip_and_nonsense_is_refused() {
    let client = ClientId {
        birth: LogTime(u64::MAX),
        nonce: 1,
    };
    let cursors = [
        Cursor::default(),
        Cursor::Data(key(3)),
        Cursor::Sessions(None),
        Cursor::Sessions(Some(client)),
        Cursor::Rows(key(3)),
    ];
    for (nth, cursor) in cursors.iter().enumerate() {
        assert!(cursors.iter().take(nth).all(|before| before < cursor));
        let encoded = cursor.encode();
        assert_eq!(Cursor::decode(encoded.clone()).as_ref(), Ok(cursor));
        for length in 1..encoded.len() {
            assert!(Cursor::decode(encoded.slice(..length)).is_err());
        }
    }
    assert_eq!(Cursor::decode(Bytes::new()), Ok(Cursor::default()));
    let mut random = Random(8);
    for _ in 0..5_000 {
        let length = random.below(30);
        let bytes: Vec<u8> = (0..length).map(|_| random.below(5) as u8).collect();
        if let Ok(cursor) = Cursor::decode(bytes.into()) {
            assert_eq!(Cursor::decode(cursor.encode()), Ok(cursor));
        }
    }
}

#[test]
fn parts_that_no_source_would_cut_are_refused() {
    let whole = parts(u32::MAX).remove(0);
    let refused = |change: &dyn Fn(&mut Chunk), expected: &str| {
        let mut chunk = whole.clone();
        change(&mut chunk);
        let mut replica = pulling();
        let before = replica.state.pairs().clone();
        match replica.step(100, &Step::Install(chunk)) {
            Response::Refused(KvError::Malformed(why)) => {
                assert!(why.contains(expected), "{why} instead of {expected}");
            }
            other => panic!("{expected}: {other:?}"),
        }
        assert_eq!(*replica.state.pairs(), before, "{expected}");
    };
    let other = (0..).map(|n| Bytes::from(format!("o{n}")));
    let other = { other }
        .find(|key| shard_of(key, SHARDS) != SHARD)
        .unwrap();
    let long = Bytes::from("l".repeat(shardkv::MAX_KEY_BYTES + 1));
    for foreign in [other, long, Bytes::new()] {
        refused(
            &|chunk| chunk.pairs[0].0 = foreign.clone(),
            "isn't the shard's",
        );
    }
    refused(&|chunk| chunk.pairs.swap(3, 4), "out of order");
    refused(&|chunk| chunk.sessions.swap(0, 1), "out of order");
    refused(
        &|chunk| chunk.pairs[1] = chunk.pairs[0].clone(),
        "out of order",
    );
    refused(
        &|chunk| chunk.sessions[1] = chunk.sessions[0].clone(),
        "out of order",
    );
    refused(
        &|chunk| chunk.sessions[3].1 = Bytes::from_static(b"no record"),
        "bad record",
    );
    let on = |next: Cursor| {
        move |chunk: &mut Chunk| {
            chunk.sessions.clear();
            chunk.next = Next::Chunk(next.clone());
        }
    };
    let goes_on = "doesn't end at the cursor";
    refused(
        &|chunk| chunk.next = Next::Chunk(Cursor::Sessions(None)),
        goes_on,
    );
    refused(&on(Cursor::default()), goes_on);
    refused(&on(Cursor::Data(key(18))), goes_on);
    refused(&on(Cursor::Data(key(20))), goes_on);
    let skipped = Cursor::Sessions(Some(ClientId::default()));
    refused(&on(skipped), goes_on);
    refused(
        &|chunk| {
            chunk.pairs.clear();
            chunk.sessions.clear();
            chunk.next = Next::Chunk(Cursor::default());
        },
        goes_on,
    );

    let mut replica = pulling();
    let mut fine = whole.clone();
    on(Cursor::Data(key(19)))(&mut fine);
    assert_eq!(replica.step(100, &Step::Install(fine)), Response::Stepped);
    let back = Chunk {
        after: Cursor::Data(key(19)),
        ..whole
    };
    let Response::Refused(KvError::Malformed(why)) = replica.step(100, &Step::Install(back)) else {
        panic!("it must be refused");
    };
    assert!(why.contains("out of order"), "{why}");
}

/// A group with every kind of record.
fn busy() -> Replica {
    let mut busy = pulling();
    let copy = CopyId {
        since: ConfigNum(3),
        journal: Index(7),
    };
    let starts = |shard| {
        let (shard, source) = (ShardId(shard), Gid(2));
        Step::Copy(CopyStep::Start {
            shard,
            source,
            copy,
        })
    };
    let mut steps: Vec<Step> = parts(u32::MAX).into_iter().map(Step::Install).collect();
    let plan = row((2, 1), 0, (1, 3));
    let fence = (0, row((2, 3), 1, (2, 3)));
    steps.extend([
        rows(1, 3, &[fence, (1, plan), (2, plan)]),
        starts(1),
        starts(2),
        rows(1, 4, &[(2, row((1, 4), 2, (1, 3)))]),
        // Shard 0 comes and goes again.
        Step::Delete {
            shard: ShardId(0),
            config: ConfigNum(3),
        },
        rows(
            1,
            5,
            &[
                (0, row((1, 5), 2, (1, 5))),
                (SHARD.0, row((1, 2), 2, (2, 5))),
            ],
        ),
    ]);
    for step in steps {
        assert_eq!(busy.step(100, &step), Response::Stepped);
    }
    busy
}

/// The records that a start reads: the ownership and the session clocks.
type Reloaded = (Arc<Ownership>, Vec<SessionClock>);

/// Returns the clocks of all shards, so late that each number of a record matters.
fn clocks(state: &MemoryState) -> Vec<SessionClock> {
    let clock = |shard| read_session_clock(state, ShardId(shard), LogTime(u64::MAX / 2)).unwrap();
    (0..SHARDS).map(clock).collect()
}

#[test]
fn damaged_records_are_found_at_reload() {
    let busy = busy();
    let records: Vec<_> = busy
        .state
        .pairs()
        .iter()
        .filter(|((table, key), _)| *table == Table::Meta && key != "shardkv/genesis")
        .map(|((_, key), value)| (key.clone(), value.clone()))
        .collect();
    let ownership = busy.machine.ownership();
    let known = ownership.shards.len()
        + ownership.planned.len()
        + ownership.pending_deletes.len()
        + ownership.groups.len();
    // The group's, and the clock of the shard that was served.
    assert_eq!(records.len(), 2 + known);
    assert!(
        ownership.pending_deletes.len() == 1 && ownership.planned.len() == 2,
        "{ownership:?}"
    );
    let states: Vec<_> = ownership
        .shards
        .values()
        .map(|shard| &shard.state)
        .collect();
    assert!(
        matches!(
            states.as_slice(),
            [
                ShardState::Pulling { .. },
                ShardState::Copying { .. },
                ShardState::Completing { .. },
                ShardState::Serving { .. },
                ShardState::Fenced { .. },
            ]
        ),
        "{states:?}"
    );

    let reload = |key: &Bytes, change: Option<(Bytes, Bytes)>| -> Result<Reloaded, StoreError> {
        let mut state = MemoryState::new();
        let mut batch = WriteBatch::default();
        for ((table, key), value) in busy.state.pairs() {
            batch.put(*table, key.clone(), value.clone());
        }
        batch.remove(Table::Meta, key.clone());
        if let Some((key, value)) = change {
            batch.put(Table::Meta, key, value);
        }
        state.commit(batch, Applied::default()).unwrap();
        let mut machine = ShardKv::new();
        machine.reload(&state)?;
        Ok((machine.ownership(), clocks(&state)))
    };
    let whole = (Arc::clone(&ownership), clocks(&busy.state));
    let mut random = Random(11);
    for (key, value) in &records {
        for length in 0..value.len() {
            let cut = (key.clone(), value.slice(..length));
            let found = reload(key, Some(cut));
            assert!(
                matches!(found, Err(StoreError::Damaged(_))),
                "{key:?} {length}"
            );
        }
        for version in [0, value[0] + 1, u8::MAX] {
            let other = Bytes::from([&[version], &value[1..]].concat());
            let found = reload(key, Some((key.clone(), other)));
            let expected = match version {
                0 => matches!(found, Err(StoreError::Damaged(_))),
                _ => matches!(found, Err(StoreError::OtherVersion(_))),
            };
            assert!(expected, "{key:?} of version {version}: {found:?}");
        }
        let longer = Bytes::from([value.as_ref(), &[0]].concat());
        let found = reload(key, Some((key.clone(), longer)));
        assert!(matches!(found, Err(StoreError::Damaged(_))), "{key:?}");
        // Whatever else the disk gives back, nothing panics, and it isn't taken for something else silently.
        for _ in 0..100 {
            let mut torn = value.to_vec();
            let at = random.below(torn.len() as u64) as usize;
            torn[at] ^= 1 << random.below(8);
            if let Ok(other) = reload(key, Some((key.clone(), torn.into()))) {
                assert_ne!(other, whole);
            }
        }
        if key != "shardkv/group" {
            let cut = (key.slice(..key.len() - 1), value.clone());
            let found = reload(key, Some(cut));
            assert!(matches!(found, Err(StoreError::Damaged(_))), "{key:?}");
        }
    }
    // Shards of which the group's record knows nothing.
    let group = Bytes::from_static(b"shardkv/group");
    assert!(matches!(reload(&group, None), Err(StoreError::Damaged(_))));
    // Sessions of a shard that isn't here.
    let shard = Bytes::from_static(b"shardkv/shard/\0\0\0\x03");
    assert!(matches!(reload(&shard, None), Err(StoreError::Damaged(_))));
    let far = Bytes::from_static(b"shardkv/shard/\0\0\0\x05");
    let value = records.iter().find(|(key, _)| *key == shard).unwrap();
    let found = reload(&Bytes::new(), Some((far, value.1.clone())));
    assert!(matches!(found, Err(StoreError::Damaged(_))));
}
