//! What can be set about a client.

use request::Bugs;

use crate::queue::{MILLI, Micros, SECOND};

/// How a client behaves. Shares are of a million.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// How many keys there are.
    pub keys: u64,
    /// The most operations in flight.
    pub pipeline: usize,
    /// The pause between two operations, least and most.
    pub think: (Micros, Micros),
    /// How long to wait for an answer before another node is asked.
    pub patience: Micros,
    /// How long to retry an operation.
    pub deadline: Micros,
    /// Reads among the operations.
    pub reads: u32,
    /// Scans among the reads.
    pub scans: u32,
    /// Requests that are sent twice.
    pub copies: u32,
    /// How late a copy may be.
    pub copies_late_by: Micros,
    /// Operations before which the client goes silent.
    pub silences: u32,
    /// For how long.
    pub silence: Micros,
    /// Writes without a session, sent once.
    pub sessionless: u32,
    /// A session is replaced at this age.
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
