mod hedges;
mod stage;

use std::time::Duration;

use raft::Index;
use request::Refusal;
use types::{
    ClusterId, ConfigDelta, ConfigNum, Cut, Group, Incarnation, JournalId, LogTime, ShardConfig,
    ShardId,
};

use super::*;
use crate::{
    Chunk, CopyCursor, CopyId, CopyRequest, CopyStep, Cursor, JournalError, Next, Part, PartNext,
    PlannedMove, Position, Shard, ShardState, Step, Target,
};
use stage::*;

#[test]
fn a_chunk_becomes_a_proposal() {
    let mut stage = Stage::new(pulling());
    let (pull, _) = stage.take(is_pull);
    stage.answer(pull, last_chunk());
    assert!(matches!(
        stage.proposals.as_slice(),
        [(_, Step::Install(_))]
    ));
    assert_eq!(stage.failures, [""; 0]);
}

#[test]
fn a_refusal_is_followed_to_the_named_leader_which_is_asked_first_from_then_on() {
    let mut stage = Stage::new(deleting(&[1, 2, 3]));
    let (alone, address) = stage.take(is_delete_of(1));
    assert_eq!(address, "g2-1:7000");
    stage.answer(alone, Answer::Stepped);
    assert!(stage.confirms(1));
    let (first, address) = stage.take(is_delete_of(2));
    assert_eq!(address, "g2-1:7000");
    stage.refuse(first, not_leader(Some("g2-3:7000")));
    let (second, address) = stage.take(is_delete_of(2));
    assert_eq!(address, "g2-3:7000", "at once");
    stage.answer(second, Answer::Stepped);
    assert!(stage.confirms(2));
    let (other, address) = stage.take(is_delete_of(3));
    assert_eq!(address, "g2-1:7000", "it was sent before");
    stage.refuse(other, not_leader(None));
    let (_, address) = stage.take(is_delete_of(3));
    assert_eq!(address, "g2-3:7000");
}

#[test]
fn hints_that_lead_in_a_circle_end_the_action() {
    let mut stage = Stage::new(deleting(&[1]));
    let mut asked = Vec::new();
    while let Some(at) = stage.calls.iter().position(|(_, _, it)| is_delete(it)) {
        let (id, address, _) = stage.calls.remove(at);
        let other = if address == "g2-1:7000" {
            "g2-2:7000"
        } else {
            "g2-1:7000"
        };
        asked.push(address);
        stage.refuse(id, not_leader(Some(other)));
    }
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert_eq!(stage.failures.len(), 1);
    stage.pass(10);
    stage.take(is_delete);
}

#[test]
fn a_silent_node_ends_the_action_and_another_is_asked_next() {
    let mut stage = Stage::new(pulling());
    let (lost, address) = stage.take(is_pull);
    assert_eq!(address, "g2-1:7000");
    stage.pass(999);
    assert_eq!(stage.failures, [""; 0]);
    stage.pass(1);
    let silent = "g2-1:7000: no answer in time".to_owned();
    assert!(stage.failures.contains(&silent), "{:?}", stage.failures);
    stage.pass(10);
    let (_, address) = stage.take(is_pull);
    assert_eq!(address, "g2-2:7000");
    stage.answer(lost, last_chunk());
    assert!(stage.proposals.is_empty(), "the late answer is dropped");
}

#[test]
fn a_node_that_has_not_applied_the_fence_is_not_asked_again_at_once() {
    let mut stage = Stage::new(pulling());
    let (id, _) = stage.take(is_pull);
    let retry_after = SECOND;
    stage.refuse(id, Refusal::ShardNotReady { retry_after });
    assert_eq!(stage.failures, ["g2-1:7000: said so"]);
    stage.pass(10);
    let (_, address) = stage.take(is_pull);
    assert_eq!(address, "g2-2:7000");
}

/// A driver that knows that node 1 of the source leads: it has confirmed a delete. Shards 5 and 6 are on their way.
fn knows_the_leader() -> Stage {
    let mut ownership = deleting(&[1]);
    let pulls = pulling();
    let shard = pulls.shards.get(&SHARD).unwrap();
    ownership.shards = [5, 6]
        .map(|it| (ShardId(it), Arc::clone(shard)))
        .into_iter()
        .collect();
    let mut stage = Stage::new(ownership);
    let (delete, address) = stage.take(is_delete);
    assert_eq!(address, "g2-1:7000");
    stage.answer(delete, Answer::Stepped);
    stage
}

#[test]
fn a_pull_goes_to_the_leader_last() {
    let mut stage = knows_the_leader();
    // The first pull was sent before the leader was known.
    let (first, address) = stage.take(is_pull);
    assert_eq!(address, "g2-1:7000");
    stage.refuse(first, Refusal::Unavailable);
    stage.pass(10);
    for expected in ["g2-2:7000", "g2-3:7000", "g2-1:7000", "g2-2:7000"] {
        let (id, address) = stage.take(is_pull);
        assert_eq!(address, expected);
        stage.refuse(id, Refusal::Unavailable);
        stage.pass(1_000);
    }
}

#[test]
fn a_pull_leaves_the_node_that_turns_out_to_lead() {
    let mut stage = knows_the_leader();
    let (first, address) = stage.take(is_pull);
    assert_eq!(address, "g2-1:7000");
    let Answer::Chunk { mut chunk, .. } = last_chunk() else {
        panic!("another answer");
    };
    chunk.shard = ShardId(5);
    chunk.next = Next::Chunk(Cursor::Data("k".into()));
    let shard_bytes = 0;
    stage.answer(first, Answer::Chunk { chunk, shard_bytes });
    let (_, address) = stage.take(is_pull);
    assert_ne!(address, "g2-1:7000");
}

#[test]
fn a_follower_that_has_not_applied_the_fence_is_followed_by_the_leader_at_once() {
    let mut stage = knows_the_leader();
    let (first, _) = stage.take(is_pull);
    stage.refuse(first, Refusal::Unavailable);
    stage.pass(10);
    let (id, address) = stage.take(is_pull);
    assert_eq!(address, "g2-2:7000");
    let failures = stage.failures.len();
    let retry_after = SECOND;
    stage.refuse(id, Refusal::ShardNotReady { retry_after });
    let (id, address) = stage.take(is_pull);
    assert_eq!(address, "g2-1:7000", "at once");
    assert_eq!(stage.failures.len(), failures);
    stage.refuse(id, Refusal::ShardNotReady { retry_after });
    assert_eq!(stage.failures.len(), failures + 1, "once");
}

/// The ownership of a group that is to copy the shard, and of one that does.
fn planned() -> Ownership {
    let planned = PlannedMove {
        owner: SOURCE,
        owner_since: ConfigNum(1),
        target: Target {
            to: OWN,
            since: ConfigNum(3),
        },
    };
    Ownership {
        planned: Arc::new([(SHARD, planned)].into()),
        shards: [].into_iter().collect(),
        ..pulling()
    }
}

fn copying() -> Ownership {
    let shard = Shard::new(
        ShardState::Copying {
            source: SOURCE,
            copy: CopyId {
                since: ConfigNum(3),
                journal: Index(9),
            },
            cursor: CopyCursor::default(),
            bytes: 0,
        },
        LogTime(0),
    );
    Ownership {
        shards: [(SHARD, Arc::new(shard))].into_iter().collect(),
        ..planned()
    }
}

fn is_journal(request: &Request) -> bool {
    matches!(request, Request::Journal { .. })
}

fn is_copy(request: &Request) -> bool {
    matches!(request, Request::Copy { .. })
}

#[test]
fn a_journal_begins_at_the_leader_and_its_copy_in_the_own_log() {
    let mut stage = Stage::new(planned());
    let (id, _) = stage.take(is_journal);
    stage.refuse(id, not_leader(Some("g2-3:7000")));
    let (id, address) = stage.take(is_journal);
    assert_eq!(address, "g2-3:7000");
    let begun = Answer::Begun {
        journal: Index(9),
        shard_bytes: 100,
    };
    stage.answer(id, begun);
    let starts = |step: &Step| match step {
        Step::Copy(CopyStep::Start { copy, .. }) => copy.journal == Index(9),
        _ => false,
    };
    assert!(stage.proposals.iter().any(|(_, step)| starts(step)));
}

#[test]
fn a_follower_that_does_not_know_the_journal_is_followed_by_the_leader_at_once() {
    let mut stage = Stage::new(copying());
    // A new leader renews the journal.
    let (id, leader) = stage.take(is_journal);
    stage.answer(id, Answer::Stepped);
    let (id, address) = stage.take(is_copy);
    assert_ne!(address, leader);
    let journal = Index(9);
    stage.answer(id, Answer::Refused(JournalError::Unknown { journal }));
    let (id, address) = stage.take(is_copy);
    assert_eq!(address, leader);
    stage.answer(id, Answer::Refused(JournalError::Ended { journal }));
    let drops = |step: &Step| matches!(step, Step::Copy(CopyStep::Drop { .. }));
    assert!(stage.proposals.iter().any(|(_, step)| drops(step)));
    assert!(stage.failures.is_empty());
}

#[test]
fn copies_that_are_close_behind_are_reported_to_the_controllers_in_one_call() {
    let mut stage = Stage::new(copying());
    let (id, _) = stage.take(is_journal);
    stage.answer(id, Answer::Stepped);
    let is_cut = |request: &Request| matches!(request, Request::ReportCut { .. });
    // The last part of the base, then small rounds.
    let mut next = 1;
    for _ in 0..100 {
        if stage.calls.iter().any(|(_, _, it)| is_cut(it)) {
            break;
        }
        if stage.calls.iter().any(|(_, _, it)| is_journal(it)) {
            let (id, _) = stage.take(is_journal);
            stage.answer(id, Answer::Stepped);
        }
        if let Some((id, request)) = stage.take_copy_request() {
            stage.takes_part(id, &request, next);
            next += 1;
        }
        stage.pass(100);
    }
    let at = stage
        .calls
        .iter()
        .position(|(_, _, it)| is_cut(it))
        .unwrap();
    let (id, address, request) = stage.calls.remove(at);
    assert_eq!(address, "ctrl-1:7000");
    let cut = Cut {
        owner: SOURCE,
        owner_incarnation: Incarnation(0),
        owner_since: ConfigNum(1),
        target: OWN,
        target_incarnation: Incarnation(0),
        target_since: ConfigNum(3),
        journal: JournalId(9),
    };
    let expected = Request::ReportCut {
        controller: CONTROLLER,
        cuts: [(SHARD, cut)].into(),
    };
    assert_eq!(request, expected);
    // It says nothing about what the controllers did with it.
    stage.answer(id, Answer::Reported);
    assert!(!stage.calls.iter().any(|(_, _, it)| is_cut(it)));
}

#[test]
fn whatever_configurations_come_the_latest_is_one_proposal() {
    let mut stage = Stage::new(Ownership::default());
    let (id, address) = stage.take(is_fetch);
    assert_eq!(address, "ctrl-1:7000");
    let members = groups().into_iter().map(|(gid, it)| (gid, it.addresses));
    let members = members.collect();
    let full = ShardConfig::new(ConfigNum(40), members, [(10, SOURCE)]).unwrap();
    let mut latest = full.clone();
    let mut deltas = Vec::new();
    for owner in [OWN, SOURCE, OWN] {
        let (groups, targets) = (latest.groups().clone(), [owner; 10]);
        let delta = ConfigDelta::new(&latest, &groups, &targets, &[SOURCE; 10]);
        latest.apply(&delta).unwrap();
        deltas.push(delta);
    }
    let answer = Answer::Configs {
        controller: CONTROLLER,
        shards: 10,
        settled: ConfigNum(0),
        held: ConfigNum(0),
        full: Some(full),
        deltas,
    };
    stage.answer(id, answer);
    let step = crate::Configure::to(&latest, OWN, CONTROLLER, &stage.ownership);
    assert_eq!(step.num, ConfigNum(43));
    let proposed: Vec<&Step> = stage.proposals.iter().map(|(_, step)| step).collect();
    assert_eq!(proposed, [&Step::Configure(step)]);
    // The next question is for what follows.
    let (_, _, request) = &stage.calls[0];
    assert!(matches!(
        request,
        Request::Configs {
            after: ConfigNum(43),
            gid: OWN,
            ..
        }
    ));
}

#[test]
fn a_silent_source_is_asked_until_it_confirms_and_nobody_else_is() {
    let mut stage = Stage::new(deleting(&[1]));
    stage.take(is_delete);
    stage.pass(500);
    assert_eq!(stage.failures, [""; 0]);
    stage.pass(500);
    let silent = "g2-1:7000: no answer in time".to_owned();
    assert!(stage.failures.contains(&silent), "{:?}", stage.failures);
    assert!(stage.calls.iter().all(|(_, _, it)| !is_delete(it)));
    stage.pass(1_000);
    let (id, address) = stage.take(is_delete);
    assert_eq!(address, "g2-2:7000");
    assert!(!stage.confirms(1));
    stage.answer(id, Answer::Stepped);
    assert!(stage.confirms(1));
}

#[test]
fn the_delete_of_a_group_that_is_gone_is_not_asked_for_any_more() {
    let mut stage = Stage::new(deleting(&[1]));
    let (id, _) = stage.take(is_delete);
    // The configuration without the group has dropped what it owed.
    let mut ownership = deleting(&[]);
    Arc::make_mut(&mut ownership.groups).remove(&SOURCE);
    stage.ownership = Arc::new(ownership);
    stage.poll();
    stage.answer(id, Answer::Stepped);
    stage.pass(10_000);
    assert!(!stage.confirms(1));
    assert!(stage.calls.iter().all(|(_, _, it)| !is_delete(it)));
}

#[test]
fn an_answer_of_another_kind_fails_the_action() {
    let mut stage = Stage::new(deleting(&[1]));
    let (id, _) = stage.take(is_delete);
    stage.answer(id, Answer::Reported);
    assert!(!stage.confirms(1));
    let why = "the answer is of another kind: a bug in this version";
    assert_eq!(stage.failures, [why]);
    stage.pass(10);
    stage.take(is_delete);
}

#[test]
fn the_end_of_leadership_drops_all_calls() {
    let mut stage = Stage::new(pulling());
    let (pull, _) = stage.take(is_pull);
    assert!(stage.driver.poll(stage.now, None).is_empty());
    assert_eq!(stage.driver.pending_actions().count(), 0);
    stage.answer(pull, last_chunk());
    assert!(stage.proposals.is_empty());
    stage.take(is_pull);
}

#[test]
fn proposals_with_unknown_outcome_end() {
    let mut stage = Stage::new(pulling());
    let (pull, _) = stage.take(is_pull);
    stage.answer(pull, last_chunk());
    stage.pass(5_000);
    let unknown = "the outcome of the step is unknown";
    assert!(stage.failures.iter().any(|why| why == unknown));
}

#[cfg(feature = "bugs")]
mod bugs {
    use super::*;

    fn with(bug: Bug, ownership: Ownership) -> Stage {
        let driver = Driver::with_bug(OWN, 10, MoverOptions::default(), options(), Some(bug));
        Stage::with(driver, ownership)
    }

    #[test]
    fn late_answer_taken() {
        let mut stage = with(Bug::LateAnswerTaken, deleting(&[1, 2]));
        let (late, _) = stage.take(is_delete_of(1));
        // The source is on trial: the next delete waits for the end of the first.
        stage.pass(1_600);
        let (other, _) = stage.take(is_delete_of(2));
        assert!(other > late);
        stage.answer(late, Answer::Stepped);
        assert!(stage.confirms(1) || stage.confirms(2));
    }

    #[test]
    fn hint_followed_for_ever() {
        let mut stage = with(Bug::HintFollowedForEver, deleting(&[1]));
        let (id, _) = stage.take(is_report);
        stage.refuse(id, not_leader(Some("ctrl-9:7000")));
        for _ in 0..5 {
            let (id, address) = stage.take(is_report);
            assert_eq!(address, "ctrl-9:7000");
            stage.refuse(id, Refusal::NotSent);
            stage.pass(1_000);
        }
    }

    #[test]
    fn lost_answer_keeps_slot() {
        let mut stage = with(Bug::LostAnswerKeepsSlot, deleting(&[1]));
        stage.take(is_delete);
        stage.pass(60_000);
        assert!(!stage.calls.iter().any(|(_, _, it)| is_delete(it)));
    }
}
