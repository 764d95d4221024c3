//! Observability of a `ShardKV` program: log lines ([`telemetry`]), and metrics and health over plain HTTP ([`endpoint`]).
//!
//! The node and the operator share this crate, so that both are observed in the same way. Each program decides for itself
//! which metrics it has and when it is ready: it implements [`endpoint::Probe`].
//!
//! # What it does not do
//!
//! It collects no figures but those of the process itself, and never restarts a program. It has no TLS and no authentication: the endpoint is for the
//! cluster's own network.

pub mod endpoint;
mod log_queue;
mod process;
pub mod telemetry;
