//! The coordinator: hosts runs, takes updates, folds them, hands over models.
//!
//! Architecture Invariant: this crate never links burn; it averages integers, not tensors.
//!
//! It is a library so that tests can put a whole [`Coordinator`] on a simulated network and clock; the
//! program is `main`, which gives it the operating system's.
//!
//! Deliberately not here: the rules of a run (`federation`), certificates (`certs`), bytes
//! (`proto`).

mod aggregate;
pub mod commands;
mod config;
mod credentials;
mod driver;
mod founding;
mod membership;
mod orders;
mod papers;
mod presence;
mod registry;
mod retention;
mod server;
mod service;
mod store;

pub use config::Home;
pub use founding::enrol;
pub use orders::start_request;
pub use registry::OperatorRole;
pub use server::{Coordinator, Door};
