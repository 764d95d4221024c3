//! Whole worlds: the first seeds violate no invariant, equal seeds give equal worlds, and known bugs are found.

use shardkv_sim::bug::{Bug, ProcessBug};
use shardkv_sim::runner::{Plan, run_all, run_seed};

#[test]
fn the_first_seeds_keep_every_promise() {
    let plan = Plan {
        seeds: 0..40,
        jobs: 1,
        bug: None,
        stop_early: false,
    };
    let summary = run_all(&plan, |_| {});
    assert!(summary.found.is_empty(), "{:?}", summary.found);
    // The faults did happen. Otherwise the test would prove nothing.
    for what in [
        "crashes",
        "crashes inside a step",
        "partitions",
        "snapshots installed",
        "wiped disks",
        "damaged disks refused",
        "membership changes done",
        "transfers done",
        "session writes applied",
        "configurations",
        "shards handed over",
        "outages of a group",
        "slow groups",
        "groups that the others did without",
        "shards compared",
        "requests that came twice, late",
        "answers that came twice, late",
        "steps that came late",
        "strikes at a step of a move",
        "targets changed at a step of a move",
        "pages read",
        "orderly stops",
        "requests forwarded",
        "processes stopped by a full disk",
        "leaders isolated",
        "answers of followers that came twice, late",
        "groups founded",
        "volumes lost at first starts",
        "volumes exchanged",
    ] {
        assert!(summary.counts.contains_key(what), "no {what} in 40 worlds");
    }
}

#[test]
fn equal_seeds_are_equal_worlds() {
    for seed in 100..110 {
        let first = run_seed(seed, None, false).unwrap();
        let second = run_seed(seed, None, false).unwrap();
        assert_eq!(first, second);
    }
    let one = run_seed(100, None, false).unwrap();
    let other = run_seed(101, None, false).unwrap();
    assert_ne!(one.fingerprint, other.fingerprint);
}

#[test]
fn a_failing_seed_fails_the_same_way_again() {
    for bug in [
        Bug::Shardkv(shardkv::Bug::RetryAppliedTwice),
        Bug::Shardkv(shardkv::Bug::DeleteBeforeInstall),
    ] {
        let failure = |seed| run_seed(seed, Some(bug), false).err();
        let found = (0..300).find_map(|seed| Some((seed, failure(seed)?)));
        let (seed, first) = found.unwrap();
        assert_eq!(failure(seed), Some(first));
    }
}

/// Checks the bugs that show quickly. `shardkv-sim bugs` checks all of them.
#[test]
fn common_bugs_are_found_in_few_seeds() {
    for bug in [
        Bug::Raft(raft::Bug::VoteNotDurable),
        Bug::Raft(raft::Bug::AckBeforeFsync),
        Bug::Raft(raft::Bug::NoOwnTermNoop),
        Bug::Raft(raft::Bug::CommitOldTermByCounting),
        Bug::Raft(raft::Bug::VoteIgnoresLog),
        Bug::Replica(replica::Bug::CompactAboveDurable),
        Bug::Replica(replica::Bug::SnapshotWithoutSessions),
        Bug::Shardkv(shardkv::Bug::AbsentSessionIsNew),
        Bug::Shardkv(shardkv::Bug::RetryAppliedTwice),
        Bug::Replica(replica::Bug::AnswerByIndexOnly),
        Bug::Replica(replica::Bug::FounderFoundsAgain),
        Bug::Replica(replica::Bug::FormsWithoutSilent),
        Bug::Process(ProcessBug::WipedDiskKeepsIdentity),
        Bug::Shardkv(shardkv::Bug::SessionsStayBehind),
        Bug::Shardkv(shardkv::Bug::ServedBeforeInstalled),
        Bug::Shardkv(shardkv::Bug::FenceNotLogged),
        Bug::Shardkv(shardkv::Bug::DeleteBeforeInstall),
        Bug::Shardkv(shardkv::Bug::DeleteSentOnce),
        Bug::Shardkv(shardkv::Bug::DeadGroupFreezesAll),
        Bug::Shardkv(shardkv::Bug::HintFollowedForEver),
        Bug::Shardkv(shardkv::Bug::LostAnswerKeepsSlot),
        Bug::Shardkv(shardkv::Bug::JournalMissesFirstBatch),
        Bug::Shardkv(shardkv::Bug::JournalMissesDeletes),
        Bug::Shardkv(shardkv::Bug::JournalMissesExpiry),
        Bug::Shardkv(shardkv::Bug::SessionClockStaysBehind),
        Bug::Shardkv(shardkv::Bug::SessionsExpireInCopy),
        Bug::Shardkv(shardkv::Bug::LatePartTaken),
        Bug::Shardkv(shardkv::Bug::JournalNamesSessionsLate),
        Bug::Shardkv(shardkv::Bug::CopyBeginsEarly),
        Bug::Shardkv(shardkv::Bug::PageSkipsRow),
        Bug::Shardkv(shardkv::Bug::EndedCopyUsed),
        Bug::Shardkv(shardkv::Bug::UselessCopyServed),
        Bug::Shardkv(shardkv::Bug::DropKeepsRows),
        Bug::Shardkv(shardkv::Bug::AbsentSessionKept),
        Bug::Shardctrler(shardctrler::Bug::LeavingCountsAsDrained),
        Bug::Shardctrler(shardctrler::Bug::IncarnationReused),
    ] {
        let plan = Plan {
            seeds: 0..100,
            jobs: 1,
            bug: Some(bug),
            stop_early: true,
        };
        let summary = run_all(&plan, |_| {});
        assert!(!summary.found.is_empty(), "{bug:?} was not found");
    }
}

/// Checks the bugs of the request engine, which all clients drive.
#[test]
fn bugs_of_the_request_engine_are_found_in_few_seeds() {
    for bug in request::Bug::ALL {
        let plan = Plan {
            seeds: 0..100,
            jobs: 1,
            bug: Some(Bug::Request(bug)),
            stop_early: true,
        };
        let summary = run_all(&plan, |_| {});
        assert!(!summary.found.is_empty(), "{bug:?} was not found");
    }
}
