//! What a program of `ShardKV` shows to those that watch it: log lines ([`telemetry`]), and over plain HTTP its metrics and
//! whether it lives and is ready ([`scrape`]).
//!
//! The node and the operator share it, so that they are watched in the same way. What is counted, and what "ready" means, is
//! theirs: see [`scrape::Watched`].

pub mod scrape;
pub mod telemetry;
