//! The Rust client library of ShardKV
