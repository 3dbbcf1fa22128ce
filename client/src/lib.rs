//! The node in an institution: joins runs that its institution allows, trains on data that never
//! leave it, and lets out only what its privacy ledger has paid for.
//!
//! It is a library so that tests can put a whole [`Node`] on a simulated network and clock; the program is
//! `main`, which gives it [`Outside::deployed`] and nothing else.
//!
//! Deliberately not here: the rules of a run (`federation`), what may leave (`privacy`), tensors
//! (`burn-models`).

pub mod commands;
mod config;
mod consent;
mod decisions;
mod egress;
mod enrolment;
mod join;
mod link;
mod node;
mod outside;
pub mod policy_file;
mod store;
mod trainer;
mod transfers;
mod year;

pub use node::Node;
pub use outside::Outside;
pub use trainer::{Job, Train, Trained};
