//! Why a simulation cannot be run, and what to do about it.

use std::path::{Path, PathBuf};

use comity_burn_models::{RoundError, TrainError};
use comity_datasets::{DataError, PartitionError};
use comity_federation::{ClientId, PlanError, Rejection};
use comity_privacy::PrivacyError;

/// Why a simulation ended without a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulationError {
    /// The text is not a world: wrong syntax, a missing or an unknown key.
    #[error("the world cannot be read: {0}")]
    World(String),
    /// A data file of the world is not there.
    #[error("data file {} does not exist", path.display())]
    DataMissing {
        /// The file.
        path: PathBuf,
    },
    /// A data file does not fit the plan.
    #[error("the world's data do not fit the plan: {0}")]
    Data(#[from] DataError),
    /// The training rows cannot be divided as the world asks.
    #[error("the training data cannot be split: {0}")]
    Partition(#[from] PartitionError),
    /// A world on which no model can be scored.
    #[error(
        "the world has neither `data.test` nor `data.client_test`, or no client has a record to keep; \
         name a public test set, or let each client keep a share, such as \
         client_test = {{ share = 0.2, stratified = true }}"
    )]
    NoTest,
    /// A baseline of a client that is not in the plan.
    #[error(
        "the plan names no client {client}; name one of its clients as the baseline, or \"pooled\""
    )]
    UnknownClient {
        /// As asked for.
        client: ClientId,
    },
    /// The plan cannot be run.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A ledger or a mechanism refused.
    #[error("{client}: {source}")]
    Privacy {
        /// At which client.
        client: ClientId,
        /// Why.
        source: PrivacyError,
    },
    /// The ledger or the noise for whole institutions refused.
    #[error("the noise for institutions: {0}")]
    Institutions(#[from] PrivacyError),
    /// The model cannot be built or scored.
    #[error(transparent)]
    Model(#[from] TrainError),
    /// A round of an audit failed.
    #[error(transparent)]
    Round(#[from] RoundError),
    /// A file of the simulation's own could not be written or read.
    #[error("a working file of the simulation: {0}")]
    Io(#[from] std::io::Error),
    /// A checkpoint cannot be gone on from.
    #[error("cannot go on from {}: {reason}", path.display())]
    Checkpoint {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process of the same simulation failed.
    #[error("another process: {0}")]
    OtherProcess(String),
    /// The processes of one simulation cannot find one another.
    #[error("MPI cannot be begun with the threads that a simulation needs")]
    Mpi,
    /// It was told to stop.
    #[error("the simulation was interrupted")]
    Interrupted,
    /// An audit cannot be made so.
    #[error("no audit is made: {reason}")]
    Audit {
        /// Why, and what to give instead.
        reason: &'static str,
    },
    /// The data were split for other clients than the plan names.
    #[error(
        "the plan names {in_plan} clients and the data are split over {in_data} others; split \
         them with this plan"
    )]
    Shards {
        /// Clients in the plan.
        in_plan: usize,
        /// Clients in the data.
        in_data: usize,
    },
    /// A file of the results cannot be written or read.
    // Not called `source`, so that a chain of errors does not say it twice.
    #[error("cannot {action} {}: {error}", path.display())]
    File {
        /// `write`, `read`, `make the folder`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A store of results refused.
    #[error("the store's {key}: {reason}")]
    Store {
        /// What was asked of it.
        key: String,
        /// Why it did not come about.
        reason: String,
    },
    /// A folder holds the result of another plan or world.
    #[error("{} holds the result of another {what}: its {file} differs in {differs}", dir.display())]
    OtherResult {
        /// The folder.
        dir: PathBuf,
        /// `plan` or `world`.
        what: &'static str,
        /// The file in it.
        file: &'static str,
        /// The keys that differ.
        differs: String,
    },
    /// A folder or a file holds no result, or a damaged one.
    #[error("{} is not a result of comity-sim run: {reason}", path.display())]
    NoResult {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The rules refused an event of their own making, which is a defect of this program.
    #[error("the rules of the run refused a simulated event: {0}")]
    Rejected(#[from] Rejection),
}

impl SimulationError {
    /// Of an operation on `path`, for `map_err`.
    pub(crate) fn file(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| Self::File { action, path, error }
    }

    /// That `path` holds no result, or a damaged one.
    pub(crate) fn no_result(path: &Path, reason: impl ToString) -> Self {
        Self::NoResult { path: path.to_owned(), reason: reason.to_string() }
    }

    /// What to do next, where the message does not say so itself.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::DataMissing { path } => Some(match path.extension() {
                Some(extension) if extension == "gz" => {
                    "install the package dataset-fashion-mnist (apt-get install \
                     dataset-fashion-mnist), or give the folder that holds the files with --data DIR"
                }
                Some(extension) if extension == "data" => {
                    "fetch the files (comity-sim data fetch heart-disease --out DIR) and give their \
                     folder with --data DIR"
                }
                _ => "give the folder that holds the files with --data DIR",
            }),
            Self::World(_) => Some("docs/samples/world.toml is a commented sample of a world file"),
            Self::Checkpoint { .. } => Some(
                "begin anew without --resume, or give the plan and world that it was begun with",
            ),
            Self::OtherResult { .. } => Some(
                "give another folder with --out DIR, or replace what it holds with --overwrite",
            ),
            Self::File { error, .. } | Self::Io(error)
                if error.kind() == std::io::ErrorKind::StorageFull =>
            {
                Some("make room on that disk and run the same command again")
            }
            Self::NoResult { .. } => Some("give the --out folder of a comity-sim run"),
            Self::Rejected(_) => Some("please report this with the plan and the world"),
            _ => None,
        }
    }
}
