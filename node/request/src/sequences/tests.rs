//! Sequences without a cluster: time is given.

use super::*;

const START: Time = Duration::from_secs(1_000);

const TTL: Duration = Duration::from_mins(1);

fn opened(window: usize, now: Time) -> Sequences {
    let mut sessions = Sequences::new(window, Bugs::default());
    assert_eq!(sessions.allocate(now), Err(Blocked::NoSession));
    assert!(sessions.wants_session(now));
    sessions.session_opened(now, Bytes::from_static(b"first"), TTL);
    assert!(!sessions.wants_session(now));
    sessions
}

fn wire(sessions: &Sequences, number: Number) -> (Bytes, u64, u64) {
    let stamp = sessions.stamp(number).expect("a known session");
    (stamp.client_id, stamp.sequence, stamp.acked_below)
}

#[test]
fn numbers_start_at_one_and_acknowledge_the_lowest_unfinished() {
    let now = START;
    let mut sessions = opened(8, now);
    let first = Bytes::from_static(b"first");
    let numbers: Vec<Number> = (0..4).map(|_| sessions.allocate(now).unwrap()).collect();
    assert_eq!(wire(&sessions, numbers[0]), (first.clone(), 1, 1));
    assert_eq!(wire(&sessions, numbers[3]), (first.clone(), 4, 1));

    sessions.finish(numbers[1]);
    sessions.finish(numbers[2]);
    assert_eq!(
        wire(&sessions, numbers[3]),
        (first.clone(), 4, 1),
        "1 is open"
    );
    sessions.finish(numbers[0]);
    assert_eq!(wire(&sessions, numbers[3]), (first.clone(), 4, 4));
    sessions.finish(numbers[0]);
    assert_eq!(wire(&sessions, numbers[3]), (first, 4, 4), "once is enough");
}

#[test]
fn the_window_counts_from_the_oldest_unfinished_write() {
    let now = START;
    let mut sessions = opened(3, now);
    let oldest = sessions.allocate(now).unwrap();
    for _ in 0..2 {
        let newer = sessions.allocate(now).unwrap();
        sessions.finish(newer);
    }
    assert_eq!(
        sessions.allocate(now),
        Err(Blocked::WindowFull),
        "one in flight, but three results kept"
    );
    sessions.finish(oldest);
    assert!(sessions.allocate(now).is_ok());
}

#[test]
fn a_session_is_renewed_at_half_its_life_and_retries_keep_the_old_one() {
    let start = START;
    let mut sessions = opened(8, start);
    let old = sessions.allocate(start).unwrap();
    let half = start + TTL / 2;
    let moment = Duration::from_nanos(1);
    assert!(!sessions.wants_session(half.saturating_sub(moment)));
    assert!(sessions.wants_session(half));
    assert!(
        sessions.allocate(half).is_ok(),
        "while another is being opened"
    );
    let end = start + TTL * 3 / 4;
    assert!(sessions.allocate(end.saturating_sub(moment)).is_ok());
    assert_eq!(sessions.allocate(end), Err(Blocked::NoSession));

    sessions.session_opened(half, Bytes::from_static(b"second"), TTL);
    let new = sessions.allocate(half).unwrap();
    assert_eq!(wire(&sessions, new), (Bytes::from_static(b"second"), 1, 1));
    assert_eq!(wire(&sessions, old), (Bytes::from_static(b"first"), 1, 1));
    assert_eq!(sessions.open.len(), 2);
    for sequence in [2, 3] {
        sessions.finish(Number { sequence, ..old });
    }
    sessions.finish(old);
    assert_eq!(
        sessions.open.len(),
        1,
        "forgotten when nothing is unfinished"
    );
    assert_eq!(sessions.stamp(old), None);
}

#[test]
fn an_expired_session_names_nothing_new() {
    let now = START;
    let mut sessions = opened(8, now);
    let refused = sessions.allocate(now).unwrap();
    sessions.expire(refused);
    assert_eq!(sessions.allocate(now), Err(Blocked::NoSession));
    assert!(sessions.wants_session(now));
    sessions.finish(refused);
    sessions.session_opened(now, Bytes::from_static(b"second"), TTL);
    let again = sessions.allocate(now).unwrap();
    assert_eq!(wire(&sessions, again).1, 1);
    sessions.expire(refused);
    assert!(
        sessions.allocate(now).is_ok(),
        "the news was about the first"
    );
}

#[test]
fn stragglers_get_a_session_of_their_own_and_a_slow_node_does_not() {
    let now = START;
    let mut sessions = opened(4, now);
    for (round, name) in [&b"2"[..], b"3", b"4"].into_iter().enumerate() {
        let numbers: Vec<Number> = (0..4).map(|_| sessions.allocate(now).unwrap()).collect();
        assert!(!sessions.wants_session(now), "all of them are slow");
        sessions.finish(numbers[1]);
        sessions.finish(numbers[2]);
        assert_eq!(sessions.allocate(now), Err(Blocked::WindowFull));
        assert!(sessions.wants_session(now), "one straggles");
        sessions.session_opened(now, Bytes::from_static(name), TTL);
        assert_eq!(sessions.open.len(), round + 2);
    }
    let numbers: Vec<Number> = (0..4).map(|_| sessions.allocate(now).unwrap()).collect();
    sessions.finish(numbers[2]);
    sessions.finish(numbers[3]);
    assert!(!sessions.wants_session(now), "enough is enough");
}

#[test]
fn a_name_ends_with_its_owner() {
    let now = START;
    let allocator = SequenceAllocator::new(1, Bugs::default());
    allocator
        .sequences()
        .session_opened(now, Bytes::from_static(b"first"), TTL);
    let name = allocator.allocate(now).unwrap();
    assert_eq!(name.stamp().unwrap().sequence, 1);
    assert_eq!(allocator.allocate(now).unwrap_err(), Blocked::WindowFull);
    drop(name);
    assert_eq!(
        allocator.allocate(now).unwrap().stamp().unwrap().sequence,
        2
    );
}
