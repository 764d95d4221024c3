//! Drives the streams of a client: carries the effects and the batches of the request engine to hosts.

use replica::Request;
use request::{BatchStream, Effect, Ended, Jitter, Refusal, Refused, Repeat, Time, Tracked};
use types::{Gid, LogTime};

use super::Client;
use super::connection::{Sent, Stream, session_of, stream_options, time};
use super::context::{ClientContext, Outgoing};
use super::operation::Call;
use crate::machine::Question;
use crate::network::{HostId, address};
use crate::queue::{MILLI, Micros};

/// The interval at which deadlines and silence are checked.
const SWEEP: Micros = 20 * MILLI;

/// The time without a leader after which the configuration is doubted.
const REFRESH_AFTER: Time = Time::from_millis(200);

impl Client {
    /// Gives a call to the stream of a group.
    pub(super) fn admit(&mut self, gid: Gid, it: Tracked<Call>, context: &ClientContext<'_>) {
        let Some(config) = self.routes.config(context) else {
            return;
        };
        let (options, rng) = (&self.options, &mut self.rng);
        let stream = self.streams.entry(gid).or_insert_with(|| Stream {
            engine: BatchStream::new(
                &stream_options(options),
                gid,
                config,
                Jitter::new(rng.number()),
            ),
            leader: None,
            connection: 0,
            opening: None,
            losses: 0,
        });
        stream.engine.admit(it);
    }

    /// Gives the known configuration to all streams.
    pub(super) fn reconfigure(&mut self, context: &ClientContext<'_>) {
        let Some(config) = self.routes.config(context) else {
            return;
        };
        for stream in self.streams.values_mut() {
            stream.engine.reconfigure(config.clone());
        }
    }

    /// Returns the moment at which a stream has something to do.
    pub(super) fn streams_due(&self) -> Option<Micros> {
        let now = time(self.now);
        let engines = self.streams.values();
        let timeouts = engines.filter_map(|stream| stream.engine.poll_timeout(now));
        let timeouts = timeouts.map(|due| u64::try_from(due.as_micros()).unwrap_or(Micros::MAX));
        let waits = |stream: &Stream| !stream.engine.calls().is_empty();
        let sweep = self.streams.values().any(waits);
        timeouts.chain(sweep.then_some(self.next_sweep)).min()
    }

    /// Ends calls that are late, and connections whose oldest request got no answer: the network lost a message, which
    /// breaks a real connection.
    pub(super) fn watch_streams(&mut self, context: &mut ClientContext<'_>) {
        let now = context.now;
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + SWEEP;
        let patience = self.options.patience;
        for stream in self.streams.values_mut() {
            stream.engine.handle_sweep(time(now));
            let current = |it: &&Sent| it.connection == Some(stream.connection);
            let oldest = self.requests.values().filter(current).map(|it| it.at).min();
            // The patience doubles with each loss, because requests that are still queued would delay the later ones.
            let patience = patience << stream.losses.min(4);
            if stream.engine.is_up() && oldest.is_some_and(|at| now >= at + patience) {
                stream.losses += 1;
                stream
                    .engine
                    .handle_stream_ended(time(now), lost("no answer came"));
            }
        }
    }

    /// Breaks all connections, and goes on at `host`.
    pub(super) fn reconnect(&mut self, host: HostId, context: &mut ClientContext<'_>) {
        for stream in self.streams.values_mut() {
            if stream.engine.is_up() {
                stream
                    .engine
                    .handle_stream_ended(time(context.now), lost("the connection broke"));
            }
        }
        self.perform_effects(context);
        for gid in self.streams.keys() {
            self.leaders.found(*gid, &address(host));
        }
    }

    /// Carries out all pending effects of the engines.
    pub(super) fn run_streams(&mut self, context: &mut ClientContext<'_>) {
        loop {
            for stream in self.streams.values_mut() {
                stream.engine.handle_time(time(context.now));
            }
            let performed = self.perform_effects(context);
            let gids: Vec<Gid> = self.streams.keys().copied().collect();
            for gid in gids {
                self.send(gid, context);
            }
            if !performed {
                return;
            }
        }
    }

    fn perform_effects(&mut self, context: &mut ClientContext<'_>) -> bool {
        let mut performed = false;
        let gids: Vec<Gid> = self.streams.keys().copied().collect();
        for gid in gids {
            while let Some(effect) = self
                .streams
                .get_mut(&gid)
                .and_then(|stream| stream.engine.poll_effect())
            {
                performed = true;
                self.perform(gid, effect, context);
            }
        }
        performed
    }

    fn perform(&mut self, gid: Gid, effect: Effect<Call>, context: &mut ClientContext<'_>) {
        match effect {
            Effect::Connect { outage } => {
                if outage >= REFRESH_AFTER {
                    // The group may have left. The library refreshes too when a search finds no leader.
                    self.refresh(context);
                }
                self.connect(gid, context);
            }
            Effect::LeaderFailed { hint } => {
                let stream = self.streams.get(&gid);
                if let Some(leader) = stream.and_then(|stream| stream.leader.as_ref()) {
                    self.leaders.failed(leader, hint.as_ref());
                }
            }
            Effect::Disconnect => {
                if let Some(stream) = self.streams.get_mut(&gid) {
                    stream.leader = None;
                    stream.opening = None;
                }
            }
            Effect::OpenSession => self.open_session(gid, context),
            Effect::AskForNewerLeader => {
                // The group may have left.
                self.refresh(context);
                let newer = self.rng.coin();
                if let Some(stream) = self.streams.get_mut(&gid) {
                    stream.engine.handle_newer_leader(time(context.now), newer);
                }
            }
            Effect::FetchConfig(num) => {
                self.routes.want(num);
                self.refresh(context);
            }
            // A scan that the client gave up is not moved.
            Effect::Move(it) if !self.operations.contains_key(&it.call.number) => {}
            Effect::Move(it) => {
                if let Some(config) = self.routes.config(context) {
                    let owner = request::owner(&config, it.call.hash);
                    self.admit(owner, it, context);
                }
            }
            Effect::End(Ended { call, failure }) => {
                self.give_up(call.number, failure.maybe_applied(), context);
            }
        }
    }

    fn connect(&mut self, gid: Gid, context: &mut ClientContext<'_>) {
        let addresses = self.routes.addresses(gid, context);
        let turn = self.rng.index(addresses.len());
        let leader = self.leaders.next(gid, &addresses, turn);
        let now = time(context.now);
        let Some(stream) = self.streams.get_mut(&gid) else {
            return;
        };
        if let Some(leader) = leader {
            self.connections += 1;
            stream.connection = self.connections;
            stream.leader = Some(leader);
            stream.engine.handle_connected(now);
        } else {
            stream
                .engine
                .handle_connect_failed(now, "no node of the group is known");
            self.refresh(context);
        }
    }

    fn open_session(&mut self, gid: Gid, context: &mut ClientContext<'_>) {
        let id = self.next_id();
        let Some(stream) = self.streams.get_mut(&gid) else {
            return;
        };
        stream.opening = Some(id);
        if let Some(to) = stream.host() {
            context.out.push(Outgoing {
                to,
                id,
                request: Request::Birth {
                    at_least: LogTime(0),
                },
                delay: 0,
            });
        }
    }

    /// Sends the calls of a group that are ready.
    fn send(&mut self, gid: Gid, context: &mut ClientContext<'_>) {
        loop {
            let Some(stream) = self.streams.get_mut(&gid) else {
                return;
            };
            let (Some(host), connection) = (stream.host(), stream.connection) else {
                return;
            };
            let batch = stream
                .engine
                .poll_batch(time(context.now), |id, call, stamp| {
                    (id, call.number, call.repeat, stamp)
                });
            if batch.is_empty() {
                return;
            }
            for (call, number, repeat, stamp) in batch {
                let session = stamp.as_ref().and_then(session_of);
                let Some(request) = self.encode(number, session, context) else {
                    continue;
                };
                let mut sent = Sent {
                    number,
                    gid,
                    call,
                    connection: Some(connection),
                    at: context.now,
                };
                self.request(host, sent, request.clone(), 0, context);
                if repeat != Repeat::Never && self.rng.chance(self.options.copies) {
                    let host = self.rng.index(context.hosts);
                    let delay = self.rng.magnitude(1, self.options.copies_late_by);
                    sent.connection = None;
                    self.request(host, sent, request, delay, context);
                    if let Some(stream) = self.streams.get_mut(&gid) {
                        stream.engine.note_copy(call);
                    }
                }
            }
        }
    }

    fn request(
        &mut self,
        to: HostId,
        sent: Sent,
        request: Request<Question>,
        delay: Micros,
        context: &mut ClientContext<'_>,
    ) {
        let id = self.next_id();
        self.requests.insert(id, sent);
        context.out.push(Outgoing {
            to,
            id,
            request,
            delay,
        });
    }
}

fn lost(message: &str) -> Refused {
    Refused {
        refusal: Refusal::ConnectionLost,
        message: message.to_owned(),
    }
}
