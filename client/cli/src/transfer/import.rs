//! Import from a file to a cluster.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use shardkv_client::{Client, ClusterId};
use tokio::sync::mpsc;

use super::format::FileFormat;
use super::import_args::ImportArgs;
use super::read::{Limits, read_lines};
use super::write::write_records;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::interrupt;

/// The most lines that are parsed ahead of the writes.
const QUEUE_RECORDS: usize = 1_024;

/// Writes all records of the input.
pub(crate) async fn import(args: &ImportArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let client = &global.client_of(args.cluster)?;
    if let Some(expected) = args.cluster {
        // The client refuses other clusters, too, but says so only when its time is over.
        check_cluster(client, expected).await?;
    }
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

/// Refuses another cluster than the expected one.
async fn check_cluster(client: &Client, expected: ClusterId) -> Result<(), Failure> {
    let found = client.controller().query(None).await?.cluster_id;
    if found == expected {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Refused,
        format!("these nodes belong to cluster {found}, not {expected}; nothing was imported"),
        "check --endpoints; `shardkv config query` shows the cluster",
    ))
}
