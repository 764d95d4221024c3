//! The callers of a node, and their rights.
//!
//! This crate is pure: it decides, and knows neither sockets nor certificates. The crate `tls` tells who a caller is, and the server
//! asks here before it looks anything up: [`need()`] tells what a method needs, and [`decide()`] whether the caller has it. Where the group of
//! a caller matters, a service asks again, and so it does about the keys of a request.
//!
//! # Grants
//!
//! A [`Policy`] is a numbered list of [`Grant`]s. Each names a [`Subject`], what the subject may do ([`Verbs`]), in which keyspaces, and
//! for which prefixes of keys. Whatever no grant allows is refused; nothing forbids what another grant allows. The verbs are
//! independent: `write` doesn't include `read`, and `admin` includes neither.
//!
//! A grant without keyspaces is for the flat map only. A grant with keyspaces is for these only, and never for the flat map. So a grant
//! that is written before there are keyspaces doesn't begin to cover them.
//!
//! A node compiles the policy in force once ([`Authorizer`]), and asks it at each call ([`Rights`]), without an allocation. A range of
//! keys is allowed if and only if each key in it is, also those that don't exist: an answer says that they don't.

mod authorizer;
mod caller;
mod codec;
mod decide;
mod intervals;
mod name;
mod need;
mod policy;
mod rights;
mod text;
mod token;
mod tokens;

pub use authorizer::Authorizer;
pub use caller::{Account, Caller, Certificate};
pub use decide::{Grants, NoGrants, Refusal, check_group, check_report, decide};
pub use name::{Name, NameError, Role};
pub use need::{Access, Need, need, paths};
pub use policy::{
    Grant, MAX_GRANTS, MAX_POLICY_BYTES, Policy, PolicyError, PolicyNum, Subject, Verbs,
};
pub use rights::{Rights, Space, Verb};
pub use token::{MAX_TOKEN_BYTES, TokenError, Verified, bearer};
pub use tokens::{Issuer, PublicKey, Tokens, VerifyingKey};
