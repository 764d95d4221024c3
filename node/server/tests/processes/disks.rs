//! Tests with disks that are full or damaged.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures::TryStreamExt as _;
use shardkv_client::{Error, ScanOptions, ShardSet};
use tokio::io::AsyncWriteExt as _;

use crate::cluster::{Cluster, Setup};
use crate::wait::{holds, until};
use crate::world::{Plain, World, channel};

/// A small file system in memory, unmounted when dropped.
struct SmallDisk {
    mounted: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts the file system. Returns `None` with a message where mounting isn't allowed. CI runs as root and sets `CI`,
    /// so there the tests can't be skipped.
    fn mount(mebibytes: u32) -> Option<Self> {
        let mounted = tempfile::Builder::new()
            .prefix("small-disk-")
            .tempdir()
            .unwrap();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(mounted.path())
            .output()
            .unwrap();
        if output.status.success() {
            return Some(Self { mounted });
        }
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must be able to mount: {why}"
        );
        println!(
            "SKIPPED: a full disk needs a mount, and that needs root: {}",
            why.trim()
        );
        None
    }

    fn path(&self) -> &Path {
        self.mounted.path()
    }

    /// Fills the disk until at most `leave` bytes are free. Removing the file gives them back.
    fn fill(&self, leave: u64) -> PathBuf {
        let path = self.path().join("ballast");
        let mut ballast = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        let block = vec![1; 64 << 10];
        while self.free() > leave {
            let want = usize::try_from(self.free() - leave)
                .unwrap()
                .min(block.len());
            if ballast.write_all(&block[..want]).is_err() {
                break;
            }
        }
        path
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A lazy unmount: a node that is just ending may still hold files.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.mounted.path())
            .status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_serves_reads_and_deletes_and_recovers() {
    let Some(disk) = SmallDisk::mount(512) else {
        return;
    };
    let setup = Setup {
        data: Some(disk.path().to_owned()),
        ..Setup::of(3)
    };
    let cluster = Cluster::start(setup.with("disk-reserve-bytes", "67108864")).await;
    let client = cluster.client().await;
    let brief = client.with_timeout(Duration::from_secs(3));
    for n in 0..100 {
        client.put(format!("k{n}"), format!("v{n}")).await.unwrap();
    }

    let ballast = disk.fill(32 << 20);
    until("writes are refused", async || {
        match brief.put("new", "value").await {
            Err(Error::DiskFull { .. }) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let value = client.get("k7").await.unwrap();
    assert_eq!(value.as_deref(), Some(&b"v7"[..]), "reads are served");
    let pairs: Vec<_> = client
        .scan(ScanOptions::prefix("k"))
        .try_collect()
        .await
        .unwrap();
    assert_eq!(pairs.len(), 100, "scans too");
    assert!(client.delete("k8").await.unwrap(), "deletes are served");
    assert_eq!(client.get("k8").await.unwrap(), None);
    let leader = cluster.leader().await;
    cluster
        .status_when(leader, "the status says so", |status| status.disk_full)
        .await;

    fs::remove_file(ballast).unwrap();
    until("writes work again", async || {
        brief.put("new", "value").await
    })
    .await;
    assert_eq!(
        client.get("new").await.unwrap().as_deref(),
        Some(&b"value"[..])
    );
}

/// Another process takes the reserve while nodes write. A node may stop or wait then, but acknowledged writes stay, and
/// after space is free again and a restart everything continues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_a_single_byte_loses_no_acknowledged_write() {
    let Some(disk) = SmallDisk::mount(512) else {
        return;
    };
    let setup = Setup {
        data: Some(disk.path().to_owned()),
        ..Setup::of(3)
    };
    let mut cluster = Cluster::start(setup.with("disk-reserve-bytes", "1048576")).await;
    let client = cluster.client().await;
    let brief = client.with_timeout(Duration::from_secs(2));
    let mut acknowledged = Vec::new();
    let mut ballast = None;
    let value = "x".repeat(32 << 10);
    let mut refused = 0;
    for n in 0..4_000 {
        let key = format!("k{n}");
        if n == 50 {
            ballast = Some(disk.fill(0));
        }
        match brief.put(key.clone(), value.clone()).await {
            Ok(()) => acknowledged.push(key),
            Err(error) => {
                assert!(error.is_retryable(), "{error:?}");
                refused += 1;
                if refused == 3 {
                    break;
                }
            }
        }
    }
    assert_eq!(refused, 3, "a disk without space refuses writes");
    fs::remove_file(ballast.unwrap()).unwrap();
    for node in 0..3 {
        if !cluster.node(node).is_running() {
            let mut stopped = cluster.take(node);
            let code = stopped.exited().await.code();
            assert_eq!(code, Some(7), "{}", stopped.printed());
            cluster.start_node(node);
        }
    }
    until("writes work again", async || {
        brief.put("after", "space").await
    })
    .await;
    for key in &acknowledged {
        let found = client.get(key.clone()).await.unwrap();
        assert_eq!(found.map(|v| v.len()), Some(value.len()), "{key}");
    }
    assert!(acknowledged.len() >= 50);
}

/// Returns the largest file below `directory` whose name ends with `.log`: the one of the log's database.
fn largest_log(directory: &Path) -> PathBuf {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .max_by_key(|path| written(path).len())
        .expect("the log has a file")
}

/// Returns the content of a file without the zeros at its end, which are only preallocated.
fn written(path: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    File::open(path).unwrap().read_to_end(&mut content).unwrap();
    let end = content.iter().rposition(|&b| b != 0).map_or(0, |at| at + 1);
    content.truncate(end);
    content
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_damaged_in_the_middle_takes_no_part_and_says_why() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let client = cluster.client().await;
    for n in 0..500 {
        client.put(format!("k{n}"), "v".repeat(200)).await.unwrap();
    }
    cluster.all_caught_up().await;
    let damaged = cluster.follower().await;
    cluster.kill(damaged);

    let file = largest_log(&cluster.data(damaged).join("log"));
    let middle = written(&file).len() / 2;
    let mut open = OpenOptions::new().write(true).open(&file).unwrap();
    open.seek(SeekFrom::Start(middle as u64)).unwrap();
    open.write_all(&[0x5a; 64]).unwrap();
    open.sync_all().unwrap();

    cluster.start_node(damaged);
    until("the node says that its log is damaged", async || {
        let printed = cluster.node(damaged).printed();
        holds(printed.contains("damaged"), printed)
    })
    .await;
    let status = cluster.node(damaged).exited().await;
    assert_eq!(status.code(), Some(3), "the code for damage");
    client.put("k0", "after").await.unwrap();
    assert_ne!(cluster.leader().await, damaged);
    // The error message names this remedy: a new disk is a new member.
    drop(cluster.take(damaged));
    fs::remove_dir_all(cluster.data(damaged)).unwrap();
    cluster.start_node(damaged);
    cluster
        .status_when(damaged, "the replaced node has everything", |status| {
            status.trouble.is_none() && status.last_applied > 500
        })
        .await;
}

/// A shard that doesn't fit on the disk of one voter of its new group is not begun, and comes once it fits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_comes_only_if_each_voter_has_room_for_it() {
    let mut world = World::start(1, 1).await;
    let at_one = channel(world.group(1), 0).await;
    world.join(1, at_one.clone()).await;
    let mut plain = Plain::new(at_one.clone()).await;
    for n in 0..100 {
        plain.put(&format!("k{n}"), &"v".repeat(1_000)).await;
    }
    let mut group = Cluster::prepare(world.group_setup(2, 3));
    group.start_node(0);
    group.start_node(1);
    // With less than a quarter of the reserve the node would stop.
    let reserve = 2 * group.status(0).await.disk_free_bytes;
    group.set("disk-reserve-bytes", &reserve.to_string());
    group.start_node(2);
    let full = group.address(2).to_string();
    until("the group has a leader that knows it", async || {
        let status = group.status(0).await;
        holds(status.leader_id.is_some(), format!("{status:?}"))
    })
    .await;
    world.groups.push(group);
    world.join(2, at_one).await;
    let wanted = format!("no room: the disk of {full} takes 0 more bytes");
    let group = world.group(2);
    until("the status says which disk is full", async || {
        let mut waits = Vec::new();
        for node in 0..3 {
            let shards = group.admin(node).shards(&ShardSet::default(), false).await;
            let shards = shards.map_err(|error| error.to_string())?.shards;
            assert!(shards.iter().all(|it| it.pulled_bytes == 0), "{shards:?}");
            waits.extend(shards.into_iter().filter_map(|it| it.waits_for));
        }
        let found = waits.iter().any(|why| why.starts_with(&wanted));
        holds(found, format!("{waits:?}"))
    })
    .await;
    let status = group.status(2).await;
    assert!(status.disk_free_bytes > 0 && status.disk_total_bytes > status.disk_free_bytes);
    assert_eq!(status.disk_reserve_bytes, reserve);

    let group = &mut world.groups[1];
    group.kill(2);
    group.set("disk-reserve-bytes", "0");
    group.start_node(2);
    world.settled().await;
    for n in 0..100 {
        let value = plain.get(&format!("k{n}")).await;
        assert_eq!(value, Some("v".repeat(1_000)));
    }
}

/// Idle connections take all descriptors that connections may have, and the node goes on: its stores have their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_never_take_the_files_of_the_stores() {
    let mut cluster = Cluster::prepare(Setup::of(1));
    cluster.start_node_with_files(0, 500);
    let client = cluster.client().await;
    client.put("before", "value").await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..600 {
        let mut connection = tokio::net::TcpStream::connect(cluster.listen(0))
            .await
            .unwrap();
        // The node may have closed it already.
        let _ = connection
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await;
        idle.push(connection);
    }
    // Enough for tables of both databases, which are new files.
    for n in 0..80 {
        client.put(format!("k{n}"), vec![7; 1 << 20]).await.unwrap();
    }
    assert!(cluster.node(0).is_running());
    assert!(cluster.node(0).printed().contains("reduced"));
    drop(idle);

    cluster.kill(0);
    cluster.start_node_with_files(0, 100);
    let status = cluster.node(0).exited().await;
    assert_eq!(status.code(), Some(9), "{}", cluster.node(0).printed());
    assert!(cluster.node(0).printed().contains("ulimit -n"));
    cluster.kill(0);

    cluster.start_node(0);
    let client = cluster.client().await;
    let before = client.get("before").await.unwrap();
    assert_eq!(before.as_deref(), Some(&b"value"[..]), "nothing is lost");
}
