//! Operations that cost much: a poll does a bounded amount of work, and so does an entry.

use replica::{Answer, LOOKUP_WORK, Request, work_of_bytes};

use crate::cluster::{Cluster, SLOW_LOOKUPS};

const LIMIT: u64 = 10_000;
/// More than the work of an operation beside its lookups.
const BESIDE: u64 = 20;

/// Many slow operations wait at once. On each replica, entries and polls are bounded by counted work, and messages and ticks are
/// handled between polls.
#[test]
fn a_poll_and_an_entry_do_bounded_work() {
    let mut cluster = Cluster::new(|options| options.max_apply_work = LIMIT);
    let (leader, _) = cluster.elect();
    for number in 0..200 {
        cluster.put(&format!("slow{number}"), 8);
    }
    for number in 0..200 {
        cluster.put(&format!("quick{number}"), 8);
    }
    cluster.settle();
    cluster.ticks(20);
    let slow = SLOW_LOOKUPS * LOOKUP_WORK;
    let in_entry = LIMIT / slow;
    for (node, replica) in &cluster.replicas {
        let seen = replica.machine().seen.lock().unwrap();
        let operations: usize = seen.operations.values().sum();
        assert_eq!(operations, 400, "{node}");
        let most = *seen.slow.values().max().unwrap() as u64;
        assert!(most <= in_entry, "{node} applied {most} in an entry");
        // Quick operations are bounded by their bytes alone.
        assert!(seen.operations.values().any(|count| *count > 100));
        let most = *seen.polls.iter().max().unwrap();
        let entry = in_entry * slow + 400 * BESIDE;
        assert!(
            most > slow && most < LIMIT + entry,
            "{node} did {most} in a poll"
        );
    }
    assert_eq!(cluster.leader(), leader);
}

/// Many reads of a large value are granted at once. A poll answers a bounded part of them, and the next ones the rest.
#[test]
fn a_poll_answers_a_bounded_part_of_the_reads() {
    const READS: usize = 400;
    const SIZE: usize = 100_000;
    let mut cluster = Cluster::new(|options| options.max_apply_work = LIMIT);
    let (leader, _) = cluster.elect();
    cluster.put("big", SIZE);
    cluster.settle();
    let reads: Vec<_> = (0..READS)
        .map(|_| cluster.submit(leader, Request::Read(())))
        .collect();
    cluster.settle();
    for read in reads {
        match &cluster.outputs.answers[&read] {
            Ok(Answer::Machine(value)) => assert_eq!(value.len(), SIZE),
            other => panic!("{other:?}"),
        }
    }
    let seen = cluster.replicas[&leader].machine().seen.lock().unwrap();
    let each = LOOKUP_WORK + work_of_bytes(SIZE as u64);
    let most = *seen.polls.iter().max().unwrap();
    assert!(most > LIMIT / 2 && most < LIMIT + each, "{most} in a poll");
}

/// An operation that may cost more than the limit has an entry of its own.
#[test]
fn a_large_operation_has_an_entry_of_its_own() {
    let mut cluster = Cluster::new(|options| options.max_apply_work = 10);
    cluster.elect();
    for number in 0..20 {
        cluster.put(&format!("slow{number}"), 8);
    }
    cluster.settle();
    cluster.ticks(20);
    for replica in cluster.replicas.values() {
        let seen = replica.machine().seen.lock().unwrap();
        assert_eq!(seen.operations.len(), 20);
        let most = *seen.polls.iter().max().unwrap();
        assert!(most < SLOW_LOOKUPS * LOOKUP_WORK + BESIDE, "{most}");
    }
}
