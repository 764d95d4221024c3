//! The timers of leases, on the leader of the group that owns their keyspaces.
//!
//! Timers begin when a node becomes leader, or when a shard arrives: each lease of the state gets its full term, and a *grace*
//! more, because a client may have been told by the leader before that its lease was renewed. From then on grants, renewals and
//! revokes come as they happen. A timer that runs out becomes an [`Expiry`], which the caller proposes. It names the grant, the
//! term and the configuration, and apply refuses it under any other, so an expiry that is late changes nothing.
//!
//! While the leases of a keyspace are being read from states, one page after the other, changes come too. A lease that was revoked
//! meanwhile isn't added by an older page ([`Timers::load`]).

use std::collections::{BTreeMap, BTreeSet};

use keyspace::{Effect, Lease, LeaseId, Place};
use raft::Term;
use types::{ConfigNum, ShardId};

/// Milliseconds of the caller's clock.
type Millis = u64;

/// The pause before an expiry that was not carried out is proposed again.
const RETRY: Millis = 1_000;

/// A lease that has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The keyspace.
    pub place: Place,
    /// The lease.
    pub id: LeaseId,
    /// The number of its grant.
    pub grant: u64,
    /// The term in which it was decided.
    pub term: Term,
    /// The configuration in which it was decided.
    pub config: ConfigNum,
}

/// The result of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease has its full term again.
    Renewed {
        /// Its time to live, in seconds.
        ttl: i64,
    },
    /// There is no such lease.
    Unknown,
    /// The lease has expired, and is about to be revoked: ask again.
    Expired,
    /// The leases of the keyspace are being read: ask again.
    Loading,
    /// There are no timers of the keyspace here: this node doesn't lead, or the group doesn't serve the shard.
    Elsewhere,
}

/// The rest of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// Its granted time to live, in seconds.
    pub granted: i64,
    /// The whole seconds that are left.
    pub left: i64,
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    ttl: i64,
    grant: u64,
    expires: Millis,
    /// The time at which it is among those that are due; `None` while its expiry is being proposed.
    due: Option<Millis>,
}

/// The leases of one keyspace.
#[derive(Debug)]
struct Leases {
    config: ConfigNum,
    loaded: bool,
    /// The leases that were revoked while others were loaded.
    revoked: BTreeSet<LeaseId>,
    timers: BTreeMap<LeaseId, Timer>,
}

/// The timers of all leases of a leader.
#[derive(Debug)]
pub struct Timers {
    grace: Millis,
    term: Option<Term>,
    places: BTreeMap<Place, Leases>,
    due: BTreeSet<(Millis, Place, LeaseId)>,
}

impl Timers {
    /// Creates the timers of a node that doesn't lead. `grace` is the time that a leader adds to the term of each lease that
    /// another one may have renewed.
    pub fn new(grace: Millis) -> Self {
        Self {
            grace,
            term: None,
            places: BTreeMap::new(),
            due: BTreeSet::new(),
        }
    }

    /// Takes in the term in which this node leads; `None` if it doesn't. Timers of another term are dropped. Returns true if
    /// there is a new term, for which the leases are to be read.
    pub fn lead(&mut self, term: Option<Term>) -> bool {
        if self.term == term {
            return false;
        }
        self.term = term;
        self.places.clear();
        self.due.clear();
        term.is_some()
    }

    /// Returns the term in which this node leads.
    pub fn term(&self) -> Option<Term> {
        self.term
    }

    /// Returns the number of leases.
    pub fn len(&self) -> usize {
        let timers = self.places.values().map(|leases| leases.timers.len());
        timers.sum()
    }

    /// Returns true if there are no leases.
    pub fn is_empty(&self) -> bool {
        self.due.is_empty() && self.len() == 0
    }

    /// Begins with a keyspace that is served since this configuration. Its leases are to be loaded.
    pub fn begin(&mut self, place: Place, config: ConfigNum) {
        if self.term.is_none() {
            return;
        }
        if self
            .places
            .get(&place)
            .is_some_and(|leases| leases.config != config)
        {
            self.end(place);
        }
        self.places.entry(place).or_insert_with(|| Leases {
            config,
            loaded: false,
            revoked: BTreeSet::new(),
            timers: BTreeMap::new(),
        });
    }

    /// Adds leases that were read from a state. It changes none that is known.
    pub fn load(&mut self, place: Place, leases: &[Lease], now: Millis) {
        for lease in leases {
            let Some(known) = self.places.get(&place).filter(|known| !known.loaded) else {
                return;
            };
            if !known.revoked.contains(&lease.id) && !known.timers.contains_key(&lease.id) {
                let expires = after(now, lease.ttl).saturating_add(self.grace);
                self.set(place, lease.id, (lease.ttl, lease.grant), expires);
            }
        }
    }

    /// Takes in that all leases of a keyspace are loaded.
    pub fn loaded(&mut self, place: Place) {
        if let Some(leases) = self.places.get_mut(&place) {
            leases.loaded = true;
            leases.revoked = BTreeSet::new();
        }
    }

    /// Ends the timers of a keyspace.
    pub fn end(&mut self, place: Place) {
        let Some(leases) = self.places.remove(&place) else {
            return;
        };
        for (id, timer) in leases.timers {
            if let Some(due) = timer.due {
                self.due.remove(&(due, place, id));
            }
        }
    }

    /// Ends the timers of all keyspaces whose shard isn't served since the configuration in which they began.
    pub fn keep_served(&mut self, serves: impl Fn(ShardId) -> Option<ConfigNum>) {
        let gone = self
            .places
            .iter()
            .filter(|(place, leases)| serves(place.shard) != Some(leases.config));
        let gone: Vec<_> = gone.map(|(place, _)| *place).collect();
        for place in gone {
            self.end(place);
        }
    }

    /// Takes in the effects of an operation on a keyspace that is served since this configuration.
    pub fn note(&mut self, place: Place, config: ConfigNum, effects: &[Effect], now: Millis) {
        for effect in effects {
            match *effect {
                Effect::Created => {
                    self.begin(place, config);
                    self.loaded(place);
                }
                Effect::Granted { id, ttl, grant } if self.places.contains_key(&place) => {
                    self.set(place, id, (ttl, grant), after(now, ttl));
                }
                Effect::Revoked { id } => self.revoked(place, id),
                Effect::Deleted => self.end(place),
                Effect::Granted { .. }
                | Effect::Changed(_)
                | Effect::AuthChanged
                | Effect::Compacted { .. } => {}
            }
        }
    }

    fn revoked(&mut self, place: Place, id: LeaseId) {
        self.forget(place, id);
        if let Some(leases) = self.places.get_mut(&place)
            && !leases.loaded
        {
            leases.revoked.insert(id);
        }
    }

    /// Gives a lease its full term again.
    pub fn renew(&mut self, place: Place, id: LeaseId, now: Millis) -> Renewal {
        let Some(leases) = self.places.get(&place) else {
            return Renewal::Elsewhere;
        };
        let Some(timer) = leases.timers.get(&id).copied() else {
            return if leases.loaded {
                Renewal::Unknown
            } else {
                Renewal::Loading
            };
        };
        if timer.due.is_none() || timer.expires <= now {
            return Renewal::Expired;
        }
        let ttl = timer.ttl;
        // A lease that was just loaded may have more than its term.
        let expires = after(now, ttl).max(timer.expires);
        self.set(place, id, (ttl, timer.grant), expires);
        Renewal::Renewed { ttl }
    }

    /// Returns what is left of a lease, if its timer is here.
    pub fn remaining(&self, place: Place, id: LeaseId, now: Millis) -> Option<Remaining> {
        let timer = self.places.get(&place)?.timers.get(&id)?;
        let left = timer.expires.saturating_sub(now) / 1_000;
        Some(Remaining {
            granted: timer.ttl,
            // The grace is no part of the term.
            left: i64::try_from(left).unwrap_or(i64::MAX).min(timer.ttl),
        })
    }

    /// Returns the time at which the next lease expires.
    pub fn next_due(&self) -> Option<Millis> {
        self.due.first().map(|(due, _, _)| *due)
    }

    /// Takes leases that have expired, at most `max`, the longest expired first. Each must be settled or failed.
    pub fn take_expired(&mut self, now: Millis, max: usize) -> Vec<Expiry> {
        let mut expired = Vec::new();
        let Some(term) = self.term else {
            return expired;
        };
        while expired.len() < max
            && let Some(&(due, place, id)) = self.due.first()
            && due <= now
        {
            self.due.pop_first();
            let Some(leases) = self.places.get_mut(&place) else {
                continue;
            };
            let config = leases.config;
            if let Some(timer) = leases.timers.get_mut(&id) {
                timer.due = None;
                expired.push(Expiry {
                    place,
                    id,
                    grant: timer.grant,
                    term,
                    config,
                });
            }
        }
        expired
    }

    /// Takes in that a lease is gone: its expiry was carried out, or it had been revoked.
    pub fn settled(&mut self, expiry: &Expiry) {
        if self.is_of(expiry) {
            self.forget(expiry.place, expiry.id);
        }
    }

    /// Takes in that an expiry was not carried out, or that its outcome is unknown. It is proposed again after a pause.
    pub fn failed(&mut self, expiry: &Expiry, now: Millis) {
        if !self.is_of(expiry) {
            return;
        }
        let (place, id) = (expiry.place, expiry.id);
        let timer = self
            .places
            .get_mut(&place)
            .and_then(|leases| leases.timers.get_mut(&id));
        if let Some(timer) = timer
            && timer.due.is_none()
        {
            let due = now.saturating_add(RETRY);
            timer.due = Some(due);
            self.due.insert((due, place, id));
        }
    }

    /// Returns true if the timer of an expiry is the one from which it came.
    fn is_of(&self, expiry: &Expiry) -> bool {
        let leases = self.places.get(&expiry.place);
        let timer = leases
            .filter(|leases| leases.config == expiry.config)
            .and_then(|leases| leases.timers.get(&expiry.id));
        self.term == Some(expiry.term) && timer.is_some_and(|timer| timer.grant == expiry.grant)
    }

    fn set(&mut self, place: Place, id: LeaseId, (ttl, grant): (i64, u64), expires: Millis) {
        self.forget(place, id);
        if let Some(leases) = self.places.get_mut(&place) {
            let timer = Timer {
                ttl,
                grant,
                expires,
                due: Some(expires),
            };
            leases.timers.insert(id, timer);
            self.due.insert((expires, place, id));
        }
    }

    fn forget(&mut self, place: Place, id: LeaseId) {
        let leases = self.places.get_mut(&place);
        let timer = leases.and_then(|leases| leases.timers.remove(&id));
        if let Some(due) = timer.and_then(|timer| timer.due) {
            self.due.remove(&(due, place, id));
        }
    }
}

/// Returns the end of a term that begins now.
fn after(now: Millis, ttl: i64) -> Millis {
    let ttl = u64::try_from(ttl).unwrap_or(0);
    now.saturating_add(ttl.saturating_mul(1_000))
}
