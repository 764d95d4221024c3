//! A batch stream to the leader of one group, without the socket: when to connect, to open a session, to send, and when to
//! give the leader up.
//!
//! The driver reports events with `handle_*`, performs the effects that [`BatchStream::poll_effect`] returns, and sends what
//! [`BatchStream::poll_batch`] returns. The link is down, connecting, or up. It is connected when a call waits. It is lost when
//! its stream ends, when its node says that it does not lead, or when that node is silent while another node leads a later
//! term. The unanswered calls then go to the next leader under the same names.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use types::{ConfigNum, Gid, ShardConfig};

use crate::Time;
use crate::backoff::Backoff;
use crate::bug::Bugs;
use crate::pending::{Call, Ended, Limits, PendingCalls, Reroute, Tracked};
use crate::refusal::{Action, Refusal, Refused};
use crate::sequences::Stamp;

/// The text of calls whose leader fell silent and was replaced.
pub const SUPERSEDED: &str = "the leader fell silent, and another leads";

/// An order to the driver.
#[derive(Debug)]
pub enum Effect<C> {
    /// Find the group's leader and connect to it; then call [`BatchStream::handle_connected`] or
    /// [`BatchStream::handle_connect_failed`].
    Connect {
        /// The time since the first failure after the last success: the longer, the more patient a search may be.
        outage: Duration,
    },
    /// Drop the guess that the connected node leads; it may have named another one.
    LeaderFailed {
        /// The address that it named.
        hint: Option<Arc<str>>,
    },
    /// Close the stream. A refusal that still arrives from it must not be reported, because it says nothing about later attempts;
    /// an answer may be.
    Disconnect,
    /// Ask the leader for a session; then call [`BatchStream::handle_session`].
    OpenSession,
    /// Ask the group's other nodes whether one of them leads a later term; then call [`BatchStream::handle_newer_leader`].
    AskForNewerLeader,
    /// Fetch this configuration, which the leader has: calls wait for it.
    FetchConfig(ConfigNum),
    /// Pass a call to the stream of the group that owns its shard now.
    Move(Tracked<C>),
    /// Report a failure to the caller.
    End(Ended<C>),
}

/// A session that a node opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedSession {
    /// The session, as the cluster named it.
    pub client_id: Bytes,
    /// Its time to live.
    pub ttl: Duration,
}

/// The settings of a stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamOptions {
    /// The stream's bounds.
    pub limits: Limits,
    /// The shortest pause before a retry.
    pub min_backoff: Duration,
    /// The longest pause before a retry.
    pub max_backoff: Duration,
    /// The time without an answer to pending calls after which the stream asks the other nodes for a newer leader.
    pub silence_timeout: Duration,
    /// The bug that was put back, if any.
    pub bugs: Bugs,
}

#[derive(Debug)]
enum Link {
    Down,
    Connecting,
    Up(Up),
}

#[derive(Debug)]
struct Up {
    /// The moment at which the node last answered, or at which something was sent after it had answered all.
    heard: Time,
    /// The moment at which a session was asked for, while it is being opened.
    opening: Option<Time>,
    /// True while the other nodes are being asked for a newer leader.
    asking: bool,
    asked: Time,
}

/// The calls to one group and the state of the connection to its leader. See the head of the module.
#[derive(Debug)]
pub struct BatchStream<C> {
    calls: PendingCalls<C>,
    link: Link,
    backoff: Backoff,
    /// The first failure since the last success.
    outage: Option<Time>,
    /// The earliest moment of the next connection.
    connect_at: Time,
    /// The earliest moment of the next request for a session.
    session_at: Time,
    silence_timeout: Duration,
    effects: VecDeque<Effect<C>>,
}

impl<C: Call> BatchStream<C> {
    /// Creates a stream to group `gid` without calls. `jitter` seeds its pauses.
    pub fn new(
        options: &StreamOptions,
        gid: Gid,
        config: Arc<ShardConfig>,
        mut jitter: crate::Jitter,
    ) -> Self {
        let other = crate::Jitter::new(jitter.between(0, u32::MAX).into());
        let backoff = |jitter| Backoff::new(options.min_backoff, options.max_backoff, jitter);
        Self {
            calls: PendingCalls::new(options.limits, backoff(other), gid, config, options.bugs),
            link: Link::Down,
            backoff: backoff(jitter),
            outage: None,
            connect_at: Time::ZERO,
            session_at: Time::ZERO,
            silence_timeout: options.silence_timeout,
            effects: VecDeque::new(),
        }
    }

    /// Returns the calls.
    pub fn calls(&self) -> &PendingCalls<C> {
        &self.calls
    }

    /// Returns true if the stream is connected.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// Takes a call in.
    pub fn admit(&mut self, call: Tracked<C>) {
        self.calls.admit(call);
        self.collect();
    }

    /// Takes another configuration.
    pub fn reconfigure(&mut self, config: Arc<ShardConfig>) {
        self.calls.reconfigure(config);
        self.collect();
    }

    /// Notes that another copy of a sent call left, whose result will not arrive.
    pub fn note_copy(&mut self, id: u64) {
        self.calls.note_copy(id);
    }

    /// Changes the calls that wait, on the wire or not: a driver moves a deadline, or abandons a call.
    pub fn update_calls(&mut self, update: impl FnMut(&mut C)) {
        self.calls.update(update);
    }

    /// Begins what is due at `now`: retries, a connection, a session.
    pub fn handle_time(&mut self, now: Time) {
        self.calls.advance(now);
        match &mut self.link {
            Link::Down if !self.calls.is_empty() && self.connect_at <= now => {
                let outage = self
                    .outage
                    .map_or(Duration::ZERO, |since| now.saturating_sub(since));
                self.link = Link::Connecting;
                self.effects.push_back(Effect::Connect { outage });
            }
            Link::Up(up)
                if up.opening.is_none() && self.calls.wants_session() && self.session_at <= now =>
            {
                if self.calls.on_wire() == 0 {
                    up.heard = now;
                }
                up.opening = Some(now);
                self.effects.push_back(Effect::OpenSession);
            }
            _ => {}
        }
        self.collect();
    }

    /// Ends calls whose deadline passed, and notices a leader that is silent. To be called every few milliseconds while calls
    /// wait: deadlines are kept to within this.
    pub fn handle_sweep(&mut self, now: Time) {
        self.calls.sweep(now);
        self.collect();
        let silence = self.silence_timeout;
        let Link::Up(up) = &mut self.link else {
            return;
        };
        let waits = self.calls.on_wire() > 0 || up.opening.is_some();
        if !waits || now.saturating_sub(up.heard) < silence {
            return;
        }
        if !self.calls.has_group() {
            // A group that left the configuration gets no other leader.
            self.leave(now, None, "the group left, and its leader is silent");
        } else if !up.asking && now.saturating_sub(up.asked) >= silence {
            up.asked = now;
            up.asking = true;
            self.effects.push_back(Effect::AskForNewerLeader);
        }
    }

    /// Returns the next moment at which [`BatchStream::handle_time`] has something to do without an event.
    pub fn poll_timeout(&self, now: Time) -> Option<Time> {
        let connect = matches!(self.link, Link::Down) && !self.calls.is_empty();
        let session = matches!(&self.link, Link::Up(up) if up.opening.is_none())
            && self.calls.wants_session()
            && self.session_at > now;
        let dues = [
            connect.then_some(self.connect_at),
            session.then_some(self.session_at),
            self.calls.next_due(),
        ];
        dues.into_iter().flatten().min()
    }

    /// Returns the next order to the driver.
    pub fn poll_effect(&mut self) -> Option<Effect<C>> {
        self.effects.pop_front()
    }

    /// Returns true if the stream is up and calls are ready to be sent.
    pub fn has_batch(&self) -> bool {
        self.is_up() && self.calls.has_ready()
    }

    /// Returns the next batch of calls, each as `encode` writes it. Empty if nothing can be sent now.
    pub fn poll_batch<T>(
        &mut self,
        now: Time,
        encode: impl FnMut(u64, &C, Option<Stamp>) -> T,
    ) -> Vec<T> {
        let Link::Up(up) = &mut self.link else {
            return Vec::new();
        };
        if self.calls.on_wire() == 0 && up.opening.is_none() {
            up.heard = now;
        }
        self.calls.next_batch(encode)
    }

    /// Notes that the stream to the leader is open.
    pub fn handle_connected(&mut self, now: Time) {
        self.link = Link::Up(Up {
            heard: now,
            opening: None,
            asking: false,
            asked: now,
        });
    }

    /// Notes that no leader was found, or that the one that was found can't be reached.
    pub fn handle_connect_failed(&mut self, now: Time, why: &str) {
        self.calls.note(why);
        self.down(now, Duration::ZERO);
    }

    /// Takes in results from the stream, and returns the calls that are answered.
    pub fn handle_results<A>(
        &mut self,
        now: Time,
        results: impl IntoIterator<Item = (u64, Result<A, Refused>)>,
    ) -> Vec<(C, A)> {
        if let Link::Up(up) = &mut self.link {
            up.heard = now;
        }
        let (answered, consequence) = self.calls.handle_results(now, results);
        self.collect();
        if consequence.served {
            self.outage = None;
            self.backoff.reset();
        }
        if let Some(num) = consequence.behind {
            self.effects.push_back(Effect::FetchConfig(num));
        }
        if let (Some(Reroute(hint)), Link::Up(_)) = (consequence.reroute, &self.link) {
            self.leave(now, hint, "the node does not lead any more");
        }
        answered
    }

    /// Takes in the end of the stream.
    pub fn handle_stream_ended(&mut self, now: Time, Refused { refusal, message }: Refused) {
        let too_large = matches!(refusal, Refusal::MessageTooLarge { .. });
        match refusal.judge().action {
            Action::Reroute(hint) => self.leave(now, hint, &message),
            Action::Wait(pause) => {
                self.calls.connection_lost(&message);
                self.collect();
                self.effects.push_back(Effect::Disconnect);
                self.down(now, pause);
            }
            Action::Fail(rejection) => {
                if too_large {
                    self.calls.fail_largest(rejection);
                } else {
                    self.calls.fail_wire(&rejection);
                }
                self.leave(now, None, &message);
            }
            // A stream as such concerns no shard and no session, so the node is another group's, or none of ours.
            Action::RenewSession | Action::WrongGroup(_) | Action::AwaitShard(_) => {
                self.leave(now, None, &message);
            }
        }
    }

    /// Takes in the answer to the request for a session.
    pub fn handle_session(&mut self, now: Time, result: Result<OpenedSession, Refused>) {
        let asked = match &mut self.link {
            Link::Up(up) => up.opening.take().unwrap_or(now),
            _ => now,
        };
        let Refused { refusal, message } = match result {
            Ok(session) => {
                self.calls
                    .session_opened(asked, session.client_id, session.ttl);
                self.session_at = now;
                return;
            }
            Err(refused) => refused,
        };
        let pause = match refusal.judge().action {
            Action::Reroute(hint) => return self.leave(now, hint, &message),
            Action::Wait(pause) => self.backoff.pause_at_least(now, pause),
            Action::RenewSession | Action::WrongGroup(_) | Action::AwaitShard(_) => {
                self.backoff.pause_at_least(now, Duration::ZERO)
            }
            Action::Fail(rejection) => {
                self.calls.session_refused(&rejection);
                self.collect();
                self.backoff.pause_at_least(now, Duration::ZERO)
            }
        };
        self.calls.note(&message);
        self.session_at = now + pause;
    }

    /// Takes in the answer to [`Effect::AskForNewerLeader`].
    pub fn handle_newer_leader(&mut self, now: Time, found: bool) {
        let Link::Up(up) = &mut self.link else {
            return;
        };
        up.asking = false;
        if found {
            self.leave(now, None, SUPERSEDED);
        }
    }

    /// Gives this leader up for another.
    fn leave(&mut self, now: Time, hint: Option<Arc<str>>, why: &str) {
        self.effects.push_back(Effect::LeaderFailed { hint });
        self.effects.push_back(Effect::Disconnect);
        self.calls.connection_lost(why);
        self.collect();
        self.down(now, Duration::ZERO);
    }

    fn down(&mut self, now: Time, at_least: Duration) {
        self.link = Link::Down;
        self.outage.get_or_insert(now);
        let pause = if at_least.is_zero() {
            self.backoff.pause(now)
        } else {
            self.backoff.pause_at_least(now, at_least)
        };
        self.connect_at = now + pause;
    }

    /// Turns the calls that ended or moved into effects.
    fn collect(&mut self) {
        let moved = self.calls.take_moved().into_iter().map(Effect::Move);
        self.effects.extend(moved);
        let ended = self.calls.take_ended().into_iter().map(Effect::End);
        self.effects.extend(ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Jitter;
    use crate::pending::harness::{Item, config, options};

    fn stream() -> BatchStream<Item> {
        BatchStream::new(
            &options(),
            Gid(1),
            config(1, &[(4, Gid(1))]),
            Jitter::new(1),
        )
    }

    fn at(ms: u64) -> Time {
        Duration::from_millis(1_000 + ms)
    }

    fn effects(stream: &mut BatchStream<Item>) -> Vec<String> {
        let effects = std::iter::from_fn(|| stream.poll_effect());
        effects
            .map(|effect| match effect {
                Effect::End(ended) => format!("End {:?}", ended.failure),
                Effect::Move(_) => "Move".to_owned(),
                other => format!("{other:?}"),
            })
            .collect()
    }

    fn refused(refusal: Refusal) -> Refused {
        let message = "said so".to_owned();
        Refused { refusal, message }
    }

    #[test]
    fn a_stream_connects_when_a_call_waits_and_follows_a_hint() {
        let mut stream = stream();
        stream.handle_time(at(0));
        assert!(effects(&mut stream).is_empty(), "nobody asks anything");
        stream.admit(Item::get("k").tracked());
        stream.handle_time(at(0));
        assert_eq!(effects(&mut stream), ["Connect { outage: 0ns }"]);
        stream.handle_connected(at(1));
        assert_eq!(stream.poll_batch(at(1), |id, _, _| id), [1]);
        let hint = Some(Arc::from("b:1"));
        let results = [(1, Err::<(), _>(refused(Refusal::NotLeader { hint })))];
        assert!(stream.handle_results(at(2), results).is_empty());
        assert_eq!(
            effects(&mut stream),
            ["LeaderFailed { hint: Some(\"b:1\") }", "Disconnect"]
        );
        stream.handle_time(at(2));
        assert_eq!(effects(&mut stream), ["Connect { outage: 0ns }"], "at once");
        stream.handle_connected(at(3));
        assert_eq!(stream.poll_batch(at(3), |id, _, _| id), [1]);
        assert_eq!(stream.handle_results(at(4), [(1, Ok(()))]).len(), 1);
        assert!(stream.calls().is_empty());
    }

    #[test]
    fn a_write_asks_for_a_session_and_a_silent_leader_is_doubted() {
        let mut stream = stream();
        stream.admit(Item::put("k").tracked());
        stream.handle_time(at(0));
        stream.handle_connected(at(0));
        stream.handle_time(at(0));
        assert_eq!(
            effects(&mut stream),
            ["Connect { outage: 0ns }", "OpenSession"]
        );
        stream.handle_sweep(at(200));
        assert!(effects(&mut stream).is_empty());
        stream.handle_sweep(at(300));
        stream.handle_sweep(at(310));
        assert_eq!(effects(&mut stream), ["AskForNewerLeader"], "once");
        stream.handle_newer_leader(at(320), false);
        assert!(stream.is_up(), "nobody else leads");
        stream.handle_sweep(at(600));
        assert_eq!(effects(&mut stream), ["AskForNewerLeader"]);
        stream.handle_newer_leader(at(610), true);
        assert_eq!(
            effects(&mut stream),
            ["LeaderFailed { hint: None }", "Disconnect"]
        );
        assert!(!stream.is_up());
    }

    #[test]
    fn a_leader_is_silent_only_while_a_call_is_on_the_wire() {
        let mut stream = stream();
        stream.handle_connected(at(0));
        stream.admit(Item::get("k").tracked());
        assert_eq!(stream.poll_batch(at(1_000), |id, _, _| id), [1]);
        stream.handle_sweep(at(1_200));
        assert!(effects(&mut stream).is_empty(), "it had nothing to answer");
        stream.admit(Item::get("l").tracked());
        assert_eq!(stream.poll_batch(at(1_200), |id, _, _| id), [2]);
        stream.handle_sweep(at(1_300));
        assert_eq!(effects(&mut stream), ["AskForNewerLeader"], "of the first");
    }

    #[test]
    fn a_busy_node_that_ends_the_stream_stays_the_leader() {
        let mut stream = stream();
        stream.admit(Item::get("k").tracked());
        stream.handle_time(at(0));
        stream.handle_connected(at(0));
        effects(&mut stream);
        let retry_after = Duration::from_millis(100);
        stream.handle_stream_ended(at(1), refused(Refusal::Overloaded { retry_after }));
        assert_eq!(effects(&mut stream), ["Disconnect"]);
        assert!(stream.poll_timeout(at(1)).unwrap() >= at(70));
    }
}
