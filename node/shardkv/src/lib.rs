//! The sharded key-value state machine.

mod command;

pub use command::{
    Command, Genesis, KvError, MAX_BIRTH_AHEAD_MS, MAX_KEY_BYTES, Query, Response, SessionRef,
    Write, Written,
};
