//! The stores on real disks: one binary, because each links `RocksDB`.

// Helpers of tests aren't recognised as tests.
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
mod full;
mod reclaim;
mod support;
