//! Commands and records as bytes.
//!
//! A command is: version, kind, whether a session follows, the session, and what the kind needs. Lists are in
//! ascending order without doubles, so that each command has one encoding.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use replica::session::SessionRef;
use types::{ClientId, ConfigNum, DecodeError, Gid, LogTime, Reader, Sequence, ShardId, Writer};

use crate::{Change, Command, GroupProgress};

const VERSION: u8 = 1;
const PROGRESS_VERSION: u8 = 1;

const JOIN: u8 = 1;
const LEAVE: u8 = 2;
const MOVE: u8 = 3;
const REPORT: u8 = 4;

impl Command {
    /// The bytes to propose.
    pub fn encode(&self) -> Bytes {
        let kind = match &self.change {
            Change::Join { .. } => JOIN,
            Change::Leave { .. } => LEAVE,
            Change::Move { .. } => MOVE,
            Change::Report { .. } => REPORT,
        };
        let mut out = Writer::with_capacity(64);
        out.byte(VERSION).byte(kind);
        encode_session(&mut out, self.session);
        match &self.change {
            Change::Join { groups } => {
                out.number(groups.len() as u64);
                for (gid, addresses) in groups {
                    out.number(gid.0).number(addresses.len() as u64);
                    for address in addresses {
                        out.bytes(address.as_bytes());
                    }
                }
            }
            Change::Leave { gids } => {
                out.number(gids.len() as u64);
                for gid in gids {
                    out.number(gid.0);
                }
            }
            Change::Move { shard, gid } => {
                out.number(shard.0.into()).number(gid.0);
            }
            Change::Report { gid, settled } => {
                out.number(gid.0).number(settled.0);
            }
        }
        out.finish()
    }

    /// Reads what [`Command::encode`] wrote.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        known(&mut input, "operation version", VERSION)?;
        let kind = input.byte("operation kind")?;
        if !(JOIN..=REPORT).contains(&kind) {
            return Err(DecodeError::Unknown {
                what: "operation kind",
                value: kind.into(),
            });
        }
        let session = decode_session(&mut input)?;
        let change = match kind {
            JOIN => decode_join(&mut input)?,
            LEAVE => decode_leave(&mut input)?,
            MOVE => Change::Move {
                shard: ShardId(input.number_u32("shard")?),
                gid: Gid(input.number("gid")?),
            },
            _ => Change::Report {
                gid: Gid(input.number("gid")?),
                settled: ConfigNum(input.number("settled configuration")?),
            },
        };
        input.finish()?;
        Ok(Self { session, change })
    }
}

impl GroupProgress {
    pub(crate) fn encode(self) -> Bytes {
        let mut out = Writer::with_capacity(24);
        out.byte(PROGRESS_VERSION).number(self.settled.0);
        match self.left_in {
            Some(num) => out.byte(1).number(num.0),
            None => out.byte(0),
        };
        out.finish()
    }

    pub(crate) fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        known(&mut input, "progress version", PROGRESS_VERSION)?;
        let settled = ConfigNum(input.number("settled configuration")?);
        let left_in = decode_flag(&mut input, "left")?
            .then(|| input.number("left in").map(ConfigNum))
            .transpose()?;
        input.finish()?;
        Ok(Self { settled, left_in })
    }
}

fn decode_join(input: &mut Reader) -> Result<Change, DecodeError> {
    let mut groups = BTreeMap::new();
    for _ in 0..input.count("groups")? {
        let gid = Gid(input.number("gid")?);
        if groups
            .last_key_value()
            .is_some_and(|(last, _)| *last >= gid)
        {
            return Err(DecodeError::OutOfRange("gid"));
        }
        let mut addresses = Vec::new();
        for _ in 0..input.count("addresses")? {
            let address = input.bytes("address")?;
            let address =
                std::str::from_utf8(&address).map_err(|_| DecodeError::OutOfRange("address"))?;
            addresses.push(address.to_owned());
        }
        groups.insert(gid, addresses);
    }
    Ok(Change::Join { groups })
}

fn decode_leave(input: &mut Reader) -> Result<Change, DecodeError> {
    let mut gids = BTreeSet::new();
    for _ in 0..input.count("groups")? {
        let gid = Gid(input.number("gid")?);
        if gids.last().is_some_and(|last| *last >= gid) {
            return Err(DecodeError::OutOfRange("gid"));
        }
        gids.insert(gid);
    }
    Ok(Change::Leave { gids })
}

fn encode_session(out: &mut Writer, session: Option<SessionRef>) {
    let Some(session) = session else {
        out.byte(0);
        return;
    };
    out.byte(1)
        .number(session.client.birth.0)
        .number(session.client.nonce)
        .number(session.sequence.0)
        .number(session.acked_below.0);
}

fn decode_session(input: &mut Reader) -> Result<Option<SessionRef>, DecodeError> {
    if !decode_flag(input, "session")? {
        return Ok(None);
    }
    Ok(Some(SessionRef {
        client: ClientId {
            birth: LogTime(input.number("session birth")?),
            nonce: input.number("session nonce")?,
        },
        sequence: Sequence(input.number("sequence")?),
        acked_below: Sequence(input.number("acknowledged bound")?),
    }))
}

/// One byte that is 0 or 1.
pub(crate) fn decode_flag(input: &mut Reader, what: &'static str) -> Result<bool, DecodeError> {
    match input.byte(what)? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(DecodeError::Unknown {
            what,
            value: value.into(),
        }),
    }
}

fn known(input: &mut Reader, what: &'static str, expected: u8) -> Result<(), DecodeError> {
    match input.byte(what)? {
        found if found == expected => Ok(()),
        found => Err(DecodeError::Unknown {
            what,
            value: found.into(),
        }),
    }
}
