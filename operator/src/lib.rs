//! ShardKV's Kubernetes operator: a `ShardKvCluster` becomes a running, sharded store.
//!
//! # What it is
//!
//! A program that watches resources and makes the world match them, in rounds: [`program`] is its command line, [`run`] the process,
//! [`lease`] decides which of several replicas acts, [`reconcile`] is one round for one cluster.
//!
//! Its pure half is most of it: what the resource is, which objects a resource asks for, and what has to happen next when
//! groups come and go. Nothing in there talks to an API server or to the store, reads a clock or draws a random number, so every
//! decision can be tested as a table, and every object as text.
//!
//! # How data flow through a round
//!
//! 1. [`crd`] is the resource as users write it and as the API server stores it. The program `crdgen` writes its definition
//!    into `crds/`, and its [`reference`](mod@reference) into `docs/`.
//! 2. [`validate`] makes a [`validate::Cluster`] of it: every bound checked once more, because a definition that is older than
//!    the operator may have let something through. All that follows takes only that.
//! 3. [`build`] gives the objects that the cluster consists of, one file a kind.
//! 4. [`plan`] looks at what there is (objects, and what the controllers of the store say by way of [`store`]) and says which phase
//!    each group is in, and which actions come next.
//! 5. [`reconcile`] does them, and writes what people are to see into the status; [`metrics`] counts.
//!
//! # What it doesn't do
//!
//! It keeps no state between two looks at the world: whatever must survive the death of the operator stands in an object's
//! annotations, in the resource's status, or in the store's own configuration, which is the truth about groups.

pub mod api;
pub mod build;
pub mod crd;
pub mod health;
pub mod lease;
pub mod metrics;
pub mod options;
pub mod plan;
pub mod program;
pub mod reconcile;
pub mod reference;
pub mod run;
pub mod store;
pub mod validate;
mod watches;
pub mod yaml;
