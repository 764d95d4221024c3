//! Export from a cluster to a file.
//!
//! Each shard is exported as of one moment. If its node is lost, the export of the shard restarts. So the records of a shard
//! are held back until the shard is complete: in memory, and beyond a bound in a temporary file. The output has each record
//! once, and nothing of an attempt that failed.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use futures::{Stream, StreamExt as _};
use shardkv_client::{Client, Export, ExportEvent, ExportOptions, Pair};
use tempfile::SpooledTempFile;

use super::format::FileFormat;
use super::progress::{Cuts, Progress, Summary};
use super::sniff::is_misleading;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::interrupt;
use crate::output::Format;
use crate::range::{RangeArgs, scan_options};

/// The most bytes of a shard that are held in memory. The rest goes to a temporary file.
const MAX_HELD_BYTES: usize = 8 << 20;

/// The bytes by which an import recognizes other formats.
const HEAD_BYTES: u64 = 1 << 18;

/// The arguments of `export`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  shardkv export > all.jsonl\n  shardkv export --file users.tsv --prefix user:\n\n\
    Pairs come shard by shard, and in key order within a shard. Each shard is exported as it was at one moment, so what\n\
    shares a {tag} is consistent; different shards are exported at different moments. For one cut of everything, stop the\n\
    writers. A shard that moves or loses its node meanwhile is begun anew; each pair is written once.\n\
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

/// Writes all pairs of the range, shard by shard.
pub(crate) async fn export(
    args: &ExportArgs,
    client: &Client,
    global: &GlobalArgs,
) -> Result<Exit, Failure> {
    let format = FileFormat::of(args.format, args.file.as_deref());
    let range = scan_options(&args.range, global.encoding)?;
    let events = client.export(ExportOptions {
        start: range.start,
        end: range.end,
        shards: None,
    });
    let summary = if let Some(path) = &args.file {
        to_file(path, events, format).await?
    } else {
        let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        let summary = copy(events, format, &mut out).await?;
        out.flush()?;
        summary
    };
    // Programs read the JSON summary from standard output, as with `import`, unless the pairs go there.
    if args.file.is_some() && global.output == Format::Json {
        summary.write("exported", global.output, &mut io::stdout().lock())?;
    } else {
        summary.write("exported", global.output, &mut io::stderr().lock())?;
    }
    Ok(Exit::Ok)
}

/// Writes to a temporary file in the same folder, and renames it when it is complete and on the disk.
async fn to_file(path: &Path, events: Export, format: FileFormat) -> Result<Summary, Failure> {
    let failed = |error: &io::Error| Failure::file("write", path, error);
    if path.exists() && !path.is_file() {
        // Write to a pipe or a device directly.
        let file = File::options()
            .write(true)
            .open(path)
            .map_err(|error| failed(&error))?;
        let mut out = BufWriter::with_capacity(1 << 16, file);
        let summary = copy(events, format, &mut out).await?;
        out.flush().map_err(|error| failed(&error))?;
        return Ok(summary);
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    // The temporary file is removed when this function returns, which it doesn't if a signal ends the process.
    let mut signals = interrupt::signals()?;
    let partial = tempfile::Builder::new()
        .prefix(".shardkv-export-")
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(|error| failed(&error))?;
    let mut out = BufWriter::with_capacity(1 << 16, partial);
    let copied = tokio::select! {
        copied = copy(events, format, &mut out) => Some(copied),
        _ = signals.next() => None,
    };
    let Some(summary) = copied else {
        return Err(Failure::failed(
            format!("interrupted; {} was not written", path.display()),
            "repeat the export",
        ));
    };
    let summary = summary?;
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

/// The records of the current shard that have arrived.
struct Held {
    lines: SpooledTempFile,
    records: u64,
    /// Bytes of keys and values.
    bytes: u64,
}

impl Held {
    fn new() -> Self {
        Self {
            lines: SpooledTempFile::new(MAX_HELD_BYTES),
            records: 0,
            bytes: 0,
        }
    }

    /// Drops all records.
    fn void(&mut self) -> io::Result<()> {
        self.lines.set_len(0)?;
        self.lines.seek(SeekFrom::Start(0))?;
        (self.records, self.bytes) = (0, 0);
        Ok(())
    }

    fn add(&mut self, pairs: &[Pair], format: FileFormat) -> io::Result<()> {
        let mut lines = Vec::new();
        for pair in pairs {
            format.encode(&pair.key, &pair.value, &mut lines);
            self.bytes += (pair.key.len() + pair.value.len()) as u64;
        }
        self.records += pairs.len() as u64;
        self.lines.write_all(&lines)
    }

    /// Returns the beginning of the lines.
    fn head(&mut self) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        self.lines.seek(SeekFrom::Start(0))?;
        (&mut self.lines).take(HEAD_BYTES).read_to_end(&mut head)?;
        Ok(head)
    }

    /// Writes all records, and returns the bytes of their lines.
    fn write_to(&mut self, out: &mut dyn Write) -> io::Result<u64> {
        self.lines.seek(SeekFrom::Start(0))?;
        io::copy(&mut self.lines, out)
    }
}

async fn copy(
    mut events: impl Stream<Item = Result<ExportEvent, shardkv_client::Error>> + Unpin,
    format: FileFormat,
    out: &mut dyn Write,
) -> Result<Summary, Failure> {
    let cant_hold =
        |error: &io::Error| Failure::file("hold a shard in", &std::env::temp_dir(), error);
    let mut progress = Progress::start(None);
    let mut held = Held::new();
    let mut written = 0;
    let mut cuts = Cuts::default();
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while let Some(event) = events.next().await {
        let event = event?;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        match event {
            ExportEvent::Begin { restarts, .. } => {
                held.void().map_err(|error| cant_hold(&error))?;
                cuts.restarts += u64::from(restarts > 0);
            }
            ExportEvent::Pairs(pairs) => {
                held.add(&pairs, format)
                    .map_err(|error| cant_hold(&error))?;
            }
            ExportEvent::End { .. } => {
                if written == 0 && is_misleading(&held.head()?) {
                    out.write_all(b"\n")?;
                    written += 1;
                }
                written += held.write_to(out)?;
                progress.records(held.records, held.bytes, written);
                cuts.shards += 1;
            }
        }
    }
    Ok(progress.finish(0, longest).of(cuts))
}

#[cfg(test)]
mod tests {
    use shardkv_client::ShardId;

    use super::*;

    fn pairs(keys: &[&str]) -> ExportEvent {
        let pair = |key: &&str| Pair {
            key: (*key).to_owned().into(),
            value: "v".into(),
        };
        ExportEvent::Pairs(keys.iter().map(pair).collect())
    }

    fn begin(shard: u32, restarts: u64) -> ExportEvent {
        let shard = ShardId(shard);
        ExportEvent::Begin { shard, restarts }
    }

    fn end(shard: u32) -> ExportEvent {
        let shard = ShardId(shard);
        ExportEvent::End { shard, pairs: 0 }
    }

    #[tokio::test]
    async fn what_came_of_a_broken_cut_is_not_written() {
        let events = [
            begin(0, 0),
            pairs(&["a", "b"]),
            pairs(&["c"]),
            end(0),
            begin(1, 0),
            pairs(&["x", "y"]),
            begin(1, 1),
            pairs(&["x"]),
            pairs(&["z"]),
            end(1),
            begin(2, 0),
            end(2),
        ];
        let mut out = Vec::new();
        let events = futures::stream::iter(events.map(Ok));
        let summary = copy(events, FileFormat::Tsv, &mut out).await.unwrap();
        assert_eq!(out, b"a\tv\nb\tv\nc\tv\nx\tv\nz\tv\n");
        let mut text = Vec::new();
        summary.write("exported", Format::Table, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("exported 5 records (10 B) in "), "{text}");
        assert!(
            text.contains("each of 3 shards as it was at one moment; 1 was begun anew"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn an_export_is_never_taken_for_another_format() {
        for key in ["\u{feff}a", "PK\u{3}\u{4}", "a\0"] {
            let events = [begin(0, 0), pairs(&[key]), end(0)];
            let mut out = Vec::new();
            let events = futures::stream::iter(events.map(Ok));
            copy(events, FileFormat::Tsv, &mut out).await.unwrap();
            let (mut input, format) = (&out[..], FileFormat::Tsv);
            let begun = super::super::sniff::begin(&mut input, format);
            assert_eq!(begun.map(|begun| begun.skipped).ok(), Some(0));
            assert!(out.ends_with(format!("{key}\tv\n").as_bytes()));
        }
    }

    #[tokio::test]
    async fn an_export_that_fails_is_no_export() {
        let lost = Err(shardkv_client::Error::Closed {
            maybe_applied: false,
        });
        let events = futures::stream::iter([Ok(begin(0, 0)), Ok(pairs(&["a"])), lost]);
        let mut out = Vec::new();
        assert!(copy(events, FileFormat::Tsv, &mut out).await.is_err());
        assert!(out.is_empty());
    }
}
