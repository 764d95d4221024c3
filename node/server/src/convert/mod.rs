//! Conversions between wire types and the crates' own types. Wire types go no further.

pub(crate) mod ctrl;
pub(crate) mod kv;
pub(crate) mod peer;
