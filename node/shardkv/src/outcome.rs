//! The outcome of an executed write, which a session remembers.
//!
//! # Refusals that are outcomes
//!
//! A write that was answered "refused, and nothing changed" must not take effect afterwards. But copies of
//! it may still be in flight, and would be judged again. So one of these must hold for each refusal:
//!
//! - It depends on the operation's bytes alone, so every copy gets it: malformed, key size, bad sequence.
//! - The session table repeats it for ever (see [`replica::session`]): stale, expired.
//! - It is remembered like a result. That is what happens to a value that is too large, because both an
//!   `Append`'s length and the leader's limit may be others when the next copy comes.
//! - It isn't the write's answer but the attempt's: the session limits and a birth in the future, for which
//!   nothing can be remembered. [`KvError::is_final`] is false for these, and clients go on repeating.

use replica::session::Remembered;
use types::{DecodeError, Reader, Writer};

use crate::{KvError, Response, Written};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The write took effect, or was a comparison that failed.
    Written(Written),
    /// The value would have been too large.
    TooLarge { size: u64, limit: u64 },
}

impl From<Outcome> for Response {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Written(written) => Self::Written(written),
            Outcome::TooLarge { size, limit } => {
                Self::Refused(KvError::ValueTooLarge { size, limit })
            }
        }
    }
}

impl Remembered for Outcome {
    fn encode(&self, out: &mut Writer) {
        match *self {
            Self::Written(Written::Put) => out.byte(0),
            Self::Written(Written::Append { length }) => out.byte(1).number(length),
            Self::Written(Written::Delete { existed: false }) => out.byte(2),
            Self::Written(Written::Delete { existed: true }) => out.byte(3),
            Self::Written(Written::CompareAndSwap { swapped: false }) => out.byte(4),
            Self::Written(Written::CompareAndSwap { swapped: true }) => out.byte(5),
            Self::TooLarge { size, limit } => out.byte(6).number(size).number(limit),
        };
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match input.byte("outcome")? {
            0 => Self::Written(Written::Put),
            1 => Self::Written(Written::Append {
                length: input.number("length")?,
            }),
            2 => Self::Written(Written::Delete { existed: false }),
            3 => Self::Written(Written::Delete { existed: true }),
            4 => Self::Written(Written::CompareAndSwap { swapped: false }),
            5 => Self::Written(Written::CompareAndSwap { swapped: true }),
            6 => Self::TooLarge {
                size: input.number("size")?,
                limit: input.number("limit")?,
            },
            value => {
                return Err(DecodeError::Unknown {
                    what: "outcome",
                    value: value.into(),
                });
            }
        })
    }
}
