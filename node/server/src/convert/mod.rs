//! Between wire types and ours. Wire types stop here.

pub(crate) mod kv;
pub(crate) mod peer;
