//! The command line of ShardKV
