//! Log compaction and reads (§7, §8).

use raft::{EntryId, Envelope, Index, Options, ReadError, Role};

use super::{each_led, each_size, honest, id};
use crate::cluster::{Cluster, node, voters};

/// §7: a follower that is too far behind gets a snapshot instead of the compacted entries.
#[test]
fn section_7_a_slow_follower_gets_a_snapshot() {
    each_led(|mut cluster| {
        cluster.isolate(node(3));
        for _ in 0..5 {
            cluster.propose(node(1), "x").unwrap();
        }
        cluster.settle();
        cluster.compact(node(1), Index(5)).unwrap();
        cluster.heal();
        cluster.tick_all(20);
        cluster.settle();
        assert_eq!(cluster.node(node(3)).state, cluster.node(node(1)).state);
        assert_eq!(cluster.node(node(3)).store.base.last, id(1, 6));
        honest(&cluster);
    });
}

/// §7: a snapshot that describes a prefix of the follower's log leaves the later entries alone; a snapshot that doesn't
/// match the log replaces it.
#[test]
fn section_7_a_snapshot_and_the_log() {
    // The follower's log, the snapshot's last entry, and the rest of the log.
    let table: [(&[u64], EntryId, &[u64]); 5] = [
        (&[1, 1, 2, 2], id(2, 3), &[1, 1, 2, 2]),
        (&[1, 1, 2, 2], id(3, 3), &[]),
        (&[1, 1], id(2, 3), &[]),
        (&[], id(2, 3), &[]),
        (&[1, 1, 2], id(2, 3), &[1, 1, 2]),
    ];
    for (terms, last, left) in table {
        let mut cluster = Cluster::new(3, &Options::default());
        cluster.boot(node(1), 3, Some(terms));
        let meta = raft::SnapshotMeta {
            last,
            membership: voters(3),
        };
        cluster.raft_mut(node(1)).install(&meta);
        let raft = cluster.raft_mut(node(1));
        assert_eq!(raft.commit_index(), last.index);
        assert_eq!(
            raft.applying_index(),
            last.index,
            "what the snapshot holds is not applied again"
        );
        let ready = raft
            .poll_ready(&crate::store::MemoryStore::default())
            .unwrap();
        let reset = ready
            .persist
            .as_ref()
            .and_then(|persist| persist.batch().reset.clone());
        assert_eq!(reset.is_some(), left.is_empty(), "{terms:?} {last}");
        let expected = left.len().max(usize::try_from(last.index.0).unwrap());
        assert_eq!(
            cluster.raft(node(1)).last_id().index,
            Index(expected as u64)
        );
        // A snapshot never replaces entries known to be committed.
        assert!(!cluster.raft_mut(node(1)).install(&meta));
    }
}

/// §8: a leader begins its term with an empty entry, and serves no read before that is committed.
#[test]
fn section_8_no_read_before_the_own_no_op() {
    each_size(|mut cluster| {
        cluster.campaign(node(1));
        while cluster.raft(node(1)).role() != Role::Leader {
            let envelope = cluster.wire.pop_front().unwrap();
            cluster.deliver(envelope).unwrap();
        }
        assert_eq!(cluster.raft(node(1)).last_id(), id(1, 1));
        assert_eq!(cluster.read(node(1)), Err(ReadError::NotReady));
        cluster.settle();
        let ticket = cluster.read(node(1)).unwrap();
        cluster.settle();
        let grants = &cluster.node(node(1)).grants;
        assert!(
            grants
                .iter()
                .any(|grant| grant.ticket >= ticket && grant.index == Index(1))
        );
    });
}

/// §8: before a leader serves a read, it checks with a majority that it has not been deposed.
#[test]
fn section_8_reads_ask_a_majority() {
    each_led(|mut cluster| {
        let ticket = cluster.read(node(1)).unwrap();
        assert!(cluster.node(node(1)).grants.is_empty());
        let needed = cluster.nodes.len() / 2;
        let heartbeats: Vec<Envelope> = cluster.wire.drain(..).collect();
        for (answered, envelope) in heartbeats.into_iter().enumerate() {
            let granted = !cluster.node(node(1)).grants.is_empty();
            assert_eq!(granted, answered >= needed, "after {answered} answers");
            cluster.deliver(envelope).unwrap();
            cluster.settle();
        }
        assert_eq!(cluster.node(node(1)).grants[0].ticket, ticket);
    });
}
