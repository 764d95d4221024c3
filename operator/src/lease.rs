//! Leader election among replicas of the operator: the replica that holds a Lease acts.
//!
//! # Protocol
//!
//! The holder renews the Lease every [`Timing::retry`]. A waiting replica reads the Lease as often. It takes the Lease when the
//! Lease has no holder, or hasn't changed for its validity ([`Timing::duration`]). The waiting replica measures that time on
//! *its own* clock and never compares with the times in the Lease. Every write names the resource version that it is based on,
//! so if two replicas take the Lease, the API server refuses one of them.
//!
//! A holder that couldn't renew the Lease for [`Timing::deadline`] stops acting, and [`Elector::hold`] returns, before another
//! replica may act: the deadline counts from the *start* of the last successful renewal, and the others count from the moment
//! when they saw that renewal.
//!
//! # Why the operator has its own implementation
//!
//! The crate that exists for this purpose compares the times in the Lease with its own wall clock, so a replica whose clock
//! runs ahead takes a valid Lease away. It renews and releases without naming a resource version, so it may overwrite the
//! write of a replica that took over. And it goes on reporting leadership while the API server can't be reached.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt as _};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Field manager of all writes.
const MANAGER: &str = crate::reconcile::FIELD_MANAGER;

/// Times of the election.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Validity of the Lease after its last renewal.
    pub duration: Duration,
    /// Time that a holder acts without a renewal. Less than `duration`, so that two replicas never act at the same time.
    pub deadline: Duration,
    /// Interval in which the holder renews the Lease, and other replicas read it.
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

/// Reason why a replica lost the Lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The Lease names another holder.
    #[error("`{0}` holds the Lease now")]
    Taken(String),
    /// The Lease couldn't be renewed in time, so another replica may hold it by now.
    #[error("the Lease couldn't be renewed for {0:?}: {1}")]
    Unrenewed(Duration, String),
}

/// Reason why an attempt to acquire the Lease failed. The next attempt may succeed.
#[derive(Debug, thiserror::Error)]
enum AcquireError {
    /// Another replica holds the Lease.
    #[error("`{0}` holds the Lease")]
    HeldBy(String),
    /// The API server refused the request or can't be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// Reason why an attempt to renew the Lease failed.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    /// The Lease is lost. Don't retry.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The API server refused the request or can't be reached. Retry until the deadline.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// A replica that takes part in the election.
#[derive(Debug)]
pub struct Elector {
    api: Api<Lease>,
    name: String,
    timing: Timing,
    watch: Watch,
}

/// A waiting replica's observation of the Lease.
#[derive(Debug)]
struct Watch {
    identity: String,
    /// The last renewal by another replica, and the time when this replica first saw it.
    seen: Option<(Renewal, Instant)>,
}

/// A held Lease, as this replica wrote it last.
#[derive(Debug)]
pub struct Held {
    lease: Lease,
    renewed: Instant,
}

/// Fields that change with every renewal: holder and renewal time.
type Renewal = (Option<String>, Option<MicroTime>);

/// A waiting replica's decision about the Lease.
#[derive(Debug, PartialEq)]
enum Decision {
    /// Take it: it has no holder, has expired, or this replica held it before.
    Take,
    /// Wait: the named replica holds it.
    Wait(String),
}

impl Elector {
    /// Returns a replica named `identity`. Two replicas that run at the same time must have different names.
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

    /// Replaces the default times.
    #[must_use]
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// Waits until this replica holds the Lease. Retries after failures. Calls `report` whenever the reason for waiting changes.
    pub async fn acquire(&mut self, mut report: impl FnMut(&str)) -> Held {
        let mut last = String::new();
        loop {
            let reason = match timeout(self.timing.deadline, self.attempt()).await {
                Ok(Ok(held)) => return held,
                Ok(Err(AcquireError::HeldBy(holder))) => {
                    format!("`{holder}` holds the Lease {}", self.name)
                }
                Ok(Err(AcquireError::Api(error))) => self.explain(&error),
                Err(_) => "the Kubernetes API doesn't answer".to_owned(),
            };
            if reason != last {
                report(&reason);
                last = reason;
            }
            sleep(self.timing.retry).await;
        }
    }

    /// Renews the Lease until it is lost, and returns the reason.
    pub async fn hold(&self, held: &mut Held) -> Lost {
        loop {
            sleep(self.timing.retry).await;
            if let Err(lost) = self.renew(held).await {
                return lost;
            }
        }
    }

    /// Releases the Lease, so that another replica needn't wait until it expires. Gives up after [`Timing::retry`].
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
            tracing::info!("the Lease couldn't be released; it expires by itself");
        }
    }

    /// Takes the Lease if it has no other holder.
    async fn attempt(&mut self) -> Result<Held, AcquireError> {
        let begun = Instant::now();
        let lease = match self.api.get_opt(&self.name).await? {
            None => self.create().await?,
            Some(lease) => match self
                .watch
                .judge(lease.spec.as_ref(), begun, self.timing.duration)
            {
                Decision::Wait(holder) => return Err(AcquireError::HeldBy(holder)),
                Decision::Take => self.replace(&self.taken(lease)).await?,
            },
        };
        Ok(Held {
            lease,
            renewed: begun,
        })
    }

    /// Returns the Lease with this replica as its holder.
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

    /// Renews the Lease once. Retries until the renewal succeeds or the Lease is lost.
    async fn renew(&self, held: &mut Held) -> Result<(), Lost> {
        let deadline = held.renewed + self.timing.deadline;
        let mut last = "no answer".to_owned();
        loop {
            let begun = Instant::now();
            let renewed = timeout_at(deadline, self.try_renew(&held.lease)).await;
            match renewed {
                Ok(Ok(lease)) => {
                    held.lease = lease;
                    held.renewed = begun;
                    return Ok(());
                }
                Ok(Err(RenewError::Lost(reason))) => return Err(reason),
                Ok(Err(RenewError::Api(error))) => last = error.to_string(),
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

    /// Tries once to renew the Lease. Succeeds even if somebody changed the Lease without taking it.
    async fn try_renew(&self, lease: &Lease) -> Result<Lease, RenewError> {
        match self.replace(&renewed(lease.clone())).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            done => return Ok(done?),
        }
        let Some(now) = self.api.get_opt(&self.name).await? else {
            // A user deleted the Lease; the replica that creates it first holds it.
            return Ok(self.create().await?);
        };
        let holder = now
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.clone());
        if holder.as_ref() != Some(&self.watch.identity) {
            let nobody = || "nobody".to_owned();
            return Err(Lost::Taken(holder.unwrap_or_else(nobody)).into());
        }
        Ok(self.replace(&renewed(now)).await?)
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

    /// Writes the Lease if its resource version is still that of `lease`.
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
                "the operator may not use the Lease {} in namespace {namespace}: {}; grant get, create and update of leases.coordination.k8s.io",
                self.name, status.message
            ),
            kube::Error::Api(status) if status.code == 404 => format!(
                "the Lease's namespace {namespace} doesn't exist: create it, or choose another with --lease-namespace"
            ),
            kube::Error::Api(status) if status.code == 409 => {
                "another replica took the Lease first".to_owned()
            }
            error => format!("the Lease can't be read or taken: {error}"),
        }
    }
}

impl Watch {
    /// Decides about an existing Lease. A Lease of another replica is valid for the time in its spec, but at least for `least`.
    fn judge(&mut self, spec: Option<&LeaseSpec>, now: Instant, least: Duration) -> Decision {
        let Some(spec) = spec else {
            return Decision::Take;
        };
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return Decision::Take;
        }
        let seen: Renewal = (spec.holder_identity.clone(), spec.renew_time.clone());
        let since = match &self.seen {
            Some((before, since)) if *before == seen => *since,
            _ => now,
        };
        self.seen = Some((seen, since));
        // The upper bound limits the wait: anyone may edit a Lease.
        let valid = spec.lease_duration_seconds.unwrap_or(0).clamp(1, 120);
        let valid = Duration::from_secs(valid.unsigned_abs().into()).max(least);
        if now.duration_since(since) > valid {
            Decision::Take
        } else {
            Decision::Wait(holder)
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
    fn a_lease_without_another_holder_is_taken_at_once() {
        let now = Instant::now();
        for spec in [
            None,
            Some(LeaseSpec::default()),
            Some(lease("", 0, 15)),
            Some(lease("me", 0, 15)),
        ] {
            assert_eq!(
                watch().judge(spec.as_ref(), now, LEAST),
                Decision::Take,
                "{spec:?}"
            );
        }
    }

    #[test]
    fn a_lease_of_another_replica_is_valid_until_it_stays_unchanged() {
        let wait = Decision::Wait("other".to_owned());
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut watch = watch();
        // The age in the Lease doesn't matter: the holder's clock may be wrong.
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
            Decision::Take
        );
        assert_eq!(
            watch.judge(Some(&lease("third", 9, 15)), at(32), LEAST),
            Decision::Wait("third".to_owned())
        );
    }

    #[test]
    fn the_duration_in_a_lease_counts_within_bounds() {
        for (duration, valid) in [(-5, 15), (0, 15), (15, 15), (60, 60), (i32::MAX, 120)] {
            let begun = Instant::now();
            let mut watch = watch();
            let lease = lease("other", 0, duration);
            watch.judge(Some(&lease), begun, LEAST);
            let end = begun + Duration::from_secs(valid);
            let still = watch.judge(Some(&lease), end, LEAST);
            assert_eq!(still, Decision::Wait("other".to_owned()), "{duration}");
            let after = end + Duration::from_millis(1);
            let now = watch.judge(Some(&lease), after, LEAST);
            assert_eq!(now, Decision::Take, "{duration}");
        }
    }
}
