//! Room 2 on the way of an update: models built from declared layers, local training with and
//! without differential privacy, evaluation. The only crate that names burn.
//!
//! Per-example gradients are never formed as such: [`clipped_gradient_sum`] is DP-SGD's clipped
//! sum by book-keeping (Bu et al. 2023), one backward pass at about the cost of an ordinary one.
//!
//! Deliberately not here: which rows a step uses, noise and budgets (`privacy`), files of data
//! (`datasets`), shapes and starting values (`federation`).

mod bookkeeping;
mod contract;
mod cpu;
mod device;
mod error;
mod evaluate;
mod front;
mod gradient;
mod layers;
mod model;
mod noise_pool;
mod optimizer;
mod own;
mod round;
mod safetensors;
mod scattering;
mod site;
mod train;
mod tune;
mod units;

pub use bookkeeping::{clipped_gradient_sum, clipped_person_gradient_sum};
pub use contract::{check_units, data_contract, normalisation};
pub use device::{Device, DeviceChoice, DeviceError};
pub use error::TrainError;
pub use evaluate::{Evaluation, evaluate};
pub use gradient::gradient_sum;
pub use model::Model;
pub use own::{Correction, personal_model};
pub use round::{LocalResult, LocalRound, RoundError, local_round};
pub use safetensors::{SafetensorsError, read_safetensors, write_safetensors};
pub use train::{TrainingTask, all_cores, train_plain, train_private};
pub use tune::{FineTuning, fine_tune};
