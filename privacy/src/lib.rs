//! What every promise of privacy rests on: sampling, clipping, noise, accounting, the ledger and
//! the one door by which anything leaves an institution.
//!
//! The order of use is the order of the modules' meaning:
//!
//! ```text
//! PrivacyRequest --calibrate--> PrivacyPlan           what will run, and the epsilon derived from it
//! Ledger --reserve(plan's round)--> Reservation       debited durably before any noise is drawn
//! PrivacyPlan + Reservation --session--> Session      samples, privatises, counts the steps
//! Session --finish--> Released<T> + Receipt           the only thing that may leave
//! Ledger --commit(receipt)                            before the bytes leave
//! ```
//!
//! The crate is pure: no clock, socket, file, thread or lock. Randomness is an argument
//! ([`Randomness`]) and storage is an argument ([`LedgerStore`]); the operating system's randomness
//! is reached from [`randomness`] and [`noise`] only. What is *not* here: gradients and models
//! (`burn-models`), the rules of a run (`federation`), files (`journal`).

pub mod accountant;
pub mod analytics;
pub mod audit;
pub mod budget;
pub mod calibrate;
pub mod clip;
mod discrete_gaussian;
pub mod error;
pub mod gaussian;
mod hex;
pub mod ledger;
mod log_math;
pub mod metrics;
pub mod noise;
pub mod plan;
mod pld;
pub mod randomness;
pub mod rdp;
pub mod release;
pub mod sampler;
pub mod schedule;
pub mod session;
pub mod statement;
#[cfg(test)]
mod statistics;
mod step_noise;
pub mod unit;

pub use accountant::{BoundKind, EpsilonReport, Mechanism, adaptive_epsilon, epsilon};
pub use analytics::{AnalyticsRequest, Estimate, Query, Tally};
pub use budget::{Budget, Delta, Epsilon};
pub use calibrate::calibrate_noise_multiplier;
pub use clip::{clip_factor, clip_in_place};
pub use error::PrivacyError;
pub use gaussian::gaussian_epsilon;
pub use ledger::{
    Charge, Ledger, LedgerEntry, LedgerStore, Limit, Reservation, ReservationKey, RunSummary,
};
pub use metrics::{LossRequest, release_histogram};
pub use noise::{EXACT_PARAMETERS_MAX, KeyedNoise, Noise, NoiseKind};
pub use plan::{PrivacyPlan, PrivacyRequest};
pub use randomness::Randomness;
pub use rdp::RdpCurve;
pub use release::{Receipt, Released};
pub use sampler::PoissonSampler;
pub use schedule::FixedSchedule;
pub use session::Session;
pub use statement::{Figures, RunStatement, Statement};
pub use step_noise::{NoiseAhead, NoiseLane, StepNoise};
pub use unit::{PrivacyUnit, Relation};
