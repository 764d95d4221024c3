//! Reads on followers: questions for the read index and their answers (thesis §6.4).

use raft::{Envelope, Index, Message, Options, ReadError};

use crate::cluster::{Cluster, node};

/// Returns three nodes of which the first leads, and the others know that it answers questions.
fn led() -> Cluster {
    let mut cluster = Cluster::new(3, &Options::default());
    cluster.elect(node(1));
    heartbeat(&mut cluster);
    cluster
}

fn heartbeat(cluster: &mut Cluster) {
    for _ in 0..cluster.node(node(1)).options.heartbeat_ticks {
        cluster.tick(node(1));
    }
    cluster.settle();
}

/// Cuts the leader off until the third node would elect another one.
fn lose_leader(cluster: &mut Cluster) {
    cluster.isolate(node(1));
    for _ in 0..cluster.node(node(3)).options.election_ticks {
        cluster.tick(node(3));
    }
    cluster.wire.clear();
}

fn questions(cluster: &Cluster) -> Vec<u64> {
    let question = |envelope: &Envelope| match envelope.message {
        Message::ReadIndex { question } => Some(question),
        _ => None,
    };
    cluster.wire.iter().filter_map(question).collect()
}

#[test]
fn one_question_serves_all_reads_that_wait_for_it() {
    let mut cluster = led();
    cluster.propose(node(1), "x").unwrap();
    cluster.settle();
    let tickets: Vec<_> = (0..100)
        .map(|_| cluster.raft_mut(node(2)).ask_read_index().unwrap())
        .collect();
    cluster.turn(node(2));
    assert_eq!(questions(&cluster).len(), 1);
    // This one came after the question, so its answer says nothing about it.
    let later = cluster.raft_mut(node(2)).ask_read_index().unwrap();
    cluster.turn(node(2));
    assert_eq!(cluster.wire.len(), 1, "the next question waits");
    let last = cluster.raft(node(1)).last_id();
    cluster.settle();
    assert_eq!(cluster.raft(node(1)).last_id(), last, "no entry is written");
    let grants = cluster.node(node(2)).follower_grants.clone();
    assert_eq!(grants.len(), 2);
    assert!(tickets.iter().all(|ticket| *ticket <= grants[0].ticket));
    assert!(grants[0].ticket < later && later <= grants[1].ticket);
    assert_eq!(grants[0].index, Index(2));
}

#[test]
fn a_leader_answers_only_once_a_quorum_has_confirmed_it() {
    let mut cluster = led();
    cluster.cut.extend([(node(1), node(3)), (node(3), node(1))]);
    cluster.ask(node(2)).unwrap();
    let question = cluster.wire.pop_front().unwrap();
    cluster.deliver(question).unwrap();
    let to_follower = |cluster: &Cluster| {
        let is_reply = |it: &Envelope| matches!(it.message, Message::ReadIndexReply { .. });
        cluster.wire.iter().any(is_reply)
    };
    assert!(!to_follower(&cluster));
    // The follower's own answer to the heartbeat makes the quorum.
    cluster.settle();
    assert_eq!(cluster.node(node(2)).follower_grants.len(), 1);

    // Without a quorum there is no answer.
    cluster.node_mut(node(2)).follower_grants.clear();
    cluster.ask(node(2)).unwrap();
    let question = cluster.wire.pop_front().unwrap();
    cluster.isolate(node(1));
    cluster.deliver(question).unwrap();
    cluster.settle();
    assert!(cluster.node(node(2)).follower_grants.is_empty());
}

#[test]
fn a_leader_without_an_entry_of_its_term_says_nothing() {
    let mut cluster = led();
    cluster.propose(node(1), "x").unwrap();
    cluster.settle();
    lose_leader(&mut cluster);
    cluster.campaign(node(2));
    // The votes arrive; the entry that begins the term stays on the way.
    while cluster.leader() != Some(node(2)) {
        let envelope = cluster.wire.pop_front().unwrap();
        cluster.deliver(envelope).unwrap();
    }
    cluster.wire.clear();
    let term = cluster.raft(node(2)).term();
    let question = Envelope {
        from: node(3),
        to: node(2),
        term,
        message: Message::ReadIndex { question: 7 },
    };
    cluster.deliver(question).unwrap();
    assert!(cluster.wire.is_empty());
}

#[test]
fn a_question_is_repeated_until_it_is_answered_also_to_the_next_leader() {
    let mut cluster = led();
    let ticket = cluster.ask(node(3)).unwrap();
    cluster.wire.clear();
    for _ in 1..cluster.node(node(3)).options.heartbeat_ticks {
        cluster.tick(node(3));
    }
    assert!(cluster.wire.is_empty(), "an answer may be on its way");
    cluster.tick(node(3));
    let asked = questions(&cluster);
    assert_eq!(asked, [ticket.0 + 1]);
    // It is lost as well, and so is the leader.
    cluster.wire.clear();
    lose_leader(&mut cluster);
    cluster.elect(node(2));
    for _ in 0..cluster.node(node(2)).options.heartbeat_ticks {
        cluster.tick(node(2));
        cluster.settle();
    }
    let grants = &cluster.node(node(3)).follower_grants;
    assert!(grants.iter().any(|grant| grant.ticket >= ticket));
}

#[test]
fn answers_to_other_questions_grant_nothing() {
    let mut cluster = led();
    let first = cluster.ask(node(2)).unwrap().0;
    let term = cluster.raft(node(1)).term();
    let answer = |question| Envelope {
        from: node(1),
        to: node(2),
        term,
        message: Message::ReadIndexReply {
            question,
            index: Index(1),
        },
    };
    // Of an earlier process, and one that was never asked.
    for question in [0, first - 1, first + 1, u64::MAX] {
        cluster.deliver(answer(question)).unwrap();
        assert!(
            cluster.node(node(2)).follower_grants.is_empty(),
            "{question}"
        );
    }
    cluster.deliver(answer(first)).unwrap();
    assert_eq!(cluster.node(node(2)).follower_grants.len(), 1);
    // A second time.
    cluster.deliver(answer(first)).unwrap();
    assert_eq!(cluster.node(node(2)).follower_grants.len(), 1);
}

#[test]
fn a_restart_begins_at_another_number() {
    let mut cluster = led();
    let first = cluster.ask(node(2)).unwrap();
    cluster.settle();
    cluster.crash(node(2));
    cluster.start(node(2));
    heartbeat(&mut cluster);
    let second = cluster.ask(node(2)).unwrap();
    assert!(second.0.abs_diff(first.0) > 1_000, "{first:?} {second:?}");
}

#[test]
fn only_leaders_that_answer_are_asked() {
    let mut cluster = Cluster::new(3, &Options::default());
    let refused = |cluster: &mut Cluster, leader| {
        let asked = cluster.raft_mut(node(2)).ask_read_index();
        assert_eq!(asked, Err(ReadError::NotLeader { leader }));
    };
    refused(&mut cluster, None);
    cluster.elect(node(1));
    // It follows, and no heartbeat has told yet what the leader can do.
    let term = cluster.raft(node(1)).term();
    let tell = |cluster: &mut Cluster, answers_reads| {
        let message = Message::Heartbeat {
            commit: Index(0),
            read_round: 0,
            lease: false,
            quiet: true,
            comparison: None,
            answers_reads,
        };
        let (from, to) = (node(1), node(2));
        let envelope = Envelope {
            from,
            to,
            term,
            message,
        };
        cluster.deliver(envelope).unwrap();
    };
    tell(&mut cluster, false);
    refused(&mut cluster, Some(node(1)));
    tell(&mut cluster, true);
    cluster.raft_mut(node(2)).ask_read_index().unwrap();
    // The leader has reads of its own.
    assert!(cluster.raft_mut(node(1)).ask_read_index().is_err());
}

#[test]
fn a_leader_remembers_one_question_of_each_member() {
    let mut cluster = led();
    let term = cluster.raft(node(1)).term();
    let ask = |from, question| Envelope {
        from: node(from),
        to: node(1),
        term,
        message: Message::ReadIndex { question },
    };
    for question in 1..1_000 {
        cluster.raft_mut(node(1)).step(ask(2, question)).unwrap();
    }
    cluster.raft_mut(node(1)).step(ask(9, 5)).unwrap();
    cluster.raft_mut(node(1)).step(ask(2, 3)).unwrap();
    cluster.turn(node(1));
    cluster.quiet = false;
    let mut answers = Vec::new();
    while let Some(envelope) = cluster.wire.pop_front() {
        if let Message::ReadIndexReply { question, .. } = envelope.message {
            answers.push((envelope.to, question));
        }
        cluster.deliver(envelope).unwrap();
    }
    assert_eq!(answers, [(node(2), 999)]);
}
