//! Exactly once: every write appends a mark of its own, and at the end each mark stands in the value once.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::join_all;
use shardkv_client::{Client, ClientOptions, Error, Mode};
use tokio::task::JoinHandle;

use crate::double::{Cluster, Faults, until};
use crate::plain::in_mode;

const WRITERS: usize = 32;

/// Writers that append their marks one after the other, each to one of four keys.
pub(crate) fn write_marks(client: &Client, marks: usize) -> JoinHandle<Vec<Result<u64, Error>>> {
    let writers = (0..WRITERS).map(|writer| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut results = Vec::new();
            for n in 0..marks {
                let key = format!("key-{}", writer % 4);
                results.push(client.append(key, format!("{writer}.{n};")).await);
            }
            results
        })
    });
    let writers: Vec<_> = writers.collect();
    tokio::spawn(async move {
        let all = join_all(writers).await;
        all.into_iter().flat_map(Result::unwrap).collect()
    })
}

/// Every mark stands once, and those of a writer in its order.
pub(crate) fn assert_once(cluster: &Cluster, marks: usize) {
    cluster.check();
    let mut next: HashMap<usize, usize> = HashMap::new();
    for key in 0..4 {
        let value = cluster.value(&format!("key-{key}"));
        let text = String::from_utf8(value.to_vec()).unwrap();
        for mark in text.split_terminator(';') {
            let (writer, n) = mark.split_once('.').unwrap();
            let (writer, n): (usize, usize) = (writer.parse().unwrap(), n.parse().unwrap());
            let expected = next.entry(writer).or_default();
            assert_eq!(
                n, *expected,
                "writer {writer} lost, repeated or swapped a mark"
            );
            *expected += 1;
        }
    }
    assert_eq!(next.len(), WRITERS);
    assert!(next.values().all(|&count| count == marks), "{next:?}");
}

async fn faults_do_not_show(mode: Mode, connections: usize, faults: Faults) -> Cluster {
    let cluster = Cluster::start(3);
    let options = ClientOptions {
        connections,
        ..in_mode(&cluster, mode)
    };
    let client = Client::connect(options).await.unwrap();
    cluster.world().faults = faults;
    let results = write_marks(&client, 30).await.unwrap();
    assert_eq!(results.len(), WRITERS * 30);
    for result in results {
        result.expect("faults that a retry cures are hidden");
    }
    assert_once(&cluster, 30);
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_are_asked_for_again_by_batch() {
    let faults = Faults {
        lose_answer: 7,
        lose_request: 11,
        ..Faults::default()
    };
    let cluster = faults_do_not_show(Mode::Batch, 1, faults).await;
    assert!(cluster.world().repeated > 0, "the test lost answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_are_asked_for_again_by_unary() {
    let faults = Faults {
        lose_answer: 7,
        lose_request: 11,
        ..Faults::default()
    };
    let cluster = faults_do_not_show(Mode::Unary, 2, faults).await;
    assert!(cluster.world().repeated > 0, "the test lost answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_outcomes_are_settled_under_the_same_name() {
    for (mode, connections) in [(Mode::Batch, 1), (Mode::Batch, 3), (Mode::Unary, 1)] {
        let faults = Faults {
            outcome_unknown: 5,
            ..Faults::default()
        };
        let cluster = faults_do_not_show(mode, connections, faults).await;
        assert!(
            cluster.world().repeated > 0,
            "{mode:?}: some had been applied"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_is_waited_out() {
    for mode in [Mode::Batch, Mode::Unary] {
        let faults = Faults {
            overloaded: 3,
            ..Faults::default()
        };
        let cluster = faults_do_not_show(mode, 1, faults).await;
        assert_eq!(cluster.world().repeated, 0, "a refusal leaves no doubt");
    }
}

async fn sessions_are_renewed_in_time(mode: Mode) {
    let cluster = Cluster::start(1);
    cluster.world().ttl = Some(Duration::from_secs(2));
    let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
    let mut written = 0;
    while cluster.sessions() < 3 {
        client.append("key", "x").await.unwrap();
        written += 1;
    }
    assert_eq!(
        cluster.world().refused_sessions,
        0,
        "{mode:?}: renewed in time"
    );
    assert_eq!(cluster.value("key").len(), written);
    cluster.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_renewed_before_the_birth_rule_refuses_it() {
    tokio::join!(
        sessions_are_renewed_in_time(Mode::Batch),
        sessions_are_renewed_in_time(Mode::Unary)
    );
}

#[tokio::test]
async fn a_write_that_was_never_in_doubt_moves_to_a_new_session() {
    let cluster = Cluster::start(1);
    for (done, mode) in [Mode::Batch, Mode::Unary].into_iter().enumerate() {
        let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
        client.append("key", "x").await.unwrap();
        cluster.forget_sessions();
        let length = client.append("key", "x").await.unwrap();
        assert_eq!(length, 2 * (done as u64 + 1));
        assert_eq!(cluster.world().refused_sessions, done as u64 + 1);
    }
    cluster.check();
}

#[tokio::test]
async fn a_write_in_doubt_whose_session_expired_is_never_sent_under_another_name() {
    for mode in [Mode::Batch, Mode::Unary] {
        let cluster = Cluster::start(1);
        let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
        client.append("key", "x").await.unwrap();
        cluster.world().faults.lose_answer = 1;
        let doubtful = client.append("key", "y");
        let meddle = async {
            until("the write is applied", || cluster.world().applied == 2).await;
            cluster.forget_sessions();
            cluster.world().faults = Faults::default();
        };
        let (result, ()) = tokio::join!(doubtful, meddle);
        let error = result.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
        assert!(error.maybe_applied());
        assert_eq!(cluster.value("key"), "xy", "once, not twice");
        assert_eq!(client.append("key", "z").await, Ok(3), "the client goes on");
    }
}
