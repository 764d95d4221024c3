//! Leaders that go away, fall silent or are overrun.

use std::io::Write as _;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use shardkv_client::{Client, ClientOptions, Error, Mode};

use crate::double::{Cluster, until};
use crate::once::{assert_once, write_marks};
use crate::plain::in_mode;

/// Waits until the client has looked for a leader several times.
async fn looked_in_vain(cluster: &Cluster) {
    let enough = cluster.world().asked + 12;
    until("the client looks for a leader", || {
        cluster.world().asked >= enough
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_leaders_fail_no_call() {
    for (mode, hints) in [
        (Mode::Batch, true),
        (Mode::Batch, false),
        (Mode::Unary, true),
        (Mode::Unary, false),
    ] {
        let cluster = Cluster::start(3);
        cluster.world().hints = hints;
        let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
        let writing = write_marks(&client, 60);
        for round in 1..=9 {
            let goal = round * 150;
            until("progress", || cluster.world().applied >= goal).await;
            if round % 3 == 0 {
                cluster.depose();
                looked_in_vain(&cluster).await;
            }
            cluster.elect(usize::try_from(round).unwrap() % 3);
        }
        for result in writing.await.unwrap() {
            result.expect("a moving leader is not the caller's trouble");
        }
        assert_once(&cluster, 60);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_leaders_fail_no_call() {
    for (mode, connections) in [(Mode::Batch, 1), (Mode::Batch, 2), (Mode::Unary, 1)] {
        let mut cluster = Cluster::start(3);
        let options = ClientOptions {
            connections,
            ..in_mode(&cluster, mode)
        };
        let client = Client::connect(options).await.unwrap();
        let writing = write_marks(&client, 60);
        for (round, leader) in [0, 1, 2, 0].into_iter().enumerate() {
            let goal = (round as u64 + 1) * 300;
            until("progress", || cluster.world().applied >= goal).await;
            cluster.depose();
            cluster.kill(leader);
            looked_in_vain(&cluster).await;
            cluster.elect((leader + 1) % 3);
            cluster.restart(leader);
        }
        for result in writing.await.unwrap() {
            result.expect("a killed leader is not the caller's trouble");
        }
        assert_once(&cluster, 60);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_leader_is_left_for_the_next_term() {
    for mode in [Mode::Batch, Mode::Unary] {
        let cluster = Cluster::start(3);
        let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
        client.put("a", "1").await.unwrap();
        cluster.freeze(0);
        let stuck = tokio::spawn({
            let client = client.clone();
            async move { client.append("a", "2").await }
        });
        until("the call is stuck", || cluster.world().outstanding > 0).await;
        cluster.elect(1);
        assert_eq!(stuck.await.unwrap(), Ok(2));
        assert_eq!(client.get("a").await.unwrap().unwrap(), "12");
        cluster.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_leader_is_not_left() {
    for mode in [Mode::Batch, Mode::Unary] {
        let cluster = Cluster::start(3);
        let options = ClientOptions {
            silence_timeout: Duration::from_millis(20),
            ..in_mode(&cluster, mode)
        };
        let client = Client::connect(options).await.unwrap();
        client.put("a", "1").await.unwrap();
        cluster.freeze(0);
        let slow = client.append("a", "2");
        let thaw = async {
            until("the call waits", || cluster.world().outstanding > 0).await;
            looked_in_vain(&cluster).await;
            cluster.thaw(0);
        };
        assert_eq!(tokio::join!(slow, thaw).0, Ok(2));
        assert_eq!(cluster.world().repeated, 0, "the one stream was kept");
    }
}

#[tokio::test]
async fn deadlines_are_kept_and_tell_whether_the_write_was_sent() {
    for mode in [Mode::Batch, Mode::Unary] {
        let cluster = Cluster::start(1);
        let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
        client.put("a", "1").await.unwrap();
        let timeout = Duration::from_millis(150);
        let hasty = client.with_timeout(timeout);

        cluster.freeze(0);
        let start = Instant::now();
        let error = hasty.put("a", "2").await.unwrap_err();
        assert!(start.elapsed() >= timeout, "not before its time");
        let Error::Timeout {
            maybe_applied: true,
            after,
            ..
        } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(after, timeout);
        let error = hasty.get("a").await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Timeout {
                    maybe_applied: false,
                    ..
                }
            ),
            "{error:?}"
        );
        cluster.thaw(0);
        client.put("a", "3").await.unwrap();

        cluster.depose();
        let error = hasty.put("a", "4").await.unwrap_err();
        let Error::Timeout {
            maybe_applied: false,
            last,
            ..
        } = &error
        else {
            panic!("{error:?}");
        };
        assert!(last.contains("lead"), "it says why: {last}");
        assert!(error.is_retryable());
        cluster.elect(0);
        assert_eq!(client.get("a").await.unwrap().unwrap(), "3");
        cluster.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_the_bounds_wait() {
    let cluster = Cluster::start(1);
    let client = Client::connect(cluster.options()).await.unwrap();
    client.put("warm", "up").await.unwrap();
    cluster.freeze(0);
    let writes: Vec<_> = (0..3_000)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.put(format!("k{n}"), "v").await })
        })
        .collect();
    until("the window is full", || cluster.world().outstanding == 512).await;
    cluster.thaw(0);
    for write in writes {
        write.await.unwrap().expect("waiting is not failing");
    }
    assert_eq!(
        cluster.world().most_outstanding,
        512,
        "unanswered writes are bounded"
    );

    cluster.freeze(0);
    let reads: Vec<_> = (0..3_000)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.get(format!("k{n}")).await })
        })
        .collect();
    until("the bound is reached", || {
        cluster.world().outstanding == 1_024
    })
    .await;
    cluster.thaw(0);
    for read in reads {
        assert_eq!(read.await.unwrap().unwrap().unwrap(), "v");
    }
    assert_eq!(cluster.world().most_outstanding, 1_024, "calls are bounded");
    cluster.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_flight_are_bounded() {
    for mode in [Mode::Batch, Mode::Unary] {
        let cluster = Cluster::start(1);
        let options = ClientOptions {
            max_in_flight_bytes: 100_000,
            ..in_mode(&cluster, mode)
        };
        let client = Client::connect(options).await.unwrap();
        client.put("warm", "up").await.unwrap();
        cluster.freeze(0);
        let writes: Vec<_> = (0..40)
            .map(|n| {
                let client = client.clone();
                tokio::spawn(async move { client.put(format!("k{n}"), vec![0; 20_000]).await })
            })
            .collect();
        until("four fit", || cluster.world().outstanding == 4).await;
        let hasty = client.with_timeout(Duration::from_millis(50));
        let error = hasty.put("k", vec![0; 20_000]).await.unwrap_err();
        assert!(!error.maybe_applied(), "it was never sent: {error:?}");
        cluster.thaw(0);
        for write in writes {
            write.await.unwrap().unwrap();
        }
        // A call larger than the whole budget is sent alone.
        client.put("huge", vec![0; 500_000]).await.unwrap();
        assert_eq!(cluster.world().most_outstanding, 4);
    }
}

#[tokio::test]
async fn callers_that_go_away_leave_nothing_behind() {
    for mode in [Mode::Batch, Mode::Unary] {
        let cluster = Cluster::start(1);
        let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
        client.put("a", "1").await.unwrap();
        // Each caller gives up while its call is on the wire. Together they are far more than the window of 512.
        for _ in 0..3 {
            cluster.freeze(0);
            let writes: Vec<_> = (0..400)
                .map(|_| {
                    let client = client.clone();
                    tokio::spawn(async move { client.put("a", "2").await })
                })
                .collect();
            until("all are sent", || cluster.world().outstanding == 400).await;
            for write in &writes {
                write.abort();
            }
            cluster.thaw(0);
            until("all are served", || cluster.world().outstanding == 0).await;
        }
        client.put("a", "3").await.unwrap();
        assert_eq!(cluster.value("a"), "3");
        cluster.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_programs_on_the_addresses_do_no_harm() {
    let cluster = Cluster::start(1);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let garbage = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = cluster.options();
    for listener in [&silent, &garbage] {
        options
            .addresses
            .insert(0, listener.local_addr().unwrap().to_string());
    }
    // One node accepts connections (in its backlog) and never answers; the other answers nonsense.
    std::thread::spawn(move || {
        for connection in garbage.incoming() {
            let Ok(mut connection) = connection else {
                return;
            };
            let _ = connection.write_all(&[0xa5; 4096]);
        }
    });
    for mode in [Mode::Batch, Mode::Unary] {
        let client = Client::connect(ClientOptions {
            mode,
            ..options.clone()
        })
        .await
        .unwrap();
        client.put("a", "1").await.unwrap();
        assert_eq!(client.get("a").await.unwrap().unwrap(), "1");
    }
}
