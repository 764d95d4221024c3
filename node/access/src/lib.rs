//! Who calls a node, and what a caller may do.
//!
//! This crate is pure: it decides, and knows neither sockets nor certificates. The crate `tls` tells who a caller is, and the server
//! asks here before it looks anything up: [`need()`] tells what a method needs, and [`decide()`] whether the caller has it. Where the group of
//! a caller matters, a service asks again.

mod caller;
mod decide;
mod name;
mod need;

pub use caller::{Caller, Certificate};
pub use decide::{Grants, NoGrants, Refusal, check_group, check_report, decide};
pub use name::{Name, NameError, Role};
pub use need::{Access, Need, need, paths};
