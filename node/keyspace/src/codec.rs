//! The encoding of operations in the log: version, kind, shard and limits, then the fields of the kind.

mod auth;
mod txn;

use std::num::NonZeroU64;

use bytes::Bytes;
use raft::Term;
use types::{ConfigNum, DecodeError, Reader, ShardId, Writer};

use crate::rows::{nonzero, signed};
use crate::{
    Action, DeleteRange, KeyspaceId, KeyspaceOptions, LeaseId, Limits, Operation, Put, Span, Write,
};

const VERSION: u8 = 1;

const CREATE: u8 = 1;
const PUT: u8 = 2;
const DELETE_RANGE: u8 = 3;
const TXN: u8 = 4;
const COMPACT: u8 = 5;
const CLEAR: u8 = 6;
const GRANT: u8 = 7;
const REVOKE: u8 = 8;
const EXPIRE: u8 = 9;
const SET_OPTIONS: u8 = 10;
const DELETE: u8 = 11;
/// The first kind that members below feature level 3 don't know.
const AUTH: u8 = 12;
const AS: u8 = 13;

const ONE_KEY: u8 = 0;
const RANGE: u8 = 1;
const FROM: u8 = 2;

impl Operation {
    /// Encodes the operation for a proposal.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.byte(VERSION).byte(kind(&self.action));
        out.number(self.shard.0.into());
        out.number(self.cluster_id.map_or(0, NonZeroU64::get));
        self.limits.encode(&mut out);
        match &self.action {
            Action::Create {
                name,
                options,
                nonce,
            } => {
                out.bytes(name.as_bytes());
                options.encode(&mut out);
                out.number(nonce.get());
            }
            Action::In(id, write) => {
                out.number(id.0);
                encode_write(write, &mut out);
            }
        }
        out.finish()
    }

    /// Returns the shard of an encoded operation, without decoding the rest.
    pub fn shard_of(encoded: Bytes) -> Option<ShardId> {
        let mut input = Reader::new(encoded);
        let (version, _) = (input.byte("version").ok()?, input.byte("kind").ok()?);
        let shard = input.number_u32("shard").ok()?;
        (version == VERSION).then_some(ShardId(shard))
    }

    /// Returns true for an encoded operation that only members from feature level 3 on can apply.
    pub fn needs_auth_level(encoded: &[u8]) -> bool {
        encoded.get(1).is_some_and(|kind| *kind >= AUTH)
    }

    /// Decodes the output of [`Operation::encode`]. Keys and values share the input's memory.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        match input.byte("operation version")? {
            VERSION => {}
            value => return Err(unknown("operation version", value)),
        }
        let kind = input.byte("operation kind")?;
        let shard = ShardId(input.number_u32("shard")?);
        let cluster_id = NonZeroU64::new(input.number("cluster id")?);
        let limits = Limits::decode(&mut input)?;
        let action = if kind == CREATE {
            let name = String::from_utf8(input.bytes("name")?.to_vec());
            Action::Create {
                name: name.map_err(|_| DecodeError::OutOfRange("name"))?,
                options: KeyspaceOptions::decode(&mut input)?,
                nonce: nonzero(&mut input, "nonce")?,
            }
        } else {
            let id = KeyspaceId(input.number("keyspace")?);
            Action::In(id, decode_write(kind, &mut input)?)
        };
        input.finish()?;
        Ok(Self {
            shard,
            cluster_id,
            limits,
            action,
        })
    }
}

fn kind(action: &Action) -> u8 {
    match action {
        Action::Create { .. } => CREATE,
        Action::In(_, write) => kind_of(write),
    }
}

fn kind_of(write: &Write) -> u8 {
    match write {
        Write::Put(_) => PUT,
        Write::DeleteRange(_) => DELETE_RANGE,
        Write::Txn(_) => TXN,
        Write::Compact { .. } => COMPACT,
        Write::Clear => CLEAR,
        Write::Grant { .. } => GRANT,
        Write::Revoke { .. } => REVOKE,
        Write::Expire { .. } => EXPIRE,
        Write::SetOptions(_) => SET_OPTIONS,
        Write::Delete => DELETE,
        Write::Auth(_) => AUTH,
        Write::As { .. } => AS,
    }
}

fn encode_write(write: &Write, out: &mut Writer) {
    match write {
        Write::Put(put) => encode_put(put, out),
        Write::DeleteRange(request) => encode_delete_range(request, out),
        Write::Txn(request) => txn::encode(request, out),
        Write::Compact { revision } => {
            out.number(revision.cast_unsigned());
        }
        Write::Clear | Write::Delete => {}
        Write::Grant { id, ttl } => {
            out.number(id.0.cast_unsigned()).number(ttl.cast_unsigned());
        }
        Write::Revoke { id } => {
            out.number(id.0.cast_unsigned());
        }
        Write::Expire {
            id,
            grant,
            term,
            config,
        } => {
            out.number(id.0.cast_unsigned())
                .number(*grant)
                .number(term.0)
                .number(config.0);
        }
        Write::SetOptions(options) => options.encode(out),
        Write::Auth(write) => auth::encode(write, out),
        Write::As { caller, write } => {
            auth::encode_principal(caller, out);
            out.byte(kind_of(write));
            encode_write(write, out);
        }
    }
}

fn decode_write(kind: u8, input: &mut Reader) -> Result<Write, DecodeError> {
    let lease = |input: &mut Reader| signed(input, "lease").map(LeaseId);
    Ok(match kind {
        PUT => Write::Put(decode_put(input)?),
        DELETE_RANGE => Write::DeleteRange(decode_delete_range(input)?),
        TXN => Write::Txn(txn::decode(input)?),
        COMPACT => Write::Compact {
            revision: signed(input, "revision")?,
        },
        CLEAR => Write::Clear,
        GRANT => Write::Grant {
            id: lease(input)?,
            ttl: signed(input, "ttl")?,
        },
        REVOKE => Write::Revoke { id: lease(input)? },
        EXPIRE => Write::Expire {
            id: lease(input)?,
            grant: input.number("grant")?,
            term: Term(input.number("term")?),
            config: ConfigNum(input.number("configuration")?),
        },
        SET_OPTIONS => Write::SetOptions(KeyspaceOptions::decode(input)?),
        DELETE => Write::Delete,
        AUTH => Write::Auth(auth::decode(input)?),
        AS => {
            let caller = auth::decode_principal(input)?;
            let kind = input.byte("operation kind")?;
            // One in another would be as deep as its bytes allow.
            if kind == AS {
                return Err(unknown("operation kind", kind));
            }
            let write = Box::new(decode_write(kind, input)?);
            Write::As { caller, write }
        }
        value => return Err(unknown("operation kind", value)),
    })
}

fn unknown(what: &'static str, value: u8) -> DecodeError {
    DecodeError::Unknown {
        what,
        value: value.into(),
    }
}

fn encode_span(span: &Span, out: &mut Writer) {
    match span {
        Span::Key(key) => out.byte(ONE_KEY).bytes(key),
        Span::Range(start, end) => out.byte(RANGE).bytes(start).bytes(end),
        Span::From(start) => out.byte(FROM).bytes(start),
    };
}

fn decode_span(input: &mut Reader) -> Result<Span, DecodeError> {
    let kind = input.byte("span")?;
    let start = input.bytes("key")?;
    Ok(match kind {
        ONE_KEY => Span::Key(start),
        RANGE => Span::Range(start, input.bytes("range end")?),
        FROM => Span::From(start),
        value => return Err(unknown("span", value)),
    })
}

fn encode_put(put: &Put, out: &mut Writer) {
    out.bytes(&put.key)
        .bytes(&put.value)
        .number(put.lease.0.cast_unsigned())
        .byte(put.prev_kv.into())
        .byte(put.ignore_value.into())
        .byte(put.ignore_lease.into());
}

fn decode_put(input: &mut Reader) -> Result<Put, DecodeError> {
    Ok(Put {
        key: input.bytes("key")?,
        value: input.bytes("value")?,
        lease: LeaseId(signed(input, "lease")?),
        prev_kv: input.flag("prev_kv")?,
        ignore_value: input.flag("ignore_value")?,
        ignore_lease: input.flag("ignore_lease")?,
    })
}

fn encode_delete_range(request: &DeleteRange, out: &mut Writer) {
    encode_span(&request.span, out);
    out.byte(request.prev_kv.into());
}

fn decode_delete_range(input: &mut Reader) -> Result<DeleteRange, DecodeError> {
    Ok(DeleteRange {
        span: decode_span(input)?,
        prev_kv: input.flag("prev_kv")?,
    })
}
