//! The arguments of `import`.

use std::path::PathBuf;

use clap::Args;
use shardkv_client::ClusterId;

use super::format::FileFormat;
use crate::parse::parse_cluster;

/// The arguments of `import`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  shardkv import names.tsv\n  zcat dump.jsonl.gz | shardkv import\n  shardkv import names.tsv --skip-bad\n\n\
    A bad line stops the import with its number, unless --skip-bad is given. Lines before it were written. Importing\n\
    sets values, so repeating it does no harm; after a failure or Ctrl-C, --from-line continues where the error says.\n\n\
    Exit code 5: no leader answered in time; nothing was imported.\n\
    Exit code 1: the import failed after some lines were imported."
)]
pub(crate) struct ImportArgs {
    /// The file; `-` or nothing: standard input
    pub(super) file: Option<PathBuf>,
    /// Import into this cluster only, as `shardkv config query` names it
    #[arg(long, value_name = "ID", env = "SHARDKV_CLUSTER", hide_env_values = true, value_parser = parse_cluster)]
    pub(super) cluster: Option<ClusterId>,
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
