//! `import` and `export`: pairs in files of any size, with constant memory.
//!
//! Two formats, both one record a line:
//!
//! - **JSON Lines** ([`jsonl`]): `{"key":"a","value":"b"}`. Bytes that are no UTF-8 stand under `key_base64` and
//!   `value_base64`; `key_hex` and `value_hex` are read too.
//! - **TSV** ([`tsv`]): key TAB value. A tab, newline, carriage return or backslash inside is written `\t`, `\n`,
//!   `\r`, `\\`; all other bytes stand as they are, UTF-8 or not.
//!
//! A byte order mark at the beginning is skipped; UTF-16, compressed files and JSON arrays are refused ([`sniff`]). An export whose
//! first key would be mistaken for one of them begins with an empty line.
//!
//! An export that is imported again gives the same pairs, byte for byte.
//!
//! An export proceeds shard by shard. Each shard is a consistent snapshot, taken at a moment of its own. If the node is lost
//! or the shard moves, the export of the shard restarts, and nothing of the failed attempt is written ([`mod@export`]).
//!
//! An import reads and parses in a thread of its own, which is ahead of the writes by a bounded queue. A bounded number of
//! writes is in flight. Two writes of one key are never in flight together, so the last line of a key wins. Every write sets
//! a value, so a failed import can be repeated from any line at or before the first unacknowledged one; the error names that
//! line.

mod export;
mod format;
mod import;
mod import_args;
mod jsonl;
mod progress;
mod read;
mod record;
mod sniff;
mod tsv;
mod write;

pub(crate) use export::{ExportArgs, export};
pub(crate) use format::FileFormat;
pub(crate) use import::import;
pub(crate) use import_args::ImportArgs;
