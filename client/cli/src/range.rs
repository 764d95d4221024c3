//! A range of keys as arguments, for the commands that read many pairs.

use std::ffi::OsString;

use clap::Args;
use shardkv_client::ScanOptions;

use crate::encoding::Encoding;
use crate::exit::Failure;

/// A range of keys.
#[derive(Clone, Debug, Args)]
pub(crate) struct RangeArgs {
    /// The first key, inclusive
    #[arg(conflicts_with = "prefix")]
    pub(crate) start: Option<OsString>,
    /// The end of the range, exclusive
    #[arg(conflicts_with = "prefix")]
    pub(crate) end: Option<OsString>,
    /// All keys that begin with this prefix
    #[arg(long, short)]
    pub(crate) prefix: Option<OsString>,
}

/// Converts the arguments to the range of a scan.
pub(crate) fn scan_options(range: &RangeArgs, encoding: Encoding) -> Result<ScanOptions, Failure> {
    let bytes = |argument: &Option<OsString>| match argument {
        Some(argument) => encoding.decode_argument(argument),
        None => Ok(Vec::new()),
    };
    if range.prefix.is_some() {
        return Ok(ScanOptions::prefix(bytes(&range.prefix)?));
    }
    let (start, end) = (bytes(&range.start)?, bytes(&range.end)?);
    if !end.is_empty() && end < start {
        return Err(Failure::usage(
            "the range ends before it starts",
            "give the smaller key first; the end is exclusive",
        ));
    }
    Ok(ScanOptions::range(start, end))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::exit::Exit;

    fn range(start: Option<&str>, end: Option<&str>, prefix: Option<&str>) -> RangeArgs {
        RangeArgs {
            start: start.map(Into::into),
            end: end.map(Into::into),
            prefix: prefix.map(Into::into),
        }
    }

    #[test]
    fn ranges_are_checked() {
        let of = |r: &RangeArgs| scan_options(r, Encoding::Utf8);
        let prefix = of(&range(None, None, Some("ab"))).unwrap();
        assert_eq!((prefix.start, prefix.end), ("ab".into(), "ac".into()));
        let open = of(&range(Some("b"), None, None)).unwrap();
        assert_eq!((open.start, open.end), ("b".into(), Bytes::new()));
        assert_eq!(
            of(&range(Some("b"), Some("a"), None)).unwrap_err().exit(),
            Exit::Usage
        );
        let bad = scan_options(&range(Some("xyz"), None, None), Encoding::Hex);
        assert_eq!(bad.unwrap_err().exit(), Exit::Usage);
    }
}
