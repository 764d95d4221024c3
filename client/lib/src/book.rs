//! The calls of one lane: named, queued, sent, answered, retried. Pure: no socket, and time is passed in.
//!
//! A call is in exactly one place:
//!
//! ```text
//! admit -> unnamed -> ready -> wire -> answered
//!             ^         ^       |
//!             |         +-------+  the connection broke, or the node does not lead
//!             +----- delayed <--+  the node is busy, or the session expired
//! ```
//!
//! Reads skip `unnamed`. A write gets its name once and keeps it on every retry; only the certainty that no
//! attempt took effect allows another name.
//!
//! # Invariants
//!
//! - Every admitted call is answered exactly once, at the latest in the first sweep after its deadline.
//! - A name is finished exactly when its call leaves the book, or gets another.
//! - Everything is bounded by the calls admitted, and [`Book::room`] bounds those.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use api::v1::{BatchItem, BatchRequest, BatchResult, OpenSessionResponse};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::call::{Answer, Request, from_wire, mismatch};
use crate::session::{Number, Sessions};
use crate::verdict::{self, Action, Verdict};
use crate::{ClientOptions, Error};

/// A call on its way from its caller.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) timeout: Duration,
    pub(crate) deadline: Instant,
    pub(crate) answer: oneshot::Sender<Result<Answer, Error>>,
    /// Its share of the bytes in flight, given back when it ends.
    pub(crate) _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Pending {
    call: Call,
    name: Option<Number>,
    /// Whether an attempt that ended without a certain answer may have taken effect.
    doubt: bool,
    on_wire: bool,
    last: Option<String>,
}

/// What a batch of results means for the connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Consequence {
    /// At least one call was served.
    pub(crate) served: bool,
    /// This node is the wrong one.
    pub(crate) reroute: Option<Reroute>,
}

/// Go elsewhere: to this address, if the node named one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reroute(pub(crate) Option<String>);

#[derive(Debug)]
pub(crate) struct Book {
    max_in_flight: usize,
    max_batch_items: usize,
    max_batch_bytes: usize,
    pending: HashMap<u64, Pending>,
    last_id: u64,
    ready: VecDeque<u64>,
    unnamed: VecDeque<u64>,
    delayed: BTreeSet<(Instant, u64)>,
    on_wire: usize,
    sessions: Sessions,
    session_wanted: bool,
    busy: Backoff,
}

impl Book {
    pub(crate) fn new(options: &ClientOptions) -> Self {
        Self {
            max_in_flight: options.max_in_flight,
            max_batch_items: options.max_batch_items,
            max_batch_bytes: options.max_batch_bytes,
            pending: HashMap::new(),
            last_id: 0,
            ready: VecDeque::new(),
            unnamed: VecDeque::new(),
            delayed: BTreeSet::new(),
            on_wire: 0,
            sessions: Sessions::new(options.max_unacknowledged),
            session_wanted: false,
            busy: Backoff::new(options.min_backoff, options.max_backoff),
        }
    }

    /// How many more calls may be admitted.
    pub(crate) fn room(&self) -> usize {
        self.max_in_flight.saturating_sub(self.pending.len())
    }

    /// Whether no call waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Calls that were sent and not answered.
    pub(crate) fn on_wire(&self) -> usize {
        self.on_wire
    }

    /// Whether a call can be sent now.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether a session should be opened.
    pub(crate) fn wants_session(&self) -> bool {
        self.session_wanted
    }

    /// When the next delayed call is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.first().map(|(at, _)| *at)
    }

    /// Takes a call in.
    pub(crate) fn admit(&mut self, call: Call) {
        self.last_id += 1;
        let id = self.last_id;
        let queue = if call.request.is_write() {
            &mut self.unnamed
        } else {
            &mut self.ready
        };
        queue.push_back(id);
        let pending = Pending {
            call,
            name: None,
            doubt: false,
            on_wire: false,
            last: None,
        };
        self.pending.insert(id, pending);
    }

    /// Moves calls on whose time has come: delayed ones that are due, and writes that can be named.
    pub(crate) fn advance(&mut self, now: Instant) {
        while let Some((at, id)) = self.delayed.first().copied() {
            if at > now {
                break;
            }
            self.delayed.pop_first();
            if let Some(pending) = self.pending.get(&id) {
                let unnamed = pending.call.request.is_write() && pending.name.is_none();
                let queue = if unnamed {
                    &mut self.unnamed
                } else {
                    &mut self.ready
                };
                queue.push_back(id);
            }
        }
        if self.unnamed.is_empty() {
            return;
        }
        self.session_wanted = self.sessions.wants_another(now);
        while let Some(id) = self.unnamed.front() {
            let Some(pending) = self.pending.get_mut(id) else {
                self.unnamed.pop_front();
                continue;
            };
            let Ok(name) = self.sessions.begin(now) else {
                break;
            };
            pending.name = Some(name);
            self.ready.push_back(*id);
            self.unnamed.pop_front();
        }
    }

    /// The next message of the stream, from the calls that are ready, oldest first.
    pub(crate) fn next_batch(&mut self) -> Option<BatchRequest> {
        let mut items = Vec::with_capacity(self.ready.len().min(self.max_batch_items));
        let mut bytes = 0;
        while items.len() < self.max_batch_items {
            let Some(id) = self.ready.pop_front() else {
                break;
            };
            let Some(pending) = self.pending.get_mut(&id) else {
                continue;
            };
            bytes += pending.call.request.cost();
            if bytes > self.max_batch_bytes && !items.is_empty() {
                // A large call goes alone, so that only its own size decides whether a node takes it.
                self.ready.push_front(id);
                break;
            }
            let session = pending.name.and_then(|name| self.sessions.stamp(name));
            items.push(BatchItem {
                id,
                request: Some(pending.call.request.to_wire(session)),
            });
            pending.on_wire = true;
            self.on_wire += 1;
        }
        (!items.is_empty()).then_some(BatchRequest { items })
    }

    /// Takes in what a node answered.
    pub(crate) fn results(&mut self, now: Instant, results: Vec<BatchResult>) -> Consequence {
        let mut consequence = Consequence::default();
        for result in results {
            let id = result.id;
            // Answers to calls that were given up are of no use, and an unknown kind of answer is none.
            let (true, Some(response)) = (self.is_on_wire(id), result.response) else {
                continue;
            };
            match from_wire(response) {
                Ok(answer) => {
                    consequence.served = true;
                    self.served(id, answer);
                }
                Err(detail) => {
                    let last = detail.message.clone();
                    let verdict = verdict::of_detail(detail);
                    if let Some(reroute) = self.judged(now, id, verdict, last) {
                        let better = reroute.0.is_some() || consequence.reroute.is_none();
                        if better {
                            consequence.reroute = Some(reroute);
                        }
                    } else {
                        consequence.served = true;
                    }
                }
            }
        }
        consequence
    }

    fn is_on_wire(&self, id: u64) -> bool {
        self.pending.get(&id).is_some_and(|it| it.on_wire)
    }

    fn served(&mut self, id: u64, answer: Answer) {
        self.busy.reset();
        if let Some(call) = self.end(id) {
            let fits = call.request.fits(&answer);
            let result = if fits {
                Ok(answer)
            } else {
                Err(mismatch(call.request.is_write()))
            };
            // The caller may have gone; then nobody wants to know.
            let _ = call.answer.send(result);
        }
    }

    /// Acts on a failure of one call. Returns `Some` if its connection leads to the wrong node.
    fn judged(&mut self, now: Instant, id: u64, verdict: Verdict, last: String) -> Option<Reroute> {
        let pending = self.pending.get_mut(&id)?;
        self.on_wire -= usize::from(pending.on_wire);
        pending.on_wire = false;
        pending.doubt |= verdict.doubt && pending.call.request.is_write();
        pending.last = Some(last);
        match verdict.action {
            Action::Reroute(hint) => {
                self.ready.push_back(id);
                return Some(Reroute(hint));
            }
            Action::Wait(ms) => {
                let pause = self.busy.pause_at_least(now, ms);
                self.delayed.insert((now + pause, id));
            }
            Action::NewSession => self.session_expired(now, id),
            Action::Fail(error) => self.fail(id, error),
        }
        None
    }

    fn session_expired(&mut self, now: Instant, id: u64) {
        let Some(pending) = self.pending.get_mut(&id) else {
            return;
        };
        let name = pending.name.take();
        let doubt = pending.doubt;
        if let Some(name) = name {
            self.sessions.expire(name);
            self.sessions.finish(name);
        }
        if doubt || name.is_none() {
            self.fail(id, verdict::expired());
        } else {
            // The pause keeps a node that refuses every session from being asked without end.
            let pause = self.busy.pause_at_least(now, 0);
            self.delayed.insert((now + pause, id));
        }
    }

    /// The connection is lost, or leads to the wrong node: what was sent and not answered is ready again, in
    /// its old order and under its old names, and in doubt.
    pub(crate) fn connection_lost(&mut self, why: &str) {
        let mut again: Vec<u64> = Vec::with_capacity(self.on_wire);
        for (id, pending) in &mut self.pending {
            if pending.on_wire {
                pending.on_wire = false;
                pending.doubt = pending.call.request.is_write();
                pending.last = Some(why.to_owned());
                again.push(*id);
            }
        }
        self.on_wire = 0;
        // Those that were refused one by one are in `ready` already; the order of ids is that of admission.
        again.extend(self.ready.drain(..));
        again.sort_unstable();
        self.ready.extend(again);
    }

    /// Notes why nothing can be sent now, for the error of calls that give up.
    pub(crate) fn note(&mut self, why: &str) {
        for pending in self.pending.values_mut() {
            if pending.last.as_deref() != Some(why) {
                pending.last = Some(why.to_owned());
            }
        }
    }

    /// Ends the calls whose deadline passed or whose callers went away.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let ended: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, it)| it.call.deadline <= now || it.call.answer.is_closed())
            .map(|(id, _)| *id)
            .collect();
        if ended.is_empty() {
            return;
        }
        for id in ended {
            let Some(pending) = self.pending.get_mut(&id) else {
                continue;
            };
            let sent = pending.on_wire && pending.call.request.is_write();
            let doubt = pending.doubt || sent;
            let error = verdict::timeout(pending.call.timeout, doubt, pending.last.take());
            if let Some(call) = self.end(id) {
                let _ = call.answer.send(Err(error));
            }
        }
        let pending = &self.pending;
        self.ready.retain(|id| pending.contains_key(id));
        self.unnamed.retain(|id| pending.contains_key(id));
        self.delayed.retain(|(_, id)| pending.contains_key(id));
    }

    /// A session that was asked for at `asked` is open.
    pub(crate) fn session_opened(&mut self, asked: Instant, response: OpenSessionResponse) {
        let ttl = Duration::from_millis(response.ttl_ms);
        self.sessions.opened(asked, response.client_id, ttl);
        self.session_wanted = false;
    }

    /// No session can be had, and no retry will help: fails the writes that wait for one.
    pub(crate) fn session_refused(&mut self, error: &Error) {
        self.session_wanted = false;
        for id in std::mem::take(&mut self.unnamed) {
            self.fail(id, error.clone());
        }
    }

    /// Fails all that is on the wire: the stream was refused in a way that no retry cures.
    pub(crate) fn fail_wire(&mut self, error: &Error) {
        let mut failed: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, it)| it.on_wire)
            .map(|(id, _)| *id)
            .collect();
        failed.sort_unstable();
        for id in failed {
            self.fail(id, error.clone());
        }
    }

    /// Fails the largest call on the wire: a message was too large for the other end, and one stubborn call
    /// must not hold up the others until its deadline.
    pub(crate) fn fail_largest(&mut self, error: Error) {
        let largest = self
            .pending
            .iter()
            .filter(|(_, it)| it.on_wire)
            .max_by_key(|(id, it)| (it.call.request.cost(), **id))
            .map(|(id, _)| *id);
        if let Some(id) = largest {
            self.fail(id, error);
        }
    }

    fn fail(&mut self, id: u64, error: Error) {
        let doubt = self.pending.get(&id).is_some_and(|it| it.doubt);
        if let Some(call) = self.end(id) {
            let _ = call.answer.send(Err(verdict::with_doubt(error, doubt)));
        }
    }

    /// Takes a call out of the book; its name is used up.
    fn end(&mut self, id: u64) -> Option<Call> {
        let pending = self.pending.remove(&id)?;
        self.on_wire -= usize::from(pending.on_wire);
        if let Some(name) = pending.name {
            self.sessions.finish(name);
        }
        Some(pending.call)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::errors;
    use api::v1::batch_item::Request as Wire;
    use api::v1::batch_result::Response;
    use api::v1::{ErrorDetail, PutResponse};
    use bytes::Bytes;
    use tokio::sync::Semaphore;

    use super::*;

    type Answered = oneshot::Receiver<Result<Answer, Error>>;

    struct Desk {
        book: Book,
        now: Instant,
    }

    impl Desk {
        fn new(options: &ClientOptions) -> Self {
            Self {
                book: Book::new(options),
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
                request,
                timeout,
                deadline: self.now + timeout,
                answer,
                _permit: budget.try_acquire_owned().unwrap(),
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
}
