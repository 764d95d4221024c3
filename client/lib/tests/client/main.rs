//! The client against real gRPC servers that misbehave: it must hide failures that a retry cures, and report the others truly.

// Clippy does not recognise the helper functions as test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod controller;
mod double;
mod failures;
mod groups;
mod once;
mod plain;
mod ranges;
mod send;
mod tls;
