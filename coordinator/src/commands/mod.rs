//! What an operator can ask of the coordinator.

pub(crate) mod certs;
pub(crate) mod init;
pub(crate) mod model;
mod operator;
pub(crate) mod run;
pub(crate) mod serve;
