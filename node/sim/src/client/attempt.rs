//! A unary operation of a client, and the sessions of its unary writes.

use std::sync::Arc;

use replica::RequestId;
use request::{Leader, Repeat, SequenceAllocator, SingleCall};

use super::options::ClientOptions;
use crate::queue::Micros;

/// The sessions of a client's unary writes.
#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) allocator: Arc<SequenceAllocator>,
    /// The request for a session that is in flight.
    pub(super) opening: Option<Opening>,
}

/// A request for a session.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) id: RequestId,
    /// The target node of that request.
    pub(super) leader: Leader,
    pub(super) asked: Micros,
}

/// A unary operation.
#[derive(Debug)]
pub(super) struct Unary {
    pub(super) engine: SingleCall,
    pub(super) repeat: Repeat,
    pub(super) deadline: Micros,
    /// The attempt in flight: its request, its target node, and its time.
    pub(super) attempt: Option<(RequestId, Leader, Micros)>,
    pub(super) retry_at: Micros,
}

impl Sessions {
    pub(super) fn new(options: &ClientOptions) -> Self {
        Self {
            allocator: SequenceAllocator::new(64, options.bugs),
            opening: None,
        }
    }

    /// Returns true if this is the request for a session.
    pub(super) fn is_opening(&self, id: RequestId) -> bool {
        self.opening.as_ref().is_some_and(|it| it.id == id)
    }
}

impl Unary {
    /// Returns the time of the next attempt, or of the end of this one.
    pub(super) fn due(&self, patience: Micros) -> Micros {
        let next = match &self.attempt {
            Some((_, _, sent)) => sent.saturating_add(patience),
            None => self.retry_at,
        };
        next.min(self.deadline)
    }
}
