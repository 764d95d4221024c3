//! Terms, roles and leader election (§5.1, §5.2, §5.4.1).

use std::collections::BTreeSet;

use raft::{EntryId, HardState, Message, Options, Role, StepError, Term};
use types::NodeId;

use super::{append, each_led, each_size, from, heartbeat, id, replies};
use crate::cluster::{Cluster, node, voters};

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
        assert!(matches!(second, Err(StepError::TwoLeaders { .. })));
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
