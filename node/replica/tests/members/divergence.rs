//! Replicas that compare their states, and the end of one whose state differs.

use std::collections::BTreeSet;

use raft::{Comparison, Envelope, Index, Message, StoreError};
use replica::{Options, Refusal, Request, StateComparison};
use types::{LogTime, NodeId};

use crate::cluster::{Cluster, Outputs, TICKS_PER_SECOND};

/// Starts a group that compares states after every fourth entry.
fn comparing(change: impl Fn(&mut Options)) -> Cluster {
    Cluster::of_levels([1; 3], |options| {
        options.checkpoint_every = 4;
        change(options);
    })
}

impl Cluster {
    /// Lets a node's machine write `value` where the others write what the log says.
    fn misapply(&self, node: NodeId, value: &'static str) {
        *self.replicas[&node].machine().own.lock().unwrap() = Some(value);
    }

    /// Writes entries, with keys that all replicas write alike, and lets time for comparisons pass.
    fn write_and_compare(&mut self) {
        for number in 0..20 {
            self.put(&format!("key{number}"), 10);
            self.tick();
        }
        self.ticks(5 * TICKS_PER_SECOND);
    }

    fn write_own(&mut self) {
        self.put("own", 10);
        self.settle();
        self.write_and_compare();
    }

    fn comparison(&self) -> StateComparison {
        self.status(self.leader()).comparison
    }

    /// Returns the nodes that stopped because their states differ.
    fn stopped(&self) -> Vec<NodeId> {
        let diverged = |error: &StoreError| matches!(error, StoreError::Diverged(_));
        assert!(self.errors.iter().all(|(_, error)| diverged(error)));
        self.errors.iter().map(|(node, _)| *node).collect()
    }
}

#[test]
fn equal_states_agree() {
    let mut cluster = comparing(|_| ());
    cluster.elect();
    cluster.ticks(TICKS_PER_SECOND);
    cluster.write_own();
    let comparison = cluster.comparison();
    let last = cluster.status(cluster.leader()).last_applied;
    assert!(
        last.since(comparison.agreed) < 4,
        "{comparison:?} of {last}"
    );
    assert_eq!(comparison.differing, BTreeSet::new());
    assert!(!comparison.undecided);
    assert_eq!(cluster.stopped(), []);
}

#[test]
fn a_follower_whose_state_differs_stops() {
    let mut cluster = comparing(|_| ());
    let (leader, [wrong, _]) = cluster.elect();
    cluster.ticks(TICKS_PER_SECOND);
    cluster.misapply(wrong, "wrong");
    cluster.write_own();
    assert_eq!(cluster.stopped(), [wrong]);
    let text = cluster.errors[0].1.to_string();
    assert!(text.contains("on a quorum of the voters"), "{text}");
    assert_eq!(cluster.leader(), leader);
    assert_eq!(cluster.comparison().differing, BTreeSet::from([wrong]));
    // The others agree further on.
    let before = cluster.comparison().agreed;
    cluster.write_and_compare();
    assert!(cluster.comparison().agreed > before);
}

#[test]
fn a_leader_whose_state_differs_stops() {
    let mut cluster = comparing(|_| ());
    let (wrong, _) = cluster.elect();
    cluster.ticks(TICKS_PER_SECOND);
    cluster.misapply(wrong, "wrong");
    cluster.put("own", 10);
    for number in 0..8 {
        cluster.put(&format!("key{number}"), 10);
        cluster.tick();
    }
    cluster.ticks(10 * TICKS_PER_SECOND);
    assert_eq!(cluster.stopped(), [wrong]);
    assert_ne!(cluster.leader(), wrong);
    cluster.write_and_compare();
    assert_eq!(cluster.stopped(), [wrong], "the others are right");
}

#[test]
fn nobody_stops_if_no_quorum_agrees() {
    let mut cluster = comparing(|_| ());
    let (leader, [one, two]) = cluster.elect();
    cluster.ticks(TICKS_PER_SECOND);
    for (node, value) in [(leader, "a"), (one, "b"), (two, "c")] {
        cluster.misapply(node, value);
    }
    cluster.write_own();
    assert_eq!(cluster.stopped(), []);
    assert!(cluster.comparison().undecided);
}

#[test]
fn two_states_of_which_one_is_right_stop_nobody_until_the_third_answers() {
    let mut cluster = comparing(|_| ());
    let (_, [wrong, right]) = cluster.elect();
    cluster.ticks(TICKS_PER_SECOND);
    cluster.cut = vec![right];
    cluster.misapply(wrong, "wrong");
    cluster.write_own();
    assert_eq!(cluster.stopped(), []);
    assert!(
        !cluster.comparison().undecided,
        "the third may still answer"
    );
    cluster.ticks(20 * TICKS_PER_SECOND);
    assert!(cluster.comparison().undecided);
    cluster.cut.clear();
    cluster.ticks(TICKS_PER_SECOND);
    cluster.write_and_compare();
    assert_eq!(cluster.stopped(), [wrong]);
    assert!(!cluster.comparison().undecided);
}

#[test]
fn a_snapshot_carries_the_digest() {
    let mut cluster = comparing(|options| options.compact_after_bytes = 2_000);
    let (_, [follower, _]) = cluster.elect();
    cluster.ticks(TICKS_PER_SECOND);
    cluster.write_without(follower, 100, 100);
    cluster.cut.clear();
    cluster.ticks(5 * TICKS_PER_SECOND);
    assert_eq!(cluster.status(follower).snapshots.1, 1, "installed");
    cluster.write_and_compare();
    assert_eq!(cluster.stopped(), []);
    // The chain of the snapshot goes on there.
    cluster.misapply(follower, "wrong");
    cluster.write_own();
    assert_eq!(cluster.stopped(), [follower]);
}

#[test]
fn a_state_that_differed_is_judged_no_more_after_a_snapshot() {
    let mut cluster = comparing(|options| options.compact_after_bytes = 2_000);
    let (_, [wrong, _]) = cluster.elect();
    cluster.ticks(TICKS_PER_SECOND);
    cluster.misapply(wrong, "wrong");
    // It applies the entry, and hears no comparison until its state is replaced.
    cluster.put("own", 10);
    cluster.settle();
    cluster.write_without(wrong, 100, 100);
    cluster.cut.clear();
    cluster.ticks(5 * TICKS_PER_SECOND);
    assert_eq!(cluster.status(wrong).snapshots.1, 1, "installed");
    cluster.write_and_compare();
    assert_eq!(cluster.stopped(), []);
    let comparison = cluster.comparison();
    assert_eq!(comparison.differing, BTreeSet::new());
}

#[test]
fn below_the_level_nothing_is_compared() {
    let mut cluster = Cluster::of_levels([1, 1, 0], |options| options.checkpoint_every = 4);
    let (_, [wrong, _]) = cluster.elect();
    cluster.misapply(wrong, "wrong");
    cluster.write_own();
    assert_eq!(cluster.stopped(), []);
    assert_eq!(cluster.comparison().agreed, Index(0));
}

/// A leader whose memory failed says for a tick that its followers are wrong.
#[test]
fn heartbeats_of_one_tick_stop_nobody() {
    let mut cluster = comparing(|_| ());
    let (_, followers) = cluster.elect();
    cluster.ticks(TICKS_PER_SECOND);
    cluster.write_and_compare();
    for number in 0..20 {
        cluster.flips_agreed = true;
        let before = cluster.flipped;
        for _ in 0..Options::default().raft.heartbeat_ticks {
            if cluster.flipped == before {
                cluster.tick();
            }
        }
        // Heartbeats that tell a commit index follow at once.
        cluster.put(&format!("key{number}"), 10);
        cluster.settle();
        cluster.flips_agreed = false;
        cluster.ticks(TICKS_PER_SECOND);
    }
    assert!(cluster.flipped >= 4 * 20, "{}", cluster.flipped);
    assert_eq!(cluster.stopped(), []);
    // What the leader says again and again counts.
    cluster.flips_agreed = true;
    cluster.ticks(TICKS_PER_SECOND);
    assert_eq!(cluster.stopped(), followers);
}

/// A signal to stop may come with the verdict.
#[test]
fn a_stop_returns_a_verdict_that_no_poll_has_returned() {
    let mut cluster = comparing(|_| ());
    let (leader, [wrong, _]) = cluster.elect();
    cluster.ticks(TICKS_PER_SECOND);
    cluster.write_and_compare();
    let term = cluster.status(leader).term;
    let index = cluster.comparison().agreed;
    let request = cluster.submit(wrong, Request::ReadLocal(()));
    let mut replica = cluster.replicas.remove(&wrong).unwrap();
    let since = replica.state().applied().digest.unwrap().since;
    let heartbeat = Envelope {
        from: leader,
        to: wrong,
        term,
        message: Message::Heartbeat {
            commit: Index(0),
            read_round: 0,
            lease: false,
            quiet: true,
            comparison: Some(Comparison {
                since,
                index,
                agreed: Some(0),
            }),
            answers_reads: true,
        },
    };
    replica.receive(heartbeat.clone()).unwrap();
    for _ in 0..Options::default().raft.heartbeat_ticks {
        cluster.time += 10;
        replica.tick(LogTime(cluster.time));
    }
    replica.receive(heartbeat).unwrap();
    let mut outputs = Outputs::default();
    let stopped = replica.stop(&mut outputs);
    assert!(
        matches!(stopped, Err(StoreError::Diverged(_))),
        "{stopped:?}"
    );
    assert_eq!(outputs.answers[&request], Err(Refusal::Stopping));
}
