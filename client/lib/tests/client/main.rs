//! The client against real gRPC servers that misbehave: it must hide what can be hidden, and tell the truth about the
//! rest.

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
