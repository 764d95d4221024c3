//! Shards that move between groups, step by step.

// Helpers of tests may panic as tests do.
#![allow(clippy::missing_panics_doc, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod hand_off;
mod keyspaces;
mod queries;
mod sessions;
mod stage;
