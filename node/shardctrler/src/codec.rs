//! Commands and records as bytes.
//!
//! A command is: version, kind, whether a session follows, the session, and what the kind needs. Lists are in
//! ascending order without doubles, so that each command has one encoding.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use replica::session::SessionRef;
use types::{
    ConfigNum, Cut, DecodeError, Gid, Incarnation, Reader, ShardId, Writer, known_version,
};

use crate::{Change, Command, Drained, GroupProgress};

const VERSION: u8 = 1;
const PROGRESS_VERSION: u8 = 3;
const DRAINED_VERSION: u8 = 2;

const JOIN: u8 = 1;
const LEAVE: u8 = 2;
const MOVE: u8 = 3;
const REPORT: u8 = 4;
const CUT: u8 = 5;
const FORGET: u8 = 6;
const RETIRE: u8 = 7;

impl Command {
    /// The bytes to propose.
    pub fn encode(&self) -> Bytes {
        let kind = match &self.change {
            Change::Join { .. } => JOIN,
            Change::Leave { .. } => LEAVE,
            Change::Move { .. } => MOVE,
            Change::Report { .. } => REPORT,
            Change::Cut { .. } => CUT,
            Change::Forget { .. } => FORGET,
            Change::Retire { .. } => RETIRE,
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
            Change::Leave { gids } => encode_gids(gids, &mut out),
            Change::Move { shard, gid } => {
                out.number(shard.0.into()).number(gid.0);
            }
            Change::Report { gid, settled, held } => {
                out.number(gid.0).number(settled.0).number(held.0);
            }
            Change::Cut { cuts } => {
                out.number(cuts.len() as u64);
                for (shard, cut) in cuts {
                    cut.encode(out.number(shard.0.into()));
                }
            }
            Change::Forget {
                gids,
                accept_data_loss,
            } => {
                out.byte((*accept_data_loss).into());
                encode_gids(gids, &mut out);
            }
            Change::Retire { gid, incarnation } => {
                out.number(gid.0).number(incarnation.0);
            }
        }
        out.finish()
    }

    /// Reads what [`Command::encode`] wrote.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        known(&mut input, "operation version", VERSION)?;
        let kind = input.byte("operation kind")?;
        if !(JOIN..=RETIRE).contains(&kind) {
            return Err(DecodeError::Unknown {
                what: "operation kind",
                value: kind.into(),
            });
        }
        let session = SessionRef::decode(&mut input)?;
        let change = match kind {
            JOIN => decode_join(&mut input)?,
            LEAVE => Change::Leave {
                gids: decode_gids(&mut input)?,
            },
            MOVE => Change::Move {
                shard: ShardId(input.number_u32("shard")?),
                gid: Gid(input.number("gid")?),
            },
            REPORT => Change::Report {
                gid: Gid(input.number("gid")?),
                settled: ConfigNum(input.number("settled configuration")?),
                held: ConfigNum(input.number("held configuration")?),
            },
            CUT => decode_cuts(&mut input)?,
            FORGET => Change::Forget {
                accept_data_loss: input.flag("accepted data loss")?,
                gids: decode_gids(&mut input)?,
            },
            _ => Change::Retire {
                gid: Gid(input.number("gid")?),
                incarnation: Incarnation(input.number("incarnation")?),
            },
        };
        input.finish()?;
        Ok(Self { session, change })
    }
}

impl GroupProgress {
    pub(crate) fn encode(self) -> Bytes {
        let mut out = Writer::with_capacity(24);
        out.byte(PROGRESS_VERSION)
            .number(self.settled.0)
            .number(self.held.0)
            .number(self.due.0);
        out.finish()
    }

    pub(crate) fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        known(&mut input, "progress version", PROGRESS_VERSION)?;
        let progress = Self {
            settled: ConfigNum(input.number("settled configuration")?),
            held: ConfigNum(input.number("held configuration")?),
            due: ConfigNum(input.number("due configuration")?),
        };
        input.finish()?;
        Ok(progress)
    }
}

impl Drained {
    pub(crate) fn encode(self) -> Bytes {
        let mut out = Writer::with_capacity(24);
        out.byte(DRAINED_VERSION)
            .number(self.incarnation.0)
            .number(self.gone_in.0)
            .byte(self.forgotten.into())
            .byte(self.retired.into());
        out.finish()
    }

    pub(crate) fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        known(&mut input, "drained version", DRAINED_VERSION)?;
        let drained = Self {
            incarnation: Incarnation(input.number("incarnation")?),
            gone_in: ConfigNum(input.number("gone in")?),
            forgotten: input.flag("forgotten")?,
            retired: input.flag("retired")?,
        };
        input.finish()?;
        Ok(drained)
    }
}

fn decode_cuts(input: &mut Reader) -> Result<Change, DecodeError> {
    let mut cuts = BTreeMap::new();
    for _ in 0..input.count("cuts")? {
        let shard = ShardId(input.number_u32("shard")?);
        if cuts
            .last_key_value()
            .is_some_and(|(last, _)| *last >= shard)
        {
            return Err(DecodeError::OutOfRange("shard"));
        }
        cuts.insert(shard, Cut::decode(input)?);
    }
    Ok(Change::Cut { cuts })
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

fn encode_gids(gids: &BTreeSet<Gid>, out: &mut Writer) {
    out.number(gids.len() as u64);
    for gid in gids {
        out.number(gid.0);
    }
}

fn decode_gids(input: &mut Reader) -> Result<BTreeSet<Gid>, DecodeError> {
    let mut gids = BTreeSet::new();
    for _ in 0..input.count("groups")? {
        let gid = Gid(input.number("gid")?);
        if gids.last().is_some_and(|last| *last >= gid) {
            return Err(DecodeError::OutOfRange("gid"));
        }
        gids.insert(gid);
    }
    Ok(gids)
}

fn known(input: &mut Reader, what: &'static str, expected: u8) -> Result<(), DecodeError> {
    known_version(what, input.byte(what)?, expected)
}
