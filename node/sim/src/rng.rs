//! Random numbers from one seed, with a separate generator for each concern.
//!
//! One more draw for the network must not change the disks' latencies: a failing seed should still fail while its
//! scenario is trimmed. So each concern has its own `ChaCha` stream of the same seed.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// The use of a generator, which selects its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// The scenario.
    Scenario,
    /// Loss, delay, duplication.
    Network,
    /// The choice and the times of faults.
    Faults,
    /// Node ids, election seeds, clocks.
    Nodes,
    /// A disk's latencies and crash points.
    Disk(u32),
    /// A client's operations.
    Client(u32),
    /// The layout of a world with several groups.
    Cluster,
    /// A config client's changes.
    ConfigClient(u32),
    /// The options of a mover's driver.
    Mover,
    /// Late calls, and faults at the steps of moves.
    Steps,
    /// The chunks of snapshots and the bandwidth of links.
    Snapshots,
    /// The behaviour of processes: their ticks, stops, installs and forwarding.
    Processes,
    /// The first starts of hosts.
    FirstStarts,
    /// Whether clients use keyspaces, and how.
    Keyspaces,
    /// The requests of a client of keyspaces.
    KeyspaceClient(u32),
    /// The reads that followers serve.
    FollowerReads,
    /// Watches of keyspaces, and the ends of leases.
    Watches,
    /// The options of a host, where members have different ones.
    Options(u32),
}

impl Concern {
    const fn stream(self) -> u64 {
        match self {
            Self::Scenario => 1,
            Self::Network => 2,
            Self::Faults => 3,
            Self::Nodes => 4,
            Self::Disk(number) => (1 << 32) | number as u64,
            Self::Client(number) => (2 << 32) | number as u64,
            Self::Cluster => 5,
            Self::Mover => 6,
            Self::Steps => 7,
            Self::Snapshots => 8,
            Self::Processes => 9,
            Self::FirstStarts => 10,
            Self::Keyspaces => 11,
            Self::FollowerReads => 12,
            Self::Watches => 13,
            Self::KeyspaceClient(number) => (5 << 32) | number as u64,
            Self::Options(number) => (4 << 32) | number as u64,
            Self::ConfigClient(number) => (3 << 32) | number as u64,
        }
    }
}

/// A seeded generator with the few draws that the simulator needs.
#[derive(Clone, Debug)]
pub struct SimRng {
    source: ChaCha8Rng,
}

impl SimRng {
    /// Creates the generator of `seed` for `concern`.
    pub fn new(seed: u64, concern: Concern) -> Self {
        let mut source = ChaCha8Rng::seed_from_u64(seed);
        source.set_stream(concern.stream());
        Self { source }
    }

    /// Draws any number.
    pub fn number(&mut self) -> u64 {
        self.source.next_u64()
    }

    /// Draws a number below `bound`, or returns 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product costs one multiplication and has too little bias to matter for faults.
        let product = u128::from(self.source.next_u64()) * u128::from(bound);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// Draws an index below `length`, or returns 0 if `length` is 0.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    /// Draws a number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// Draws a number from `low` to `high` with a uniform magnitude: each power of two is equally likely.
    pub fn magnitude(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low.max(1), high.max(1));
        let (least, most) = (low.ilog2(), high.ilog2());
        let bits = self.between(least.into(), most.into());
        let floor = 1u64 << bits;
        self.between(floor.max(low), (floor.saturating_mul(2) - 1).min(high))
    }

    /// Returns true in `of_million` of a million draws.
    pub fn chance(&mut self, of_million: u32) -> bool {
        of_million > 0 && self.below(1_000_000) < u64::from(of_million)
    }

    /// Returns true in half of the draws.
    pub fn coin(&mut self) -> bool {
        self.source.next_u32() & 1 == 1
    }

    /// Draws one of `choices`, or returns `None` if they are empty.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        choices.get(self.index(choices.len()))
    }

    /// Shuffles `items`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

/// Returns a fast 64-bit digest that tells contents apart. It is not cryptographic.
pub fn digest(bytes: &[u8]) -> u64 {
    let mut hash = 0x9e37_79b9_7f4a_7c15u64 ^ bytes.len() as u64;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = chunk.try_into().map_or(0, u64::from_le_bytes);
        hash = mix(hash ^ word);
    }
    let mut tail = [0u8; 8];
    for (to, from) in tail.iter_mut().zip(chunks.remainder()) {
        *to = *from;
    }
    mix(hash ^ u64::from_le_bytes(tail))
}

/// Spreads the bits of a number (the finaliser of `SplitMix64`).
pub const fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concerns_do_not_share_a_stream() {
        let mut network = SimRng::new(7, Concern::Network);
        let mut again = SimRng::new(7, Concern::Network);
        let mut faults = SimRng::new(7, Concern::Faults);
        let first: Vec<u64> = (0..8).map(|_| network.number()).collect();
        let second: Vec<u64> = (0..8).map(|_| again.number()).collect();
        let third: Vec<u64> = (0..8).map(|_| faults.number()).collect();
        assert_eq!(first, second);
        assert_ne!(first, third);
    }

    #[test]
    fn draws_stay_in_their_bounds() {
        let mut rng = SimRng::new(1, Concern::Scenario);
        for _ in 0..2_000 {
            assert!(rng.below(7) < 7);
            assert!((3..=5).contains(&rng.between(3, 5)));
            assert!((10..=5_000).contains(&rng.magnitude(10, 5_000)));
        }
        assert_eq!(rng.below(0), 0);
        assert!(!rng.chance(0));
        assert!(rng.chance(1_000_000));
    }

    #[test]
    fn the_digest_sees_each_byte_and_the_length() {
        let text = b"the quick brown fox";
        for end in 0..text.len() {
            let mut other = text.to_vec();
            other[end] ^= 1;
            assert_ne!(digest(text), digest(&other));
            assert_ne!(digest(&text[..end]), digest(&text[..=end]));
        }
        assert_ne!(digest(b""), digest(b"\0"));
    }
}
