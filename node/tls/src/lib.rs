//! Transport security of `ShardKV`: certificates, and who holds them.

#[cfg(feature = "issue")]
pub mod issue;
