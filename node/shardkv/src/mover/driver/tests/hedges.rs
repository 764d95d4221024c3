//! Calls that are repeated at other nodes.

use super::*;

/// The ownership of a group whose shard was cut before the copy was complete.
fn completing() -> Ownership {
    let mut ownership = copying();
    let mut shard = Shard::clone(ownership.shards.get(&SHARD).unwrap());
    shard.state = ShardState::Completing {
        config: ConfigNum(4),
        source: SOURCE,
        copy: CopyId {
            since: ConfigNum(3),
            journal: Index(9),
        },
        cursor: CopyCursor::default(),
        bytes: 0,
    };
    ownership.shards.insert(SHARD, Arc::new(shard));
    ownership.planned = Arc::default();
    ownership.config = ConfigNum(4);
    ownership
}

/// A driver that knows that node 3 of the source leads, and whose copy is cut while a part is on its way. Returns the call of that part
/// as well.
fn cut() -> (Stage, CallId) {
    let mut stage = Stage::new(copying());
    let (id, _) = stage.take(is_journal);
    stage.refuse(id, not_leader(Some("g2-3:7000")));
    let (id, address) = stage.take(is_journal);
    assert_eq!(address, "g2-3:7000");
    stage.answer(id, Answer::Stepped);
    let (before, address) = stage.take(is_copy);
    assert_ne!(address, "g2-3:7000", "bulk comes from followers");
    stage.ownership = Arc::new(completing());
    stage.poll();
    (stage, before)
}

fn has_taken_a_part(stage: &Stage) -> bool {
    let takes = |step: &Step| matches!(step, Step::Copy(CopyStep::Take(_)));
    stage.proposals.iter().any(|(_, step)| takes(step))
}

fn part() -> Answer {
    Answer::Part(Part {
        shard: SHARD,
        copy: CopyId {
            since: ConfigNum(3),
            journal: Index(9),
        },
        after: CopyCursor::default(),
        changes: Vec::new(),
        next: PartNext::At(CopyCursor::Page {
            generation: 1,
            after: Position::default(),
        }),
    })
}

#[test]
fn a_cut_shard_asks_the_leader_at_once_whatever_was_asked_before() {
    let (mut stage, before) = cut();
    let (id, address) = stage.take(is_copy);
    assert_eq!(address, "g2-3:7000");
    stage.answer(before, part());
    assert!(!has_taken_a_part(&stage), "that call is over");
    stage.answer(id, part());
    assert!(has_taken_a_part(&stage));
}

#[test]
fn a_silent_leader_costs_a_tenth_of_a_second() {
    let (mut stage, _) = cut();
    let (leader, _) = stage.take(is_copy);
    stage.pass(99);
    assert!(!stage.calls.iter().any(|(_, _, it)| is_copy(it)));
    stage.pass(1);
    let (second, address) = stage.take(is_copy);
    assert_ne!(address, "g2-3:7000");
    let retry_after = SECOND;
    stage.refuse(second, Refusal::ShardNotReady { retry_after });
    stage.pass(100);
    let (third, other) = stage.take(is_copy);
    assert!(other != address && other != "g2-3:7000");
    stage.answer(third, part());
    assert!(has_taken_a_part(&stage));
    assert_eq!(stage.failures, [""; 0]);
    let taken = stage.proposals.len();
    stage.answer(leader, part());
    assert_eq!(stage.proposals.len(), taken, "one answer is enough");
    let (_, next) = stage.take(is_copy);
    assert_eq!(next, other, "the node that has answered");
}

#[test]
fn the_first_of_two_answers_counts_also_if_it_is_the_leaders() {
    let (mut stage, _) = cut();
    let (leader, _) = stage.take(is_copy);
    stage.pass(100);
    stage.take(is_copy);
    stage.answer(leader, part());
    assert!(has_taken_a_part(&stage));
}

#[test]
fn a_leader_that_has_not_applied_the_fence_is_followed_by_another_node_at_once() {
    let (mut stage, _) = cut();
    let (id, _) = stage.take(is_copy);
    let retry_after = SECOND;
    stage.refuse(id, Refusal::ShardNotReady { retry_after });
    let (id, address) = stage.take(is_copy);
    assert_ne!(address, "g2-3:7000");
    stage.refuse(id, Refusal::ShardNotReady { retry_after });
    assert_eq!(stage.failures.len(), 1);
    stage.pass(10);
    let (_, address) = stage.take(is_copy);
    assert_eq!(address, "g2-3:7000");
}

#[test]
fn calls_to_silent_nodes_end_and_the_nodes_are_asked_again() {
    let (mut stage, _) = cut();
    let mut asked: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..60 {
        stage.pass(100);
        while stage.calls.iter().any(|(_, _, it)| is_copy(it)) {
            let (_, address) = stage.take(is_copy);
            *asked.entry(address).or_default() += 1;
        }
        let pending = stage.driver.pending_actions();
        let copies = pending.filter(|it| matches!(it, Action::Copy { .. }));
        assert!(copies.count() <= 3);
    }
    let times: Vec<usize> = asked.into_values().collect();
    assert!(
        times.len() == 3 && times.iter().all(|it| (4..=8).contains(it)),
        "{times:?}"
    );
}

/// The timeout of a call is a second, and each answer needs three.
#[test]
fn a_source_that_is_slower_than_the_timeout_makes_progress() {
    let mut stage = Stage::new(copying());
    let mut answers: Vec<(u64, CallId, Request)> = Vec::new();
    for _ in 0..2_000 {
        for (id, _, request) in std::mem::take(&mut stage.calls) {
            answers.push((stage.now + 3_000, id, request));
        }
        let (due, later) = answers.into_iter().partition(|(at, ..)| *at <= stage.now);
        answers = later;
        for (_, id, request) in due {
            match request {
                Request::Journal { .. } => stage.answer(id, Answer::Stepped),
                Request::Copy { .. } => stage.answer(id, part()),
                _ => {}
            }
        }
        if has_taken_a_part(&stage) {
            return;
        }
        stage.pass(10);
    }
    panic!("no part in 20 seconds: {:?}", stage.failures);
}
