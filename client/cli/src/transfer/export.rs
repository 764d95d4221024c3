//! From a cluster to a file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use client::Client;
use futures::StreamExt as _;

use super::FileFormat;
use super::progress::{Progress, Summary};
use crate::args::{GlobalArgs, RangeArgs};
use crate::exit::{Exit, Failure};
use crate::kv::scan_options;
use crate::output::Format;

/// What is exported, and to where.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  shardkv export > all.jsonl\n  shardkv export --file users.tsv --prefix user:\n\n\
    Pairs come in key order. An export is not one cut in time: each page of it is consistent, but a write that happens\n\
    meanwhile may be in it or not. For a cut, stop the writers.\n\
    A file appears under its name only when it is complete; the summary goes to standard error."
)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    range: RangeArgs,
    /// Write here instead of to standard output
    #[arg(long, short)]
    file: Option<PathBuf>,
    /// The format; default: by the file's extension, else jsonl
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
}

/// Writes all pairs of the range in key order.
pub(crate) async fn export(
    args: &ExportArgs,
    client: &Client,
    global: &GlobalArgs,
) -> Result<Exit, Failure> {
    let format = FileFormat::of(args.format, args.file.as_deref());
    let options = scan_options(&args.range, global.encoding)?;
    let pairs = client.scan(options);
    let summary = if let Some(path) = &args.file {
        to_file(path, pairs, format).await?
    } else {
        let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        let summary = copy(pairs, format, &mut out).await?;
        out.flush()?;
        summary
    };
    // JSON is for programs, which read it where they find an import's: on standard output, unless the pairs are there.
    if args.file.is_some() && global.output == Format::Json {
        summary.write("exported", global.output, &mut io::stdout().lock())?;
    } else {
        summary.write("exported", global.output, &mut io::stderr().lock())?;
    }
    Ok(Exit::Ok)
}

/// Writes to a temporary file in the same folder, and gives it its name when it is complete and on the disk.
async fn to_file(path: &Path, pairs: client::Scan, format: FileFormat) -> Result<Summary, Failure> {
    let failed = |error: &io::Error| Failure::file("write", path, error);
    if path.exists() && !path.is_file() {
        // A pipe or a device is written as it is.
        let file = File::options()
            .write(true)
            .open(path)
            .map_err(|error| failed(&error))?;
        let mut out = BufWriter::with_capacity(1 << 16, file);
        let summary = copy(pairs, format, &mut out).await?;
        out.flush().map_err(|error| failed(&error))?;
        return Ok(summary);
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let partial = tempfile::Builder::new()
        .prefix(".shardkv-export-")
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(|error| failed(&error))?;
    let mut out = BufWriter::with_capacity(1 << 16, partial);
    let summary = copy(pairs, format, &mut out).await?;
    let partial = out.into_inner().map_err(|error| failed(error.error()))?;
    partial
        .as_file()
        .sync_all()
        .map_err(|error| failed(&error))?;
    partial
        .persist(path)
        .map_err(|error| failed(&error.error))?;
    Ok(summary)
}

async fn copy(
    mut pairs: client::Scan,
    format: FileFormat,
    out: &mut dyn Write,
) -> Result<Summary, Failure> {
    let mut progress = Progress::start(None);
    let mut line = Vec::new();
    let mut written = 0;
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while let Some(pair) = pairs.next().await {
        let pair = pair?;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        line.clear();
        format.encode(&pair.key, &pair.value, &mut line);
        out.write_all(&line)?;
        written += line.len() as u64;
        progress.record((pair.key.len() + pair.value.len()) as u64, written);
    }
    Ok(progress.finish(0, longest))
}
