//! Log replication and commitment (§5.3, §5.4.2 to §5.5).

use raft::{EntryId, Envelope, Index, Message, Options, Payload, ProposeError, Role, Term};

use super::{append, each_led, each_size, from, honest, id, replies};
use crate::cluster::{Cluster, node};

/// §5.3: a leader appends a command to its log and sends it to each other server.
#[test]
fn section_5_3_a_leader_sends_entries_to_all() {
    each_led(|mut cluster| {
        let proposed = cluster.propose(node(1), "x").unwrap();
        assert_eq!(proposed, id(1, 2));
        let sent: Vec<&Envelope> = cluster.wire.iter().collect();
        assert_eq!(sent.len(), cluster.nodes.len() - 1);
        for envelope in sent {
            let Message::Append { prev, entries, .. } = &envelope.message else {
                panic!("{envelope:?}");
            };
            assert_eq!(*prev, id(1, 1));
            assert_eq!(entries.len(), 1);
            assert_eq!(entries[0].id, proposed);
        }
        assert_eq!(
            cluster.propose(node(2), "y"),
            Err(ProposeError::NotLeader {
                leader: Some(node(1))
            })
        );
    });
}

/// §5.3: an entry is committed once a majority has replicated it, not earlier; the leader then applies it.
#[test]
fn section_5_3_a_majority_commits() {
    for acknowledge in 0..=4 {
        each_led(|mut cluster| {
            let others = cluster.nodes.len() - 1;
            let proposed = cluster.propose(node(1), "x").unwrap();
            let appends: Vec<Envelope> = cluster.wire.drain(..).take(acknowledge).collect();
            for envelope in appends {
                cluster.deliver(envelope).unwrap();
            }
            cluster.settle();
            let expected = acknowledge.min(others) + 1 > cluster.nodes.len() / 2;
            let commit = cluster.raft(node(1)).commit_index();
            assert_eq!(
                commit == proposed.index,
                expected,
                "{acknowledge} of {others}"
            );
            let applied = cluster.node(node(1)).state.last().unwrap().id == proposed;
            assert_eq!(applied, expected);
            honest(&cluster);
        });
    }
}

/// §5.3: a commit also commits all preceding entries, including those of earlier leaders.
#[test]
fn section_5_3_earlier_entries_are_committed_too() {
    for terms in [&[][..], &[2], &[1, 2], &[1, 1, 2, 3]] {
        each_size(|mut cluster| {
            cluster.boot(node(1), 3, Some(terms));
            cluster.elect(node(1));
            cluster.propose(node(1), "x").unwrap();
            cluster.settle();
            let state = &cluster.node(node(1)).state;
            let mut expected = terms.to_vec();
            expected.extend([4, 4]);
            let applied: Vec<u64> = state.iter().map(|entry| entry.id.term.0).collect();
            assert_eq!(applied, expected);
            assert!(matches!(state[terms.len()].payload, Payload::Noop));
        });
    }
}

/// §5.3: a follower learns the commit index from the leader, and applies committed entries in log order.
#[test]
fn section_5_3_followers_apply_in_order() {
    each_led(|mut cluster| {
        for text in ["a", "b", "c"] {
            cluster.propose(node(1), text).unwrap();
        }
        cluster.settle();
        cluster.tick_all(10);
        cluster.settle();
        let expected = cluster.node(node(1)).state.clone();
        assert_eq!(expected.len(), 4);
        for id in cluster.ids() {
            assert_eq!(cluster.node(id).state, expected, "{id}");
        }
    });
}

/// §5.3: a follower refuses entries when it has no entry with the index and term that precede them.
#[test]
fn section_5_3_the_consistency_check() {
    // `prev`, and the answer of a follower whose log has the terms 1, 1, 2.
    let accepted = |match_index| Message::AppendAccepted {
        match_index: Index(match_index),
    };
    let rejected = |refused, hint| Message::AppendRejected {
        refused: Index(refused),
        hint,
    };
    let table = [
        (id(0, 0), accepted(0)),
        (id(1, 1), accepted(1)),
        (id(1, 2), accepted(2)),
        (id(2, 3), accepted(3)),
        // Another term at that index: no entry of `prev`'s term or a later one can match.
        (id(1, 3), rejected(3, id(1, 2))),
        (id(2, 2), rejected(2, id(1, 2))),
        (id(2, 4), rejected(4, id(2, 3))),
        (id(3, 9), rejected(9, id(2, 3))),
        (id(1, 9), rejected(9, id(1, 2))),
    ];
    for (prev, answer) in table {
        each_size(|mut cluster| {
            cluster.boot(node(1), 2, Some(&[1, 1, 2]));
            cluster.deliver(from(2, 3, append(prev, &[], 0))).unwrap();
            assert_eq!(
                replies(&mut cluster),
                std::slice::from_ref(&answer),
                "{prev}"
            );
        });
    }
}

/// §5.3: a conflicting entry and all after it are deleted, new ones are appended, and equal ones are left alone.
#[test]
fn section_5_3_conflicts_are_overwritten() {
    // `prev`, the terms sent after it to a log of the terms 1, 2, and the terms of the log then.
    let table: [(EntryId, &[u64], &[u64]); 6] = [
        (id(2, 2), &[3], &[1, 2, 3]),
        (id(1, 1), &[3, 4], &[1, 3, 4]),
        (id(0, 0), &[1], &[1, 2]),
        (id(0, 0), &[3], &[3]),
        (id(0, 0), &[1, 2, 4], &[1, 2, 4]),
        (id(1, 1), &[], &[1, 2]),
    ];
    for (prev, terms, expected) in table {
        each_size(|mut cluster| {
            cluster.boot(node(1), 2, Some(&[1, 2]));
            cluster.deliver(from(2, 4, append(prev, terms, 0))).unwrap();
            let stored = &cluster.node(node(1)).store.entries;
            let held: Vec<u64> = stored.iter().map(|entry| entry.id.term.0).collect();
            assert_eq!(held, expected, "{prev} {terms:?}");
        });
    }
}

/// §5.3, figure 7: a leader makes the followers' logs equal to its own, whatever they hold.
#[test]
fn section_5_3_logs_converge() {
    let leads = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let table: [&[u64]; 6] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    for follows in table {
        let mut cluster = Cluster::new(3, &Options::default());
        cluster.boot(node(1), 7, Some(&leads));
        cluster.boot(node(2), 7, Some(follows));
        // The voter that n1 needs when n2 has a longer log.
        cluster.boot(node(3), 7, Some(&[]));
        cluster.elect(node(1));
        cluster.tick_all(10);
        cluster.settle();
        let expected = &cluster.node(node(1)).store.entries;
        assert_eq!(expected.len(), leads.len() + 1);
        assert_eq!(
            &cluster.node(node(2)).store.entries,
            expected,
            "{follows:?}"
        );
        honest(&cluster);
    }
}

/// §5.3: a follower acknowledges entries only when they are durable.
#[test]
fn section_5_3_acknowledged_means_durable() {
    each_led(|mut cluster| {
        cluster.node_mut(node(2)).slow = true;
        cluster.propose(node(1), "x").unwrap();
        let sent = cluster.wire.iter().position(|m| m.to == node(2)).unwrap();
        let envelope = cluster.wire.remove(sent).unwrap();
        cluster.wire.clear();
        cluster.deliver(envelope).unwrap();
        assert!(cluster.wire.is_empty());
        cluster.finish_write(node(2));
        assert!(cluster.node(node(2)).store.holds(id(1, 2)));
        let expected = Message::AppendAccepted {
            match_index: Index(2),
        };
        assert_eq!(replies(&mut cluster), [expected]);
    });
}

/// §5.4.2: only entries of the leader's own term are committed by counting replicas.
#[test]
fn section_5_4_2_only_the_own_term_is_counted() {
    // The match index of a majority and the commit index, for a log of the terms 1, 2 and the leader's no-op of term 3.
    for (match_index, committed) in [(1, 0), (2, 0), (3, 3)] {
        each_size(|mut cluster| {
            cluster.boot(node(1), 2, Some(&[1, 2]));
            cluster.campaign(node(1));
            for peer in [2, 3, 4] {
                let granted = Message::PreVoteReply {
                    next_term: Term(3),
                    granted: true,
                };
                cluster.deliver(from(peer, 2, granted)).unwrap();
            }
            for peer in [2, 3, 4] {
                cluster
                    .deliver(from(peer, 3, Message::VoteReply { granted: true }))
                    .unwrap();
            }
            assert_eq!(cluster.raft(node(1)).role(), Role::Leader);
            for peer in [2, 3, 4] {
                let match_index = Index(match_index);
                cluster
                    .deliver(from(peer, 3, Message::AppendAccepted { match_index }))
                    .unwrap();
            }
            assert_eq!(cluster.raft(node(1)).commit_index(), Index(committed));
        });
    }
}

/// §5.4.3: every leader holds all entries committed in earlier terms.
#[test]
fn section_5_4_3_leaders_are_complete() {
    each_led(|mut cluster| {
        for round in 0..10 {
            let leader = cluster.leader().unwrap();
            let proposed = cluster.propose(leader, "x").unwrap();
            cluster.settle();
            // The next leader must hold the entry.
            let next = node(1 + round % cluster.nodes.len() as u64);
            cluster.isolate(leader);
            for _ in 0..4 * 40 {
                if cluster.leader() != Some(leader) && cluster.leader().is_some() {
                    break;
                }
                cluster.tick_all(1);
                cluster.settle();
            }
            cluster.heal();
            cluster.tick_all(20);
            cluster.settle();
            let leader = cluster.leader().unwrap();
            assert!(cluster.raft(leader).holds(proposed));
            let _ = cluster.transfer(leader, Some(next));
            cluster.settle();
            honest(&cluster);
        }
    });
}

/// §5.5: requests are idempotent: delivering each message twice changes nothing.
#[test]
fn section_5_5_messages_may_come_twice() {
    each_size(|mut cluster| {
        cluster.campaign(node(1));
        let mut rounds = 0;
        while let Some(envelope) = cluster.wire.pop_front() {
            cluster.deliver(envelope.clone()).unwrap();
            if rounds < 200 {
                cluster.deliver(envelope).unwrap();
            }
            rounds += 1;
        }
        cluster.propose(node(1), "x").unwrap();
        cluster.settle();
        assert_eq!(cluster.node(node(1)).state.len(), 2);
        honest(&cluster);
    });
}
