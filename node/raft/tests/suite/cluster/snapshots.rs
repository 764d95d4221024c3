//! The transfer of snapshots between the nodes of a cluster, each in one empty chunk; the cluster passes the content
//! beside it.

use bytes::Bytes;
use raft::{Envelope, LogStore, Message, Payload, SnapshotChunk, SnapshotMeta, SnapshotStatus};
use types::NodeId;

use super::Cluster;

impl Cluster {
    pub(super) fn serve_snapshots(&mut self, id: NodeId) -> bool {
        if !self.send_snapshots {
            return false;
        }
        let wanted = std::mem::take(&mut self.node_mut(id).snapshots_wanted);
        let fresh: Vec<NodeId> = wanted
            .into_iter()
            .filter(|to| !self.snapshot_on_its_way(id, *to))
            .collect();
        for to in &fresh {
            self.send_snapshot(id, *to);
        }
        !fresh.is_empty()
    }

    fn snapshot_on_its_way(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.contains(&(from, to))
            || self.cut.contains(&(to, from))
            || self.wire.iter().any(|m| {
                (m.from == from && m.to == to && matches!(m.message, Message::SnapshotChunk(_)))
                    || (m.from == to
                        && m.to == from
                        && matches!(m.message, Message::SnapshotReply { .. }))
            })
            || self
                .nodes
                .get(&to)
                .is_none_or(|node| node.raft.is_none() || node.pending.is_some())
    }

    pub(crate) fn send_snapshot(&mut self, from: NodeId, to: NodeId) {
        let node = self.node_mut(from);
        let last = node
            .state
            .last()
            .map_or(raft::EntryId::default(), |entry| entry.id);
        let in_state = node
            .state
            .iter()
            .rev()
            .find_map(|entry| match &entry.payload {
                Payload::Membership(membership) => Some(membership.clone()),
                _ => None,
            });
        let membership = in_state.unwrap_or_else(|| self.first_members.clone());
        let node = self.node_mut(from);
        let state = node.state.clone();
        let chunk = SnapshotChunk {
            meta: SnapshotMeta {
                last,
                membership: membership.clone(),
            },
            number: 0,
            serial: 0,
            done: true,
            checksum: 0,
            feature_level: 0,
            data: Bytes::new(),
        };
        node.raft
            .as_mut()
            .expect("it runs")
            .send_snapshot_message(to, Message::SnapshotChunk(chunk));
        self.snapshots.insert(last, (membership, state));
    }

    pub(super) fn move_snapshot(&mut self, id: NodeId, envelope: Envelope) {
        let peer = envelope.from;
        match envelope.message {
            Message::SnapshotChunk(chunk) => {
                let status = self.install(id, &chunk.meta);
                let reply = Message::SnapshotReply {
                    snapshot: chunk.meta.last,
                    serial: 0,
                    next_chunk: 1,
                    status,
                };
                self.raft_mut(id).send_snapshot_message(peer, reply);
            }
            Message::SnapshotReply {
                snapshot, status, ..
            } => match status {
                SnapshotStatus::Installed => {
                    self.raft_mut(id)
                        .handle_snapshot_installed(peer, snapshot.index);
                }
                SnapshotStatus::Failed => self.raft_mut(id).handle_snapshot_failed(peer),
                SnapshotStatus::Receiving => {}
            },
            _ => {}
        }
    }

    fn install(&mut self, id: NodeId, meta: &SnapshotMeta) -> SnapshotStatus {
        if self.raft(id).commit_index() >= meta.last.index {
            return SnapshotStatus::Installed;
        }
        let Some((_, state)) = self.snapshots.get(&meta.last).cloned() else {
            return SnapshotStatus::Failed;
        };
        let node = self.node_mut(id);
        node.store.begin_install(meta.last).unwrap();
        node.flushed = state.len();
        node.state = state;
        let replaced = node.raft.as_mut().expect("it runs").install(meta);
        tell!(
            self,
            "{id} installs the snapshot of {} and {} its log",
            meta.last,
            if replaced { "drops" } else { "keeps" }
        );
        self.oracle.look(&self.nodes, id);
        SnapshotStatus::Installed
    }
}
