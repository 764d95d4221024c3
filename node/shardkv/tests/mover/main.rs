//! The mover, driven by hand, by chance, and with other movers, over real machines.

#![allow(
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "tests stop at what they don't expect, helpers too"
)]

#[path = "../common/mod.rs"]
mod common;

mod begun;
#[cfg(feature = "bugs")]
mod bugs;
mod cluster;
mod configs;
mod controllers;
mod copies;
mod deletes;
mod goldens;
mod pulls;
mod random;
mod reports;
mod show;
mod sources;
mod stage;
mod weather;
