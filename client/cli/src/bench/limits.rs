//! Measures the limits of any such store on this machine: fsync of its disk, and a gRPC echo over loopback.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;

use super::echo::{self, EchoClient};
use super::latencies::{Latencies, Row, table};
use crate::exit::{Exit, Failure};
use crate::output::{Format, json_line};
use crate::parse::duration;

/// The smallest write of a write-ahead log.
const BLOCK_BYTES: usize = 4_096;
/// The blocks that the overwriting loop goes around in.
const RECYCLED_BLOCKS: u64 = 1_024;

/// The arguments of `bench limits`.
#[derive(Debug, Args)]
pub(super) struct LimitsArgs {
    /// A folder on the disk to measure; default: the one for temporary files
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Number of concurrent echoes
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// The size of an echo, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=(1 << 20)))]
    value_bytes: u32,
    /// Duration of each measurement
    #[arg(long, value_parser = duration, default_value = "3s")]
    duration: Duration,
}

/// The measured limits.
#[derive(Debug, Serialize)]
struct Limits {
    clients: u32,
    value_bytes: u32,
    /// 4 KiB written at the end of a growing file, then fdatasync.
    fsync_append: Row,
    /// 4 KiB written over what was written before, then fdatasync.
    fsync_overwrite: Row,
    /// A unary call of tonic over loopback, the server on a thread of its own.
    echo_unary: Row,
}

/// Measures one after the other and writes the result.
pub(super) async fn run(args: &LimitsArgs, format: Format) -> Result<Exit, Failure> {
    let folder = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let duration = args.duration;
    let disk = folder.clone();
    let fsync = tokio::task::spawn_blocking(move || {
        Ok((
            fsync_loop(&disk, duration, false)?,
            fsync_loop(&disk, duration, true)?,
        ))
    });
    let (fsync_append, fsync_overwrite) = fsync
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|error| Failure::file("write and sync in", &folder, &error))?;
    let limits = Limits {
        clients: args.clients,
        value_bytes: args.value_bytes,
        fsync_append,
        fsync_overwrite,
        echo_unary: echo_load(args).await?,
    };
    let mut out = io::stdout().lock();
    if format == Format::Json {
        json_line(&mut out, &limits)?;
        return Ok(Exit::Ok);
    }
    let echo = format!("gRPC echo, {} clients", args.clients);
    let rows = [
        (
            "write 4 KiB + fdatasync, growing file",
            &limits.fsync_append,
        ),
        (
            "write 4 KiB + fdatasync, recycled file",
            &limits.fsync_overwrite,
        ),
        (echo.as_str(), &limits.echo_unary),
    ];
    table("LIMIT", &rows).write(&mut out)?;
    Ok(Exit::Ok)
}

/// Writes and syncs one block after the other.
fn fsync_loop(folder: &std::path::Path, duration: Duration, recycle: bool) -> io::Result<Row> {
    let file: File = tempfile::tempfile_in(folder)?;
    let block = [0x5a; BLOCK_BYTES];
    if recycle {
        for number in 0..RECYCLED_BLOCKS {
            file.write_all_at(&block, number * BLOCK_BYTES as u64)?;
        }
        file.sync_all()?;
    }
    let mut latencies = Latencies::new();
    let begin = Instant::now();
    while begin.elapsed() < duration || latencies.count() == 0 {
        let written = latencies.count();
        let at = if recycle {
            written % RECYCLED_BLOCKS
        } else {
            written
        };
        let start = Instant::now();
        file.write_all_at(&block, at * BLOCK_BYTES as u64)?;
        file.sync_data()?;
        latencies.add(start.elapsed());
    }
    Ok(latencies.row(begin.elapsed().as_secs_f64()))
}

/// Echoes from `clients` tasks over one connection, after a short warm-up.
async fn echo_load(args: &LimitsArgs) -> Result<Row, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(
            format!("the echo failed: {error}"),
            "check that loopback connections are allowed",
        )
    };
    let address = echo::serve().map_err(|error| failed(&error))?;
    let client = EchoClient::connect(address)
        .await
        .map_err(|error| failed(&error))?;
    let payload = Bytes::from(vec![0x5a; args.value_bytes as usize]);
    let begin = Instant::now();
    let measure = begin + args.duration / 10;
    let end = measure + args.duration;
    let latencies = Arc::new(Mutex::new(Latencies::new()));
    let mut tasks = JoinSet::new();
    for _ in 0..args.clients {
        let (mut client, payload) = (client.clone(), payload.clone());
        let latencies = Arc::clone(&latencies);
        tasks.spawn(async move {
            loop {
                let start = Instant::now();
                if start >= end {
                    return Ok::<(), tonic::Status>(());
                }
                client.echo(payload.clone()).await?;
                if start >= measure {
                    let taken = start.elapsed();
                    latencies
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .add(taken);
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.map_err(|error| failed(&error))?
            .map_err(|error| failed(&error))?;
    }
    let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(latencies.row(measure.elapsed().as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_loops_write() {
        let folder = tempfile::tempdir().unwrap();
        for recycle in [false, true] {
            let row = fsync_loop(folder.path(), Duration::ZERO, recycle).unwrap();
            assert!(row.count == 1 && row.max_us > 0.0);
        }
        let missing = folder.path().join("missing");
        assert!(fsync_loop(&missing, Duration::ZERO, false).is_err());
    }
}
