//! The gRPC services.

pub(crate) mod admin;
pub(crate) mod batch;
pub(crate) mod kv;
pub(crate) mod peers;
pub(crate) mod typed;
