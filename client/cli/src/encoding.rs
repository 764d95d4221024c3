//! Encodes bytes as text. Keys and values are bytes; terminals, arguments and JSON are text.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::exit::Failure;

/// The encoding of bytes in arguments, in tables and in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Encoding {
    /// Text; bytes that are not UTF-8 become base64 in JSON and \xNN in tables.
    #[default]
    Utf8,
    /// Standard base64 with padding.
    Base64,
    /// Two hexadecimal digits for each byte.
    Hex,
}

impl Encoding {
    /// Decodes an argument. A text argument is used byte by byte as the shell passed it.
    pub(crate) fn decode_argument(self, argument: &OsStr) -> Result<Vec<u8>, Failure> {
        if self == Self::Utf8 {
            return Ok(argument.as_bytes().to_vec());
        }
        let text = argument.to_string_lossy();
        self.decode(&text).ok_or_else(|| {
            Failure::usage(
                format!("{text:?} is not {}", self.name()),
                "write the argument in that encoding, or leave --encoding out",
            )
        })
    }

    /// Decodes `text`, or returns `None` if it is not in this encoding.
    pub(crate) fn decode(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Self::Utf8 => Some(text.as_bytes().to_vec()),
            Self::Base64 => STANDARD.decode(text).ok(),
            Self::Hex => decode_hex(text),
        }
    }

    /// Formats `bytes` for a terminal: in one line, without control characters, and reversibly.
    pub(crate) fn show(self, bytes: &[u8]) -> String {
        match self {
            Self::Utf8 => escape(bytes),
            Self::Base64 => STANDARD.encode(bytes),
            Self::Hex => encode_hex(bytes),
        }
    }

    /// Returns name and text of a JSON field; the suffix of the name identifies the encoding.
    pub(crate) fn json_field(self, name: &str, bytes: &[u8]) -> (String, String) {
        match (self, std::str::from_utf8(bytes)) {
            (Self::Utf8, Ok(text)) => (name.to_owned(), text.to_owned()),
            (Self::Utf8 | Self::Base64, _) => (format!("{name}_base64"), STANDARD.encode(bytes)),
            (Self::Hex, _) => (format!("{name}_hex"), encode_hex(bytes)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "text",
            Self::Base64 => "base64",
            Self::Hex => "hex",
        }
    }
}

/// Escapes the characters that would confuse a terminal. The shell's double quotes read the escapes back.
fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                c if confuses(c) => {
                    let mut buffer = [0; 4];
                    for byte in c.encode_utf8(&mut buffer).bytes() {
                        push_hex_escape(&mut out, byte);
                    }
                }
                c => out.push(c),
            }
        }
        for &byte in chunk.invalid() {
            push_hex_escape(&mut out, byte);
        }
    }
    out
}

/// Returns true for characters that change how a terminal shows others, or that are invisible: control characters, the format
/// characters of Unicode (general category Cf, with the controls of direction), and its separators of lines and paragraphs.
pub(crate) fn confuses(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890..=0x891 | 0x8e2 | 0x180e
            | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x2064 | 0x2066..=0x206f
            | 0xfeff | 0xfff9..=0xfffb | 0x1_10bd | 0x1_10cd | 0x1_3430..=0x1_343f
            | 0x1_bca0..=0x1_bca3 | 0x1_d173..=0x1_d17a | 0xe_0001 | 0xe_0020..=0xe_007f)
}

fn push_hex_escape(out: &mut String, byte: u8) {
    // Writing to a String never fails.
    let _ = write!(out, "\\x{byte:02x}");
}

fn encode_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks_exact(2)
        .map(|pair| match pair {
            &[high, low] => Some(hex_digit(high)? << 4 | hex_digit(low)?),
            _ => None,
        })
        .collect()
}

/// The value of one hexadecimal digit.
pub(crate) fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_decode() {
        let arg = |text: &str| std::ffi::OsString::from(text);
        assert_eq!(
            Encoding::Utf8.decode_argument(&arg("é")).unwrap(),
            b"\xc3\xa9"
        );
        assert_eq!(
            Encoding::Hex.decode_argument(&arg("00fF")).unwrap(),
            b"\x00\xff"
        );
        assert_eq!(
            Encoding::Base64.decode_argument(&arg("AP8=")).unwrap(),
            b"\x00\xff"
        );
        for (encoding, bad) in [
            (Encoding::Hex, "0"),
            (Encoding::Hex, "0g"),
            (Encoding::Hex, "é0"),
            (Encoding::Hex, "+1"),
            (Encoding::Base64, "AP8"),
            (Encoding::Base64, "%%%%"),
        ] {
            let failure = encoding.decode_argument(&arg(bad)).unwrap_err();
            assert_eq!(failure.exit(), crate::exit::Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn what_is_shown_stays_on_one_line() {
        let nasty = b"a\tb\nc\\d\x1b[2J\xff\xc2\x85\xe2\x82\xac";
        assert_eq!(
            Encoding::Utf8.show(nasty),
            "a\\tb\\nc\\\\d\\x1b[2J\\xff\\xc2\\x85\u{20ac}"
        );
        assert_eq!(Encoding::Hex.show(b"\x00\xff"), "00ff");
        assert_eq!(Encoding::Base64.show(b"\x00\xff"), "AP8=");
    }

    #[test]
    fn characters_that_change_how_others_look_are_escaped() {
        for c in [
            '\u{202e}',
            '\u{2066}',
            '\u{200b}',
            '\u{feff}',
            '\u{ad}',
            '\u{2028}',
            '\u{e0041}',
        ] {
            let shown = Encoding::Utf8.show(format!("a{c}b").as_bytes());
            assert!(shown.is_ascii() && shown.starts_with(r"a\x"), "{shown}");
        }
        assert_eq!(
            Encoding::Utf8.show("\u{e9}\u{4e00} \u{5d0}".as_bytes()),
            "\u{e9}\u{4e00} \u{5d0}"
        );
    }

    #[test]
    fn json_names_tell_the_encoding() {
        let field = |encoding: Encoding, bytes| encoding.json_field("key", bytes);
        assert_eq!(field(Encoding::Utf8, b"a"), ("key".into(), "a".into()));
        assert_eq!(
            field(Encoding::Utf8, b"\xff"),
            ("key_base64".into(), "/w==".into())
        );
        assert_eq!(
            field(Encoding::Base64, b"a"),
            ("key_base64".into(), "YQ==".into())
        );
        assert_eq!(field(Encoding::Hex, b"a"), ("key_hex".into(), "61".into()));
    }
}
