//! The common parts of the commands on keys: the client, the style, and the answer of a write.

use std::ffi::OsStr;
use std::io::{self, Write};

use bytes::Bytes;
use shardkv_client::Client;

use crate::exit::{Exit, Failure};
use crate::output::{Answer, Style};

/// Runs commands on keys with one client and one style.
#[derive(Debug)]
pub(crate) struct Verbs<'a> {
    pub(crate) client: &'a Client,
    pub(crate) style: Style,
    /// True if `-` stands for standard input. The shell reads commands from there, so in the shell `-` is a plain value.
    pub(crate) dash_is_stdin: bool,
}

impl Verbs<'_> {
    /// Writes the answer of a write that was done. A full disk behind standard output doesn't make the write fail.
    pub(crate) fn tell(&self, out: &mut dyn Write, answer: &Answer<'_>) -> Result<(), Failure> {
        let told = self.style.write(out, answer).and_then(|()| out.flush());
        told.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => error.into(),
            _ => Failure::new(
                Exit::OutcomeUnknown,
                format!("the write was done, but its answer can't be written: {error}"),
                "don't repeat the command; check where the output goes, and that the disk has space",
            ),
        })
    }

    pub(crate) fn bytes(&self, argument: &OsStr) -> Result<Bytes, Failure> {
        self.style
            .encoding
            .decode_argument(argument)
            .map(Bytes::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Standard output on a full disk, behind a buffer.
    struct Full(io::ErrorKind);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[tokio::test]
    async fn a_write_whose_answer_cant_be_written_has_not_failed() {
        let options = shardkv_client::ClientOptions::new(["127.0.0.1:1"]);
        let verbs = Verbs {
            client: &Client::lazy(options).unwrap(),
            style: Style::default(),
            dash_is_stdin: false,
        };
        let answer = Answer::Length {
            key: b"k",
            length: 3,
        };
        let full = verbs.tell(&mut Full(io::ErrorKind::StorageFull), &answer);
        let failure = full.unwrap_err();
        assert_eq!(failure.exit(), Exit::OutcomeUnknown);
        let text = failure.to_string();
        assert!(text.contains("the write was done"), "{text}");
        let gone = verbs.tell(&mut Full(io::ErrorKind::BrokenPipe), &answer);
        assert_eq!(gone.unwrap_err().exit(), Exit::Ok);
    }
}
