//! Ports of the nodes.

/// Port on which nodes serve clients and each other.
pub const CLIENT_PORT: i32 = 7400;
/// Port on which nodes serve `/metrics`, `/livez` and `/readyz`.
pub const METRICS_PORT: i32 = 7401;
