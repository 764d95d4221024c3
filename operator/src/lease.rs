//! Who of several operators acts: the holder of a Lease.
//!
//! # How it works
//!
//! The holder renews the Lease every [`Timing::retry`]. One who waits looks at it as often, and takes it when it has no holder or
//! hasn't changed for as long as it is good ([`Timing::duration`]), by the *watcher's own* clock: the times that stand in
//! the Lease are for people. Every write names the version that it is based on, so of two who take it one is refused.
//!
//! A holder that couldn't renew for [`Timing::deadline`] stops acting before anyone else may begin, and says so by
//! returning from [`Elector::hold`]: the deadline counts from the *begin* of the last renewal that went well, others count from when they
//! saw it.
//!
//! # Why it is our own
//!
//! The crate that is there for this compares the times in the Lease with its own wall clock, so that a clock that runs ahead
//! takes a good Lease away; renews and releases without naming a version, so that it may overwrite one that took over; and
//! goes on telling its user that it leads for as long as the API server can't be reached.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt as _};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// What the writes are attributed to.
const MANAGER: &str = crate::reconcile::FIELD_MANAGER;

/// How often, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a Lease is good after its last renewal.
    pub duration: Duration,
    /// How long a holder goes on without a renewal. Less than `duration`, so that two never act at once.
    pub deadline: Duration,
    /// How often a holder renews, and others look.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            retry: Duration::from_secs(5),
        }
    }
}

/// Why a holder holds no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The Lease names another.
    #[error("`{0}` holds the Lease now")]
    Taken(String),
    /// It couldn't be renewed in time, so another may hold it by now.
    #[error("the Lease couldn't be renewed for {0:?}: {1}")]
    Unrenewed(Duration, String),
}

/// One who wants to hold the Lease.
#[derive(Debug)]
pub struct Elector {
    api: Api<Lease>,
    name: String,
    timing: Timing,
    watch: Watch,
}

/// What one who waits has seen of the Lease.
#[derive(Debug)]
struct Watch {
    identity: String,
    /// What was seen last of a Lease of another, and since when it stands so.
    seen: Option<(Seen, Instant)>,
}

/// The Lease as we wrote it.
#[derive(Debug)]
pub struct Held {
    lease: Lease,
    renewed: Instant,
}

/// What changes with every renewal.
type Seen = (Option<String>, Option<MicroTime>);

/// What can be done about the Lease now.
#[derive(Debug, PartialEq)]
enum Chance {
    /// It is free, ours from before, or was given up.
    Take,
    /// Another holds it.
    Wait(String),
}

impl Elector {
    /// One who goes by `identity`. No two that run at the same time may share one.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            timing: Timing::default(),
            watch: Watch {
                identity: identity.to_owned(),
                seen: None,
            },
        }
    }

    /// With other times than the usual ones.
    #[must_use]
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// Waits until the Lease is ours. Failures are logged and tried again; `told` hears each change of what it waits for.
    pub async fn acquire(&mut self, mut told: impl FnMut(&str)) -> Held {
        let mut last = String::new();
        loop {
            let waits = match timeout(self.timing.deadline, self.attempt()).await {
                Ok(Ok(Ok(held))) => return held,
                Ok(Ok(Err(holder))) => format!("`{holder}` holds the Lease {}", self.name),
                Ok(Err(error)) => self.explain(&error),
                Err(_) => "the Kubernetes API doesn't answer".to_owned(),
            };
            if waits != last {
                told(&waits);
                last = waits;
            }
            sleep(self.timing.retry).await;
        }
    }

    /// Renews the Lease for as long as that goes well.
    pub async fn hold(&self, held: &mut Held) -> Lost {
        loop {
            sleep(self.timing.retry).await;
            if let Err(lost) = self.renew(held).await {
                return lost;
            }
        }
    }

    /// Gives the Lease up, so that another needn't wait for it to run out. Best effort, and bounded.
    pub async fn release(&self, held: Held) {
        let mut lease = held.lease;
        lease.spec = Some(LeaseSpec {
            holder_identity: None,
            lease_duration_seconds: Some(1),
            acquire_time: None,
            renew_time: Some(MicroTime(Timestamp::now())),
            ..lease.spec.unwrap_or_default()
        });
        let released = timeout(self.timing.retry, self.replace(&lease)).await;
        if !matches!(released, Ok(Ok(_))) {
            tracing::info!("the Lease wasn't given up; it runs out by itself");
        }
    }

    /// Takes the Lease, or says who holds it.
    async fn attempt(&mut self) -> Result<Result<Held, String>, kube::Error> {
        let begun = Instant::now();
        let lease = match self.api.get_opt(&self.name).await? {
            None => self.create().await?,
            Some(lease) => match self
                .watch
                .judge(lease.spec.as_ref(), begun, self.timing.duration)
            {
                Chance::Wait(holder) => return Ok(Err(holder)),
                Chance::Take => self.replace(&self.taken(lease)).await?,
            },
        };
        Ok(Ok(Held {
            lease,
            renewed: begun,
        }))
    }

    /// The Lease as it is when we have taken it.
    fn taken(&self, mut lease: Lease) -> Lease {
        let before = lease.spec.unwrap_or_default();
        let changes = before.holder_identity.as_deref() != Some(&self.watch.identity);
        let now = MicroTime(Timestamp::now());
        let seconds = i32::try_from(self.timing.duration.as_secs()).unwrap_or(i32::MAX);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.watch.identity.clone()),
            lease_duration_seconds: Some(seconds),
            acquire_time: Some(now.clone()),
            lease_transitions: Some(
                before
                    .lease_transitions
                    .unwrap_or(0)
                    .saturating_add(i32::from(changes)),
            ),
            renew_time: Some(now),
            ..before
        });
        lease
    }

    /// One renewal, tried until it succeeds or the Lease is lost.
    async fn renew(&self, held: &mut Held) -> Result<(), Lost> {
        let deadline = held.renewed + self.timing.deadline;
        let mut last = "no answer".to_owned();
        loop {
            let begun = Instant::now();
            let renewed = timeout_at(deadline, self.renewal(&held.lease)).await;
            match renewed {
                Ok(Ok(Ok(lease))) => {
                    held.lease = lease;
                    held.renewed = begun;
                    return Ok(());
                }
                Ok(Ok(Err(taken))) => return Err(taken),
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => {}
            }
            tracing::warn!("the Lease can't be renewed: {last}");
            if timeout_at(deadline, sleep(self.timing.retry / 5))
                .await
                .is_err()
            {
                return Err(Lost::Unrenewed(self.timing.deadline, last));
            }
        }
    }

    /// One attempt at a renewal. Somebody who changed the Lease without taking it doesn't matter.
    async fn renewal(&self, lease: &Lease) -> Result<Result<Lease, Lost>, kube::Error> {
        match self.replace(&renewed(lease.clone())).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            done => return Ok(Ok(done?)),
        }
        let Some(now) = self.api.get_opt(&self.name).await? else {
            // Deleted by a person; whoever creates it first holds it.
            return Ok(Ok(self.create().await?));
        };
        let holder = now
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.clone());
        if holder.as_ref() != Some(&self.watch.identity) {
            let nobody = || "nobody".to_owned();
            return Ok(Err(Lost::Taken(holder.unwrap_or_else(nobody))));
        }
        Ok(Ok(self.replace(&renewed(now)).await?))
    }

    async fn create(&self) -> Result<Lease, kube::Error> {
        let empty = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        };
        let params = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        self.api.create(&params, &self.taken(empty)).await
    }

    /// Writes the Lease if it is still the version that `lease` was read as.
    async fn replace(&self, lease: &Lease) -> Result<Lease, kube::Error> {
        let params = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        self.api.replace(&lease.name_any(), &params, lease).await
    }

    fn explain(&self, error: &kube::Error) -> String {
        let namespace = self.api.namespace().unwrap_or_default();
        match error {
            kube::Error::Api(status) if status.code == 403 => format!(
                "no right to the Lease {} in namespace {namespace}: {}; grant get, create and update of leases.coordination.k8s.io",
                self.name, status.message
            ),
            kube::Error::Api(status) if status.code == 404 => format!(
                "there is no namespace {namespace} for the Lease: create it, or choose another by --lease-namespace"
            ),
            kube::Error::Api(status) if status.code == 409 => {
                "another was quicker to take the Lease".to_owned()
            }
            error => format!("the Lease can't be read or taken: {error}"),
        }
    }
}

impl Watch {
    /// Judges a Lease that is there. It is good for as long as it says, and for `least` at least.
    fn judge(&mut self, spec: Option<&LeaseSpec>, now: Instant, least: Duration) -> Chance {
        let Some(spec) = spec else {
            return Chance::Take;
        };
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return Chance::Take;
        }
        let seen: Seen = (spec.holder_identity.clone(), spec.renew_time.clone());
        let since = match &self.seen {
            Some((before, since)) if *before == seen => *since,
            _ => now,
        };
        self.seen = Some((seen, since));
        // Within reason: a Lease can be edited.
        let good = spec.lease_duration_seconds.unwrap_or(0).clamp(1, 120);
        let good = Duration::from_secs(good.unsigned_abs().into()).max(least);
        if now.duration_since(since) > good {
            Chance::Take
        } else {
            Chance::Wait(holder)
        }
    }
}

fn renewed(mut lease: Lease) -> Lease {
    if let Some(spec) = &mut lease.spec {
        spec.renew_time = Some(MicroTime(Timestamp::now()));
    }
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_secs(15);

    fn lease(holder: &str, renewed: i64, seconds: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(seconds),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            ..LeaseSpec::default()
        }
    }

    fn watch() -> Watch {
        Watch {
            identity: "me".to_owned(),
            seen: None,
        }
    }

    #[test]
    fn a_lease_of_nobody_or_of_our_own_is_taken_at_once() {
        let now = Instant::now();
        for spec in [
            None,
            Some(LeaseSpec::default()),
            Some(lease("", 0, 15)),
            Some(lease("me", 0, 15)),
        ] {
            assert_eq!(
                watch().judge(spec.as_ref(), now, LEAST),
                Chance::Take,
                "{spec:?}"
            );
        }
    }

    #[test]
    fn one_of_another_is_good_for_as_long_as_it_was_seen_to_change() {
        let wait = Chance::Wait("other".to_owned());
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut watch = watch();
        // However old it says it is: the other's clock may be wrong.
        assert_eq!(
            watch.judge(Some(&lease("other", 0, 15)), at(0), LEAST),
            wait
        );
        assert_eq!(
            watch.judge(Some(&lease("other", 0, 15)), at(15), LEAST),
            wait
        );
        assert_eq!(
            watch.judge(Some(&lease("other", 9, 15)), at(16), LEAST),
            wait,
            "it was renewed"
        );
        assert_eq!(
            watch.judge(Some(&lease("other", 9, 15)), at(31), LEAST),
            wait
        );
        assert_eq!(
            watch.judge(Some(&lease("other", 9, 15)), at(32), LEAST),
            Chance::Take
        );
        assert_eq!(
            watch.judge(Some(&lease("third", 9, 15)), at(32), LEAST),
            Chance::Wait("third".to_owned())
        );
    }

    #[test]
    fn what_a_lease_says_of_its_length_counts_within_reason() {
        for (said, good) in [(-5, 15), (0, 15), (15, 15), (60, 60), (i32::MAX, 120)] {
            let begun = Instant::now();
            let mut watch = watch();
            watch.judge(Some(&lease("other", 0, said)), begun, LEAST);
            let end = begun + Duration::from_secs(good);
            let still = watch.judge(Some(&lease("other", 0, said)), end, LEAST);
            assert_eq!(still, Chance::Wait("other".to_owned()), "{said}");
            let after = end + Duration::from_millis(1);
            let now = watch.judge(Some(&lease("other", 0, said)), after, LEAST);
            assert_eq!(now, Chance::Take, "{said}");
        }
    }
}
