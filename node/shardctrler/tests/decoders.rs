//! Every decoder takes any bytes: damaged ones give an error, never a panic, and whole ones come back as they went.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::{GENESIS, Random, Replica, join, leave, move_shard, report, session};
use replica::{StateMachine, StateStore, Table};
use shardctrler::{Change, Command, CtrlError, Cut, Response, SessionRef, Shardctrler};
use types::{ClientId, ConfigNum, Gid, Incarnation, JournalId, LogTime, Sequence, ShardId};

/// A number of any width.
fn number(random: &mut Random) -> u64 {
    let bits = random.below(65);
    random.next().checked_shr(64 - bits as u32).unwrap_or(0)
}

fn text(random: &mut Random) -> String {
    let length = random.below(20);
    (0..length)
        .map(|_| char::from_u32(random.below(0x500) as u32).unwrap_or('x'))
        .collect()
}

fn random_change(random: &mut Random) -> Change {
    match random.below(7) {
        0 => {
            let mut groups = BTreeMap::new();
            for _ in 0..random.below(5) {
                let addresses = (0..random.below(4)).map(|_| text(random)).collect();
                groups.insert(Gid(number(random)), addresses);
            }
            Change::Join { groups }
        }
        1 => {
            let gids: BTreeSet<Gid> = (0..random.below(5)).map(|_| Gid(number(random))).collect();
            Change::Leave { gids }
        }
        2 => Change::Move {
            shard: ShardId(number(random) as u32),
            gid: Gid(number(random)),
        },
        3 => Change::Report {
            gid: Gid(number(random)),
            settled: ConfigNum(number(random)),
            held: ConfigNum(number(random)),
        },
        4 => Change::Forget {
            gids: (0..random.below(5)).map(|_| Gid(number(random))).collect(),
            accept_data_loss: random.one_in(2),
        },
        5 => Change::Retire {
            gid: Gid(number(random)),
            incarnation: Incarnation(number(random)),
        },
        _ => {
            let count = random.below(5);
            let cut = |random: &mut Random| Cut {
                owner: Gid(number(random)),
                owner_incarnation: Incarnation(number(random)),
                owner_since: ConfigNum(number(random)),
                target: Gid(number(random)),
                target_incarnation: Incarnation(number(random)),
                target_since: ConfigNum(number(random)),
                journal: JournalId(number(random)),
            };
            let cuts = (0..count).map(|_| (ShardId(number(random) as u32), cut(random)));
            Change::Cut {
                cuts: cuts.collect(),
            }
        }
    }
}

fn random_command(random: &mut Random) -> Command {
    let session = (!random.one_in(3)).then(|| SessionRef {
        client: ClientId {
            birth: LogTime(number(random)),
            nonce: number(random),
        },
        sequence: Sequence(number(random)),
        acked_below: Sequence(number(random)),
    });
    let change = random_change(random);
    Command { session, change }
}

/// Changes some of the bytes.
fn damage(random: &mut Random, input: &Bytes) -> Bytes {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.next() as u8),
            2 => bytes.extend_from_slice(&[0xff; 10]),
            3 if at < bytes.len() => {
                bytes.remove(at);
            }
            _ if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            _ => {}
        }
    }
    bytes.into()
}

#[test]
fn commands_come_back_as_they_went() {
    for seed in 0..20_000 {
        let command = random_command(&mut Random(seed));
        assert_eq!(Command::decode(command.encode()), Ok(command));
    }
}

#[test]
fn each_command_has_one_encoding() {
    let mut understood = 0;
    for seed in 0..50_000 {
        let mut random = Random(seed);
        let bytes = random_command(&mut random).encode();
        let bytes = damage(&mut random, &bytes);
        if let Ok(command) = Command::decode(bytes.clone()) {
            understood += 1;
            let again = command.encode();
            // A varint may be longer than it must be; all else is as it was.
            assert!(again == bytes || again.len() < bytes.len(), "{command:?}");
            assert_eq!(Command::decode(again), Ok(command));
        }
    }
    assert!(understood > 1_000, "{understood}");
}

#[test]
fn noise_is_no_command() {
    for seed in 0..50_000 {
        let mut random = Random(seed);
        let length = random.below(40);
        let mut bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        if random.one_in(2) && length > 2 {
            bytes[0] = 1;
            bytes[1] = random.below(7) as u8;
        }
        let _ = Command::decode(bytes.into());
    }
}

#[test]
fn every_command_is_applied_or_refused() {
    let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut replica = Replica::new(GENESIS);
        replica.done(&join(&[1, 2, 3]));
        for _ in 0..20 {
            let bytes = random_command(&mut random).encode();
            let bytes = if random.one_in(2) {
                damage(&mut random, &bytes)
            } else {
                bytes
            };
            let kind = match replica.apply_bytes(bytes) {
                Response::Refused(CtrlError::Malformed(_)) => "malformed",
                Response::Refused(_) => "refused",
                Response::Changed { .. } | Response::Forgotten { .. } => "changed",
                Response::Reported => "reported",
                Response::Cut { .. } => "cut",
                other => panic!("{other:?}"),
            };
            *kinds.entry(kind).or_default() += 1;
        }
        let before = (replica.latest(), replica.machine.progress().clone());
        replica.restart();
        assert_eq!(
            before,
            (replica.latest(), replica.machine.progress().clone())
        );
    }
    assert!(
        kinds["malformed"] > 100 && kinds["refused"] > 100,
        "{kinds:?}"
    );
}

/// A state with every kind of record.
fn full_state() -> Replica {
    let mut replica = Replica::new(GENESIS);
    replica.done(&join(&[1, 2, 3]));
    replica.apply(session(1_000_000, 1, 1), move_shard(0, 3));
    replica.apply(session(1_000_000, 2, 1), leave(&[9]));
    replica.apply(session(1_000_000, 3, 1), join(&[4]));
    replica.apply(session(1_000_000, 4, 1), leave(&[1, 2, 3, 4]));
    for turn in 0..100 {
        let owner = replica.latest().target(ShardId(0));
        replica.done(&move_shard(0, if owner == Gid(3) { 2 } else { 3 }));
        if turn == 97 {
            replica.arrive();
        }
    }
    replica.done(&leave(&[4]));
    replica.arrive();
    replica.done(&move_shard(0, 1));
    replica.done(&leave(&[1]));
    replica.apply(None, report(1, 90));
    assert!(replica.machine.oldest() > ConfigNum(0));
    replica
}

#[test]
fn damaged_records_are_told_and_never_panic() {
    let replica = full_state();
    let all = |table| {
        use std::ops::Bound::Unbounded;
        let bounds = (Unbounded, Unbounded);
        let pairs = replica::StateReader::scan(&replica.state, table, bounds, 1_000, 1 << 20);
        pairs
            .unwrap()
            .into_iter()
            .map(move |(key, value)| (table, key, value))
    };
    let records: Vec<_> = all(Table::Meta).chain(all(Table::Sessions)).collect();
    assert!(records.len() > 60);
    let (mut told, mut tried) = (0, 0);
    for seed in 0..6_000 {
        let mut random = Random(seed);
        let (table, key, value) = &records[random.below(records.len() as u64) as usize];
        let mut state = replica.state.clone();
        let mut batch = replica::WriteBatch::default();
        match random.below(4) {
            0 => batch.remove(*table, key.clone()),
            1 => {
                batch.remove(*table, key.clone());
                batch.put(*table, damage(&mut random, key), value.clone());
            }
            _ => batch.put(*table, key.clone(), damage(&mut random, value)),
        }
        let applied = state.applied();
        state.commit(batch, applied).unwrap();
        let mut machine = Shardctrler::new();
        tried += 1;
        told += u32::from(machine.reload(&state).is_err());
    }
    // Not all damage shows: a group may just be further.
    assert!(told * 10 > tried * 8, "{told} of {tried}");
}
