//! A whole federation in one process: the deployed rules, without wire and disk.
//!
//! The simulator walks rooms 1 to 5 and 8 to 10 of the way of an update (`ARCHITECTURE.md`) with
//! the very same code as coordinator and client: the same [`Run`](comity_federation::Run) and
//! [`Participant`](comity_federation::Participant), policy, ledger, local training, fixed point
//! and server step, under a virtual clock.  The same plan, world and seed give the same model
//! digest.
//!
//! ```text
//! World --load--> FederationData    which rows each client of the plan has, and a test set
//! Simulation --run--> SimulationResult    the run's report, a score a round, the model, the ledgers
//! ```
//!
//! [`audit`] looks at the deployed code from outside: what one record can change, whether noise is
//! what it should be, what a released model tells of single records.
//!
//! Seeded noise lives here and nowhere else, because it is reproducible and therefore *not*
//! private: see [`SeededNoise`].  Deliberately not here: sockets, and files of a running federation.

pub mod audit;
mod conduct;
mod engine;
mod error;
mod institutions;
#[cfg(feature = "mpi")]
mod mpi;
mod noise;
mod observations;
pub mod results;
pub mod store;
mod world;

pub use conduct::{
    Attack, Attackers, Compute, Conduct, Crashes, Dropouts, Links, Stragglers, Trigger,
};
pub use engine::{OneProcess, Ranks, Simulation, SimulationResult};
pub use error::SimulationError;
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
pub use noise::{NoiseMode, SeededNoise, seeded_randomness};
pub use observations::{ClientRound, Fairness, Progress, RoundScore};
pub use results::RunFolder;
pub use world::{
    Baseline, ClientRows, FederationData, FineTune, Records, Sources, Standardise, TrainData,
    World, WorldData, divide, folder_name,
};
