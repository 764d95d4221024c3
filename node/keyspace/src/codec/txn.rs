//! The encoding of transactions and ranges.

use types::{DecodeError, Reader, Writer};

use super::{
    decode_delete_range, decode_put, decode_span, encode_delete_range, encode_put, encode_span,
    unknown,
};
use crate::rows::signed;
use crate::{Compare, Op, Range, Relation, SortOrder, SortTarget, Target, Txn};

/// The deepest nesting that is decoded. Each level takes one operation at least, and the limits allow 128.
const MAX_DEPTH: usize = 130;

const RANGE: u8 = 0;
const PUT: u8 = 1;
const DELETE_RANGE: u8 = 2;
const TXN: u8 = 3;

const BY_VERSION: u8 = 0;
const BY_CREATE: u8 = 1;
const BY_MOD: u8 = 2;
const BY_VALUE: u8 = 3;
const BY_LEASE: u8 = 4;
const BY_UNKNOWN: u8 = 5;

const KEYS_ONLY: u8 = 1;
const COUNT_ONLY: u8 = 2;

const RELATIONS: [Relation; 5] = [
    Relation::Equal,
    Relation::Greater,
    Relation::Less,
    Relation::NotEqual,
    Relation::Unknown,
];
const ORDERS: [SortOrder; 3] = [SortOrder::None, SortOrder::Ascending, SortOrder::Descending];
const TARGETS: [SortTarget; 5] = [
    SortTarget::Key,
    SortTarget::Version,
    SortTarget::Create,
    SortTarget::Mod,
    SortTarget::Value,
];

pub(super) fn encode(txn: &Txn, out: &mut Writer) {
    out.number(txn.compare.len() as u64);
    for compare in &txn.compare {
        encode_compare(compare, out);
    }
    for ops in [&txn.success, &txn.failure] {
        out.number(ops.len() as u64);
        for op in ops {
            encode_op(op, out);
        }
    }
}

pub(super) fn decode(input: &mut Reader) -> Result<Txn, DecodeError> {
    decode_nested(input, MAX_DEPTH)
}

fn decode_nested(input: &mut Reader, depth: usize) -> Result<Txn, DecodeError> {
    let depth = depth
        .checked_sub(1)
        .ok_or(DecodeError::OutOfRange("nesting"))?;
    let compare = list(input, "compares", decode_compare)?;
    let success = list(input, "operations", |input| decode_op(input, depth))?;
    let failure = list(input, "operations", |input| decode_op(input, depth))?;
    Ok(Txn {
        compare,
        success,
        failure,
    })
}

/// Decodes a list. It allocates as the elements are read, so a length that lies costs nothing.
fn list<T>(
    input: &mut Reader,
    what: &'static str,
    mut element: impl FnMut(&mut Reader) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let mut all = Vec::new();
    for _ in 0..input.count(what)? {
        all.push(element(input)?);
    }
    Ok(all)
}

fn encode_compare(compare: &Compare, out: &mut Writer) {
    encode_span(&compare.span, out);
    out.byte(index(&RELATIONS, &compare.relation));
    match &compare.target {
        Target::Version(value) => out.byte(BY_VERSION).number(value.cast_unsigned()),
        Target::Create(value) => out.byte(BY_CREATE).number(value.cast_unsigned()),
        Target::Mod(value) => out.byte(BY_MOD).number(value.cast_unsigned()),
        Target::Value(value) => out.byte(BY_VALUE).bytes(value),
        Target::Lease(value) => out.byte(BY_LEASE).number(value.cast_unsigned()),
        Target::Unknown => out.byte(BY_UNKNOWN),
    };
}

fn decode_compare(input: &mut Reader) -> Result<Compare, DecodeError> {
    let span = decode_span(input)?;
    let relation = element(&RELATIONS, input, "relation")?;
    let target = match input.byte("target")? {
        BY_VERSION => Target::Version(signed(input, "version")?),
        BY_CREATE => Target::Create(signed(input, "revision")?),
        BY_MOD => Target::Mod(signed(input, "revision")?),
        BY_VALUE => Target::Value(input.bytes("value")?),
        BY_LEASE => Target::Lease(signed(input, "lease")?),
        BY_UNKNOWN => Target::Unknown,
        value => return Err(unknown("target", value)),
    };
    Ok(Compare {
        span,
        target,
        relation,
    })
}

fn encode_op(op: &Op, out: &mut Writer) {
    match op {
        Op::Range(range) => encode_range(range, out.byte(RANGE)),
        Op::Put(put) => encode_put(put, out.byte(PUT)),
        Op::DeleteRange(request) => encode_delete_range(request, out.byte(DELETE_RANGE)),
        Op::Txn(nested) => encode(nested, out.byte(TXN)),
    }
}

fn decode_op(input: &mut Reader, depth: usize) -> Result<Op, DecodeError> {
    Ok(match input.byte("operation")? {
        RANGE => Op::Range(decode_range(input)?),
        PUT => Op::Put(decode_put(input)?),
        DELETE_RANGE => Op::DeleteRange(decode_delete_range(input)?),
        TXN => Op::Txn(decode_nested(input, depth)?),
        value => return Err(unknown("operation", value)),
    })
}

fn encode_range(range: &Range, out: &mut Writer) {
    encode_span(&range.span, out);
    let flags = u8::from(range.keys_only) * KEYS_ONLY + u8::from(range.count_only) * COUNT_ONLY;
    out.number(range.limit.cast_unsigned())
        .number(range.revision.cast_unsigned())
        .byte(index(&ORDERS, &range.sort_order))
        .byte(index(&TARGETS, &range.sort_target))
        .byte(flags)
        .number(range.min_mod_revision.cast_unsigned())
        .number(range.max_mod_revision.cast_unsigned())
        .number(range.min_create_revision.cast_unsigned())
        .number(range.max_create_revision.cast_unsigned());
}

fn decode_range(input: &mut Reader) -> Result<Range, DecodeError> {
    let span = decode_span(input)?;
    let limit = signed(input, "limit")?;
    let revision = signed(input, "revision")?;
    let sort_order = element(&ORDERS, input, "order")?;
    let sort_target = element(&TARGETS, input, "sort target")?;
    let flags = input.byte("flags")?;
    if flags > KEYS_ONLY + COUNT_ONLY {
        return Err(unknown("flags", flags));
    }
    Ok(Range {
        span,
        limit,
        revision,
        sort_order,
        sort_target,
        keys_only: flags & KEYS_ONLY != 0,
        count_only: flags & COUNT_ONLY != 0,
        min_mod_revision: signed(input, "revision")?,
        max_mod_revision: signed(input, "revision")?,
        min_create_revision: signed(input, "revision")?,
        max_create_revision: signed(input, "revision")?,
    })
}

/// Returns the place of a value in a list that has it.
fn index<T: PartialEq>(all: &[T], value: &T) -> u8 {
    let at = all.iter().position(|other| other == value);
    at.and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX)
}

fn element<T: Copy>(all: &[T], input: &mut Reader, what: &'static str) -> Result<T, DecodeError> {
    let at = input.byte(what)?;
    all.get(usize::from(at)).copied().ok_or(unknown(what, at))
}
