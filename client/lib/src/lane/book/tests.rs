//! The book without a socket: time and answers are given.

use std::sync::Arc;

use api::errors;
use api::v1::batch_item::Request as Wire;
use api::v1::batch_result::Response;
use api::v1::{ErrorDetail, PutResponse};
use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use types::{hash_key, shard_of};

use super::*;
use crate::call::{Request, Trial};

const GROUP: Gid = Gid(1);
const OTHER: Gid = Gid(2);

/// Four shards with these owners.
fn config(num: u64, owners: &[(u32, Gid)]) -> Arc<ShardConfig> {
    let address = |gid: &Gid| (*gid, vec![format!("{gid}:1")]);
    let groups = [GROUP, OTHER].iter().map(address).collect();
    Arc::new(ShardConfig::new(ConfigNum(num), groups, owners.iter().copied()).unwrap())
}

/// A configuration in which only the shard of `key` is the other group's.
fn without(num: u64, key: &str) -> Arc<ShardConfig> {
    let shard = shard_of(key.as_bytes(), 4).0;
    let runs = [(shard, GROUP), (1, OTHER), (3 - shard, GROUP)];
    config(num, &runs)
}

type Answered = oneshot::Receiver<Result<Answer, Error>>;

struct Desk {
    book: Book,
    now: Instant,
}

impl Desk {
    fn new(options: &ClientOptions) -> Self {
        Self {
            book: Book::new(options, GROUP, config(1, &[(4, GROUP)])),
            now: Instant::now(),
        }
    }

    fn with_session() -> Self {
        let mut desk = Self::new(&ClientOptions::new(["a:1"]));
        desk.open_session("first");
        desk
    }

    fn open_session(&mut self, name: &'static str) {
        let response = OpenSessionResponse {
            client_id: Bytes::from(name),
            ttl_ms: 600_000,
        };
        self.book.session_opened(self.now, response);
    }

    fn admit(&mut self, request: Request) -> Answered {
        let (answer, answered) = oneshot::channel();
        let timeout = Duration::from_secs(10);
        let budget = Arc::new(Semaphore::new(1));
        self.book.admit(Call {
            hash: hash_key(request.key()),
            request,
            timeout,
            deadline: self.now + timeout,
            answer,
            permit: Some(budget.try_acquire_owned().unwrap()),
            trial: Trial::default(),
        });
        answered
    }

    fn put(&mut self, size: usize) -> Answered {
        self.admit(Request::Put {
            key: Bytes::from("k"),
            value: Bytes::from(vec![0; size]),
        })
    }

    fn get(&mut self) -> Answered {
        self.admit(Request::Get {
            key: Bytes::from("k"),
        })
    }

    /// The next message as (id, session and sequence of a write).
    fn send(&mut self) -> Vec<(u64, Option<(Bytes, u64)>)> {
        self.book.advance(self.now);
        let items = self.book.next_batch().map(|it| it.items);
        let name = |item: BatchItem| {
            let session = match item.request {
                Some(Wire::Put(put)) => put.session,
                _ => None,
            };
            (item.id, session.map(|it| (it.client_id, it.sequence)))
        };
        items.unwrap_or_default().into_iter().map(name).collect()
    }

    fn answer(&mut self, id: u64, response: Response) -> Consequence {
        let response = Some(response);
        self.book
            .results(self.now, vec![BatchResult { id, response }])
    }

    fn done(&mut self, id: u64) -> Consequence {
        self.answer(id, Response::Put(PutResponse {}))
    }

    fn refuse(&mut self, id: u64, detail: ErrorDetail) -> Consequence {
        self.answer(id, Response::Error(detail))
    }
}

fn name(session: &'static str, sequence: u64) -> (Bytes, u64) {
    (Bytes::from(session), sequence)
}

#[test]
fn reads_go_at_once_and_writes_wait_for_a_session() {
    let mut desk = Desk::new(&ClientOptions::new(["a:1"]));
    let mut put = desk.put(1);
    let _get = desk.get();
    assert_eq!(desk.send(), [(2, None)]);
    assert!(desk.book.wants_session());
    desk.open_session("first");
    assert!(!desk.book.wants_session());
    assert_eq!(desk.send(), [(1, Some(name("first", 1)))]);
    assert!(put.try_recv().is_err(), "not answered yet");
    assert!(desk.done(1).served);
    assert_eq!(put.try_recv(), Ok(Ok(Answer::Put)));
    assert_eq!(desk.book.on_wire(), 1);
}

#[test]
fn a_lost_connection_sends_again_in_order_and_under_the_same_names() {
    let mut desk = Desk::with_session();
    let waiting: Vec<Answered> = (0..5).map(|_| desk.put(1)).collect();
    let first = desk.send();
    desk.done(2);
    // One is refused by itself, and then the stream ends.
    let consequence = desk.refuse(4, errors::not_leader("b:2"));
    assert_eq!(consequence.reroute, Some(Reroute(Some("b:2".to_owned()))));
    desk.book.connection_lost("gone");
    assert_eq!(desk.book.on_wire(), 0);
    let again: Vec<_> = first.into_iter().filter(|(id, _)| *id != 2).collect();
    assert_eq!(desk.send(), again);
    drop(waiting);
}

#[test]
fn only_writes_that_may_be_applied_are_in_doubt_at_the_deadline() {
    let mut desk = Desk::with_session();
    let refused = desk.put(1);
    let lost = desk.put(1);
    let read = desk.get();
    desk.send();
    let on_wire = desk.put(1);
    desk.refuse(1, errors::not_leader(""));
    desk.book.connection_lost("gone");
    desk.book.advance(desk.now);
    // The rest of the queue is never sent again, except for the last.
    desk.book.ready.retain(|id| *id == 4);
    desk.send();
    let never = desk.put(1);
    desk.now += Duration::from_secs(10);
    desk.book.sweep(desk.now);
    assert!(desk.book.is_empty());
    for (mut answered, doubt) in [
        (refused, false),
        (lost, true),
        (read, false),
        (on_wire, true),
        (never, false),
    ] {
        let error = answered.try_recv().unwrap().unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }));
        assert_eq!(error.maybe_applied(), doubt, "{error:?}");
    }
}

#[test]
fn an_expired_session_gives_a_write_another_name_only_without_doubt() {
    let mut desk = Desk::with_session();
    let mut sure = desk.put(1);
    let mut doubtful = desk.put(1);
    assert_eq!(
        desk.send(),
        [(1, Some(name("first", 1))), (2, Some(name("first", 2)))]
    );
    desk.refuse(2, errors::outcome_unknown(""));
    desk.refuse(1, errors::session_expired());
    assert_eq!(
        desk.send(),
        [(2, Some(name("first", 2)))],
        "a name is kept in doubt"
    );
    desk.refuse(2, errors::session_expired());
    let error = doubtful.try_recv().unwrap().unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }));

    assert!(sure.try_recv().is_err());
    desk.now = desk.book.next_due().expect("delayed a little");
    assert_eq!(desk.send(), []);
    assert!(desk.book.wants_session());
    desk.open_session("second");
    assert_eq!(desk.send(), [(1, Some(name("second", 1)))]);
}

#[test]
fn busy_nodes_are_asked_again_after_a_pause() {
    let mut desk = Desk::with_session();
    let _waiting = desk.put(1);
    desk.send();
    let consequence = desk.refuse(1, errors::overloaded("requests", 1, 20));
    assert_eq!(consequence.reroute, None);
    assert_eq!(desk.send(), []);
    let due = desk.book.next_due().unwrap();
    assert!(due - desk.now >= Duration::from_millis(15));
    desk.now = due;
    assert_eq!(desk.send(), [(1, Some(name("first", 1)))]);
}

#[test]
fn messages_are_bounded_and_large_calls_go_alone() {
    let options = ClientOptions {
        max_batch_items: 3,
        max_batch_bytes: 1_000,
        ..ClientOptions::new(["a:1"])
    };
    let mut desk = Desk::new(&options);
    desk.open_session("first");
    let _waiting: Vec<_> = [1, 1, 1, 1, 5_000, 1]
        .into_iter()
        .map(|size| desk.put(size))
        .collect();
    let mut sizes = Vec::new();
    loop {
        match desk.send().len() {
            0 => break,
            size => sizes.push(size),
        }
    }
    assert_eq!(sizes, [3, 1, 1, 1]);
}

#[test]
fn one_oversize_call_does_not_take_the_others_with_it() {
    let mut desk = Desk::with_session();
    let mut small = desk.put(1);
    let mut large = desk.put(1_000);
    desk.send();
    desk.book.fail_largest(Error::Protocol {
        message: "too large".to_owned(),
        maybe_applied: true,
    });
    desk.book.connection_lost("gone");
    assert!(matches!(large.try_recv(), Ok(Err(Error::Protocol { .. }))));
    assert_eq!(desk.send().len(), 1);
    desk.done(1);
    assert_eq!(small.try_recv(), Ok(Ok(Answer::Put)));
}

#[test]
fn answers_that_nobody_waits_for_or_that_do_not_fit_do_no_harm() {
    let mut desk = Desk::with_session();
    let mut get = desk.get();
    desk.done(1);
    assert!(get.try_recv().is_err(), "answered before it was sent");
    desk.send();
    desk.done(99);
    desk.done(1);
    let error = get.try_recv().unwrap().unwrap_err();
    assert!(matches!(
        error,
        Error::Protocol {
            maybe_applied: false,
            ..
        }
    ));
    desk.done(1);
    assert!(desk.book.is_empty());
}

impl Desk {
    fn put_key(&mut self, key: &'static str) -> Answered {
        self.admit(Request::Put {
            key: Bytes::from(key),
            value: Bytes::from("v"),
        })
    }
}

/// Two keys of different shards.
const HERE: &str = "k";
const AWAY: &str = "b";

fn sequence(call: &Call) -> Option<(Bytes, u64)> {
    let stamp = call.trial.name.as_ref()?.stamp()?;
    Some((stamp.client_id, stamp.sequence))
}

#[test]
fn calls_of_a_shard_that_went_are_moved_and_the_others_stay() {
    assert_ne!(shard_of(HERE.as_bytes(), 4), shard_of(AWAY.as_bytes(), 4));
    let mut desk = Desk::with_session();
    let _waiting = [HERE, AWAY, HERE, AWAY].map(|key| desk.put_key(key));
    desk.send();
    desk.book.reconfigure(without(2, AWAY));
    assert!(desk.book.take_moved().is_empty(), "all are on the wire");
    // One is refused and was never in doubt; one was sent, and nobody knows what became of it.
    let consequence = desk.refuse(2, errors::wrong_group(2));
    assert_eq!(consequence.behind, None, "that is known");
    desk.book.connection_lost("gone");
    let moved = desk.book.take_moved();
    let named: Vec<_> = moved
        .iter()
        .map(|call| (sequence(call), call.trial.doubt))
        .collect();
    assert_eq!(named, [(None, false), (Some(name("first", 4)), true)]);
    let stayed: Vec<u64> = desk.send().into_iter().map(|(id, _)| id).collect();
    assert_eq!(stayed, [1, 3]);

    // Who comes by an old configuration goes on at once.
    let _late = desk.put_key(AWAY);
    assert_eq!(desk.book.take_moved().len(), 1);
    assert_eq!(desk.book.on_wire(), 2);
}

#[test]
fn a_write_in_doubt_keeps_its_name_at_the_other_group() {
    let mut source = Desk::with_session();
    let mut doubtful = source.put_key(AWAY);
    source.send();
    source.book.reconfigure(without(2, AWAY));
    source.book.connection_lost("gone");
    let mut destination = Desk::new(&ClientOptions::new(["a:1"]));
    destination.book = Book::new(&ClientOptions::new(["b:1"]), OTHER, without(2, AWAY));
    for call in source.book.take_moved() {
        destination.book.admit(call);
    }
    assert_eq!(
        destination.send(),
        [(1, Some(name("first", 1)))],
        "without a session of its own"
    );
    destination.refuse(1, errors::shard_not_ready(5));
    destination.now = destination.book.next_due().unwrap();
    assert_eq!(destination.send(), [(1, Some(name("first", 1)))]);
    // While it is unanswered, its session must not acknowledge it.
    let _next = source.put_key(HERE);
    source.book.advance(source.now);
    let items = source.book.next_batch().unwrap().items;
    let Some(Wire::Put(put)) = items[0].request.clone() else {
        panic!("{items:?}");
    };
    assert_eq!(
        put.session.map(|it| (it.sequence, it.acked_below)),
        Some((2, 1))
    );
    destination.done(1);
    assert_eq!(doubtful.try_recv(), Ok(Ok(Answer::Put)));
}

#[test]
fn a_shard_on_its_way_keeps_no_other_out() {
    let options = ClientOptions {
        max_in_flight: 4,
        max_unacknowledged: 4,
        ..ClientOptions::new(["a:1"])
    };
    let mut desk = Desk::new(&options);
    desk.open_session("first");
    for round in 0..8 {
        let _waiting = desk.put_key(AWAY);
        let sent = desk.send();
        desk.refuse(sent[0].0, errors::shard_not_ready(100));
        assert!(desk.book.room() >= 4, "round {round}");
        let mut served = desk.put_key(HERE);
        let sent = desk.send();
        desk.done(sent.last().unwrap().0);
        assert_eq!(served.try_recv(), Ok(Ok(Answer::Put)), "round {round}");
    }
    assert!(!desk.book.wants_session(), "nothing is kept in its window");
    assert_eq!(desk.book.pending.len(), 8);
    let held = desk
        .book
        .pending
        .values()
        .filter(|it| it.call.permit.is_some());
    assert_eq!(held.count(), 0, "nor of the bytes in flight");
}

#[test]
fn calls_that_wait_for_their_shard_are_bounded_and_so_is_the_wire() {
    let options = ClientOptions {
        max_in_flight: 2,
        ..ClientOptions::new(["a:1"])
    };
    let mut desk = Desk::new(&options);
    let mut waiting = Vec::new();
    while desk.book.room() > 0 {
        waiting.push(desk.get());
        for (id, _) in desk.send() {
            desk.refuse(id, errors::shard_not_ready(1_000));
        }
        assert!(waiting.len() <= 18, "2 and 8 times 2");
    }
    assert_eq!(waiting.len(), 18);
    let held = desk
        .book
        .pending
        .values()
        .filter(|it| it.call.permit.is_some());
    assert_eq!(held.count(), 2);
    desk.now += Duration::from_secs(5);
    assert_eq!(desk.send().len(), 2, "all are due, two may be sent");
    assert_eq!(desk.send().len(), 0);
}

#[test]
fn news_of_a_later_configuration_is_passed_on() {
    let mut desk = Desk::with_session();
    let _waiting = [desk.put_key(HERE), desk.put_key(HERE)];
    desk.send();
    let results = [(1, 5), (2, 7)].map(|(id, num)| BatchResult {
        id,
        response: Some(Response::Error(errors::wrong_group(num))),
    });
    let consequence = desk.book.results(desk.now, results.to_vec());
    assert_eq!(consequence.behind, Some(ConfigNum(7)));
    assert_eq!(consequence.reroute, None, "the node is a good one");
    assert!(
        desk.book.next_due().is_some(),
        "they are tried again in any case"
    );
}
