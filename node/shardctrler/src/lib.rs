//! The configuration centre's state machine: numbered configurations, and the changes that make the next one.

mod command;

pub use command::{
    Change, Command, Configs, CtrlError, GroupProgress, Query, QueryAnswer, Response,
};
pub use replica::session::SessionRef;
pub use replica::{Genesis, GroupKind};
