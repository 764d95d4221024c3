//! Claims of "In Search of an Understandable Consensus Algorithm" (Raft), each in our words and checked for groups
//! of three and five. Modelled on etcd's `raft_paper_test.go`.

use std::collections::BTreeSet;

use raft::{
    EntryId, Envelope, HardState, Index, Message, Options, Payload, ProposeError, ReadError, Role,
    StepError, Term,
};
use types::NodeId;

use crate::cluster::{Cluster, log_of, node, voters};

/// Runs `check` with a fresh group of three and one of five.
pub(crate) fn each_size(check: impl Fn(Cluster)) {
    each_size_with(&Options::default(), check);
}

pub(crate) fn each_size_with(options: &Options, check: impl Fn(Cluster)) {
    for count in [3, 5] {
        let mut cluster = Cluster::new(count, options);
        cluster.quiet = true;
        check(cluster);
    }
}

/// Runs `check` with the same groups, with n1 as leader and its no-op committed everywhere.
pub(crate) fn each_led(check: impl Fn(Cluster)) {
    each_size(|mut cluster| {
        cluster.elect(node(1));
        assert_eq!(cluster.leader(), Some(node(1)));
        cluster.tick_all(10);
        cluster.settle();
        check(cluster);
    });
}

pub(crate) fn from(sender: u64, term: u64, message: Message) -> Envelope {
    Envelope {
        from: node(sender),
        to: node(1),
        term: Term(term),
        message,
    }
}

pub(crate) fn id(term: u64, index: u64) -> EntryId {
    EntryId::new(Term(term), Index(index))
}

fn heartbeat() -> Message {
    Message::Heartbeat {
        commit: Index(0),
        read_round: 0,
        lease: false,
    }
}

fn append(prev: EntryId, terms_after: &[u64], commit: u64) -> Message {
    // Only the entries after `prev` are sent; the terms before it don't matter here.
    let skip = usize::try_from(prev.index.0).unwrap();
    let mut terms = vec![0; skip];
    terms.extend_from_slice(terms_after);
    Message::Append {
        prev,
        entries: log_of(&terms).split_off(skip),
        commit: Index(commit),
    }
}

fn replies(cluster: &mut Cluster) -> Vec<Message> {
    let wire = std::mem::take(&mut cluster.wire);
    wire.into_iter().map(|envelope| envelope.message).collect()
}

pub(crate) fn honest(cluster: &Cluster) {
    assert_eq!(cluster.oracle.violations, Vec::<String>::new());
}

/// §5.1: a server that sees a larger term adopts it; a candidate or leader that does becomes a follower.
#[test]
fn section_5_1_a_larger_term_makes_a_follower() {
    for role in [Role::Follower, Role::Candidate, Role::Leader] {
        each_size(|mut cluster| {
            if role != Role::Follower {
                cluster.elect(node(1));
            }
            if role == Role::Candidate {
                cluster.transfer(node(1), Some(node(2))).unwrap();
                cluster.settle();
                cluster.transfer(node(2), Some(node(1))).unwrap();
                let order = cluster.wire.pop_front().unwrap();
                cluster.deliver(order).unwrap();
                cluster.wire.clear();
            }
            assert_eq!(cluster.raft(node(1)).role(), role);
            cluster.deliver(from(3, 9, heartbeat())).unwrap();
            let raft = cluster.raft(node(1));
            assert_eq!((raft.role(), raft.term()), (Role::Follower, Term(9)));
            assert_eq!(raft.leader(), Some(node(3)));
            assert_eq!(cluster.node(node(1)).store.hard_state.term, Term(9));
        });
    }
}

/// §5.1: a request with a stale term is rejected, and its sender learns the current one.
#[test]
fn section_5_1_a_stale_term_is_rejected() {
    each_size(|mut cluster| {
        cluster.boot(node(1), 5, Some(&[1, 1]));
        let before = cluster.node(node(1)).store.clone();
        let stale = [
            heartbeat(),
            append(id(1, 2), &[2], 2),
            Message::Vote {
                last: id(4, 9),
                transfer: false,
            },
        ];
        for message in stale {
            cluster.deliver(from(2, 4, message)).unwrap();
            let reply = cluster.wire.pop_back().unwrap();
            assert_eq!(reply.term, Term(5));
            assert!(!matches!(
                reply.message,
                Message::AppendAccepted { .. } | Message::VoteReply { granted: true }
            ));
        }
        assert_eq!(cluster.node(node(1)).store.entries, before.entries);
        assert_eq!(cluster.raft(node(1)).leader(), None);
    });
}

/// §5.2: servers start as followers.
#[test]
fn section_5_2_servers_start_as_followers() {
    each_size(|cluster| {
        for id in cluster.ids() {
            assert_eq!(cluster.raft(id).role(), Role::Follower);
        }
    });
}

/// §5.2: a leader sends heartbeats to all servers, to stay the leader.
#[test]
fn section_5_2_a_leader_sends_heartbeats() {
    each_led(|mut cluster| {
        let heartbeat_ticks = cluster.node(node(1)).options.heartbeat_ticks;
        for _ in 0..heartbeat_ticks {
            assert!(cluster.wire.is_empty());
            cluster.tick(node(1));
        }
        let told: BTreeSet<NodeId> = cluster.wire.iter().map(|m| m.to).collect();
        assert_eq!(told.len(), cluster.nodes.len() - 1);
        let all = cluster
            .wire
            .iter()
            .all(|m| matches!(m.message, Message::Heartbeat { .. }));
        assert!(all, "{:?}", cluster.wire);
    });
}

/// §5.2: a follower that hears nothing for an election timeout starts an election. The timeout is drawn anew each
/// time, from one to two times the setting.
#[test]
fn section_5_2_election_timeouts_are_randomised() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let options = Options::default();
        let mut cluster = Cluster::of_members(&voters(3), &options, seed);
        cluster.quiet = true;
        let mut ticks = 0;
        while cluster.raft(node(1)).role() == Role::Follower {
            cluster.tick(node(1));
            ticks += 1;
        }
        assert!(
            (options.election_ticks..2 * options.election_ticks).contains(&ticks),
            "{ticks}"
        );
        seen.insert(ticks);
    }
    assert!(seen.len() > 30, "only {} different timeouts", seen.len());
}

/// §5.2: to begin an election a follower increments its term, votes for itself, and asks all other servers.
#[test]
fn section_5_2_a_candidate_asks_everyone() {
    each_size(|mut cluster| {
        cluster.campaign(node(1));
        while cluster.raft(node(1)).role() == Role::PreCandidate {
            let envelope = cluster.wire.pop_front().unwrap();
            cluster.deliver(envelope).unwrap();
        }
        let votes = cluster
            .wire
            .iter()
            .filter(|m| matches!(m.message, Message::Vote { .. }) && m.term == Term(1));
        assert_eq!(votes.count(), cluster.nodes.len() - 1);
        let expected = HardState {
            term: Term(1),
            vote: Some(node(1)),
        };
        assert_eq!(cluster.node(node(1)).store.hard_state, expected);
    });
}

/// §5.2: a candidate wins with the votes of a majority, loses when a majority is out of reach, and otherwise waits.
#[test]
fn section_5_2_an_election_has_three_outcomes() {
    // The size of the group, the answers, and the candidate's role after them.
    let table: [(u64, &[bool], Role); 9] = [
        (1, &[], Role::Leader),
        (3, &[true], Role::Leader),
        (3, &[true, true], Role::Leader),
        (3, &[false], Role::Candidate),
        (3, &[false, false], Role::Follower),
        (5, &[true], Role::Candidate),
        (5, &[true, true], Role::Leader),
        (5, &[true, false, false], Role::Candidate),
        (5, &[false, false, false], Role::Follower),
    ];
    for (count, answers, outcome) in table {
        let mut cluster = Cluster::new(count, &Options::default());
        cluster.quiet = true;
        cluster.campaign(node(1));
        for peer in 2..=count {
            let granted = Message::PreVoteReply {
                next_term: Term(1),
                granted: true,
            };
            cluster.deliver(from(peer, 0, granted)).unwrap();
        }
        for (peer, granted) in (2..).zip(answers) {
            let reply = Message::VoteReply { granted: *granted };
            cluster.deliver(from(peer, 1, reply)).unwrap();
        }
        assert_eq!(cluster.raft(node(1)).role(), outcome, "{count} {answers:?}");
    }
}

/// §5.2: a server votes for at most one candidate in a term, first come, first served.
#[test]
fn section_5_2_first_come_first_served() {
    // The vote before, the candidate, and true if the vote is granted.
    let table = [
        (None, 2, true),
        (None, 3, true),
        (Some(2), 2, true),
        (Some(2), 3, false),
        (Some(3), 2, false),
    ];
    for (vote, asks, granted) in table {
        each_size(|mut cluster| {
            cluster.node_mut(node(1)).store.hard_state = HardState {
                term: Term(1),
                vote: vote.map(node),
            };
            cluster.restart(node(1));
            let message = Message::Vote {
                last: id(0, 0),
                transfer: false,
            };
            cluster.deliver(from(asks, 1, message)).unwrap();
            assert_eq!(
                replies(&mut cluster),
                [Message::VoteReply { granted }],
                "{vote:?} {asks}"
            );
        });
    }
}

/// §5.2: a candidate that hears from a leader of its term recognises it.
#[test]
fn section_5_2_a_candidate_falls_back() {
    each_size(|mut cluster| {
        cluster.campaign(node(1));
        for peer in [2, 3, 4] {
            let granted = Message::PreVoteReply {
                next_term: Term(1),
                granted: true,
            };
            cluster.deliver(from(peer, 0, granted)).unwrap();
        }
        assert_eq!(cluster.raft(node(1)).role(), Role::Candidate);
        cluster.deliver(from(2, 1, heartbeat())).unwrap();
        assert_eq!(cluster.raft(node(1)).role(), Role::Follower);
        assert_eq!(cluster.raft(node(1)).leader(), Some(node(2)));
        let second = cluster.deliver(from(3, 1, heartbeat()));
        assert!(matches!(second, Err(StepError::Malformed { .. })));
    });
}

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

/// §5.4.1: a vote goes only to a candidate whose log is at least as up to date: the later last term, or with equal
/// last terms the longer log.
#[test]
fn section_5_4_1_votes_compare_logs() {
    // The voter's log, the candidate's last entry, and true if the vote is granted.
    let table: [(&[u64], EntryId, bool); 8] = [
        (&[1], id(1, 1), true),
        (&[1], id(1, 2), true),
        (&[1, 1], id(1, 1), false),
        (&[1], id(2, 1), true),
        (&[1, 1], id(2, 1), true),
        (&[1, 2], id(1, 2), false),
        (&[2], id(1, 9), false),
        (&[], id(0, 0), true),
    ];
    for (terms, last, granted) in table {
        each_size(|mut cluster| {
            cluster.boot(node(1), 2, Some(terms));
            let vote = Message::Vote {
                last,
                transfer: false,
            };
            cluster.deliver(from(2, 3, vote)).unwrap();
            assert_eq!(
                replies(&mut cluster),
                [Message::VoteReply { granted }],
                "{terms:?} {last}"
            );
            // A pre-vote asks the same question.
            let mut cluster = Cluster::new(3, &Options::default());
            cluster.boot(node(1), 2, Some(terms));
            let next_term = Term(3);
            let pre_vote = Message::PreVote { next_term, last };
            cluster.deliver(from(2, 2, pre_vote)).unwrap();
            assert_eq!(
                replies(&mut cluster),
                [Message::PreVoteReply { next_term, granted }]
            );
        });
    }
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
