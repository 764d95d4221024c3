//! Recognizes inputs that are not what the importer reads, by their first bytes.
//!
//! A byte order mark is skipped. Compressed files, UTF-16 and JSON arrays are refused before anything is imported: in TSV,
//! where any byte may stand in a key, they would be imported as garbage.

use std::io::{self, BufRead, Chain, Cursor, Read as _};

use super::format::FileFormat;
use crate::exit::Failure;

/// The byte order mark of UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The first bytes of files in other formats, and the command that decodes them.
const COMPRESSED: [(&[u8], &str, &str); 4] = [
    (b"\x1f\x8b", "gzip", "zcat"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstdcat"),
    (b"\xfd7zXZ\x00", "xz", "xzcat"),
    (b"PK\x03\x04", "zip", "unzip -p"),
];

/// The marks that follow `BZh` and a digit: of a block, and of the end of an empty file. `BZh` alone may begin a key.
const BZIP2: [&[u8]; 2] = [b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90"];

/// The most bytes by which a format is recognized.
const HEAD_BYTES: usize = 1 << 18;

/// An input after its first bytes were looked at.
pub(super) struct Begun<'a> {
    pub(super) input: Chain<Cursor<Vec<u8>>, &'a mut dyn BufRead>,
    /// The length of the byte order mark, which `input` doesn't have.
    pub(super) skipped: usize,
}

/// The byte orders of UTF-16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endian {
    Little,
    Big,
}

/// Skips a byte order mark, and refuses an input in another encoding or format.
pub(super) fn begin(input: &mut dyn BufRead, format: FileFormat) -> Result<Begun<'_>, Failure> {
    let head = read_head(input, format).map_err(|error| {
        Failure::failed(
            format!("can't read the input: {error}"),
            "check the file or the program that writes it",
        )
    })?;
    let skipped = if head.starts_with(BOM) { BOM.len() } else { 0 };
    check(head.get(skipped..).unwrap_or_default(), format)?;
    let mut head = Cursor::new(head);
    head.set_position(skipped as u64);
    Ok(Begun {
        input: head.chain(input),
        skipped,
    })
}

/// Reads as many bytes as it takes to recognize the format. A pipe may bring them one by one, and may pause after each line.
fn read_head(input: &mut dyn BufRead, format: FileFormat) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while head.len() < HEAD_BYTES && !is_enough(&head, format) {
        let more = match input.fill_buf() {
            Ok(more) => more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if more.is_empty() {
            break;
        }
        head.extend_from_slice(more);
        let length = more.len();
        input.consume(length);
    }
    Ok(head)
}

/// Returns true if more bytes would not change what the input is taken for: it has a line, and the byte that follows it in UTF-16.
fn is_enough(head: &[u8], format: FileFormat) -> bool {
    let Some(newline) = head.iter().position(|byte| *byte == b'\n') else {
        return false;
    };
    let is_wide = head.contains(&0);
    let is_blank = format == FileFormat::Jsonl && head.trim_ascii_start().is_empty();
    !is_blank && (!is_wide || head.len() > newline + 1)
}

/// Returns true if a file that begins with these bytes would be taken for one in another encoding or format.
pub(super) fn is_misleading(head: &[u8]) -> bool {
    head.starts_with(BOM) || compression(head).is_some() || utf16(head).is_some()
}

/// Returns the name of the compression, and the command that decodes it.
fn compression(head: &[u8]) -> Option<(&'static str, &'static str)> {
    let bzip2 = head.strip_prefix(b"BZh").and_then(<[u8]>::split_first);
    let is_bzip2 = |(level, rest): (&u8, &[u8])| {
        matches!(level, b'1'..=b'9') && BZIP2.iter().any(|mark| rest.starts_with(mark))
    };
    if bzip2.is_some_and(is_bzip2) {
        return Some(("bzip2", "bzcat"));
    }
    let found = COMPRESSED.iter().find(|it| head.starts_with(it.0));
    found.map(|(_, what, tool)| (*what, *tool))
}

fn check(head: &[u8], format: FileFormat) -> Result<(), Failure> {
    let name = format.name();
    if let Some((what, tool)) = compression(head) {
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
        let refusal = |input: &mut dyn BufRead| match begin(input, format) {
            Ok(_) => panic!("it should be refused"),
            Err(failure) => failure.to_string(),
        };
        let mut whole = input;
        let refused = refusal(&mut whole);
        // A pipe that brings the bytes one by one.
        assert_eq!(
            refusal(&mut io::BufReader::with_capacity(1, input)),
            refused
        );
        refused
    }

    /// Returns what is left of an input, and the length of its byte order mark.
    fn accepted(mut input: &[u8], format: FileFormat) -> (Vec<u8>, usize) {
        let mut begun = begin(&mut input, format).unwrap_or_else(|failure| panic!("{failure}"));
        let mut left = Vec::new();
        begun.input.read_to_end(&mut left).unwrap();
        (left, begun.skipped)
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let tsv = |input: &[u8]| accepted(input, FileFormat::Tsv);
        assert_eq!(tsv(b"\xef\xbb\xbfa\t1\n"), (b"a\t1\n".to_vec(), 3));
        assert_eq!(tsv(b"a\t1\nb\t2\n"), (b"a\t1\nb\t2\n".to_vec(), 0));
        assert_eq!(accepted(b"", FileFormat::Jsonl), (Vec::new(), 0));
        assert_eq!(accepted(b"\n \n", FileFormat::Jsonl).0, b"\n \n");
    }

    /// A program that writes line by line waits for nothing.
    #[test]
    fn a_line_is_not_kept_back_until_more_comes() {
        struct Line(&'static [u8]);
        impl io::Read for Line {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                assert!(!self.0.is_empty(), "nothing more is there yet");
                io::Read::read(&mut self.0, into)
            }
        }
        let mut pipe = io::BufReader::new(Line(b"a\t1\n"));
        assert!(begin(&mut pipe, FileFormat::Tsv).is_ok());
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
        refusal(b"k\0\t\0\n\0a\t1\n", FileFormat::Tsv);
        accepted(b"k\0\tv\na\t1\n", FileFormat::Tsv);
    }

    #[test]
    fn other_formats_are_named_with_the_way_to_convert_them() {
        for (input, words) in [
            (&b"\x1f\x8b\x08"[..], "zcat"),
            (b"PK\x03\x04", "unzip"),
            (b"BZh9\x31\x41\x59\x26\x53\x59\n", "bzcat"),
            (b"BZh1\x17\x72\x45\x38\x50\x90", "bzcat"),
            (b"\xef\xbb\xbf\x1f\x8b", "gzip"),
            (b" \n [{\"key\":\"a\"}]", "jq -c '.[]'"),
        ] {
            let refusal = refusal(input, FileFormat::Jsonl);
            assert!(refusal.contains(words), "{refusal}");
        }
        for key in [
            &b"[\t1\n"[..],
            b"BZh\t1\n",
            b"BZh9\t1\n",
            b"BZh01AY&SY\t1\n",
        ] {
            accepted(key, FileFormat::Tsv);
        }
    }
}
