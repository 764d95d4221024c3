//! Claims of Diego Ongaro's thesis ("Consensus: Bridging Theory and Practice"), each in our words.

use raft::{
    ChangeError, MembershipChange, Message, Options, ProposeError, ReadTicket, Role, Term,
    TransferError,
};

use crate::cluster::{Cluster, node};
use crate::paper::{each_led, each_size_with, from, honest, id};
use crate::store::MemoryStore;

fn add_spare(cluster: &mut Cluster, spare: u64) {
    cluster.add_node(node(spare), MemoryStore::default(), Options::default());
}

fn learner(number: u64) -> MembershipChange {
    MembershipChange::AddLearner {
        node: node(number),
        address: format!("a{number}"),
    }
}

/// §3.10: the leader refuses proposals, brings the target up to date, and tells it to campaign; the target wins
/// although the other servers have just heard the old leader.
#[test]
fn section_3_10_leadership_is_transferred() {
    each_led(|mut cluster| {
        cluster.propose(node(1), "x").unwrap();
        assert_eq!(cluster.transfer(node(1), Some(node(2))), Ok(node(2)));
        assert_eq!(
            cluster.propose(node(1), "y"),
            Err(ProposeError::Transferring)
        );
        cluster.settle();
        assert_eq!(cluster.leader(), Some(node(2)));
        assert_eq!(cluster.raft(node(2)).term(), Term(2));
        assert!(cluster.raft(node(2)).holds(id(1, 2)));
        honest(&cluster);
    });
}

/// §3.10: the leader aborts a transfer after about an election timeout and accepts proposals again.
#[test]
fn section_3_10_a_transfer_is_aborted() {
    each_led(|mut cluster| {
        cluster.crash(node(2));
        cluster.transfer(node(1), Some(node(2))).unwrap();
        let election_ticks = cluster.node(node(1)).options.election_ticks;
        for _ in 0..election_ticks {
            assert_eq!(
                cluster.propose(node(1), "x"),
                Err(ProposeError::Transferring)
            );
            cluster.tick_all(1);
            cluster.settle();
        }
        cluster.propose(node(1), "x").unwrap();
        cluster.settle();
        assert_eq!(cluster.raft(node(1)).commit_index().0, 2);
    });
}

/// §3.10: only a voter of the group can be the target.
#[test]
fn section_3_10_targets() {
    each_led(|mut cluster| {
        add_spare(&mut cluster, 9);
        cluster.change(node(1), &learner(9)).unwrap();
        cluster.settle();
        let mut target = |number| cluster.transfer(node(1), Some(node(number)));
        assert_eq!(target(1), Err(TransferError::AlreadyLeader));
        assert_eq!(target(8), Err(TransferError::NotVoter));
        assert_eq!(target(9), Err(TransferError::NotVoter));
        assert_eq!(
            cluster.transfer(node(2), None),
            Err(TransferError::NotLeader)
        );
    });
}

/// §4.1: a server uses the latest membership in its log, committed or not, and the one before when it is truncated.
#[test]
fn section_4_1_the_latest_membership_counts() {
    each_led(|mut cluster| {
        add_spare(&mut cluster, 9);
        let before = cluster.raft(node(1)).membership().clone();
        cluster.isolate(node(1));
        cluster.change(node(1), &learner(9)).unwrap();
        assert!(cluster.raft(node(1)).membership().get(node(9)).is_some());
        for other in cluster.ids() {
            if other != node(1) && other != node(9) {
                for _ in 0..40 {
                    cluster.raft_mut(other).tick();
                }
            }
        }
        cluster.elect(node(2));
        cluster.heal();
        cluster.tick_all(20);
        cluster.settle();
        assert_eq!(cluster.raft(node(1)).membership(), &before);
        honest(&cluster);
    });
}

/// §4.1: a change begins only after the previous change is committed, and only after the leader has committed an entry
/// of its own term (Ongaro's correction of 2015).
#[test]
fn section_4_1_one_change_at_a_time() {
    each_led(|mut cluster| {
        for spare in [7, 8, 9] {
            add_spare(&mut cluster, spare);
        }
        cluster.change(node(1), &learner(8)).unwrap();
        assert_eq!(cluster.change(node(1), &learner(9)), Err(ChangeError::Busy));
        cluster.settle();
        cluster.change(node(1), &learner(9)).unwrap();
        cluster.settle();

        cluster.transfer(node(1), Some(node(2))).unwrap();
        while cluster.raft(node(2)).role() != Role::Leader {
            let envelope = cluster.wire.pop_front().unwrap();
            cluster.deliver(envelope).unwrap();
        }
        assert_eq!(cluster.change(node(2), &learner(7)), Err(ChangeError::Busy));
        cluster.settle();
        assert!(cluster.change(node(2), &learner(7)).is_ok());
    });
}

/// §4.2.1: a new server joins without a vote until it has caught up.
#[test]
fn section_4_2_1_learners_catch_up_first() {
    each_led(|mut cluster| {
        let quorum = cluster.raft(node(1)).membership().quorum();
        add_spare(&mut cluster, 9);
        cluster.change(node(1), &learner(9)).unwrap();
        assert_eq!(cluster.raft(node(1)).membership().quorum(), quorum);
        // The learner never answered, so it can't become a voter.
        cluster.isolate(node(9));
        cluster.settle();
        let promote = MembershipChange::Promote { node: node(9) };
        let refused = cluster.change(node(1), &promote);
        assert!(
            matches!(refused, Err(ChangeError::NotCaughtUp { .. })),
            "{refused:?}"
        );
        cluster.heal();
        cluster.tick_all(20);
        cluster.settle();
        cluster.change(node(1), &promote).unwrap();
        cluster.settle();
        assert!(cluster.raft(node(9)).membership().is_voter(node(9)));
    });
}

/// §4.2.2: a removed leader leads until its removal is committed, without counting itself, and then steps down.
#[test]
fn section_4_2_2_a_removed_leader_steps_down() {
    each_led(|mut cluster| {
        cluster
            .change(node(1), &MembershipChange::Remove { node: node(1) })
            .unwrap();
        assert_eq!(cluster.raft(node(1)).role(), Role::Leader);
        cluster.settle();
        assert_eq!(cluster.raft(node(1)).role(), Role::Follower);
        assert_eq!(cluster.raft(node(1)).commit_index().0, 2);
        let leader = cluster.leader().expect("a successor was named");
        assert_ne!(leader, node(1));
        assert!(!cluster.raft(leader).membership().is_voter(node(1)));
        honest(&cluster);
    });
}

/// §4.2.3: servers that hear a leader ignore requests for votes, so that a removed server can't disrupt the group.
#[test]
fn section_4_2_3_removed_servers_cant_disrupt() {
    each_led(|mut cluster| {
        cluster.isolate(node(3));
        cluster
            .change(node(1), &MembershipChange::Remove { node: node(3) })
            .unwrap();
        cluster.settle();
        cluster.heal();
        for round in 0..400 {
            cluster.tick_all(1);
            cluster.settle();
            // The same for a vote request of a later term.
            let vote = Message::Vote {
                last: id(9, 99),
                transfer: false,
            };
            cluster.deliver(from(3, 50 + round, vote)).unwrap();
            assert_eq!(cluster.leader(), Some(node(1)));
            assert_eq!(cluster.raft(node(1)).term(), Term(1));
        }
    });
}

/// §6.2: a leader steps down if an election timeout elapses without a successful round of heartbeats to a majority.
#[test]
fn section_6_2_a_leader_without_a_majority_steps_down() {
    for check_quorum in [true, false] {
        let options = Options {
            check_quorum,
            ..Options::default()
        };
        each_size_with(&options, |mut cluster| {
            cluster.elect(node(1));
            // With the leader, one server less than a majority answers.
            let reachable = cluster.nodes.len() / 2 - 1;
            for peer in 2 + reachable as u64..=cluster.nodes.len() as u64 {
                cluster.isolate(node(peer));
            }
            for _ in 0..options.election_ticks {
                assert_eq!(cluster.raft(node(1)).role(), Role::Leader);
                cluster.tick(node(1));
                cluster.settle();
            }
            let leads = cluster.raft(node(1)).role() == Role::Leader;
            assert_eq!(leads, !check_quorum);
        });
    }
}

/// §6.4: one round of heartbeats confirms all earlier reads; no entry is written for them.
#[test]
fn section_6_4_reads_share_a_round() {
    each_led(|mut cluster| {
        let before = cluster.raft(node(1)).last_id();
        let tickets: Vec<ReadTicket> = (0..100)
            .map(|_| cluster.raft_mut(node(1)).read_index().unwrap())
            .collect();
        cluster.turn(node(1));
        assert_eq!(cluster.wire.len(), cluster.nodes.len() - 1);
        cluster.settle();
        let grants = &cluster.node(node(1)).grants;
        assert_eq!(grants.len(), 1);
        assert!(tickets.iter().all(|ticket| *ticket <= grants[0].ticket));
        assert_eq!(cluster.raft(node(1)).last_id(), before);
    });
}

/// §6.4: a deposed leader never serves a read that lacks its successor's entries.
#[test]
fn section_6_4_a_deposed_leader_serves_nothing() {
    each_led(|mut cluster| {
        cluster.isolate(node(1));
        cluster.read(node(1)).unwrap();
        for _ in 0..200 {
            cluster.tick_all(1);
            cluster.settle();
        }
        let leader = cluster.leader().unwrap();
        assert_ne!(leader, node(1));
        cluster.propose(leader, "newer").unwrap();
        cluster.heal();
        cluster.tick_all(40);
        cluster.settle();
        assert!(cluster.node(node(1)).grants.is_empty());
    });
}

/// §6.4.1: with leases a read needs no messages while a majority's answers are fresh; the lease expires by itself.
#[test]
fn section_6_4_1_leases() {
    let options = Options {
        lease_reads: true,
        ..Options::default()
    };
    each_size_with(&options, |mut cluster| {
        for _ in 0..200 {
            cluster.tick_all(1);
            cluster.settle();
        }
        let leader = cluster.leader().unwrap();
        let granted = |cluster: &mut Cluster| {
            cluster.node_mut(leader).grants.clear();
            cluster.read(leader).unwrap();
            let at_once = !cluster.node(leader).grants.is_empty();
            cluster.wire.clear();
            at_once
        };
        // Heartbeats alone keep the lease valid, after every tick.
        for _ in 0..100 {
            cluster.tick_all(1);
            cluster.settle();
            assert!(granted(&mut cluster));
        }
        cluster.isolate(leader);
        for _ in 0..options.election_ticks / 2 {
            cluster.tick(leader);
        }
        assert!(!granted(&mut cluster));
    });
    let refused = Options {
        check_quorum: false,
        ..options
    };
    assert!(refused.validate().is_err(), "leases need CheckQuorum");
}

/// §6.4.1: a lease rests on voters that hold their votes back, also after a restart, and on the shortest of their timeouts.
#[test]
fn section_6_4_1_a_lease_needs_the_promise_of_all_voters() {
    let options = Options {
        lease_reads: true,
        ..Options::default()
    };
    // The options of a voter, and the number of ticks for which a lease lasts.
    let with = |lease_reads, keeps_leases, election_ticks, tick_ms| Options {
        lease_reads,
        keeps_leases,
        election_ticks,
        tick_ms,
        ..Options::default()
    };
    let table = [
        (with(true, false, 40, 10), 20, false),
        (with(false, true, 40, 10), 20, true),
        (with(false, false, 40, 10), 0, true),
        (with(true, false, 30, 10), 15, false),
        (with(true, false, 40, 5), 10, false),
        (with(true, false, 80, 10), 20, false),
    ];
    for (other, lasts, disagrees) in table {
        let mut cluster = Cluster::new(3, &options);
        cluster.node_mut(node(3)).options = other.clone();
        cluster.restart(node(3));
        // The third would elect itself sooner.
        while cluster.leader().is_none() {
            cluster.tick(node(1));
            cluster.tick(node(2));
            for id in 1..=3 {
                cluster.turn(node(id));
            }
            cluster.settle();
        }
        let leader = cluster.leader().unwrap();
        for _ in 0..100 {
            cluster.tick_all(1);
            cluster.settle();
        }
        assert_eq!(cluster.leader(), Some(leader));
        let disagreement = cluster.raft(leader).lease_disagreement();
        assert_eq!(disagreement == [node(3)], disagrees, "{other:?}");
        cluster.isolate(leader);
        let granted = |cluster: &mut Cluster| {
            cluster.node_mut(leader).grants.clear();
            cluster.read(leader).unwrap();
            cluster.turn(leader);
            let at_once = !cluster.node(leader).grants.is_empty();
            cluster.wire.clear();
            at_once
        };
        let mut lasted = 0;
        while lasted < 40 && granted(&mut cluster) {
            lasted += 1;
            cluster.tick(leader);
        }
        // Heartbeats come every ten ticks, so up to ten of them have passed already.
        assert!(lasted <= lasts, "{lasted} {other:?}");
        assert!(lasted + 10 >= lasts, "{lasted} {other:?}");
    }
}

/// §9.6: a pre-vote raises neither the sender's term nor the receivers'.
#[test]
fn section_9_6_pre_votes_change_no_term() {
    each_led(|mut cluster| {
        let count = cluster.nodes.len() as u64;
        cluster.isolate(node(count));
        for _ in 0..1_000 {
            cluster.tick_all(1);
            cluster.settle();
        }
        assert_eq!(cluster.raft(node(count)).role(), Role::PreCandidate);
        assert_eq!(cluster.raft(node(count)).term(), Term(1));
        cluster.heal();
        cluster.tick_all(20);
        cluster.settle();
        assert_eq!(cluster.leader(), Some(node(1)));
        assert_eq!(cluster.raft(node(count)).leader(), Some(node(1)));
    });
}

/// §9.6: a server grants a pre-vote only if it hears no leader and the candidate's log is at least as up to date.
#[test]
fn section_9_6_who_grants_a_pre_vote() {
    // The ticks since the leader was heard, the candidate's last entry, and true if the pre-vote is granted.
    let table = [
        (0, id(1, 1), false),
        (39, id(1, 9), false),
        (40, id(1, 1), true),
        (40, id(0, 0), false),
    ];
    for (silent, last, granted) in table {
        each_led(|mut cluster| {
            for _ in 0..silent {
                cluster.raft_mut(node(2)).tick();
            }
            let mut envelope = from(
                3,
                1,
                Message::PreVote {
                    next_term: Term(2),
                    last,
                },
            );
            envelope.to = node(2);
            cluster.wire.clear();
            cluster.deliver(envelope).unwrap();
            let reply = cluster.wire.iter().find_map(|m| match m.message {
                Message::PreVoteReply { granted, .. } => Some(granted),
                _ => None,
            });
            assert_eq!(reply, Some(granted), "{silent} {last}");
        });
    }
}

/// §10.2.1: a leader sends an entry while its own disk writes it; a majority without the leader is enough to commit it.
#[test]
fn section_10_2_1_the_leader_writes_in_parallel() {
    each_led(|mut cluster| {
        cluster.node_mut(node(1)).slow = true;
        let proposed = cluster.propose(node(1), "x").unwrap();
        assert!(!cluster.node(node(1)).store.holds(proposed));
        cluster.settle();
        assert_eq!(cluster.raft(node(1)).commit_index(), proposed.index);
        assert_eq!(
            cluster.node(node(1)).state.len(),
            1,
            "not on disk, not applied"
        );
        cluster.finish_write(node(1));
        cluster.turn(node(1));
        assert_eq!(cluster.node(node(1)).state.len(), 2);
        honest(&cluster);
    });
}
