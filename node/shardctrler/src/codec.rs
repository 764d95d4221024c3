//! Commands and records as bytes.
//!
//! A command is: version, kind, whether a session follows, the session, and what the kind needs. Lists are in
//! ascending order without doubles, so that each command has one encoding.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use replica::session::SessionRef;
use types::{ConfigNum, DecodeError, Gid, Reader, ShardId, Writer};

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
        SessionRef::encode(self.session, &mut out);
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
        let session = SessionRef::decode(&mut input)?;
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
        let left_in = input
            .flag("left")?
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

fn known(input: &mut Reader, what: &'static str, expected: u8) -> Result<(), DecodeError> {
    match input.byte(what)? {
        found if found == expected => Ok(()),
        found => Err(DecodeError::Unknown {
            what,
            value: found.into(),
        }),
    }
}
