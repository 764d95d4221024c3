//! The pending calls without a socket: time and answers are given.

use types::{ConfigNum, shard_of};

use super::harness::*;
use super::*;
use crate::refusal::{Refusal, Refused};

#[test]
fn reads_go_at_once_and_writes_wait_for_a_session() {
    let mut it = Harness::new(LIMITS);
    let put = it.put();
    it.get();
    assert_eq!(it.send(), [(2, None)]);
    assert!(it.calls.wants_session());
    it.open_session("first");
    assert!(!it.calls.wants_session());
    assert_eq!(it.send(), [(1, Some(name("first", 1)))]);
    assert!(it.answered.is_empty(), "not answered yet");
    assert!(it.done(1).served);
    assert_eq!(it.answered[&put], 1);
    assert_eq!(it.calls.on_wire(), 1);
}

#[test]
fn the_next_deadline_is_the_earliest_of_unanswered_calls() {
    let mut it = Harness::new(LIMITS);
    assert_eq!(it.calls.next_deadline(), None);
    it.get();
    let first = it.calls.next_deadline();
    it.now += Duration::from_millis(500);
    it.get();
    assert_eq!(it.calls.next_deadline(), first, "sent or not");
    it.send();
    it.done(1);
    let second = it.calls.next_deadline();
    assert_eq!(second, first.map(|at| at + Duration::from_millis(500)));
    it.done(2);
    assert_eq!(it.calls.next_deadline(), None);
}

#[test]
fn a_lost_connection_sends_again_in_order_and_under_the_same_names() {
    let mut it = Harness::with_session();
    for _ in 0..5 {
        it.put();
    }
    let first = it.send();
    it.done(2);
    // One is refused by itself, and then the stream ends.
    let consequence = it.refuse(4, not_leader("b:2"));
    assert_eq!(consequence.reroute, Some(Reroute(Some("b:2".into()))));
    it.lose_connection();
    assert_eq!(it.calls.on_wire(), 0);
    let again: Vec<_> = first.into_iter().filter(|(id, _)| *id != 2).collect();
    assert_eq!(it.send(), again);
}

#[test]
fn only_writes_that_may_be_applied_are_in_doubt_at_the_deadline() {
    let limits = Limits {
        max_batch_items: 3,
        ..LIMITS
    };
    let mut it = Harness::new(limits);
    it.open_session("first");
    let refused = it.put();
    let lost = it.put();
    let read = it.get();
    it.send();
    it.refuse(1, not_leader(""));
    it.lose_connection();
    let on_wire = it.put();
    it.calls.advance(it.now);
    // Of the queue only the last is sent again.
    it.calls.ready.rotate_right(1);
    it.calls.limits.max_batch_items = 1;
    assert_eq!(it.send().len(), 1);
    let never = it.put();
    it.now += Duration::from_secs(10);
    it.sweep();
    assert!(it.calls.is_empty());
    for (number, doubt) in [
        (refused, false),
        (lost, true),
        (read, false),
        (on_wire, true),
        (never, false),
    ] {
        let failure = &it.failed[&number];
        assert!(matches!(failure, Failure::TimedOut { .. }));
        assert_eq!(failure.maybe_applied(), doubt, "{number}: {failure:?}");
    }
}

#[test]
fn an_expired_session_gives_a_write_another_name_only_without_doubt() {
    let mut it = Harness::with_session();
    let sure = it.put();
    let doubtful = it.put();
    assert_eq!(
        it.send(),
        [(1, Some(name("first", 1))), (2, Some(name("first", 2)))]
    );
    it.refuse(2, Refusal::OutcomeUnknown { hint: None });
    it.refuse(1, Refusal::SessionExpired);
    assert_eq!(
        it.send(),
        [(2, Some(name("first", 2)))],
        "a name is kept in doubt"
    );
    it.refuse(2, Refusal::SessionExpired);
    assert_eq!(it.failed[&doubtful], Failure::SessionExpired);
    assert!(it.failed[&doubtful].maybe_applied());

    assert!(!it.failed.contains_key(&sure));
    it.now = it.calls.next_due().expect("delayed a little");
    assert_eq!(it.send(), []);
    assert!(it.calls.wants_session());
    it.open_session("second");
    assert_eq!(it.send(), [(1, Some(name("second", 1)))]);
}

#[test]
fn a_certain_refusal_does_not_end_the_doubt_of_an_earlier_attempt() {
    let mut it = Harness::with_session();
    let put = it.put();
    it.send();
    it.lose_connection();
    it.send();
    let message = "full".to_owned();
    it.refuse(1, Refusal::Rejected(Rejection::DiskFull { message }));
    assert!(it.failed[&put].maybe_applied());
}

#[test]
fn a_write_without_a_session_is_repeated_only_without_doubt() {
    let mut it = Harness::new(LIMITS);
    let lost = it.admit(Item::new(HERE, Repeat::Never));
    let unknown = it.admit(Item::new(HERE, Repeat::Never));
    let refused = it.admit(Item::new(HERE, Repeat::Never));
    assert_eq!(it.send(), [(1, None), (2, None), (3, None)]);
    it.refuse(2, Refusal::OutcomeUnknown { hint: None });
    it.refuse(3, not_leader(""));
    it.lose_connection();
    assert_eq!(it.failed[&lost], Failure::Unrepeatable);
    assert_eq!(it.failed[&unknown], Failure::Unrepeatable);
    assert!(!it.failed.contains_key(&refused));
    assert_eq!(it.send(), [(3, None)], "nothing was done with it");
}

#[test]
fn a_busy_node_is_asked_again_after_a_pause() {
    let mut it = Harness::with_session();
    it.put();
    it.send();
    let retry_after = Duration::from_millis(20);
    let consequence = it.refuse(1, Refusal::Overloaded { retry_after });
    assert_eq!(consequence.reroute, None);
    assert_eq!(it.send(), []);
    let due = it.calls.next_due().unwrap();
    assert!(due >= it.now + Duration::from_millis(15));
    it.now = due;
    assert_eq!(it.send(), [(1, Some(name("first", 1)))]);
}

#[test]
fn batches_are_bounded_and_large_calls_go_alone() {
    let limits = Limits {
        max_batch_items: 3,
        max_batch_bytes: 1_000,
        ..LIMITS
    };
    let mut it = Harness::new(limits);
    it.open_session("first");
    for cost in [130, 130, 130, 130, 5_000, 130] {
        it.put_of(cost);
    }
    let mut sizes = Vec::new();
    loop {
        match it.send().len() {
            0 => break,
            size => sizes.push(size),
        }
    }
    assert_eq!(sizes, [3, 1, 1, 1]);
}

#[test]
fn one_oversize_call_does_not_take_the_others_with_it() {
    let mut it = Harness::with_session();
    let small = it.put_of(130);
    let large = it.put_of(1_130);
    it.send();
    let message = "too large".to_owned();
    it.calls.fail_largest(Rejection::Protocol { message });
    it.lose_connection();
    assert!(matches!(it.failed[&large], Failure::Rejected { .. }));
    assert_eq!(it.send().len(), 1);
    it.done(1);
    assert_eq!(it.answered[&small], 1);
}

#[test]
fn answers_to_calls_that_were_not_sent_or_are_gone_do_no_harm() {
    let mut it = Harness::with_session();
    let get = it.get();
    it.done(1);
    assert!(it.answered.is_empty(), "answered before it was sent");
    it.send();
    it.done(99);
    it.done(1);
    it.done(1);
    assert_eq!(it.answered[&get], 1);
    assert!(it.calls.is_empty());
}

#[test]
fn an_answer_to_an_earlier_attempt_ends_the_call_and_a_refusal_of_it_does_not() {
    let mut it = Harness::with_session();
    let put = it.put();
    it.send();
    it.lose_connection();
    it.refuse(1, not_leader("b:1"));
    assert_eq!(it.calls.len(), 1, "that was about the first attempt");
    it.done(1);
    assert_eq!(it.answered.get(&put), Some(&1));
    assert!(it.calls.is_empty());
    assert_eq!(it.send(), []);
}

#[test]
fn calls_of_a_shard_that_left_are_moved_and_the_others_stay() {
    assert_ne!(shard_of(HERE.as_bytes(), 4), shard_of(AWAY.as_bytes(), 4));
    let mut it = Harness::with_session();
    for key in [HERE, AWAY, HERE, AWAY] {
        it.admit(Item::put(key));
    }
    it.send();
    it.calls.reconfigure(without(2, AWAY));
    it.settle();
    assert!(it.moved.is_empty(), "all are on the wire");
    // One is refused and was never in doubt; one was sent, and its result is unknown.
    let consequence = it.refuse(2, wrong_group(2));
    assert_eq!(consequence.behind, None, "that is known");
    it.lose_connection();
    let named: Vec<_> = it
        .moved
        .drain(..)
        .map(|it| {
            let stamp = it.attempts.name.as_ref().and_then(Name::stamp);
            let name = stamp.map(|it| (it.client_id, it.sequence));
            (name, it.attempts.doubt)
        })
        .collect();
    assert_eq!(named, [(None, false), (Some(name("first", 4)), true)]);
    let stayed: Vec<u64> = it.send().into_iter().map(|(id, _)| id).collect();
    assert_eq!(stayed, [1, 3]);

    // A call that was routed by an old configuration leaves at once.
    it.admit(Item::put(AWAY));
    assert_eq!(it.moved.len(), 1);
    assert_eq!(it.calls.on_wire(), 2);
}

#[test]
fn a_call_of_a_shard_that_left_moves_when_its_node_does_not_lead() {
    let mut it = Harness::with_session();
    it.admit(Item::put(AWAY));
    it.send();
    it.calls.reconfigure(without(2, AWAY));
    it.refuse(1, not_leader("b:2"));
    assert_eq!(it.moved.len(), 1);
    assert!(it.calls.is_empty());
}

#[test]
fn a_write_in_doubt_keeps_its_name_and_its_fence_at_the_other_group() {
    let mut source = Harness::with_session();
    let doubtful = source.admit(Item::put(AWAY));
    source.send();
    source.calls.reconfigure(without(2, AWAY));
    source.lose_connection();
    let mut destination = Harness::of(LIMITS, OTHER, without(2, AWAY), Bugs::default());
    for call in source.moved.drain(..) {
        destination.calls.admit(call);
    }
    assert_eq!(
        destination.send(),
        [(1, Some(name("first", 1)))],
        "without a session of its own"
    );
    destination.refuse(1, not_ready(5));
    destination.now = destination.calls.next_due().unwrap();
    assert_eq!(destination.send(), [(1, Some(name("first", 1)))]);
    // While it is unanswered, its session must not acknowledge it.
    source.put();
    source.calls.advance(source.now);
    let stamps = source.calls.next_batch(|_, _, stamp| stamp);
    let stamp = stamps[0].clone().unwrap();
    assert_eq!((stamp.sequence, stamp.acked_below), (2, 1));
    destination.done(1);
    assert_eq!(destination.answered[&doubtful], 1);
}

#[test]
fn a_shard_that_is_being_moved_keeps_no_other_out() {
    let limits = Limits {
        max_in_flight: 4,
        max_unacknowledged: 4,
        ..LIMITS
    };
    let mut it = Harness::new(limits);
    it.open_session("first");
    for round in 0..8 {
        it.admit(Item::put(AWAY));
        let sent = it.send();
        assert_eq!(sent.len(), usize::from(round == 0), "one asks");
        for (id, _) in sent {
            it.refuse(id, not_ready(100));
        }
        assert!(it.calls.room() >= 4, "round {round}");
        let served = it.put();
        let sent = it.send();
        it.done(sent.last().unwrap().0);
        assert_eq!(it.answered[&served], 1, "round {round}");
    }
    assert!(!it.calls.wants_session(), "nothing is kept in its window");
    assert_eq!(it.calls.len(), 8);
    assert_eq!(it.holding_budget(), 0, "nor of the bytes in flight");
}

#[test]
fn calls_that_wait_for_their_shard_are_bounded_and_so_is_the_wire() {
    let limits = Limits {
        max_in_flight: 2,
        ..LIMITS
    };
    let mut it = Harness::new(limits);
    let mut waiting = 0;
    while it.calls.room() > 0 {
        it.get();
        waiting += 1;
        for (id, _) in it.send() {
            it.refuse(id, not_ready(1_000));
        }
        assert!(waiting <= 18, "2 and 8 times 2");
    }
    assert_eq!(waiting, 18);
    assert_eq!(it.holding_budget(), 0);
    it.now += Duration::from_secs(5);
    let probe = it.send();
    assert_eq!(probe.len(), 1);
    it.done(probe[0].0);
    assert_eq!(it.send().len(), 2, "all may be sent, two at a time");
    assert_eq!(it.send().len(), 0);
}

#[test]
fn one_call_asks_for_a_shard_that_is_not_served_and_the_others_wait_for_it() {
    let mut it = Harness::with_session();
    for _ in 0..100 {
        it.put();
    }
    let sent = it.send();
    assert_eq!(sent.len(), 100);
    for (id, _) in sent {
        it.refuse(id, not_ready(5));
    }
    let mut asked = 0;
    let end = it.now + Duration::from_secs(5);
    while it.now < end {
        it.now = it.calls.next_due().expect("a probe is due");
        it.put();
        for (id, _) in it.send() {
            asked += 1;
            assert_eq!(id, 1, "the oldest call asks");
            it.refuse(id, not_ready(5));
        }
    }
    assert!((15..100).contains(&asked), "{asked} probes in 5 s");
    let other = it.admit(Item::put(AWAY));
    let sent = it.send();
    assert_eq!(sent.len(), 1, "only the call of another shard");
    it.done(sent[0].0);
    assert_eq!(it.answered[&other], 1);
    it.now = it.calls.next_due().unwrap();
    it.send();
    it.done(1);
    let sent: Vec<u64> = it.send().into_iter().map(|(id, _)| id).collect();
    assert!(sent.len() > 100 && sent.is_sorted(), "all, in their order");
}

#[test]
fn another_call_asks_when_the_one_that_asks_ends() {
    let mut it = Harness::with_session();
    let first = it.put();
    it.now += Duration::from_secs(1);
    let second = it.put();
    for (id, _) in it.send() {
        it.refuse(id, not_ready(5));
    }
    it.now = it.calls.next_due().unwrap();
    assert_eq!(it.send().len(), 1);
    it.now += Duration::from_millis(9_500);
    it.sweep();
    assert!(it.failed.contains_key(&first));
    let sent = it.send();
    assert_eq!(sent.len(), 1, "at once");
    it.done(sent[0].0);
    assert_eq!(it.answered[&second], 1);
    assert_eq!(it.calls.next_due(), None);
}

/// A harness whose session has a window of four writes.
fn with_a_window_of_four() -> Harness {
    let limits = Limits {
        max_unacknowledged: 4,
        ..LIMITS
    };
    let mut it = Harness::new(limits);
    it.open_session("first");
    it
}

#[test]
fn a_call_in_doubt_asks_before_one_that_has_no_name() {
    let mut it = with_a_window_of_four();
    for _ in 0..4 {
        it.put();
    }
    assert_eq!(it.send().len(), 4);
    // The first gives its name back, and a write of another shard takes it.
    it.refuse(1, not_ready(5));
    let away = it.admit(Item::put(AWAY));
    assert_eq!(it.send(), [(away, Some(name("first", 5)))]);
    it.done(away);
    it.lose_connection();
    it.now = it.calls.next_due().expect("a probe is due");
    // All names are taken by calls that wait for the shard. One of them must ask.
    let sent = it.send();
    assert_eq!(sent, [(2, Some(name("first", 2)))]);
    it.done(2);
    let rest: Vec<u64> = it.send().into_iter().map(|(id, _)| id).collect();
    assert_eq!(rest, [3, 4, 1], "all go on, and a name is free");
    for id in rest {
        it.done(id);
    }
    assert_eq!(it.answered.len(), 5);
}

#[test]
fn a_probe_that_gets_no_name_lets_one_in_doubt_ask() {
    let mut it = with_a_window_of_four();
    let first = it.put();
    it.send();
    it.refuse(first, not_ready(5));
    let away: Vec<u64> = (0..4).map(|_| it.admit(Item::put(AWAY))).collect();
    assert_eq!(it.send().len(), 4);
    it.now = it.calls.next_due().expect("a probe is due");
    assert!(it.send().is_empty(), "the probe waits for a name");
    for id in away {
        it.done(id);
    }
    assert_eq!(it.send().len(), 1, "names are free again");
}

#[test]
fn a_probe_that_a_busy_node_refuses_lets_one_other_ask() {
    let mut it = Harness::with_session();
    for _ in 0..4 {
        it.put();
    }
    for (id, _) in it.send() {
        it.refuse(id, not_ready(5));
    }
    let retry_after = Duration::from_millis(20);
    let mut asked = Vec::new();
    for _ in 0..6 {
        let since = it.now;
        it.now = it.calls.next_due().expect("a probe is due");
        assert!(asked.is_empty() || it.now >= since + Duration::from_millis(15));
        let probes = it.send();
        assert_eq!(probes.len(), 1, "{probes:?}");
        asked.push(probes[0].0);
        it.refuse(probes[0].0, Refusal::Overloaded { retry_after });
        assert!(it.send().is_empty(), "the others wait");
    }
    assert_eq!(asked, [1, 2, 3, 4, 1, 2], "each in its turn");
    it.now = it.calls.next_due().expect("a probe is due");
    let probe = it.send();
    it.done(probe[0].0);
    assert_eq!(it.send().len(), 3, "the shard is served");
}

#[test]
fn a_probe_that_is_refused_for_its_session_keeps_no_older_write_back() {
    let mut it = Harness::with_session();
    it.put();
    it.put();
    it.send();
    it.refuse(1, not_ready(5));
    it.lose_connection();
    it.now = it.calls.next_due().expect("a probe is due");
    let sent: Vec<u64> = it.send().into_iter().map(|(id, _)| id).collect();
    assert_eq!(sent, [1]);
    // The shard keeps no more results of the session until the other write is answered.
    let retry_after = Duration::from_millis(5);
    it.refuse(1, Refusal::Overloaded { retry_after });
    it.now = it.calls.next_due().expect("another probe is due");
    let sent: Vec<u64> = it.send().into_iter().map(|(id, _)| id).collect();
    assert_eq!(sent, [2]);
}

#[test]
fn a_probe_that_meets_no_leader_is_repeated_alone() {
    let mut it = Harness::with_session();
    it.put();
    it.put();
    for (id, _) in it.send() {
        it.refuse(id, not_ready(5));
    }
    it.now = it.calls.next_due().unwrap();
    assert_eq!(it.send().len(), 1);
    it.refuse(1, not_leader("b:2"));
    assert_eq!(it.send().len(), 1);
    it.lose_connection();
    let sent: Vec<u64> = it.send().into_iter().map(|(id, _)| id).collect();
    assert_eq!(sent, [1]);
    it.calls.reconfigure(without(2, HERE));
    it.lose_connection();
    assert_eq!(it.moved.len(), 2, "both go to the new owner");
    assert!(it.calls.is_empty());
    assert_eq!(it.calls.next_due(), None);
}

#[test]
fn a_call_that_timed_out_before_it_was_sent_tells_what_its_shard_waits_for() {
    let mut it = Harness::with_session();
    it.put();
    it.send();
    it.refuse(1, not_ready(5));
    let second = it.put();
    it.send();
    it.now += Duration::from_secs(10);
    it.sweep();
    let last = Some("said so".to_owned());
    let failure = Failure::TimedOut { doubt: false, last };
    assert_eq!(it.failed[&second], failure);
}

#[test]
fn news_of_a_later_configuration_is_passed_on() {
    let mut it = Harness::with_session();
    it.put();
    it.put();
    it.send();
    let refused = |num| {
        Err::<(), _>(Refused {
            refusal: wrong_group(num),
            message: "moved".to_owned(),
        })
    };
    let results = [(1, refused(5)), (2, refused(7))];
    let (_, consequence) = it.calls.handle_results(it.now, results);
    assert_eq!(consequence.behind, Some(ConfigNum(7)));
    assert_eq!(consequence.reroute, None, "the node is a good one");
    assert!(
        it.calls.next_due().is_some(),
        "they are tried again in any case"
    );
}

#[test]
fn a_copy_that_nobody_waits_for_leaves_a_write_in_doubt() {
    let mut it = Harness::with_session();
    let put = it.put();
    it.send();
    it.calls.note_copy(1);
    it.refuse(1, not_leader(""));
    it.now += Duration::from_secs(10);
    it.sweep();
    assert!(it.failed[&put].maybe_applied());
}
