//! Recognizes inputs that are not what the importer reads, by their first bytes.
//!
//! A byte order mark is skipped. Compressed files, UTF-16 and JSON arrays are refused before anything is imported: in TSV,
//! where any byte may stand in a key, they would be imported as garbage.

use std::io::BufRead;

use super::format::FileFormat;
use crate::exit::Failure;

/// The byte order mark of UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The first bytes of files in other formats, and the command that decodes them.
const COMPRESSED: [(&[u8], &str, &str); 5] = [
    (b"\x1f\x8b", "gzip", "zcat"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstdcat"),
    (b"\xfd7zXZ\x00", "xz", "xzcat"),
    (b"BZh", "bzip2", "bzcat"),
    (b"PK\x03\x04", "zip", "unzip -p"),
];

/// The byte orders of UTF-16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endian {
    Little,
    Big,
}

/// Skips a byte order mark, and refuses an input in another encoding or format. Returns the number of skipped bytes.
pub(super) fn begin(input: &mut dyn BufRead, format: FileFormat) -> Result<usize, Failure> {
    let head = input.fill_buf().map_err(|error| {
        Failure::failed(
            format!("can't read the input: {error}"),
            "check the file or the program that writes it",
        )
    })?;
    let skipped = if head.starts_with(BOM) { BOM.len() } else { 0 };
    check(head.get(skipped..).unwrap_or_default(), format)?;
    input.consume(skipped);
    Ok(skipped)
}

/// Returns true if a file that begins with these bytes would be taken for one in another encoding or format.
pub(super) fn is_misleading(head: &[u8]) -> bool {
    let compressed = COMPRESSED.iter().any(|it| head.starts_with(it.0));
    head.starts_with(BOM) || compressed || utf16(head).is_some()
}

fn check(head: &[u8], format: FileFormat) -> Result<(), Failure> {
    let name = format.name();
    if let Some((_, what, tool)) = COMPRESSED.iter().find(|it| head.starts_with(it.0)) {
        return Err(Failure::usage(
            format!("the input is compressed with {what}"),
            format!("decompress it: `{tool} FILE | shardkv import --format {name}`"),
        ));
    }
    if let Some(order) = utf16(head) {
        let from = match order {
            Endian::Little => "UTF-16LE",
            Endian::Big => "UTF-16BE",
        };
        return Err(Failure::usage(
            format!("the input is in {from}, and files must be in UTF-8"),
            format!(
                "convert it: `iconv -f {from} -t UTF-8 FILE | shardkv import --format {name}`; if these are the bytes of a key, put an empty line before them"
            ),
        ));
    }
    if format == FileFormat::Jsonl && head.trim_ascii_start().first() == Some(&b'[') {
        return Err(Failure::usage(
            "the input is a JSON array, not a record a line",
            "take the array apart: `jq -c '.[]' FILE | shardkv import`",
        ));
    }
    Ok(())
}

/// Returns the byte order of UTF-16, by a byte order mark, or else by the first line: a tab or a brace, and a newline, of two bytes
/// each.
fn utf16(head: &[u8]) -> Option<Endian> {
    match head {
        // An export puts an empty line before bytes that only look like it.
        [b'\n', ..] => return None,
        [0xff, 0xfe, ..] | [b'{', 0, ..] => return Some(Endian::Little),
        [0xfe, 0xff, ..] | [0, b'{', ..] => return Some(Endian::Big),
        _ => {}
    }
    let newline = head.iter().position(|byte| *byte == b'\n')?;
    let tab = head.iter().position(|byte| *byte == b'\t')?;
    let after = |at: usize| head.get(at + 1) == Some(&0);
    let before = |at: usize| at.checked_sub(1).and_then(|at| head.get(at)) == Some(&0);
    let even = |at: usize| at.is_multiple_of(2);
    if even(newline) && even(tab) && after(newline) && after(tab) {
        return Some(Endian::Little);
    }
    if !even(newline) && !even(tab) && before(newline) && before(tab) {
        return Some(Endian::Big);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str, order: Endian) -> Vec<u8> {
        let pair = |unit: u16| match order {
            Endian::Little => unit.to_le_bytes(),
            Endian::Big => unit.to_be_bytes(),
        };
        text.encode_utf16().flat_map(pair).collect()
    }

    fn refusal(input: &[u8], format: FileFormat) -> String {
        let mut input = input;
        begin(&mut input, format).unwrap_err().to_string()
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let mut input: &[u8] = b"\xef\xbb\xbfa\t1\n";
        assert_eq!(begin(&mut input, FileFormat::Tsv).unwrap(), 3);
        assert_eq!(input, b"a\t1\n");
        let mut plain: &[u8] = b"a\t1\n";
        assert_eq!(begin(&mut plain, FileFormat::Tsv).unwrap(), 0);
        let mut empty: &[u8] = b"";
        assert_eq!(begin(&mut empty, FileFormat::Jsonl).unwrap(), 0);
    }

    #[test]
    fn utf16_is_never_imported_as_garbage() {
        for order in [Endian::Little, Endian::Big] {
            for mark in ["", "\u{feff}"] {
                for text in [
                    "ada\tcountess\n",
                    "\u{4e00}\t\u{4e8c}\u{4e09}\n",
                    "{\"key\":\"a\"}",
                ] {
                    let input = encoded(&format!("{mark}{text}"), order);
                    for format in [FileFormat::Tsv, FileFormat::Jsonl] {
                        let refusal = refusal(&input, format);
                        assert!(refusal.contains("iconv -f UTF-16"), "{text} {refusal}");
                    }
                }
            }
        }
        let mut bytes: &[u8] = b"k\0\t\0\n\0a\t1\n";
        assert!(begin(&mut bytes, FileFormat::Tsv).is_err(), "looks like it");
        let mut bytes: &[u8] = b"k\0\tv\na\t1\n";
        assert!(begin(&mut bytes, FileFormat::Tsv).is_ok(), "but this not");
    }

    #[test]
    fn other_formats_are_named_with_the_way_to_convert_them() {
        for (input, words) in [
            (&b"\x1f\x8b\x08"[..], "zcat"),
            (b"PK\x03\x04", "unzip"),
            (b"\xef\xbb\xbf\x1f\x8b", "gzip"),
            (b" \n [{\"key\":\"a\"}]", "jq -c '.[]'"),
        ] {
            let refusal = refusal(input, FileFormat::Jsonl);
            assert!(refusal.contains(words), "{refusal}");
        }
        let mut bracket: &[u8] = b"[\t1\n";
        assert!(begin(&mut bracket, FileFormat::Tsv).is_ok());
    }
}
