//! The binary shardkv-node
