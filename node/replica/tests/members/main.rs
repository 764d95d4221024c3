//! Members that catch up, are replaced and are removed, where time and bandwidth matter.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failed test should panic"
)]

mod awaited;
mod catching_up;
mod cluster;
mod divergence;
mod follower_reads;
mod levels;
mod membership;
mod restart;
mod work;
