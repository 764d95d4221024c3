//! Entry points of the fuzz targets in `fuzz/`, for parsers that are private to this crate.
//!
//! A parser may accept or refuse any input, but it may not panic. Each function also checks that what a parser accepted
//! survives being written and parsed again.

use std::os::unix::ffi::OsStrExt as _;

use crate::encoding::Encoding;
use crate::transfer::FileFormat;
use crate::{parse, shell};

/// Parses the value of an option in each way that some option has.
///
/// # Panics
///
/// If a parser has a bug.
pub fn argument(text: &str) {
    if let Ok(gid) = parse::parse_gid(text) {
        assert_eq!(parse::parse_gid(&gid.to_string()), Ok(gid));
    }
    if let Ok(shard) = parse::parse_shard(text) {
        assert_eq!(parse::parse_shard(&shard.to_string()), Ok(shard));
    }
    if let Ok((gid, addresses)) = parse::parse_group(text) {
        let written = format!("{gid}={}", addresses.join(","));
        assert_eq!(parse::parse_group(&written), Ok((gid, addresses)));
    }
    if let Ok(duration) = parse::duration(text) {
        let written = format!("{}ms", duration.as_millis());
        assert_eq!(parse::duration(&written), Ok(duration));
    }
    if let Ok(size) = parse::byte_size(text) {
        assert_eq!(parse::byte_size(&size.to_string()), Ok(size));
    }
    if let Ok(share) = parse::share(text) {
        assert_eq!(parse::share(&share.to_string()), Ok(share));
    }
    let _ = parse::parse_group_name(text);
    for encoding in [Encoding::Base64, Encoding::Hex] {
        if let Some(bytes) = encoding.decode(text) {
            assert_eq!(encoding.decode(&encoding.show(&bytes)), Some(bytes));
        }
    }
}

/// Parses a line of a file for `import`, in both formats.
///
/// # Panics
///
/// If a parser has a bug.
pub fn import_line(line: &[u8]) {
    for format in [FileFormat::Jsonl, FileFormat::Tsv] {
        let Ok(Some(record)) = format.decode(line) else {
            continue;
        };
        let mut written = Vec::new();
        format.encode(&record.key, &record.value, &mut written);
        assert_eq!(written.pop(), Some(b'\n'), "a line ends with a newline");
        assert!(!written.contains(&b'\n'), "a record is one line");
        assert_eq!(format.decode(&written).ok().flatten(), Some(record));
    }
}

/// Parses a line of `shell`, and the same bytes as a table shows them.
///
/// # Panics
///
/// If a parser has a bug.
pub fn shell_line(line: &[u8]) {
    let _ = shell::parse(line, &mut std::io::sink());
    let shown = Encoding::Utf8.show(line).replace('"', "\\\"");
    let words = shell::split(format!("\"{shown}\"").as_bytes()).unwrap_or_default();
    let expected = std::ffi::OsStr::from_bytes(line);
    assert_eq!(words, [expected], "a table shows {shown}");
}
