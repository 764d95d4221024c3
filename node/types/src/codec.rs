//! A small binary codec for the records on disk and in the log.
//!
//! Numbers are little-endian base-128 varints, byte strings are length-prefixed. Every top-level
//! record starts with a version byte that its owner checks. Decoding never panics and never allocates
//! more than the input's length: a length that exceeds the remaining bytes is an error.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A decoding error. Always a damaged or foreign input or one of another version, never a transient condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ended inside a value.
    #[error("input ends inside {0}")]
    Truncated(&'static str),
    /// This version doesn't know a value.
    #[error("{what} has unknown value {value}")]
    Unknown {
        /// The field.
        what: &'static str,
        /// The value found.
        value: u64,
    },
    /// Another version of the program wrote the record.
    #[error("{what} is {found}, and this version of the program knows {known}")]
    Version {
        /// The field.
        what: &'static str,
        /// The version found.
        found: u8,
        /// The version that this program writes.
        known: u8,
    },
    /// A number does not fit its field.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    /// Bytes remain after the last field.
    #[error("{0} bytes remain after the record")]
    Trailing(usize),
}

/// Refuses a record's version byte that isn't the known one. Versions begin at 1, so 0 is no version.
pub fn known_version(what: &'static str, found: u8, known: u8) -> Result<(), DecodeError> {
    match found {
        _ if found == known => Ok(()),
        0 => Err(DecodeError::Unknown { what, value: 0 }),
        _ => Err(DecodeError::Version { what, found, known }),
    }
}

/// Appends values to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    buffer: BytesMut,
}

impl Writer {
    /// Creates an empty writer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            buffer: BytesMut::with_capacity(capacity),
        }
    }

    /// Appends one byte.
    pub fn byte(&mut self, value: u8) -> &mut Self {
        self.buffer.put_u8(value);
        self
    }

    /// Appends a number as a varint: 1 to 10 bytes.
    pub fn number(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            // The mask keeps seven bits, so the cast loses nothing.
            #[allow(clippy::cast_possible_truncation)]
            self.buffer.put_u8((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        #[allow(clippy::cast_possible_truncation)]
        self.buffer.put_u8(value as u8);
        self
    }

    /// Appends the length as a varint, then the bytes.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.number(value.len() as u64);
        self.buffer.put_slice(value);
        self
    }

    /// Appends bytes without a length.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.buffer.put_slice(value);
        self
    }

    /// Returns the number of bytes written so far.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Returns true if nothing was written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Returns the bytes written.
    pub fn finish(self) -> Bytes {
        self.buffer.freeze()
    }
}

/// Decodes the values of a `Writer`, sharing the input's memory for byte strings.
#[derive(Clone, Debug)]
pub struct Reader {
    input: Bytes,
}

impl Reader {
    /// Creates a reader of `input`, which is reference-counted and not copied.
    pub fn new(input: Bytes) -> Self {
        Self { input }
    }

    /// Reads one byte.
    pub fn byte(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        if self.input.has_remaining() {
            Ok(self.input.get_u8())
        } else {
            Err(DecodeError::Truncated(what))
        }
    }

    /// Reads a varint.
    pub fn number(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::OutOfRange(what));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::OutOfRange(what))
    }

    /// Reads one byte that must be 0 or 1.
    pub fn flag(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.byte(what)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Unknown {
                what,
                value: value.into(),
            }),
        }
    }

    /// Reads a varint that must fit 32 bits.
    pub fn number_u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        u32::try_from(self.number(what)?).map_err(|_| DecodeError::OutOfRange(what))
    }

    /// Reads a length-prefixed byte string, sharing the input's memory.
    pub fn bytes(&mut self, what: &'static str) -> Result<Bytes, DecodeError> {
        let length =
            usize::try_from(self.number(what)?).map_err(|_| DecodeError::OutOfRange(what))?;
        if length > self.input.len() {
            return Err(DecodeError::Truncated(what));
        }
        Ok(self.input.split_to(length))
    }

    /// Reads the number of elements that follow. Fails if the remaining input is too short for one byte each.
    pub fn count(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        let count =
            usize::try_from(self.number(what)?).map_err(|_| DecodeError::OutOfRange(what))?;
        if count > self.input.len() {
            Err(DecodeError::Truncated(what))
        } else {
            Ok(count)
        }
    }

    /// Returns the remaining bytes.
    pub fn rest(self) -> Bytes {
        self.input
    }

    /// Returns the number of remaining bytes.
    pub fn remaining(&self) -> usize {
        self.input.len()
    }

    /// Checks that no bytes remain: an unknown field is kept or refused, never guessed.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.input.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing(self.input.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_at_every_width() {
        for value in (0..64)
            .flat_map(|bit| [1u64 << bit, (1 << bit) - 1])
            .chain([u64::MAX])
        {
            let mut writer = Writer::default();
            writer.number(value);
            let mut reader = Reader::new(writer.finish());
            assert_eq!(reader.number("n"), Ok(value));
            assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn a_version_is_known_another_or_none() {
        let check = |found| known_version("version", found, 3);
        for found in 0..=u8::MAX {
            let expected = match found {
                0 => Err(DecodeError::Unknown {
                    what: "version",
                    value: 0,
                }),
                3 => Ok(()),
                _ => Err(DecodeError::Version {
                    what: "version",
                    found,
                    known: 3,
                }),
            };
            assert_eq!(check(found), expected);
        }
    }

    #[test]
    fn damage_is_an_error_not_a_panic() {
        let mut long = Reader::new(Bytes::from_static(&[0xff; 11]));
        assert_eq!(long.number("n"), Err(DecodeError::OutOfRange("n")));
        let mut huge = Reader::new(Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f, 1]));
        assert_eq!(huge.bytes("b"), Err(DecodeError::Truncated("b")));
        let mut count = Reader::new(Bytes::from_static(&[9, 1, 2]));
        assert_eq!(count.count("c"), Err(DecodeError::Truncated("c")));
        assert_eq!(
            Reader::new(Bytes::new()).byte("v"),
            Err(DecodeError::Truncated("v"))
        );
        assert_eq!(
            Reader::new(Bytes::from_static(&[1])).finish(),
            Err(DecodeError::Trailing(1))
        );
    }
}
