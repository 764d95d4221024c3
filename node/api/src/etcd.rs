//! etcd's API, version 3.7: what its clients speak with a keyspace.
//!
//! Packages, services, messages and numbers are etcd's; the files in `proto/etcd` are our own. The test at the end compares them
//! with a list of etcd's.

macro_rules! generated {
    ($($(#[$doc:meta])* $package:ident = $name:literal;)*) => {$(
        $(#[$doc])*
        #[allow(
            missing_docs,
            unreachable_pub,
            unused_qualifications,
            clippy::pedantic,
            clippy::indexing_slicing
        )]
        pub mod $package {
            tonic::include_proto!($name);
        }
    )*};
}

generated! {
    /// Permissions of the service `Auth`.
    authpb = "authpb";
    /// The services `KV`, `Watch`, `Lease`, `Cluster`, `Maintenance` and `Auth`.
    etcdserverpb = "etcdserverpb";
    /// Pairs and events.
    mvccpb = "mvccpb";
    /// The service `Election`.
    v3electionpb = "v3electionpb";
    /// The service `Lock`.
    v3lockpb = "v3lockpb";
}

/// The encoded file descriptors, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd_descriptors.bin"));

#[cfg(test)]
mod tests;
