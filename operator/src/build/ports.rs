//! Ports of the nodes.

/// Port on which nodes serve clients and each other.
pub const CLIENT_PORT: i32 = 7400;
/// Port on which nodes serve `/metrics`, `/livez` and `/readyz`.
pub const METRICS_PORT: i32 = 7401;
/// Port on which services offer the API of etcd, as etcd's clients expect it. Nodes serve it on their client port.
pub const ETCD_PORT: i32 = 2379;
