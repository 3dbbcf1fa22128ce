//! What an operator can ask of the coordinator.

pub mod certificate;
mod certificate_page;
pub mod certs;
pub mod init;
pub mod join;
pub mod journal;
pub mod members;
pub mod model;
mod operator;
pub mod receipts;
pub mod run;
pub mod serve;
