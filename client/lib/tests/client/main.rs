//! The client against real gRPC servers that misbehave: it must hide failures that a retry cures, and report the others truly.

// All of this is test code, but only the bodies of tests are exempt by themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod controller;
mod double;
mod failures;
mod groups;
mod once;
mod plain;
mod ranges;
mod send;
