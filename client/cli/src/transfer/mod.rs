//! `import` and `export`: pairs in files of any size, with constant memory.
//!
//! Two formats, both one record a line:
//!
//! - **JSON Lines** ([`jsonl`]): `{"key":"a","value":"b"}`. Bytes that are no UTF-8 stand under `key_base64` and
//!   `value_base64`; `key_hex` and `value_hex` are read too.
//! - **TSV** ([`tsv`]): key TAB value. A tab, newline, carriage return or backslash inside is written `\t`, `\n`,
//!   `\r`, `\\`; all other bytes stand as they are, UTF-8 or not.
//!
//! What was exported and is imported again is the same, byte for byte.
//!
//! An export goes shard by shard. Each shard is a consistent cut, taken at a moment of its own; a cut that breaks, because
//! its node is lost or the shard moves, is begun anew and nothing of it is written ([`mod@export`]).
//!
//! An import reads and parses in a thread of its own, a bounded queue ahead of the writes, of which a bounded number
//! is in flight. Two writes of one key never are at once, so that the last line of a key wins. Since every write
//! sets a value, an import that failed may be repeated from any line at or before the first that was not
//! acknowledged; the error names it.

mod export;
mod format;
mod import;
mod jsonl;
mod progress;
mod record;
mod tsv;

pub(crate) use export::{ExportArgs, export};
pub(crate) use import::{ImportArgs, import};
