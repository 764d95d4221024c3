//! Tests of the stores on real disks. They are one binary, because each binary links `RocksDB`, which takes long.

// Clippy does not recognise the helper functions as test code.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::case_sensitive_file_extension_comparisons
)]

mod conformance;
mod crash;
mod damage;
mod directory;
mod environment;
mod full;
mod reads;
mod reclaim;
mod support;
