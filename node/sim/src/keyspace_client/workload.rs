//! The requests that a client of keyspaces draws.

use std::num::NonZeroU64;

use bytes::Bytes;
use keyspace::{
    Action, Compare, DeleteRange, LeaseId, Limits, Op, Operation, Place, Put, Range, Relation,
    Span, Target, Txn, Write,
};
use types::shard_of;

use super::{KeyspaceClient, KeyspaceContext};
use crate::machine::{KeyspaceRead, LeaseOf};

/// The number of operations of one client that have different names.
const NAMES_OF_CLIENT: u32 = 1 << 20;

impl KeyspaceClient {
    pub(super) fn start(&mut self, context: &mut KeyspaceContext<'_>) {
        let name = format!("ks{}", self.rng.below(self.options.names));
        let newest = context.checker.find(&name);
        let known = self.known.get(&name).copied();
        // Some go on with a keyspace that was deleted meanwhile.
        let place = known.filter(|_| self.rng.chance(900_000));
        let place = place.or(newest.map(|(place, _)| place));
        let Some(place) = place.filter(|_| !self.rng.chance(10_000)) else {
            self.create(name, context);
            return;
        };
        self.known.insert(name, place);
        let revision = newest.map_or(1, |(_, revision)| revision);
        if self.rng.chance(300_000) {
            let read = self.draw_read(place, revision);
            self.read(read, context);
            return;
        }
        if self.rng.chance(self.options.renewals) {
            let id = self.lease();
            self.renew(LeaseOf { place, id }, context);
            return;
        }
        let write = self.draw_write(revision);
        let operation = self.name(Operation {
            cluster_id: None,
            shard: place.shard,
            limits: Limits::default(),
            action: Action::In(place.id, write),
        });
        self.write(operation, context);
    }

    fn create(&mut self, name: String, context: &mut KeyspaceContext<'_>) {
        let shard = shard_of(format!("{{{name}}}").as_bytes(), context.shards);
        let nonce = NonZeroU64::MIN.saturating_add(self.rng.below(1 << 40));
        let operation = self.name(Operation {
            cluster_id: None,
            shard,
            limits: Limits::default(),
            action: Action::Create {
                name,
                options: keyspace::KeyspaceOptions::default(),
                nonce,
            },
        });
        self.write(operation, context);
    }

    /// Gives an operation bytes that no other has, by a limit that nothing reaches.
    fn name(&mut self, mut operation: Operation) -> Operation {
        let client = u32::try_from(self.number).unwrap_or(0);
        self.operations += 1;
        operation.limits.max_visited = (client + 1) * NAMES_OF_CLIENT + self.operations;
        operation
    }

    fn draw_read(&mut self, place: Place, revision: i64) -> KeyspaceRead {
        let mut range = Range::new(self.span());
        if self.rng.chance(300_000) {
            range.revision = self.near(revision);
        }
        KeyspaceRead { place, range }
    }

    fn draw_write(&mut self, revision: i64) -> Write {
        if self.rng.chance(self.options.grants) {
            return self.grant();
        }
        match self.rng.below(100) {
            0..=44 => Write::Put(self.put()),
            45..=54 => Write::DeleteRange(DeleteRange {
                span: self.span(),
                prev_kv: self.rng.coin(),
            }),
            55..=74 => Write::Txn(self.txn(revision)),
            75..=81 => Write::Compact {
                revision: self.near(revision),
            },
            82..=86 => self.grant(),
            87..=90 => Write::Revoke { id: self.lease() },
            91..=98 => Write::Clear,
            _ => Write::Delete,
        }
    }

    fn grant(&mut self) -> Write {
        Write::Grant {
            id: self.lease(),
            ttl: 1 + i64::from(self.rng.coin()),
        }
    }

    /// Compares a field of a key, then puts, deletes and reads at once.
    fn txn(&mut self, revision: i64) -> Txn {
        let target = match self.rng.below(4) {
            0 => Target::Version(self.near(2)),
            1 => Target::Create(self.near(revision)),
            2 => Target::Mod(self.near(revision)),
            _ => Target::Value(Bytes::from_static(b"v")),
        };
        let relations = [
            Relation::Equal,
            Relation::NotEqual,
            Relation::Less,
            Relation::Greater,
        ];
        let compare = Compare {
            span: Span::Key(self.key()),
            target,
            relation: *self.rng.pick(&relations).unwrap_or(&Relation::Equal),
        };
        let mut put = self.put();
        put.lease = LeaseId::NONE;
        let read = Op::Range(Range::new(self.span()));
        let delete = Op::DeleteRange(DeleteRange {
            span: Span::Key(Bytes::from_static(b"other")),
            prev_kv: true,
        });
        Txn {
            compare: vec![compare],
            success: vec![Op::Put(put.clone()), delete, read.clone()],
            failure: if self.rng.coin() {
                vec![read]
            } else {
                put.key = Bytes::from_static(b"other");
                vec![Op::Put(put), read]
            },
        }
    }

    fn put(&mut self) -> Put {
        Put {
            key: self.key(),
            value: Bytes::from(format!("v{}.{}", self.number, self.operations + 1)),
            lease: if self.rng.chance(200_000) {
                self.lease()
            } else {
                LeaseId::NONE
            },
            prev_kv: self.rng.coin(),
            ..Put::default()
        }
    }

    fn lease(&mut self) -> LeaseId {
        LeaseId(1 + i64::from(self.rng.coin()))
    }

    fn key(&mut self) -> Bytes {
        let number = self.rng.below(self.options.keys);
        Bytes::from(format!("k{number}{}", "x".repeat(self.options.padding)))
    }

    fn span(&mut self) -> Span {
        match self.rng.below(6) {
            0 => Span::From(self.key()),
            1 | 2 => Span::Range(self.key(), self.key()),
            _ => Span::Key(self.key()),
        }
    }

    /// Draws a number from a little before another to just after it, above 0.
    fn near(&mut self, number: i64) -> i64 {
        let back = i64::try_from(self.rng.below(8)).unwrap_or(0);
        (number + 1 - back).max(1)
    }
}
