//! The verbs on keys: `get put append delete cas scan`.

use std::ffi::OsStr;
use std::io::{Read as _, Write};
use std::path::Path;

use bytes::Bytes;
use futures::StreamExt as _;
use shardkv_client::{Client, ScanOptions};

use crate::args::{CasArgs, KvCommand, RangeArgs, ScanArgs, ValueArgs};
use crate::encoding::Encoding;
use crate::exit::{Exit, Failure};
use crate::output::{Answer, Style};

/// The most bytes that a value is read with. Nodes refuse far smaller ones; this only keeps a mistaken
/// `put key --file /dev/zero` from filling the memory.
const MAX_VALUE_READ_BYTES: u64 = 64 << 20;

/// Runs verbs with one client and one style.
#[derive(Debug)]
pub(crate) struct Verbs<'a> {
    pub(crate) client: &'a Client,
    pub(crate) style: Style,
    /// Whether `-` means standard input. In the shell, which reads commands from there, it means itself.
    pub(crate) dash_is_stdin: bool,
}

impl Verbs<'_> {
    /// Does what `command` asks and writes the answer to `out`.
    pub(crate) async fn run(
        &self,
        command: &KvCommand,
        out: &mut dyn Write,
    ) -> Result<Exit, Failure> {
        match command {
            KvCommand::Get { key } => self.get(key, out).await,
            KvCommand::Put { key, value } => self.put(key, value, out).await,
            KvCommand::Append { key, value } => self.append(key, value, out).await,
            KvCommand::Delete { key } => self.delete(key, out).await,
            KvCommand::Cas(args) => self.cas(args, out).await,
            KvCommand::Scan(args) => self.scan(args, out).await,
        }
    }

    async fn get(&self, key: &OsStr, out: &mut dyn Write) -> Result<Exit, Failure> {
        let key = self.bytes(key)?;
        let value = self.client.get(key.clone()).await?;
        let answer = Answer::Value {
            key: &key,
            value: value.as_deref(),
        };
        self.style.write(out, &answer)?;
        if value.is_some() {
            return Ok(Exit::Ok);
        }
        Err(Failure::new(
            Exit::NotFound,
            format!("no such key: {}", self.style.encoding.show(&key)),
            "check its spelling: `shardkv scan --keys-only --prefix ...` lists keys",
        ))
    }

    async fn put(
        &self,
        key: &OsStr,
        value: &ValueArgs,
        out: &mut dyn Write,
    ) -> Result<Exit, Failure> {
        let key = self.bytes(key)?;
        self.client.put(key.clone(), self.value(value)?).await?;
        self.style.write(out, &Answer::Put { key: &key })?;
        Ok(Exit::Ok)
    }

    async fn append(
        &self,
        key: &OsStr,
        value: &ValueArgs,
        out: &mut dyn Write,
    ) -> Result<Exit, Failure> {
        let key = self.bytes(key)?;
        let length = self.client.append(key.clone(), self.value(value)?).await?;
        self.style
            .write(out, &Answer::Length { key: &key, length })?;
        Ok(Exit::Ok)
    }

    async fn delete(&self, key: &OsStr, out: &mut dyn Write) -> Result<Exit, Failure> {
        let key = self.bytes(key)?;
        let existed = self.client.delete(key.clone()).await?;
        self.style
            .write(out, &Answer::Deleted { key: &key, existed })?;
        Ok(if existed { Exit::Ok } else { Exit::NotFound })
    }

    async fn cas(&self, args: &CasArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
        let key = self.bytes(&args.key)?;
        let expected = match (&args.expected.expect, &args.expected.expect_file) {
            (Some(value), _) => Some(self.bytes(value)?),
            (None, Some(path)) => Some(read_file(path)?),
            (None, None) => None,
        };
        let new = match (&args.new.set, &args.new.set_file) {
            (Some(value), _) => Some(self.argument_or_stdin(value)?),
            (None, Some(path)) => Some(read_file(path)?),
            (None, None) => None,
        };
        let swapped = self
            .client
            .compare_and_swap(key.clone(), expected, new)
            .await?;
        self.style
            .write(out, &Answer::Swapped { key: &key, swapped })?;
        if swapped {
            return Ok(Exit::Ok);
        }
        Err(Failure::new(
            Exit::CasMismatch,
            format!(
                "the value of {} is not what you expected; nothing was changed",
                self.style.encoding.show(&key)
            ),
            "get the key, and try again with its value",
        ))
    }

    async fn scan(&self, args: &ScanArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
        let mut options = scan_options(&args.range, self.style.encoding)?;
        options.limit = (args.limit > 0).then_some(args.limit);
        options.keys_only = args.keys_only;
        let mut pairs = self.client.scan(options);
        while let Some(pair) = pairs.next().await {
            let pair = pair?;
            let answer = Answer::Pair {
                key: &pair.key,
                value: (!args.keys_only).then_some(&pair.value),
            };
            self.style.write(out, &answer)?;
        }
        Ok(Exit::Ok)
    }

    fn bytes(&self, argument: &OsStr) -> Result<Bytes, Failure> {
        self.style
            .encoding
            .decode_argument(argument)
            .map(Bytes::from)
    }

    fn value(&self, args: &ValueArgs) -> Result<Bytes, Failure> {
        match (&args.value, &args.file) {
            (Some(value), _) => self.argument_or_stdin(value),
            (None, Some(path)) => read_file(path),
            (None, None) => Err(Failure::usage("no value", "give a value or --file")),
        }
    }

    fn argument_or_stdin(&self, argument: &OsStr) -> Result<Bytes, Failure> {
        if self.dash_is_stdin && argument == "-" {
            return read_limited(std::io::stdin().lock(), Path::new("standard input"));
        }
        self.bytes(argument)
    }
}

/// The range that arguments name.
pub(crate) fn scan_options(range: &RangeArgs, encoding: Encoding) -> Result<ScanOptions, Failure> {
    let bytes = |argument: &Option<std::ffi::OsString>| match argument {
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

fn read_file(path: &Path) -> Result<Bytes, Failure> {
    let file = std::fs::File::open(path).map_err(|error| Failure::file("open", path, &error))?;
    read_limited(file, path)
}

fn read_limited(from: impl std::io::Read, path: &Path) -> Result<Bytes, Failure> {
    let mut bytes = Vec::new();
    from.take(MAX_VALUE_READ_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::file("read", path, &error))?;
    if bytes.len() as u64 > MAX_VALUE_READ_BYTES {
        return Err(Failure::usage(
            format!(
                "{} has more than {MAX_VALUE_READ_BYTES} bytes",
                path.display()
            ),
            "store large objects elsewhere, and their address here",
        ));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn values_that_never_end_are_refused() {
        let endless = read_limited(std::io::repeat(0), Path::new("zero"));
        assert_eq!(endless.unwrap_err().exit(), Exit::Usage);
    }
}
