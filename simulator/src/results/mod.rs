//! What a run leaves behind: a folder with everything that is needed to look at it, to repeat it and to
//! compare it.
//!
//! ```text
//! ResultsWriter --round--> rounds.csv, clients.csv.part, events     whole after each round
//!               --finish-> rounds.parquet, clients.parquet, model, report.html, summary.json
//! RunFolder     <--read--  the same folder, ended or not
//! ```
//!
//! Nothing here decides anything: the numbers are those that the engine hands out
//! ([`Progress`](crate::Progress)).  Deliberately not here: how an interrupted run goes on.

mod chart;
mod compare;
mod environment;
pub mod folder;
mod html;
mod partition;
mod report;
mod rounds;
mod run_folder;
mod student;
mod summary;
mod table;
mod tensorboard;
mod writer;

pub use compare::{Comparison, Group, RunOfGroup};
pub use environment::Environment;
pub use partition::{ClientLabels, PartitionTable};
pub use run_folder::RunFolder;
pub use student::Interval;
pub use summary::{Summary, noise_label};
pub use writer::ResultsWriter;

#[cfg(test)]
mod samples;
