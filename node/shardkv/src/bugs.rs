//! Which known bug is put back, if any: only ever one in the simulator's build.

use raft::Bug;

/// The bug to show. In the product nothing, and the questions about it compile to nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bugs {
    #[cfg(feature = "bugs")]
    bug: Option<Bug>,
}

impl Bugs {
    /// Shows this one.
    #[cfg(feature = "bugs")]
    pub(crate) const fn new(bug: Option<Bug>) -> Self {
        Self { bug }
    }

    /// Whether to show `bug`.
    #[cfg(feature = "bugs")]
    pub(crate) fn has(self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Whether to show `bug`.
    #[cfg(not(feature = "bugs"))]
    #[allow(clippy::unused_self)]
    pub(crate) const fn has(self, _: Bug) -> bool {
        false
    }
}
