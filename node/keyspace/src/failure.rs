//! The failure of a call inside this crate.

use raft::StoreError;

use crate::Refusal;

/// The failure of a call: a refusal, which the caller is told, or an error of the store, which stops the node.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused(Refusal),
    Store(StoreError),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failure {
    /// Splits a result into the refusal, as a value, and the store's error.
    pub(crate) fn split<T>(result: Result<T, Self>) -> Result<Result<T, Refusal>, StoreError> {
        match result {
            Ok(value) => Ok(Ok(value)),
            Err(Self::Refused(refusal)) => Ok(Err(refusal)),
            Err(Self::Store(error)) => Err(error),
        }
    }
}
