//! The mapping from a key to its shard.
//!
//! The rule is public and fixed, so that a client in any language can route keys:
//!
//! 1. If the key contains `{`, and after it a `}` with at least one byte between them, only the bytes
//!    between the first `{` and the first `}` after it are hashed. Keys with the same tag share a shard.
//! 2. Otherwise the whole key is hashed.
//! 3. The hash is 64-bit FNV-1a (offset basis `cbf29ce484222325`, prime `100000001b3`), then folded:
//!    `h ^ (h >> 32)`, because FNV's high bits are better mixed than its low ones.
//! 4. The shard is the folded hash modulo the cluster's number of shards.
//!
//! | key | hash |
//! |---|---|
//! | `a` | `af63dc4c296230c0` |
//! | `foobar` | `8594417172ad2699` |
//! | `user:{42}:name` | `07ee7e07b35fec24` |
//!
//! The test vectors for other languages are in `hash_vectors.tsv` beside this file.

use crate::ShardId;

const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// Returns the bytes of `key` that decide its shard: the tag between the first `{` and the next `}`, or all bytes.
pub fn hashed_part(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&b| b == b'{') else {
        return key;
    };
    let after = key.get(open + 1..).unwrap_or_default();
    match after.iter().position(|&b| b == b'}') {
        Some(close) if close > 0 => after.get(..close).unwrap_or(key),
        _ => key,
    }
}

/// Returns the public 64-bit hash of a key, tag rule included.
pub fn hash_key(key: &[u8]) -> u64 {
    let hash = hashed_part(key).iter().fold(OFFSET_BASIS, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    });
    hash ^ (hash >> 32)
}

/// Returns the shard of `key` in a cluster of `shards` shards (zero counts as one).
pub fn shard_of(key: &[u8], shards: u32) -> ShardId {
    let shard = hash_key(key) % u64::from(shards.max(1));
    // The remainder of a division by a u32 fits in a u32.
    ShardId(u32::try_from(shard).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `key <tab> hash in hex <tab> shard of 10 <tab> shard of 256`, a line each.
    const VECTORS: &str = include_str!("hash_vectors.tsv");

    #[test]
    fn published_vectors_hold() {
        let mut checked = 0;
        for line in VECTORS.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split('\t').collect();
            let [key, hash, of_10, of_256] = fields[..] else {
                panic!("a vector has four fields: {line:?}");
            };
            assert_eq!(
                format!("{:016x}", hash_key(key.as_bytes())),
                hash,
                "{key:?}"
            );
            assert_eq!(shard_of(key.as_bytes(), 10).0.to_string(), of_10, "{key:?}");
            assert_eq!(
                shard_of(key.as_bytes(), 256).0.to_string(),
                of_256,
                "{key:?}"
            );
            checked += 1;
        }
        assert!(checked >= 8, "the vectors were read");
    }

    #[test]
    fn a_tag_alone_decides() {
        assert_eq!(hashed_part(b"user:{42}:name"), b"42");
        assert_eq!(hashed_part(b"{}x"), b"{}x", "an empty tag is no tag");
        assert_eq!(hashed_part(b"{open"), b"{open");
        assert_eq!(hashed_part(b"a}b{c}"), b"c");
        assert_eq!(shard_of(b"{u1}a", 1000), shard_of(b"{u1}b", 1000));
    }

    #[test]
    fn keys_spread_evenly() {
        let shards = 64;
        let mut counts = vec![0u32; shards as usize];
        for n in 0..64_000 {
            counts[shard_of(format!("key-{n}").as_bytes(), shards).0 as usize] += 1;
        }
        assert!(
            counts.iter().all(|&c| (800..1200).contains(&c)),
            "{counts:?}"
        );
    }
}
