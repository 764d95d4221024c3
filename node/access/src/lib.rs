//! Who calls a node, and what a caller may do.
//!
//! This crate is pure: it decides, and knows neither sockets nor certificates. The crate `tls` tells who a caller is, and the server
//! asks here before it looks anything up.

mod caller;
mod name;

pub use caller::{Caller, Certificate};
pub use name::{Name, NameError, Role};
