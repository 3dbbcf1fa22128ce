//! The server's step, as a plan names it.

use serde::{Deserialize, Serialize};

use super::cohort::CohortPlan;
use super::strategy::Strategy;
use super::{check, positive};
#[cfg(doc)]
use crate::SquareSum;
use crate::{FixedPoint, PlanError, Rejection, UpdateEncoding};

/// The server's step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aggregation {
    /// Which.
    pub strategy: Strategy,
    /// Factor on the mean update.
    pub server_learning_rate: f64,
    /// Updates are multiples of 2^-bits; 22 holds changes up to ±512.
    pub fixed_point_bits: u32,
    /// Largest share of the total weight that the contributions of one country may have together, in
    /// (0, 1], to the millionth; what is above it is scaled down.  Absent: no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country_weight_max: Option<f64>,
    /// An update whose L2 norm passes this is not accepted, and the round's record says so.  Absent: any
    /// norm is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_norm_max_l2: Option<f64>,
    /// How updates travel.  Absent: `"int32"`, exact; `"int16"` and `"int8"` take half and a quarter of the
    /// bytes and round what was released.
    #[serde(default, skip_serializing_if = "UpdateEncoding::is_exact")]
    pub update_encoding: UpdateEncoding,
}

impl Aggregation {
    /// Whether an update whose norm is so many grid steps (see [`SquareSum`]) may count.
    ///
    /// # Errors
    /// [`Rejection::NormPassed`] if it is longer than the plan allows.
    pub fn check_norm(&self, steps: u64) -> Result<(), Rejection> {
        let grid = FixedPoint::new(self.fixed_point_bits).expect("the plan was validated");
        match self.update_norm_max_l2 {
            Some(norm_max) if steps > grid.norm_steps(norm_max) => Err(Rejection::NormPassed {
                norm: grid.norm_l2(steps).to_string(),
                norm_max: norm_max.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Checks every key, and that they go with the cohort.
    pub(super) fn validate(&self, cohort: &CohortPlan) -> Result<(), PlanError> {
        check(
            positive(self.server_learning_rate),
            "aggregation.server_learning_rate",
            "use a positive number",
        )?;
        check(
            FixedPoint::new(self.fixed_point_bits).is_some(),
            "aggregation.fixed_point_bits",
            "use 0 to 30",
        )?;
        self.strategy.validate(cohort)?;
        if let Some(norm) = self.update_norm_max_l2 {
            check(
                positive(norm),
                "aggregation.update_norm_max_l2",
                "use a positive number, or leave it out",
            )?;
        }
        if let Some(share) = self.country_weight_max {
            check(
                (super::MILLIONTH..=1.0).contains(&share),
                "aggregation.country_weight_max",
                "use a number in (0, 1], or leave it out",
            )?;
            check(
                self.strategy.is_weighted(),
                "aggregation.country_weight_max",
                "this strategy gives every client one vote; use it with fedavg or norm_capped_mean",
            )?;
            check(
                !matches!(self.strategy, Strategy::Scaffold | Strategy::Fednova { .. }),
                "aggregation.country_weight_max",
                "scaffold and fednova weigh clients by what they declare, which a cap would undo; use it with \
                 fedavg or leave it out",
            )?;
            check(
                super::millionths(share) * u64::from(cohort.min_countries) >= 1_000_000,
                "aggregation.country_weight_max",
                "so few countries cannot keep the cap: raise cohort.min_countries to at least one \
                 divided by it",
            )?;
        }
        Ok(())
    }
}
