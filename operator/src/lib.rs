//! ShardKV's Kubernetes operator: a `ShardKvCluster` becomes a running, sharded store.
//!
//! # What it is
//!
//! A program that watches resources and makes the cluster match them, in rounds of reconciliation: [`program`] is its command
//! line, [`run`] the process, [`lease`] elects the replica that acts, [`reconcile`] is one round for one cluster.
//!
//! Most of the code is pure: the resource's types, the objects that a resource asks for, and the next steps when groups are
//! added or removed. Pure code doesn't call an API server or the store, read a clock or draw a random number, so tests check
//! every decision as a table, and every object as text.
//!
//! # Data flow of a round
//!
//! 1. [`crd`] defines the resource as users write it and as the API server stores it. The program `crdgen` writes its
//!    definition into `crds/`, and its [`reference`](mod@reference) into `docs/`.
//! 2. [`validate`] converts the resource into a [`validate::Cluster`]. It checks every bound again, because the API server may
//!    have a definition older than the operator. All later steps take only the cluster.
//! 3. [`plan`] compares the existing objects and the report of the store's controllers (from [`store`]) with the spec. It
//!    returns each group's phase and the next actions.
//! 4. [`build`] returns the objects of the cluster, one file per kind.
//! 5. [`reconcile`] leads a round through these steps: it observes, performs the writes that the actions need, and writes the
//!    status; [`metrics`] counts.
//!
//! # What it doesn't do
//!
//! The operator keeps no state between rounds. All state that must survive a restart of the operator is in annotations of
//! objects, in the resource's status, or in the store's own configuration, which is authoritative about groups.

pub mod api;
pub mod build;
pub mod crd;
pub mod health;
pub mod lease;
pub mod metrics;
pub mod options;
pub mod parts;
pub mod plan;
pub mod program;
pub mod reconcile;
pub mod reference;
pub mod run;
pub mod store;
pub mod validate;
mod watches;
pub mod yaml;
