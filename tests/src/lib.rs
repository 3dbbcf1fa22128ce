//! Whole-system tests: real processes, real certificates, real files, loopback only; and the
//! rules of the repository (`tidy`).
//!
//! The harness is [`Deployment`]: one coordinator and any number of clients, each a process with
//! a folder and certificates of its own.  The demo (`comity-demo`) drives the same harness.
//!
//! [`mutants`] are planted defects that the tests of privacy have to notice (`comity-mutants`).

mod deployment;
pub mod fuzz;
pub mod mutants;
mod proxy;

pub use deployment::{Binaries, ClientSetup, Deployment, Finished};
pub use proxy::Proxy;

#[cfg(test)]
mod draws;
#[cfg(test)]
mod machines;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod system;
#[cfg(test)]
mod tidy;
