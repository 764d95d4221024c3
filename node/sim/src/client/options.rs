//! The options of a client.

use request::Bugs;

use crate::queue::{MILLI, Micros, SECOND};

/// The behaviour of a client. Shares are of a million.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// The number of keys.
    pub keys: u64,
    /// The most operations in flight.
    pub pipeline: usize,
    /// The shortest and the longest pause between two operations.
    pub think: (Micros, Micros),
    /// The time without an answer after which the client tries another node.
    pub patience: Micros,
    /// The time for which an operation is retried.
    pub deadline: Micros,
    /// The share of reads among the operations.
    pub reads: u32,
    /// The share of scans among the reads.
    pub scans: u32,
    /// The share of requests that are sent twice.
    pub copies: u32,
    /// The longest delay of a copy.
    pub copies_late_by: Micros,
    /// The share of operations before which the client goes silent.
    pub silences: u32,
    /// The duration of a silence.
    pub silence: Micros,
    /// The share of writes that have no session and are sent once.
    pub sessionless: u32,
    /// The age at which a session is replaced.
    pub renew_after: Option<Micros>,
    /// Operations that are made attempt by attempt, as a unary call or a forwarded one.
    pub unary: u32,
    /// The most bytes that pad a value.
    pub padding: u64,
    /// The bug of the request engine that was put back, if any.
    pub bugs: Bugs,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            keys: 4,
            pipeline: 1,
            think: (MILLI, 20 * MILLI),
            patience: 300 * MILLI,
            deadline: 3 * SECOND,
            reads: 400_000,
            scans: 50_000,
            copies: 0,
            copies_late_by: 0,
            silences: 0,
            silence: 0,
            sessionless: 0,
            renew_after: None,
            unary: 0,
            padding: 0,
            bugs: Bugs::default(),
        }
    }
}
