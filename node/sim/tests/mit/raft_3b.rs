//! Lab 3B: agreement on a log.

use bytes::Bytes;
use shardkv::Write;
use shardkv_sim::script::Script;

use crate::cluster::{Cluster, LOG, scenario};

#[test]
fn basic_agree_3b() {
    let mut cluster = Cluster::new(3);
    let mut last = cluster.one();
    for _ in 0..3 {
        let next = cluster.one();
        assert!(next > last);
        last = next;
    }
    let hosts = cluster.hosts();
    assert_eq!(cluster.read(&hosts), "<1><2><3><4>");
    cluster.finish();
}

/// Each command is sent to each follower only once.
#[test]
fn rpc_bytes_3b() {
    let mut cluster = Cluster::new(3);
    cluster.one();
    let before = cluster.script().traffic().bytes;
    let mut sent = 0;
    for _ in 0..10 {
        let suffix = Bytes::from(vec![b'x'; 5_000]);
        sent += suffix.len() as u64;
        let leader = cluster.leader();
        let key = Bytes::from_static(LOG);
        let id = cluster.ask_write(leader, Write::Append { key, suffix });
        cluster.wait(2_000, "a large command is acknowledged", |script| {
            script.answer(id).is_some()
        });
        assert!(cluster.acknowledged(id).is_some());
    }
    let bytes = cluster.script().traffic().bytes - before;
    assert!(
        bytes <= 2 * sent + 5_000,
        "{bytes} bytes were sent to two followers for {sent} bytes of commands"
    );
    cluster.finish();
}

#[test]
fn follower_failure_3b() {
    let mut cluster = Cluster::new(3);
    cluster.one();
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    cluster.disconnect(follower);
    let rest = cluster.others(follower);
    cluster.one_of(&rest, 2);
    cluster.run_ms(1_000);
    cluster.one_of(&rest, 2);
    // Without followers no entry is committed.
    let leader = cluster.leader_of(&rest);
    for other in cluster.others(leader) {
        cluster.disconnect(other);
    }
    let commit = cluster.script().status(leader).unwrap().commit_index;
    let id = cluster.ask(leader);
    cluster.run_ms(2_000);
    assert!(cluster.acknowledged(id).is_none());
    assert_eq!(
        cluster.script().status(leader).unwrap().commit_index,
        commit
    );
    cluster.finish();
}

#[test]
fn leader_failure_3b() {
    let mut cluster = Cluster::new(3);
    cluster.one();
    let first = cluster.leader();
    cluster.disconnect(first);
    let rest = cluster.others(first);
    cluster.one_of(&rest, 2);
    cluster.run_ms(1_000);
    cluster.one_of(&rest, 2);
    let second = cluster.leader_of(&rest);
    cluster.disconnect(second);
    let ids: Vec<_> = cluster
        .hosts()
        .into_iter()
        .map(|host| cluster.ask(host))
        .collect();
    cluster.run_ms(2_000);
    for id in ids {
        assert!(
            cluster.acknowledged(id).is_none(),
            "a single server committed"
        );
    }
    cluster.finish();
}

#[test]
fn fail_agree_3b() {
    let mut cluster = Cluster::new(3);
    cluster.one();
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    cluster.disconnect(follower);
    let rest = cluster.others(follower);
    for _ in 0..4 {
        cluster.one_of(&rest, 2);
    }
    cluster.connect(follower);
    cluster.one();
    cluster.one();
    cluster.finish();
}

#[test]
fn fail_no_agree_3b() {
    let mut cluster = Cluster::new(5);
    cluster.one();
    let leader = cluster.leader();
    let down = cluster.others(leader);
    for host in &down[..3] {
        cluster.disconnect(*host);
    }
    let id = cluster.ask(leader);
    cluster.run_ms(2_000);
    assert!(cluster.acknowledged(id).is_none(), "two of five committed");
    for host in &down[..3] {
        cluster.connect(*host);
    }
    cluster.leader();
    cluster.one();
    cluster.one();
    cluster.finish();
}

#[test]
fn concurrent_starts_3b() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let ids: Vec<_> = (0..50).map(|_| cluster.ask(leader)).collect();
    cluster.wait(2_000, "all are acknowledged", |script| {
        ids.iter().all(|id| script.answer(*id).is_some())
    });
    let lengths: std::collections::BTreeSet<u64> = ids
        .iter()
        .map(|id| cluster.acknowledged(*id).unwrap())
        .collect();
    assert_eq!(lengths.len(), ids.len(), "each took effect by itself");
    cluster.finish();
}

#[test]
fn rejoin_3b() {
    let mut cluster = Cluster::new(3);
    cluster.one();
    let first = cluster.leader();
    cluster.disconnect(first);
    let lost: Vec<_> = (0..3).map(|_| cluster.ask(first)).collect();
    let rest = cluster.others(first);
    cluster.one_of(&rest, 2);
    let second = cluster.leader_of(&rest);
    cluster.disconnect(second);
    cluster.connect(first);
    let now = cluster.others(second);
    cluster.one_of(&now, 2);
    cluster.connect(second);
    cluster.one();
    for id in lost {
        assert!(cluster.acknowledged(id).is_none());
    }
    cluster.finish();
}

/// A leader that was cut off with fifty entries must adopt conflicting logs.
#[test]
fn backup_3b() {
    let mut cluster = Cluster::new(5);
    cluster.one();
    let first = cluster.leader();
    let others = cluster.others(first);
    let (near, far) = ([first, others[0]], [others[1], others[2], others[3]]);
    cluster.script().partition(&[&near]);
    for _ in 0..50 {
        cluster.ask(first);
    }
    cluster.run_ms(500);
    cluster.script().partition(&[&far]);
    for _ in 0..50 {
        cluster.one_of(&far, 3);
    }
    let second = cluster.leader_of(&far);
    let left: Vec<usize> = far.into_iter().filter(|host| *host != second).collect();
    cluster.script().partition(&[&[second, left[0]]]);
    for _ in 0..50 {
        cluster.ask(second);
    }
    cluster.run_ms(500);
    let third = [near[0], near[1], left[1]];
    cluster.script().partition(&[&third]);
    for _ in 0..50 {
        cluster.one_of(&third, 3);
    }
    cluster.script().heal();
    cluster.one();
    cluster.finish();
}

/// Elections, agreement and idleness cost few messages.
#[test]
fn count_3b() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let calls = cluster.script().traffic().calls;
    assert!((1..=30).contains(&calls), "{calls} calls for an election");
    // Heartbeats are rare here, so that they don't add to the count.
    let mut scenario = scenario(1, 3);
    scenario.replica.raft.heartbeat_ticks = 100;
    scenario.replica.raft.election_ticks = 300;
    let mut quiet = Cluster::with(scenario);
    let _ = leader;
    quiet.wait(10_000, "a leader is elected", |script| {
        script.leader_among(&[0, 1, 2]).is_some()
    });
    let hosts = quiet.hosts();
    quiet.one_of(&hosts, 2);
    let leader = quiet.leader();
    let before = quiet.script().traffic().calls;
    for _ in 0..10 {
        let id = quiet.ask(leader);
        quiet.wait(1_000, "a command is acknowledged", |script| {
            script.answer(id).is_some()
        });
    }
    let calls = quiet.script().traffic().calls - before;
    assert!(calls <= 42, "{calls} calls for ten entries");
    let before = cluster.script().traffic().calls;
    cluster.run_ms(1_000);
    let calls = cluster.script().traffic().calls - before;
    assert!(calls <= 3 * 20, "{calls} calls in an idle second");
    cluster.finish();
}

/// An idle group's followers learn at once what is committed, by one message for each of them. Under load the appends tell it.
#[test]
fn followers_learn_a_commit_at_once_3b() {
    let mut scenario = scenario(1, 3);
    scenario.replica.raft.heartbeat_ticks = 100;
    scenario.replica.raft.election_ticks = 300;
    let mut cluster = Cluster::with(scenario);
    let hosts = cluster.hosts();
    cluster.wait(10_000, "a leader is elected", |script| {
        script.leader_among(&[0, 1, 2]).is_some()
    });
    cluster.one_of(&hosts, 2);
    let leader = cluster.leader();
    let committed = |script: &Script, host| script.status(host).unwrap().commit_index;
    let settled = |script: &Script| {
        let last = script.status(leader).unwrap().last_index;
        (0..3).all(|host| committed(script, host) == last)
    };
    // A heartbeat comes once a second.
    cluster.wait(200, "all know what is committed", settled);
    let before = cluster.script().traffic();
    for _ in 0..10 {
        let id = cluster.ask(leader);
        cluster.wait(200, "all know that it is committed", |script| {
            script.answer(id).is_some() && settled(script)
        });
    }
    let idle = cluster.script().traffic();
    let messages = idle.messages - before.messages;
    assert!(messages <= 10 * 6, "{messages} messages for ten entries");

    let ids: Vec<_> = (0..1_000)
        .map(|_| {
            cluster.run_ms(1);
            cluster.ask(leader)
        })
        .collect();
    cluster.wait(200, "all are acknowledged", |script| {
        ids.iter().all(|id| script.answer(*id).is_some())
    });
    let loaded = cluster.script().traffic();
    let (messages, calls) = (loaded.messages - idle.messages, loaded.calls - idle.calls);
    let untold = messages - 2 * calls;
    assert!(
        untold < calls / 10,
        "{untold} messages beside {calls} calls"
    );
    cluster.finish();
}
