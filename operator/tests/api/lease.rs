//! Leader election: another replica takes over the Lease, and a replica that may have lost the Lease stops.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::client::ClientBuilder;
use serde_json::{Value, json};
use shardkv_operator::lease::{Elector, Held, Lost, Timing};
use tokio::time::{Instant, sleep, timeout};

use crate::apiserver::{ADMIN, ApiServer};
use crate::definition::namespace;
use crate::faults::{Fault, FaultInjector, FaultLayer};
use crate::raw;

const TIMING: Timing = Timing {
    duration: Duration::from_secs(4),
    deadline: Duration::from_secs(2),
    retry: Duration::from_millis(300),
};
/// Time limit of a wait; every wait is much shorter.
const PATIENCE: Duration = Duration::from_mins(1);

struct Place {
    admin: Client,
    namespace: &'static str,
}

impl Place {
    async fn new(name: &'static str) -> Self {
        let admin = ApiServer::shared().admin();
        namespace(&admin, name, &json!({})).await;
        Self {
            admin,
            namespace: name,
        }
    }

    /// Returns a replica that takes part in the election, and the fault injector of its writes.
    fn elector(&self, identity: &str) -> (Elector, Arc<FaultInjector>) {
        let faults = FaultInjector::new();
        let client = ClientBuilder::try_from(ApiServer::shared().config(ADMIN)).unwrap();
        let client = client.with_layer(&FaultLayer(Arc::clone(&faults))).build();
        let elector = Elector::new(client, self.namespace, "lease", identity);
        (elector.with_timing(TIMING), faults)
    }

    fn path(&self) -> String {
        let namespace = self.namespace;
        format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/lease")
    }

    async fn spec(&self) -> Value {
        raw::get(&self.admin, &self.path()).await.good()["spec"].take()
    }

    async fn change(&self, change: Value) {
        let changed = raw::merge(&self.admin, &self.path(), &change).await;
        changed.good();
    }

    /// Waits until the Lease is renewed.
    async fn renewed(&self) {
        let before = self.spec().await["renewTime"].clone();
        while self.spec().await["renewTime"] == before {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

async fn acquired(elector: &mut Elector) -> Held {
    soon("the Lease", elector.acquire(|_| ())).await
}

#[tokio::test]
async fn another_replica_takes_a_released_or_expired_lease() {
    let place = Place::new("lease-passes").await;
    let [(mut first, _), (mut second, _), (mut third, _)] =
        ["first", "second", "third"].map(|it| place.elector(it));
    let mut held = acquired(&mut first).await;
    let mut reports = Vec::new();
    let renewals = async {
        let begun = Instant::now();
        while begun.elapsed() < TIMING.duration * 2 {
            place.renewed().await;
        }
    };
    tokio::select! {
        _ = second.acquire(|reason| reports.push(reason.to_owned())) => panic!("two hold it"),
        lost = first.hold(&mut held) => panic!("{lost}"),
        () = soon("renewals", renewals) => {}
    }
    assert_eq!(reports, ["`first` holds the Lease lease"], "once");
    first.release(held).await;
    // A released Lease can be taken at once.
    drop(acquired(&mut second).await);
    let begun = Instant::now();
    acquired(&mut third).await;
    assert!(
        begun.elapsed() >= TIMING.duration,
        "the second replica might still have acted"
    );
    let spec = place.spec().await;
    assert_eq!(spec["holderIdentity"], "third");
    assert_eq!(spec["leaseTransitions"], 3);
}

#[tokio::test]
async fn a_restarted_replica_of_the_same_name_takes_its_lease_at_once() {
    let place = Place::new("lease-comes-back").await;
    drop(acquired(&mut place.elector("pod").0).await);
    let begun = Instant::now();
    acquired(&mut place.elector("pod").0).await;
    assert!(begun.elapsed() < TIMING.duration);
    assert_eq!(
        place.spec().await["leaseTransitions"],
        1,
        "the same holder is no transition"
    );
}

#[tokio::test]
async fn a_holder_stops_when_the_lease_names_another() {
    let place = Place::new("lease-overruled").await;
    let (mut elector, _) = place.elector("me");
    let mut held = acquired(&mut elector).await;
    place
        .change(json!({"spec": {"holderIdentity": "other"}}))
        .await;
    let lost = soon("the loss", elector.hold(&mut held)).await;
    assert_eq!(lost, Lost::Taken("other".to_owned()));
    assert_eq!(
        place.spec().await["holderIdentity"],
        "other",
        "the former holder doesn't write"
    );
}

#[tokio::test]
async fn a_holder_that_can_t_renew_stops_before_another_acts() {
    let place = Place::new("lease-alone").await;
    let (mut isolated, faults) = place.elector("isolated");
    let mut held = acquired(&mut isolated).await;
    faults.inject_at(2, Fault::LoseRequest);
    let (mut other, _) = place.elector("other");
    let lost = async {
        let lost = soon("the loss", isolated.hold(&mut held)).await;
        (lost, Instant::now())
    };
    let taken = async {
        acquired(&mut other).await;
        Instant::now()
    };
    let ((lost, stopped), begun) = tokio::join!(lost, taken);
    assert!(matches!(lost, Lost::Unrenewed(..)), "{lost}");
    assert!(stopped < begun, "both acted");
}

#[tokio::test]
async fn other_changes_of_the_lease_don_t_end_it() {
    let place = Place::new("lease-kept").await;
    let (mut elector, faults) = place.elector("me");
    let mut held = acquired(&mut elector).await;
    let troubles = async {
        place
            .change(json!({"metadata": {"labels": {"a": "b"}}}))
            .await;
        place.renewed().await;
        // A renewal takes effect and its response is lost.
        faults.inject_at(1, Fault::LoseResponse);
        place.renewed().await;
        assert!(faults.heal());
        place.renewed().await;
        raw::delete(&place.admin, &place.path(), &Value::Null)
            .await
            .good();
        let there = async || raw::get(&place.admin, &place.path()).await.status != 404;
        while !there().await {
            sleep(Duration::from_millis(50)).await;
        }
        place.renewed().await;
    };
    tokio::select! {
        lost = elector.hold(&mut held) => panic!("{lost}"),
        () = soon("renewals", troubles) => {}
    }
    assert_eq!(place.spec().await["holderIdentity"], "me");
}
