//! Watches the room on the disks of the group's voters, for the mover of the group's leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::v1::StatusRequest;
use api::v1::admin_client::AdminClient;
use raft::MemberKind;
use replica::Status;
use shardkv::mover::Room;
use storage::Disk;
use tokio::time::{MissedTickBehavior, interval, timeout};
use types::NodeId;

use super::{SharedMover, leads};
use crate::forward::{Forwarder, once};
use crate::lifecycle::Lifecycle;
use crate::metrics::{Metrics, set};

/// The pause between two measurements.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The maximum time for a voter's answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Measures the disks of the group's voters.
pub(crate) struct RoomWatch {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) mover: Arc<SharedMover>,
    pub(crate) disk: Disk,
}

impl RoomWatch {
    /// Tells the mover how much room there is, for as long as the future is polled.
    pub(crate) async fn run(self) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The last known room of each voter. A voter that doesn't answer doesn't stop the group.
        let mut known: BTreeMap<NodeId, Room> = BTreeMap::new();
        let mut watched = self.lifecycle.watch();
        let mut led = false;
        loop {
            tokio::select! {
                _ = look.tick() => {}
                // A new leader needs to know before it begins a shard.
                _ = watched.wait_for(|view| leads(view) && !led) => look.reset(),
            }
            let view = self.lifecycle.view();
            led = leads(&view);
            let status = view.status.as_ref().filter(|_| led);
            let voters = status.map(|status| voters(status)).unwrap_or_default();
            known.retain(|node, _| voters.contains_key(node));
            for (node, address) in voters {
                let is_own = status.is_some_and(|status| status.node == node);
                let bytes = if is_own {
                    self.own_room()
                } else {
                    self.room_of(node, &address).await
                };
                if let Some(bytes) = bytes {
                    let node_room = Room {
                        node: address,
                        bytes,
                    };
                    known.insert(node, node_room);
                }
            }
            let least = known.values().min_by_key(|room| room.bytes).cloned();
            set(
                &self.metrics.handoff.room_bytes,
                least.as_ref().map_or(0, |room| room.bytes),
            );
            if let Some(driver) = self.mover.lock().0.as_mut() {
                driver.set_room(least);
            }
        }
    }

    /// Returns the bytes that this node can take before it refuses writes.
    fn own_room(&self) -> Option<u64> {
        let space = self.disk.space().ok()?;
        Some(space.free_bytes.saturating_sub(space.reserve_bytes))
    }

    /// Returns the bytes that another voter can take before it refuses writes.
    async fn room_of(&self, node: NodeId, address: &str) -> Option<u64> {
        let asked = async {
            let channel = self.forwarder.channels.get(address).await.ok()?;
            let request = once(StatusRequest {});
            let status = AdminClient::new(channel).status(request).await.ok()?;
            Some(status.into_inner())
        };
        let status = timeout(PATIENCE, asked).await.ok()??;
        // Another node may have got the address.
        let is_measured = status.node_id == node.0 && status.disk_total_bytes > 0;
        is_measured.then(|| {
            status
                .disk_free_bytes
                .saturating_sub(status.disk_reserve_bytes)
        })
    }
}

fn voters(status: &Status) -> BTreeMap<NodeId, String> {
    let members = status.membership.members();
    let voters = members.filter(|(_, member)| member.kind == MemberKind::Voter);
    voters
        .map(|(node, member)| (node, member.address.clone()))
        .collect()
}
