//! Import from a file to a cluster.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use clap::Args;
use shardkv_client::Client;
use tokio::sync::mpsc;

use super::format::FileFormat;
use super::read::{Limits, read_lines};
use super::write::write_records;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::interrupt;

/// The most lines that are parsed ahead of the writes.
const QUEUE_RECORDS: usize = 1_024;

/// The arguments of `import`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  shardkv import names.tsv\n  zcat dump.jsonl.gz | shardkv import\n  shardkv import names.tsv --skip-bad\n\n\
    A bad line stops the import with its number, unless --skip-bad is given. Lines before it were written. Importing\n\
    sets values, so repeating it does no harm; after a failure or Ctrl-C, --from-line continues where the error says."
)]
pub(crate) struct ImportArgs {
    /// The file; `-` or nothing: standard input
    file: Option<PathBuf>,
    /// The format; default: by the file's extension, else jsonl
    #[arg(long, value_enum)]
    pub(super) format: Option<FileFormat>,
    /// Report bad, overlong and refused lines on standard error and go on
    #[arg(long)]
    pub(super) skip_bad: bool,
    /// Begin with this line, counted from 1
    #[arg(long, value_name = "LINE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) from_line: u64,
    /// Maximum number of writes in flight
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) in_flight: u32,
    /// Maximum bytes of lines in memory, parsed ahead and in flight
    #[arg(long, value_name = "BYTES", default_value_t = 32 << 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) memory_bytes: u64,
    /// The longest line that is read, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) max_line_bytes: u64,
}

/// Writes all records of the input.
pub(crate) async fn import(
    args: &ImportArgs,
    client: &Client,
    global: &GlobalArgs,
) -> Result<Exit, Failure> {
    let path = args.file.as_deref().filter(|path| *path != Path::new("-"));
    let (input, total): (Box<dyn io::Read + Send>, Option<u64>) = match path {
        Some(path) => {
            let file = File::open(path).map_err(|error| Failure::file("open", path, &error))?;
            let metadata = file
                .metadata()
                .map_err(|error| Failure::file("open", path, &error))?;
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        }
        None => (Box::new(io::stdin()), None),
    };
    let format = FileFormat::of(args.format, path);
    let (sender, parsed) = mpsc::channel(QUEUE_RECORDS);
    let limits = Limits::of(args);
    std::thread::spawn(move || {
        read_lines(
            BufReader::with_capacity(1 << 18, input),
            format,
            &limits,
            &sender,
        );
    });
    let put = |key, value| {
        let client = client.clone();
        async move { client.put(key, value).await }
    };
    let summary = write_records(args, parsed, total, interrupt::signals()?, put).await?;
    summary.write("imported", global.output, &mut io::stdout().lock())?;
    Ok(Exit::Ok)
}
