//! Room 1 on the way of an update: a country's files, checked against what the plan says the
//! data look like, become typed batches.
//!
//! Everything a file claims is checked here, once, so that training never meets a malformed row.
//! An error names the file, the row and the remedy, and never a value from a row: rows are
//! private, and errors end in logs.
//!
//! Deliberately not here: tensors (`burn-models`), which rows a step uses (`privacy`), and
//! statistics of the data: normalisation constants come from the plan, because a mean computed
//! from private rows would be a release.

mod altered;
mod contract;
mod csv_file;
mod dataset;
mod derived;
mod error;
mod held_out;
mod idx;
mod partition;
mod source;
mod table;

pub use contract::{Contract, Normalise, Scale};
pub use dataset::{Batch, Dataset};
pub use error::DataError;
pub use held_out::HeldOut;
pub use idx::write_idx;
pub use partition::{Groups, Partition, PartitionError, Sizes};
pub use source::Source;
pub use table::{Categories, Column, Table};
