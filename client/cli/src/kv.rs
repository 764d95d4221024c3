//! The commands on keys: `get put append delete cas scan`.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, Subcommand};
use futures::StreamExt as _;

use crate::delete::DeleteArgs;
use crate::exit::{Exit, Failure};
use crate::output::Answer;
use crate::range::{RangeArgs, scan_options};
use crate::verbs::Verbs;

/// The largest value that is read from a file, in bytes. Nodes have a far lower limit; this one only keeps a mistaken
/// `put key --file /dev/zero` from filling the memory.
const MAX_VALUE_READ_BYTES: u64 = 64 << 20;

/// The commands on keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// Read a key's value
    #[command(
        after_help = "Examples:\n  shardkv get greeting\n  shardkv get photo --output raw > photo.jpg\n\nExit code 3: the key does not exist."
    )]
    Get {
        /// The key
        key: OsString,
    },
    /// Set a key's value
    #[command(
        override_usage = "shardkv put <KEY> <VALUE|-|--file FILE>",
        after_help = "Examples:\n  shardkv put greeting hello\n  date | shardkv put now -\n  shardkv put photo --file photo.jpg\n  shardkv put --encoding hex 00ff 0102"
    )]
    Put {
        /// The key
        key: OsString,
        #[command(flatten)]
        value: ValueArgs,
    },
    /// Append bytes to a key's value; a missing key counts as empty
    #[command(
        override_usage = "shardkv append <KEY> <VALUE|-|--file FILE>",
        after_help = "Examples:\n  shardkv append log 'one more line'\n\nPrints the value's length in bytes afterwards."
    )]
    Append {
        /// The key
        key: OsString,
        #[command(flatten)]
        value: ValueArgs,
    },
    /// Delete a key
    #[command(
        visible_alias = "del",
        override_usage = "shardkv delete <KEY|--prefix PREFIX>",
        after_help = "Examples:\n  shardkv delete greeting\n  shardkv delete --prefix user: --yes\n\nDeleting by prefix is not one step: keys that are written meanwhile may be deleted or not. It prints the number of\ndeleted keys.\n\nExit code 3: the key did not exist, or no key begins with the prefix.\nExit code 1: the deletion by prefix failed after some keys were deleted."
    )]
    Delete(DeleteArgs),
    /// Set or delete a key only if its present value is the expected one (compare and swap)
    #[command(
        override_usage = "shardkv cas <KEY> <--expect VALUE|--expect-file FILE|--expect-absent> <--set VALUE|--set-file FILE|--delete>",
        after_help = "Examples:\n  shardkv cas lock --expect-absent --set me      take it if nobody has\n  shardkv cas lock --expect me --delete          give it back\n  shardkv cas count --expect 1 --set 2\n\nExit code 4: the value was something else; nothing was changed."
    )]
    Cas(CasArgs),
    /// List pairs in key order
    #[command(
        after_help = "Examples:\n  shardkv scan --prefix user: --limit 20\n  shardkv scan a c --keys-only\n\nEach page is consistent by itself. A long scan reads its pages at different moments."
    )]
    Scan(ScanArgs),
}

/// A value from the command line, from standard input, or from a file.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ValueArgs {
    /// The value; `-` reads it from standard input, unchanged
    #[arg(allow_negative_numbers = true)]
    pub(crate) value: Option<OsString>,
    /// Read the value from this file, unchanged
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// The arguments of `cas`: a key, the expected value and the new value.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct CasArgs {
    /// The key
    pub(crate) key: OsString,
    #[command(flatten)]
    pub(crate) expected: ExpectedArgs,
    #[command(flatten)]
    pub(crate) new: NewArgs,
}

/// The expected value of `cas`.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ExpectedArgs {
    /// The expected value
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub(crate) expect: Option<OsString>,
    /// A file with the expected value
    #[arg(long, value_name = "FILE")]
    pub(crate) expect_file: Option<PathBuf>,
    /// The key must not exist
    #[arg(long)]
    pub(crate) expect_absent: bool,
}

/// The new value of `cas`.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct NewArgs {
    /// The new value; `-` reads it from standard input
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub(crate) set: Option<OsString>,
    /// A file with the new value
    #[arg(long, value_name = "FILE")]
    pub(crate) set_file: Option<PathBuf>,
    /// Delete the key
    #[arg(long)]
    pub(crate) delete: bool,
}

/// The arguments of `scan`.
#[derive(Debug, Args)]
pub(crate) struct ScanArgs {
    #[command(flatten)]
    pub(crate) range: RangeArgs,
    /// The maximum number of pairs; 0 lists all
    #[arg(long, short = 'n', default_value_t = 0)]
    pub(crate) limit: u64,
    /// Print keys without values
    #[arg(long, short)]
    pub(crate) keys_only: bool,
}

impl Verbs<'_> {
    /// Runs `command` and writes the result to `out`.
    pub(crate) async fn run(
        &self,
        command: &KvCommand,
        out: &mut dyn Write,
    ) -> Result<Exit, Failure> {
        match command {
            KvCommand::Get { key } => self.get(key, out).await,
            KvCommand::Put { key, value } => self.put(key, value, out).await,
            KvCommand::Append { key, value } => self.append(key, value, out).await,
            KvCommand::Delete(args) => self.delete(args, out).await,
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
            "check the spelling; `shardkv scan --keys-only --prefix ...` lists keys",
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
        self.tell(out, &Answer::Put { key: &key })?;
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
        self.tell(out, &Answer::Length { key: &key, length })?;
        Ok(Exit::Ok)
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
        let answer = Answer::Swapped { key: &key, swapped };
        if swapped {
            self.tell(out, &answer)?;
            return Ok(Exit::Ok);
        }
        self.style.write(out, &answer)?;
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

    fn value(&self, args: &ValueArgs) -> Result<Bytes, Failure> {
        match (&args.value, &args.file) {
            (Some(value), _) => self.argument_or_stdin(value),
            (None, Some(path)) => read_file(path),
            (None, None) => Err(Failure::usage("no value", "give a value or --file")),
        }
    }

    fn argument_or_stdin(&self, argument: &OsStr) -> Result<Bytes, Failure> {
        if self.dash_is_stdin && argument == "-" {
            return read_limited(io::stdin().lock(), Path::new("standard input"));
        }
        self.bytes(argument)
    }
}

fn read_file(path: &Path) -> Result<Bytes, Failure> {
    let file = std::fs::File::open(path).map_err(|error| Failure::file("open", path, &error))?;
    read_limited(file, path)
}

fn read_limited(from: impl io::Read, path: &Path) -> Result<Bytes, Failure> {
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

    #[test]
    fn values_that_never_end_are_refused() {
        let endless = read_limited(io::repeat(0), Path::new("zero"));
        assert_eq!(endless.unwrap_err().exit(), Exit::Usage);
    }
}
