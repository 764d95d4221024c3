//! Tests of the operator with a real API server and etcd, but without kubelets and controllers.
//!
//! One [`ApiServer`](apiserver::ApiServer) serves all tests of a run, each in its own namespace. A [`World`](world::World) does
//! the work of kubelets, the StatefulSet controller and the garbage collector, as far as the operator sees it, whenever the test
//! asks for it. Fake stores implement the operator's trait around the real state machine of the controllers
//! ([`Stores`](stores::Stores)). Every write passes a [`FaultInjector`](faults::FaultInjector), which counts writes and injects faults.
//!
//! `make test-api` builds the API server and etcd by `deploy/kube/build`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test's helpers fail the test"
)]

mod apiserver;
mod faults;
mod raw;
mod stores;
mod world;

mod crashes;
mod definition;
mod deletion;
mod keyspaces;
mod lease;
mod namespaces;
mod objects;
mod older_definition;
mod program;
mod refusals;
mod rounds;
mod safeguards;
mod subresources;
