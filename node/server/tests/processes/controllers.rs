//! Tests of groups whose controllers are gone, or are others.

use std::fs;

use crate::bad_input::http_get;
use crate::wait::{holds, until};
use crate::world::{Plain, World, channel};

/// Returns true if a node says in its metrics that it refuses the controllers.
async fn refuses(world: &World, gid: u64, node: u16) -> bool {
    let text = http_get(world.group(gid).metrics(node), "/metrics").await;
    text.lines()
        .any(|line| line == "shardkv_foreign_controllers 1")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_refuse_other_controllers_and_serve_on_without_any() {
    const KEYS: usize = 40;
    let mut world = World::start(2, 3).await;
    let through = channel(&world.controllers, 0).await;
    for gid in [1, 2] {
        world.join(gid, through.clone()).await;
    }
    let settled = world.settled().await;
    let mut plain = Plain::new(channel(world.group(1), 0).await).await;
    for n in 0..KEYS {
        plain.put(&format!("k{n}"), "before").await;
    }

    // The controllers lose their volumes, and form another cluster at the same addresses.
    for node in 0..3 {
        world.controllers.kill(node);
        fs::remove_dir_all(world.controllers.data(node)).unwrap();
    }
    for node in 0..3 {
        world.controllers.start_node(node);
    }
    world.controllers.leader().await;
    for gid in [1, 2] {
        for node in 0..3 {
            until("each node refuses the new controllers", async || {
                let refuses = refuses(&world, gid, node).await;
                holds(refuses, world.groups[0].readyz(0).await)
            })
            .await;
            let status = world.group(gid).status(node).await;
            let why = status.trouble.clone().unwrap_or_default();
            assert!(why.contains("refuses the controllers"), "{status:?}");
        }
    }
    for n in 0..KEYS {
        let key = format!("k{n}");
        assert_eq!(plain.get(&key).await.as_deref(), Some("before"));
        plain.put(&key, "refused").await;
    }

    // Without any controllers, nodes that start know where the keys of other groups are.
    for node in 0..3 {
        world.controllers.kill(node);
    }
    for group in &mut world.groups {
        for node in 0..3 {
            group.kill(node);
            group.start_node(node);
        }
    }
    for gid in [1, 2] {
        world.group(gid).leader().await;
        for node in 0..3 {
            let mut plain = Plain::new(channel(world.group(gid), node).await).await;
            for n in 0..KEYS {
                let key = format!("k{n}");
                let before = if (gid, node) == (1, 0) {
                    "refused"
                } else {
                    "after"
                };
                assert_eq!(plain.get(&key).await.as_deref(), Some(before));
                plain.put(&key, "after").await;
            }
        }
    }
    for group in &mut world.groups {
        for node in 0..3 {
            let printed = group.node(node).printed();
            assert!(printed.contains("refuses the controllers of cluster"));
            assert!(group.node(node).is_running(), "{printed}");
        }
    }
    let owners = settled.config.unwrap().owners;
    assert!(owners.iter().any(|run| run.gid == 1) && owners.iter().any(|run| run.gid == 2));
}
