//! Who acts, of several operators: the Lease passes on, and nobody goes on who may have lost it.

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
use crate::gate::{Cut, Gate, Gated};
use crate::raw;

const TIMING: Timing = Timing {
    duration: Duration::from_secs(4),
    deadline: Duration::from_secs(2),
    retry: Duration::from_millis(300),
};
/// Much longer than anything here takes.
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

    /// One who wants the Lease, and the way of its writes.
    fn elector(&self, identity: &str) -> (Elector, Arc<Gate>) {
        let gate = Gate::new();
        let client = ClientBuilder::try_from(ApiServer::shared().config(ADMIN)).unwrap();
        let client = client.with_layer(&Gated(Arc::clone(&gate))).build();
        let elector = Elector::new(client, self.namespace, "lease", identity);
        (elector.with_timing(TIMING), gate)
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

    /// Waits for another time of renewal.
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
async fn it_passes_on_when_its_holder_gives_it_up_or_is_gone() {
    let place = Place::new("lease-passes").await;
    let [(mut first, _), (mut second, _), (mut third, _)] =
        ["first", "second", "third"].map(|it| place.elector(it));
    let mut held = acquired(&mut first).await;
    let mut heard = Vec::new();
    let renewals = async {
        let begun = Instant::now();
        while begun.elapsed() < TIMING.duration * 2 {
            place.renewed().await;
        }
    };
    tokio::select! {
        _ = second.acquire(|why| heard.push(why.to_owned())) => panic!("two hold it"),
        lost = first.hold(&mut held) => panic!("{lost}"),
        () = soon("renewals", renewals) => {}
    }
    assert_eq!(heard, ["`first` holds the Lease lease"], "once");
    first.release(held).await;
    // Nobody has to wait for what was given up.
    drop(acquired(&mut second).await);
    let begun = Instant::now();
    acquired(&mut third).await;
    assert!(
        begun.elapsed() >= TIMING.duration,
        "the second might have acted still"
    );
    let spec = place.spec().await;
    assert_eq!(spec["holderIdentity"], "third");
    assert_eq!(spec["leaseTransitions"], 3);
}

#[tokio::test]
async fn who_comes_back_under_its_name_goes_on_at_once() {
    let place = Place::new("lease-comes-back").await;
    drop(acquired(&mut place.elector("pod").0).await);
    let begun = Instant::now();
    acquired(&mut place.elector("pod").0).await;
    assert!(begun.elapsed() < TIMING.duration);
    assert_eq!(place.spec().await["leaseTransitions"], 1, "it is the same");
}

#[tokio::test]
async fn one_who_was_overruled_stops() {
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
        "and leaves it"
    );
}

#[tokio::test]
async fn one_who_can_t_renew_stops_before_another_begins() {
    let place = Place::new("lease-alone").await;
    let (mut cut_off, gate) = place.elector("cut-off");
    let mut held = acquired(&mut cut_off).await;
    gate.cut_at(2, Cut::LosesRequest);
    let (mut other, _) = place.elector("other");
    let lost = async {
        let lost = soon("the loss", cut_off.hold(&mut held)).await;
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
async fn what_doesn_t_take_it_away_doesn_t_end_it() {
    let place = Place::new("lease-kept").await;
    let (mut elector, gate) = place.elector("me");
    let mut held = acquired(&mut elector).await;
    let troubles = async {
        place
            .change(json!({"metadata": {"labels": {"a": "b"}}}))
            .await;
        place.renewed().await;
        // A renewal that took effect, though its answer was lost.
        gate.cut_at(1, Cut::LosesAnswer);
        place.renewed().await;
        assert!(gate.mend());
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
