//! A violated invariant, as every checker reports it.

/// A violated invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The name of the invariant.
    pub invariant: &'static str,
    /// The observation that contradicts it.
    pub detail: String,
}

/// The result of a step in which no invariant may be violated.
pub type Checked = Result<(), Violation>;

impl Violation {
    /// Creates a violation.
    pub fn new(invariant: &'static str, detail: impl Into<String>) -> Self {
        Self {
            invariant,
            detail: detail.into(),
        }
    }
}
