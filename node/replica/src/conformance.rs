//! The conformance suite of stores: plain functions that a store's tests call with a harness.
//!
//! The suite checks the contracts of [`raft::LogStore`] and [`StateStore`](crate::StateStore). It drives the
//! store, crashes it at each step, and compares its content with a model. A function returns if the store
//! conforms, and panics with the difference if it doesn't. Call each function from a test of its own, or all
//! with [`log::all`] and [`state::all`].
//!
//! The suite does not inject faults of the disk (damage, a full disk). Their injection depends on the store, so
//! each store tests them itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc
)]

pub mod log;
pub mod state;

/// A small generator (`SplitMix64`), so that a random walk is the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// Returns a number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
