//! The latest configuration in the data directory, so that a node that starts without controllers can route.
//!
//! The file is a copy that helps and decides nothing: who owns a shard is in the groups' logs, and a configuration that is old
//! costs a detour. So a file that is lost or damaged is ignored. It holds only configurations of the controllers that the group
//! follows, because a node that heard from others must not believe them again after it was corrected.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;
use types::{ClusterId, ShardConfig};

use super::Known;
use crate::routing::Routing;

const NAME: &str = "CONFIGURATION";
/// The format of the file: this byte, the controllers' cluster, the configuration, and a checksum of all that.
const VERSION: u8 = 1;
/// The least time between two writes, because configurations may follow each other quickly while shards move.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads the file. Returns `None` if there is none that can be used.
pub(crate) fn read(directory: &Path) -> Option<Known> {
    let path = directory.join(NAME);
    match fs::read(&path) {
        Ok(content) => {
            let known = decode(&content.into());
            if known.is_none() {
                let path = path.display();
                tracing::warn!(
                    "{path} can't be read by this version: the node asks the controllers instead"
                );
            }
            known
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!("can't read {}: {error}", path.display());
            None
        }
    }
}

/// Replaces the file. After a failure or a crash, the file is the one before.
fn write(directory: &Path, known: &Known) -> io::Result<()> {
    let temporary = directory.join(format!("{NAME}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(&encode(known))?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(NAME))
}

fn encode(known: &Known) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend(known.cluster.0.to_be_bytes());
    out.extend(known.config.encode());
    let checksum = crc32fast::hash(&out);
    out.extend(checksum.to_be_bytes());
    out
}

fn decode(content: &Bytes) -> Option<Known> {
    let (body, checksum) = content.split_last_chunk()?;
    if crc32fast::hash(body) != u32::from_be_bytes(*checksum) {
        return None;
    }
    let (version, rest) = body.split_first()?;
    let (cluster, config) = rest.split_first_chunk()?;
    let config = ShardConfig::decode(content.slice_ref(config)).ok()?;
    (*version == VERSION).then(|| Known {
        cluster: ClusterId(u64::from_be_bytes(*cluster)),
        config: Arc::new(config),
    })
}

/// Keeps the file up to date for as long as the future is polled.
pub(crate) async fn keep(routing: Arc<Routing>, directory: PathBuf) {
    let mut known = routing.configs().watch();
    let mut ownership = routing.watch_ownership();
    let mut written = read(&directory).map(|known| known.config.num());
    let mut failed = false;
    loop {
        let latest = known.borrow_and_update().clone();
        let followed = ownership.borrow_and_update().controller;
        let latest = latest.filter(|latest| followed == Some(latest.cluster));
        let num = latest.as_ref().map(|latest| latest.config.num());
        if let Some(latest) = latest
            && written != num
        {
            let directory = directory.clone();
            let result = tokio::task::spawn_blocking(move || write(&directory, &latest)).await;
            let error = result.map_err(io::Error::from).flatten().err();
            if let Some(error) = error {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!("can't keep the latest configuration: {error}");
                }
                sleep(PAUSE).await;
                continue;
            }
            failed = false;
            written = num;
        }
        sleep(PAUSE).await;
        // The senders live in `routing`.
        tokio::select! {
            _ = known.changed() => {}
            _ = ownership.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use types::{ConfigNum, Gid};

    use super::*;

    fn known() -> Known {
        let groups = BTreeMap::from([(Gid(2), vec!["db-0.db:7400".to_owned()])]);
        let config = ShardConfig::new(ConfigNum(7), groups, [(16, Gid(2))]).unwrap();
        Known {
            cluster: ClusterId(9),
            config: Arc::new(config),
        }
    }

    #[test]
    fn a_file_is_read_as_written_and_any_other_is_ignored() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join(NAME);
        assert!(read(data.path()).is_none(), "there is none");
        for _ in 0..2 {
            write(data.path(), &known()).unwrap();
            let found = read(data.path()).unwrap();
            assert_eq!(found.cluster, known().cluster);
            assert_eq!(found.config, known().config);
        }
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode(&bad.into()).is_none(), "byte {at}");
            assert!(decode(&good[..at].to_vec().into()).is_none(), "{at} bytes");
        }
        let mut newer = good[..good.len() - 4].to_vec();
        newer[0] = VERSION + 1;
        newer.extend(crc32fast::hash(&newer).to_be_bytes());
        assert!(decode(&newer.into()).is_none(), "of another version");
    }
}
