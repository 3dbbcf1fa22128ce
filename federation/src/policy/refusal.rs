//! Why an institution declines a plan, in words that travel to the operator.

use crate::{ClientId, ModelFamily};

/// Why a client declines a plan; it travels to the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PolicyRefusal {
    /// The plan does not name the client.
    #[error("the plan does not name {0}; add it under cohort.clients")]
    NotNamed(ClientId),
    /// The plan says another number of records.
    #[error(
        "the plan declares {planned} records for {client}, the institution {declared}; correct cohort.clients"
    )]
    Records {
        /// Who.
        client: ClientId,
        /// In the plan.
        planned: u64,
        /// In the institution's configuration.
        declared: u64,
    },
    /// The plan protects persons and says another number of them.
    #[error(
        "the plan declares {planned} persons for {client}, the institution {}; correct \
         cohort.clients, or data.persons at the institution",
        declared.map_or("none".to_owned(), |n| n.to_string())
    )]
    Persons {
        /// Who.
        client: ClientId,
        /// In the plan.
        planned: u64,
        /// In the institution's configuration.
        declared: Option<u64>,
    },
    /// The plan's purpose is none of the allowed ones.
    #[error("this institution does not allow its data to be used for {purpose:?}")]
    Purpose {
        /// Of the plan.
        purpose: String,
    },
    /// The model is of a family that is not allowed.
    #[error("the model is of the family {family}; this institution allows {}", none_or(allowed))]
    Model {
        /// Of the plan.
        family: ModelFamily,
        /// Of the institution.
        allowed: Vec<String>,
    },
    /// The model is too large.
    #[error("the model has {n} parameters, this institution allows {max}")]
    Parameters {
        /// Of the plan.
        n: u64,
        /// Of the institution.
        max: u64,
    },
    /// The plan trains without differential privacy.
    #[error("the plan trains without differential privacy, which this institution does not allow")]
    WithoutDp,
    /// The plan asks for changes without noise, to which the coordinator would add it.
    #[error(
        "the plan protects whole institutions by noise that the coordinator adds: the coordinator \
         would see this institution's change in clear. Such plans are for simulations; use \
         privacy.mode = \"dp_sgd\""
    )]
    NoiseElsewhere,
    /// The plan protects another unit than is allowed.
    #[error("the plan protects each {unit}; this institution allows {}", none_or(allowed))]
    Unit {
        /// Of the plan.
        unit: &'static str,
        /// Of the institution.
        allowed: Vec<String>,
    },
    /// No budget for private runs.
    #[error("this institution has set no privacy budget for this data set")]
    NoBudget,
    /// The plan asks for more than the institution's budget.
    #[error(
        "the plan asks for epsilon {epsilon} at delta {delta}, the institution allows {epsilon_max} \
         at {delta_max} for this data set"
    )]
    Budget {
        /// Of the plan.
        epsilon: f64,
        /// Of the plan.
        delta: f64,
        /// Of the institution.
        epsilon_max: f64,
        /// Of the institution.
        delta_max: f64,
    },
    /// The plan asks for more than one run may cost.
    #[error("the plan asks for epsilon {epsilon}, this institution allows a run {max}")]
    EpsilonRun {
        /// Of the plan.
        epsilon: f64,
        /// Of the institution.
        max: f64,
    },
    /// With the year's other runs the plan costs more than a year may.
    #[error(
        "with the runs of the last 365 days the plan comes to epsilon {epsilon:.3}, this institution allows {max} a \
         year; ask for a plan with a smaller epsilon, or later"
    )]
    EpsilonYear {
        /// Of the year, with this run.
        epsilon: f64,
        /// Of the institution.
        max: f64,
    },
    /// A round could close with too few contributions.
    #[error(
        "a round may close with {planned} contributions, this institution wants at least {min}; raise \
         cohort.min_clients"
    )]
    Clients {
        /// Of the plan.
        planned: u32,
        /// Of the institution.
        min: u32,
    },
    /// A round could close with too few countries.
    #[error(
        "a round may close with {planned} countries, this institution wants at least {min}; raise \
         cohort.min_countries"
    )]
    Countries {
        /// Of the plan.
        planned: u32,
        /// Of the institution.
        min: u32,
    },
    /// Updates are not hidden from the coordinator.
    #[error(
        "this institution requires secure aggregation, which this release does not have: with secure_aggregation = \
         \"required\" every plan is declined"
    )]
    SecureAggregation,
    /// Too much would leave in a round.
    #[error(
        "{bytes} bytes would leave in a round, this institution allows {max}; a smaller model or \
         aggregation.update_encoding needs less"
    )]
    BytesOut {
        /// Of the plan.
        bytes: u64,
        /// Of the institution.
        max: u64,
    },
}

fn none_or(allowed: &[String]) -> String {
    if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") }
}
