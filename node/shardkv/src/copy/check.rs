//! Checks a part before it is taken.

use bytes::Bytes;
use replica::session::SessionTable;
use types::{ClientId, ConfigNum, ShardId, shard_of};

use crate::install::{ChunkError, check_chunk, check_row_key};
use crate::journal::{MAX_NAMED_ROW_BYTES, Name};
use crate::outcome::Outcome;
use crate::{
    Chunk, CopyCursor, Cursor, MAX_KEY_BYTES, Next, Part, PartNext, Position, RowChange,
    SessionClock, Upto,
};

/// Refuses a part that no source would have made. Parts come from another group, and once the copy is the shard, their rows are
/// indistinguishable from what clients wrote.
pub(super) fn check_part(part: &Part, shards: u32) -> Result<(), ChunkError> {
    match &part.after {
        CopyCursor::Base(after) => check_base(part, after, shards),
        CopyCursor::Page { generation, after } => check_page(part, *generation, after, shards),
    }
}

/// A base part is a chunk, and what follows the last one is the first generation.
fn check_base(part: &Part, after: &Cursor, shards: u32) -> Result<(), ChunkError> {
    let shard = part.shard;
    let mut chunk = Chunk {
        shard,
        config: ConfigNum(0),
        after: after.clone(),
        pairs: Vec::new(),
        sessions: Vec::new(),
        rows: Vec::new(),
        next: match &part.next {
            PartNext::At(CopyCursor::Base(next)) => Next::Chunk(next.clone()),
            PartNext::At(CopyCursor::Page {
                generation: 1,
                after,
            }) if *after == Position::default() => Next::Done {
                clock: SessionClock::default(),
                ttl_ms: 0,
            },
            _ => return Err(ChunkError::WrongEnd(shard)),
        },
    };
    for change in &part.changes {
        match change {
            RowChange::Pair(key, Some(value))
                if chunk.sessions.is_empty() && chunk.rows.is_empty() =>
            {
                chunk.pairs.push((key.clone(), value.clone()));
            }
            RowChange::Session(client, Some(record)) if chunk.rows.is_empty() => {
                chunk.sessions.push((*client, record.clone()));
            }
            RowChange::Row(key, Some(value)) => chunk.rows.push((key.clone(), value.clone())),
            _ => return Err(ChunkError::OutOfOrder(shard)),
        }
    }
    check_chunk(&chunk, shards)
}

/// The names of a page rise, and the rows of a cleared range follow its clear in order.
fn check_page(
    part: &Part,
    generation: u64,
    after: &Position,
    shards: u32,
) -> Result<(), ChunkError> {
    let shard = part.shard;
    let mut table = SessionTable::<Outcome>::default();
    let mut at = after.clone();
    for change in &part.changes {
        let name = match change {
            RowChange::Pair(key, value) => {
                check_key(key, shard, shards)?;
                if let Upto::Row(last) = &at.upto {
                    let inside = value.is_some() && key > last && is_in_range(&at.name, key);
                    if !inside {
                        return Err(ChunkError::OutOfOrder(shard));
                    }
                    at.upto = Upto::Row(key.clone());
                    continue;
                }
                Name::Pair(key)
            }
            RowChange::Session(client, record) => {
                if let Some(record) = record {
                    check_session(&mut table, shard, *client, record)?;
                }
                Name::Session(*client)
            }
            RowChange::Clear { start, end } => {
                let longest = MAX_KEY_BYTES + 1;
                let crossed = !end.is_empty() && start >= end;
                if start.len() > longest || end.len() > longest || crossed {
                    return Err(ChunkError::WrongKey(shard));
                }
                Name::Range { start, end }
            }
            RowChange::Row(key, value) => {
                check_row_key(key, shard)?;
                if let (Some(Name::Rows(prefix)), Upto::Row(last)) =
                    (Name::decode(&at.name), &at.upto)
                {
                    let inside = value.is_some() && key > last && key.starts_with(prefix);
                    if !inside {
                        return Err(ChunkError::OutOfOrder(shard));
                    }
                    at.upto = Upto::Row(key.clone());
                    continue;
                }
                if key.len() > MAX_NAMED_ROW_BYTES {
                    return Err(ChunkError::OutOfOrder(shard));
                }
                Name::Row(key)
            }
            RowChange::ClearRows(prefix) => {
                if prefix.len() != MAX_NAMED_ROW_BYTES {
                    return Err(ChunkError::WrongRow(shard));
                }
                Name::Rows(prefix)
            }
        };
        let name = name.encode();
        if name <= at.name {
            return Err(ChunkError::OutOfOrder(shard));
        }
        let upto = match change {
            RowChange::Clear { .. } | RowChange::ClearRows(_) => Upto::Row(Bytes::new()),
            _ => Upto::End,
        };
        at = Position { name, upto };
    }
    let right = match &part.next {
        PartNext::Done { .. } => true,
        PartNext::At(CopyCursor::Base(_)) => false,
        PartNext::At(CopyCursor::Page {
            generation: next,
            after: position,
        }) if *next == generation => {
            let whole = position.upto == Upto::End;
            position > after && position.name == at.name && (*position == at || whole)
        }
        PartNext::At(CopyCursor::Page {
            generation: next,
            after,
        }) => generation.checked_add(1) == Some(*next) && *after == Position::default(),
    };
    if right {
        Ok(())
    } else {
        Err(ChunkError::WrongEnd(shard))
    }
}

fn check_key(key: &Bytes, shard: ShardId, shards: u32) -> Result<(), ChunkError> {
    let right = (1..=MAX_KEY_BYTES).contains(&key.len()) && shard_of(key, shards) == shard;
    right.then_some(()).ok_or(ChunkError::WrongKey(shard))
}

fn check_session(
    table: &mut SessionTable<Outcome>,
    shard: ShardId,
    client: ClientId,
    record: &Bytes,
) -> Result<(), ChunkError> {
    let loaded = table.load(client, record.clone());
    loaded.map_err(|error| ChunkError::BadSession {
        shard,
        client,
        error,
    })
}

fn is_in_range(name: &[u8], key: &[u8]) -> bool {
    match Name::decode(name) {
        Some(Name::Range { start, end }) => key >= start && (end.is_empty() || key < end),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use raft::Index;
    use types::LogTime;

    use super::*;
    use crate::CopyId;

    const SHARD: ShardId = ShardId(0);
    const CLOCK: PartNext = PartNext::Done {
        clock: SessionClock {
            horizon: LogTime(1),
            time: LogTime(1),
        },
        ttl_ms: 1,
    };

    fn check(after: CopyCursor, changes: &[RowChange], next: PartNext) -> Result<(), ChunkError> {
        let part = Part {
            shard: SHARD,
            copy: CopyId {
                since: ConfigNum(1),
                journal: Index(1),
            },
            after,
            changes: changes.to_vec(),
            next,
        };
        check_part(&part, 1)
    }

    fn base(key: &'static [u8]) -> CopyCursor {
        CopyCursor::Base(Cursor::Data(Bytes::from_static(key)))
    }

    fn page(generation: u64, name: &Bytes, upto: Upto) -> CopyCursor {
        let name = name.clone();
        let after = Position { name, upto };
        CopyCursor::Page { generation, after }
    }

    fn start(generation: u64) -> CopyCursor {
        page(generation, &Bytes::new(), Upto::End)
    }

    fn pair(key: &'static [u8]) -> RowChange {
        RowChange::Pair(Bytes::from_static(key), Some(Bytes::new()))
    }

    fn absent(key: &'static [u8]) -> RowChange {
        RowChange::Pair(Bytes::from_static(key), None)
    }

    fn clear(start: &'static [u8], end: &'static [u8]) -> RowChange {
        let (start, end) = (Bytes::from_static(start), Bytes::from_static(end));
        RowChange::Clear { start, end }
    }

    #[test]
    fn base_parts_are_rows_in_order() {
        let at = PartNext::At;
        let right = check(base(b"a"), &[pair(b"b"), pair(b"c")], at(base(b"c")));
        assert_eq!(right, Ok(()));
        assert_eq!(check(base(b"a"), &[pair(b"b")], at(start(1))), Ok(()));
        let too_long: &[u8] = &[b'k'; MAX_KEY_BYTES + 1];
        let too_long = RowChange::Pair(too_long.to_vec().into(), Some(Bytes::new()));
        let client = ClientId {
            birth: LogTime(1),
            nonce: 1,
        };
        let damaged = RowChange::Session(client, Some(Bytes::from_static(b"no record")));
        for (changes, next) in [
            (vec![pair(b"a")], at(base(b"a"))),
            (vec![pair(b"c"), pair(b"b")], at(base(b"b"))),
            (vec![pair(b"b")], at(base(b"c"))),
            (vec![pair(b"")], at(base(b""))),
            (vec![too_long], at(start(1))),
            (vec![damaged], at(start(1))),
            (vec![absent(b"b")], at(start(1))),
            (vec![clear(b"b", b"c")], at(start(1))),
            (vec![pair(b"b")], at(start(2))),
            (vec![pair(b"b")], CLOCK),
            (vec![], at(base(b"a"))),
        ] {
            let refused = check(base(b"a"), &changes, next);
            assert!(refused.is_err(), "{changes:?}");
        }
    }

    fn row(key: &[u8]) -> RowChange {
        RowChange::Row(Bytes::copy_from_slice(key), Some(Bytes::new()))
    }

    fn no_row(key: &[u8]) -> RowChange {
        RowChange::Row(Bytes::copy_from_slice(key), None)
    }

    #[test]
    fn rows_follow_the_rest_of_a_base() {
        let at = PartNext::At;
        let rows = |key: &'static [u8]| CopyCursor::Base(Cursor::Rows(Bytes::from_static(key)));
        let both = [pair(b"b"), row(b"a")];
        assert_eq!(check(base(b"a"), &both, at(rows(b"a"))), Ok(()));
        assert_eq!(check(base(b"a"), &both, at(start(1))), Ok(()));
        assert_eq!(check(rows(b"a"), &[row(b"b")], at(start(1))), Ok(()));
        let too_long = vec![7; crate::keys::MAX_ROW_KEY_BYTES + 1];
        for (changes, next) in [
            (vec![row(b"b"), pair(b"b")], at(rows(b"b"))),
            (vec![row(b"a")], at(start(1))),
            (vec![row(b"c"), row(b"b")], at(start(1))),
            (vec![row(b"b")], at(rows(b"c"))),
            (vec![row(b"b")], at(base(b"b"))),
            (vec![row(b"")], at(start(1))),
            (vec![row(&too_long)], at(start(1))),
            (vec![no_row(b"b")], at(start(1))),
            (vec![RowChange::ClearRows(Bytes::new())], at(start(1))),
            (vec![], at(rows(b"a"))),
        ] {
            assert!(
                check(rows(b"a"), &changes, next).is_err(),
                "{} changes",
                changes.len()
            );
        }
    }

    #[test]
    fn pages_with_rows_follow_the_order_of_names() {
        let at = PartNext::At;
        let prefix = vec![7; MAX_NAMED_ROW_BYTES];
        let long = |more: &[u8]| [&prefix[..], more].concat();
        let name = Name::Rows(&prefix).encode();
        let inside = |more: &[u8]| page(3, &name, Upto::Row(long(more).into()));
        let clear_rows = || RowChange::ClearRows(Bytes::copy_from_slice(&prefix));
        let all = [
            pair(b"k"),
            clear(b"c", b"f"),
            pair(b"d"),
            row(b"a"),
            no_row(b"b"),
            clear_rows(),
            row(&long(b"1")),
            row(&long(b"2")),
        ];
        for next in [
            at(start(4)),
            CLOCK,
            at(inside(b"2")),
            at(page(3, &name, Upto::End)),
        ] {
            assert_eq!(check(start(3), &all, next), Ok(()));
        }
        let on = check(inside(b"1"), &[row(&long(b"2"))], at(start(4)));
        assert_eq!(on, Ok(()));
        for (after, changes) in [
            (start(3), vec![row(b"b"), row(b"a")]),
            (start(3), vec![row(b"b"), row(b"b")]),
            (start(3), vec![row(b"a"), pair(b"k")]),
            (start(3), vec![row(&long(b"1"))]),
            (start(3), vec![no_row(&long(b"1"))]),
            (start(3), vec![row(b"")]),
            (start(3), vec![clear_rows(), row(b"a")]),
            (start(3), vec![clear_rows(), no_row(&long(b"1"))]),
            (start(3), vec![clear_rows(), clear_rows()]),
            (start(3), vec![clear_rows(), pair(b"k")]),
            (start(3), vec![RowChange::ClearRows(Bytes::new())]),
            (inside(b"1"), vec![row(&long(b"1"))]),
            (inside(b"1"), vec![row(b"z")]),
            (start(3), vec![clear(b"c", b"f"), row(b"a"), pair(b"d")]),
        ] {
            assert!(
                check(after, &changes, at(start(4))).is_err(),
                "{} changes",
                changes.len()
            );
        }
    }

    #[test]
    fn pages_follow_the_order_of_names() {
        let at = PartNext::At;
        let range = Name::Range {
            start: b"c",
            end: b"f",
        };
        let range = range.encode();
        let key = |key: &'static [u8]| Name::Pair(key).encode();
        let row = |key: &'static [u8]| Upto::Row(Bytes::from_static(key));
        let cleared = [absent(b"a"), pair(b"d"), clear(b"c", b"f"), pair(b"d")];
        for next in [
            at(start(4)),
            CLOCK,
            at(page(3, &range, row(b"d"))),
            at(page(3, &range, Upto::End)),
        ] {
            assert_eq!(check(start(3), &cleared, next), Ok(()));
        }
        let inside = page(3, &range, row(b"d"));
        assert_eq!(check(inside.clone(), &[pair(b"e")], at(start(4))), Ok(()));
        assert_eq!(check(start(3), &[], at(start(4))), Ok(()));
        for (after, changes, next) in [
            (start(3), vec![pair(b"b"), pair(b"a")], at(start(4))),
            (start(3), vec![pair(b"b"), pair(b"b")], at(start(4))),
            (
                page(3, &key(b"b"), Upto::End),
                vec![pair(b"b")],
                at(start(4)),
            ),
            (start(3), vec![clear(b"c", b"f"), pair(b"g")], at(start(4))),
            (
                start(3),
                vec![clear(b"c", b"f"), absent(b"d")],
                at(start(4)),
            ),
            (start(3), vec![clear(b"f", b"c")], at(start(4))),
            (inside.clone(), vec![pair(b"d")], at(start(4))),
            (inside, vec![], at(page(3, &range, row(b"d")))),
            (
                start(3),
                vec![pair(b"a")],
                at(page(3, &key(b"b"), Upto::End)),
            ),
            (start(3), vec![pair(b"a")], at(start(3))),
            (start(3), vec![pair(b"a")], at(start(5))),
            (start(3), vec![pair(b"a")], at(base(b"a"))),
        ] {
            let refused = check(after, &changes, next);
            assert!(refused.is_err(), "{changes:?}");
        }
    }
}
