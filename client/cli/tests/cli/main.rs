//! The real `shardkv` as a person or a script runs it.
//!
//! Tests that need nodes run against a real playground of real `shardkv-node` processes, found in `SHARDKV_NODE_BINARY` (which
//! `make test` sets) or beside `shardkv`. Where there is none, those tests say so and end.

// Helpers of tests fail by panicking, like tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod groups;
mod harness;
mod keyspaces;
mod offline;
mod playground;
mod transfer;
mod verbs;
