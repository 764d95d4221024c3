//! Bytes that aren't a command never panic, and change nothing.

// Random bytes are truncated on purpose.
#![allow(clippy::cast_possible_truncation)]

mod common;

use bytes::Bytes;
use common::{GENESIS, Random, Replica, append, cas, delete, put, session};
use shardkv::{Command, KvError, Response};

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
            // What is accepted means something definite.
            assert_eq!(Command::decode(command.encode()).as_ref(), Ok(command));
        }
        let response = replica.apply_bytes(1, 100, operation);
        if let Response::Refused(KvError::Malformed(_)) = response {
            malformed += 1;
            assert!(valid.is_err());
            assert_eq!(*replica.state.pairs(), before);
        } else {
            assert!(valid.is_ok());
        }
    }
    assert!(malformed > 10_000, "{malformed}");
}

#[test]
fn unknown_versions_and_kinds_are_refused() {
    for (position, value) in [(0, 0), (0, 2), (1, 0), (1, 10), (2, 2)] {
        let mut operation = commands()[0].encode().to_vec();
        operation[position] = value;
        let response = Replica::new(GENESIS).apply_bytes(1, 100, Bytes::from(operation));
        let Response::Refused(KvError::Malformed(why)) = response else {
            panic!("{response:?}");
        };
        assert!(why.contains("unknown value"), "{why}");
    }
}
