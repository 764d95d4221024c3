//! The position in the transfer of a fenced shard, and its encoding, which travels between groups.

use bytes::Bytes;
use types::{ClientId, DecodeError, Reader, Writer};

use crate::encoding::known;

const CURSOR_VERSION: u8 = 1;

/// A position in a shard's transfer. The order is that of sending.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cursor {
    /// All users' keys up to this one have arrived; the empty key is the start.
    Data(Bytes),
    /// All data has arrived, and the sessions up to this one; `None` before the first.
    Sessions(Option<ClientId>),
    /// All data and sessions have arrived, and the rows of keyspaces up to this one, by its key after the shard.
    Rows(Bytes),
}

impl Default for Cursor {
    fn default() -> Self {
        Self::Data(Bytes::new())
    }
}

impl Cursor {
    /// Encodes the cursor.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.byte(CURSOR_VERSION);
        encode_cursor(&mut out, self);
        out.finish()
    }

    /// Decodes the output of [`Cursor::encode`]. An empty input is the start.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        if input.is_empty() {
            return Ok(Self::default());
        }
        let mut input = Reader::new(input);
        known(
            "cursor version",
            input.byte("cursor version")?,
            CURSOR_VERSION,
        )?;
        let cursor = decode_cursor(&mut input)?;
        input.finish()?;
        Ok(cursor)
    }
}

/// Encodes a cursor as a part of a record.
pub(crate) fn encode_cursor(out: &mut Writer, cursor: &Cursor) {
    match cursor {
        Cursor::Data(key) => {
            out.byte(0).bytes(key);
        }
        Cursor::Sessions(None) => {
            out.byte(1);
        }
        Cursor::Sessions(Some(client)) => client.encode(out.byte(2)),
        Cursor::Rows(key) => {
            out.byte(3).bytes(key);
        }
    }
}

/// Decodes the output of [`encode_cursor`].
pub(crate) fn decode_cursor(input: &mut Reader) -> Result<Cursor, DecodeError> {
    Ok(match input.byte("cursor")? {
        0 => Cursor::Data(input.bytes("cursor")?),
        1 => Cursor::Sessions(None),
        2 => Cursor::Sessions(Some(ClientId::decode(input)?)),
        3 => Cursor::Rows(input.bytes("cursor")?),
        value => {
            return Err(DecodeError::Unknown {
                what: "cursor",
                value: value.into(),
            });
        }
    })
}
