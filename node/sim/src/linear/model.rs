//! The model of one key: an optional value, and the operations on it.
//!
//! A value is represented by its digest and its length. The digest is FNV-1a, which an append continues, so the model's
//! state is two words.

/// A key's value in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value {
    fnv: u64,
    length: u64,
}

impl Value {
    /// The empty value.
    pub const EMPTY: Self = Self {
        fnv: 0xcbf2_9ce4_8422_2325,
        length: 0,
    };

    /// Returns the model value of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::EMPTY.append(bytes)
    }

    /// Returns this value with `bytes` appended.
    #[must_use]
    pub fn append(self, bytes: &[u8]) -> Self {
        let fnv = bytes.iter().fold(self.fnv, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self {
            fnv,
            length: self.length + bytes.len() as u64,
        }
    }
}

/// An operation on a key and its outcome. An outcome of `None` is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reads the value.
    Get {
        /// The value that was read.
        value: Option<Value>,
    },
    /// Sets the value.
    Put {
        /// The new value.
        value: Value,
    },
    /// Appends to the value.
    Append {
        /// The appended bytes.
        suffix: Vec<u8>,
        /// The length afterwards.
        length: Option<u64>,
    },
    /// Removes the key.
    Delete {
        /// True if the key had a value.
        existed: Option<bool>,
    },
    /// Replaces the value if it is as expected.
    CompareAndSwap {
        /// The expected value.
        expected: Option<Value>,
        /// The value that replaces it.
        new: Option<Value>,
        /// True if the value was as expected.
        swapped: Option<bool>,
    },
}

impl Action {
    /// Returns the state after this action on `state`, or `None` if the recorded outcome doesn't fit.
    #[allow(
        clippy::option_option,
        reason = "no next state, and a next state without a value, are two answers"
    )]
    pub(super) fn step(&self, state: Option<Value>) -> Option<Option<Value>> {
        match self {
            Self::Get { value } => (*value == state).then_some(state),
            Self::Put { value } => Some(Some(*value)),
            Self::Append { suffix, length } => {
                let next = state.unwrap_or(Value::EMPTY).append(suffix);
                length
                    .is_none_or(|length| length == next.length)
                    .then_some(Some(next))
            }
            Self::Delete { existed } => existed
                .is_none_or(|existed| existed == state.is_some())
                .then_some(None),
            Self::CompareAndSwap {
                expected,
                new,
                swapped,
            } => {
                let fits = *expected == state;
                swapped
                    .is_none_or(|swapped| swapped == fits)
                    .then_some(if fits { *new } else { state })
            }
        }
    }
}

/// An operation of one key's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The moment of its invocation. All moments of a history differ.
    pub invoked: u64,
    /// The moment of its return; `None` if the outcome never became known.
    pub returned: Option<u64>,
    /// The action and its outcome.
    pub action: Action,
    /// The probable place in the order. The search tries lower hints first. Wrong hints cost time, but don't change the
    /// verdict.
    pub hint: Option<u64>,
}
