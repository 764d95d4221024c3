//! The gRPC services.

pub(crate) mod admin;
pub(crate) mod all_groups;
pub(crate) mod answers;
pub(crate) mod batch;
pub(crate) mod ctrl;
mod cuts;
pub(crate) mod destination;
pub(crate) mod etcd;
pub(crate) mod export;
pub(crate) mod handoff;
pub(crate) mod items;
pub(crate) mod keyspaces;
pub(crate) mod kv;
pub(crate) mod pages;
pub(crate) mod peers;
pub(crate) mod proof;
pub(crate) mod scan;
pub(crate) mod session;
pub(crate) mod shards;
pub(crate) mod typed;
pub(crate) mod unfetched;
pub(crate) mod watch;
