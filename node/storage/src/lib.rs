//! RocksDB behind the store traits of raft and replica
