//! Conversions at the edge: wire types go no further.

pub(crate) mod ctrl;
pub(crate) mod kv;
pub(crate) mod peer;
