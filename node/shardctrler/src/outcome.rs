//! The outcome of a change that was carried out: what a session remembers.
//!
//! # Which refusals are outcomes
//!
//! A change that was answered "refused, and nothing changed" must not take effect afterwards, and a late copy of it
//! is judged when everything may be different: the group that held the address may have left. So of each refusal one of these holds:
//!
//! - It depends on the operation and the genesis alone, so every copy gets it (`rules::check`).
//! - It depends on the configurations, and is remembered like a result: [`Refusal`].
//! - The session table repeats it for ever, or it speaks of one attempt only ([`CtrlError::is_final`]).

use replica::session::Remembered;
use types::{ConfigNum, DecodeError, Gid, Reader, Writer};

use crate::{CtrlError, Loss, Response};

/// The outcome of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The change was carried out, possibly without effect.
    Changed {
        num: ConfigNum,
        changed: bool,
        moved_shards: u32,
    },
    /// Groups were forgotten.
    Forgotten { num: ConfigNum, loss: Loss },
    /// The number of a group was retired.
    Retired,
    /// The configurations didn't allow it.
    Refused(Refusal),
}

/// A refusal of a change by the configurations. The variants are those of [`CtrlError`] with the same names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    UnknownGroup(Gid),
    Leaving(Gid),
    AddressTaken { address: String, owner: Gid },
    TooManyGroups { limit: u64 },
    TooManyAddressBytes { limit: u64 },
    LastGroup,
    DataLoss(Loss),
    NotDrained(Gid),
    Retired(Gid),
}

impl From<Outcome> for Response {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Changed {
                num,
                changed,
                moved_shards,
            } => Self::Changed {
                num,
                changed,
                moved_shards,
            },
            Outcome::Forgotten { num, loss } => Self::Forgotten { num, loss },
            Outcome::Retired => Self::Retired,
            Outcome::Refused(refusal) => Self::Refused(refusal.into()),
        }
    }
}

impl From<Refusal> for CtrlError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::UnknownGroup(gid) => Self::UnknownGroup(gid),
            Refusal::Leaving(gid) => Self::Leaving(gid),
            Refusal::AddressTaken { address, owner } => Self::AddressTaken { address, owner },
            Refusal::TooManyGroups { limit } => Self::TooManyGroups { limit },
            Refusal::TooManyAddressBytes { limit } => Self::TooManyAddressBytes { limit },
            Refusal::LastGroup => Self::LastGroup,
            Refusal::DataLoss(loss) => Self::DataLoss(loss),
            Refusal::NotDrained(gid) => Self::NotDrained(gid),
            Refusal::Retired(gid) => Self::Retired(gid),
        }
    }
}

impl Remembered for Outcome {
    fn encode(&self, out: &mut Writer) {
        match self {
            Self::Changed {
                num,
                changed,
                moved_shards,
            } => out
                .byte(0)
                .number(num.0)
                .byte((*changed).into())
                .number((*moved_shards).into()),
            Self::Refused(Refusal::UnknownGroup(gid)) => out.byte(1).number(gid.0),
            Self::Refused(Refusal::AddressTaken { address, owner }) => {
                out.byte(2).bytes(address.as_bytes()).number(owner.0)
            }
            Self::Refused(Refusal::TooManyGroups { limit }) => out.byte(3).number(*limit),
            Self::Refused(Refusal::LastGroup) => out.byte(4),
            Self::Refused(Refusal::Leaving(gid)) => out.byte(5).number(gid.0),
            Self::Forgotten { num, loss } => {
                loss.encode(out.byte(6).number(num.0));
                out
            }
            Self::Retired => out.byte(7),
            Self::Refused(Refusal::DataLoss(loss)) => {
                loss.encode(out.byte(8));
                out
            }
            Self::Refused(Refusal::NotDrained(gid)) => out.byte(9).number(gid.0),
            Self::Refused(Refusal::Retired(gid)) => out.byte(10).number(gid.0),
            Self::Refused(Refusal::TooManyAddressBytes { limit }) => out.byte(11).number(*limit),
        };
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match input.byte("outcome")? {
            0 => Self::Changed {
                num: ConfigNum(input.number("configuration number")?),
                changed: input.flag("changed")?,
                moved_shards: input.number_u32("moved shards")?,
            },
            1 => Self::Refused(Refusal::UnknownGroup(Gid(input.number("gid")?))),
            2 => {
                let address = input.bytes("address")?;
                let address = std::str::from_utf8(&address)
                    .map_err(|_| DecodeError::OutOfRange("address"))?
                    .to_owned();
                let owner = Gid(input.number("gid")?);
                Self::Refused(Refusal::AddressTaken { address, owner })
            }
            3 => Self::Refused(Refusal::TooManyGroups {
                limit: input.number("limit")?,
            }),
            4 => Self::Refused(Refusal::LastGroup),
            5 => Self::Refused(Refusal::Leaving(Gid(input.number("gid")?))),
            6 => Self::Forgotten {
                num: ConfigNum(input.number("configuration number")?),
                loss: Loss::decode(input)?,
            },
            7 => Self::Retired,
            8 => Self::Refused(Refusal::DataLoss(Loss::decode(input)?)),
            9 => Self::Refused(Refusal::NotDrained(Gid(input.number("gid")?))),
            10 => Self::Refused(Refusal::Retired(Gid(input.number("gid")?))),
            11 => Self::Refused(Refusal::TooManyAddressBytes {
                limit: input.number("limit")?,
            }),
            value => {
                return Err(DecodeError::Unknown {
                    what: "outcome",
                    value: value.into(),
                });
            }
        })
    }
}
