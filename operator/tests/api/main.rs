//! The operator against a real API server, with etcd and without anything that runs pods.
//!
//! One [`ApiServer`](apiserver::ApiServer) serves all tests of a run, each in a namespace of its own. What a kubelet, the controllers of
//! StatefulSets and the garbage collector would do, as far as the operator sees it, a test does by itself, when it wants
//! ([`World`](world::World)). The stores are faked behind the operator's trait for them, around the real state machine of the
//! controllers ([`Stores`](stores::Stores)). Every write passes a [`Gate`](gate::Gate), which counts, and cuts the operator off after the
//! one that a test names.
//!
//! The programs come from `deploy/kube/build`; `make test-api` sees to that.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test's helpers fail the test"
)]

mod apiserver;
mod gate;
mod raw;
mod stores;
mod world;

mod deaths;
mod definition;
mod endings;
mod lease;
mod objects;
mod older;
mod program;
mod rounds;
mod subresources;
