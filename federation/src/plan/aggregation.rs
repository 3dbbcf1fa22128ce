//! The server's step, as a plan names it.

use serde::{Deserialize, Serialize};

use super::cohort::{CohortPlan, LatePolicy, STALENESS_MAX, WeightRule};
use super::{check, positive};
#[cfg(doc)]
use crate::SquareSum;
use crate::strategy::KRUM_UPDATES_MAX;
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

/// The server's step, by name; each is one file of `federation::strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// Federated averaging (McMahan et al. 2017).
    Fedavg,
    /// Asynchronous buffered averaging (FedBuff, Nguyen et al. 2022): a round closes with the first
    /// `buffer` updates, whichever round's model they started from, and whoever is still training goes on.
    /// An update that is t rounds old counts with its weight over √(1 + t).  A client gets the next model
    /// when there is one, never the same one twice.
    Fedbuff {
        /// How many updates close a round.
        buffer: u32,
        /// How many rounds old an update may be.
        staleness_max: u32,
    },
    /// The coordinate-wise median (Yin et al. 2018).
    Median,
    /// The coordinate-wise mean without the extremes (Yin et al. 2018).
    TrimmedMean {
        /// How many values are left out on each side.
        trim: u32,
    },
    /// The one update nearest to its neighbours (Blanchard et al. 2017).
    Krum {
        /// How many clients may be wrong.
        byzantine: u32,
    },
    /// The mean of the updates nearest to their neighbours (Blanchard et al. 2017).
    MultiKrum {
        /// How many clients may be wrong.
        byzantine: u32,
        /// How many updates count.
        keep: u32,
    },
    /// The weighted mean of updates whose norms are capped (Sun et al. 2019).
    NormCappedMean {
        /// Largest L2 norm with which an update counts.
        norm_max_l2: f64,
    },
}

impl Strategy {
    /// Whether all that it needs to know of the updates is their weighted sum.
    #[must_use]
    pub fn is_of_the_sum(&self) -> bool {
        matches!(self, Self::Fedavg | Self::Fedbuff { .. })
    }

    /// Whether contributions count by their weights, not by their votes.
    #[must_use]
    pub fn is_weighted(&self) -> bool {
        matches!(self, Self::Fedavg | Self::Fedbuff { .. } | Self::NormCappedMean { .. })
    }
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
        self.validate_strategy(cohort)?;
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
                super::millionths(share) * u64::from(cohort.min_countries) >= 1_000_000,
                "aggregation.country_weight_max",
                "so few countries cannot keep the cap: raise cohort.min_countries to at least one \
                 divided by it",
            )?;
        }
        Ok(())
    }

    fn validate_strategy(&self, cohort: &CohortPlan) -> Result<(), PlanError> {
        const KEY: &str = "aggregation.strategy";
        let min_clients = u64::from(cohort.min_clients);
        check(
            self.strategy.is_weighted() || cohort.weights == WeightRule::Uniform,
            "cohort.weights",
            "this strategy gives every client one vote, which a declared size must not multiply; use \
             weights = \"uniform\"",
        )?;
        let enough = |byzantine: u32| {
            check(
                min_clients >= 2 * u64::from(byzantine) + 3,
                KEY,
                "Krum takes at least 2 * byzantine + 3 updates; raise cohort.min_clients or lower \
                 byzantine",
            )?;
            check(
                cohort.clients.len() <= KRUM_UPDATES_MAX,
                KEY,
                "Krum compares every pair of updates; name at most 1000 clients",
            )
        };
        match self.strategy {
            Strategy::Fedavg | Strategy::Median => Ok(()),
            Strategy::Fedbuff { buffer, staleness_max } => {
                check(
                    buffer >= cohort.min_clients && buffer as usize <= cohort.clients.len(),
                    KEY,
                    "buffer is cohort.min_clients to the number of named clients",
                )?;
                check(staleness_max <= STALENESS_MAX, KEY, "staleness_max is at most 100")?;
                check(
                    cohort.late == LatePolicy::Reject && cohort.sample.is_none(),
                    KEY,
                    "fedbuff takes late updates and closes its rounds by itself; leave out cohort.late and \
                     cohort.sample",
                )
            }
            Strategy::TrimmedMean { trim } => check(
                2 * u64::from(trim) < min_clients,
                KEY,
                "2 * trim must be less than cohort.min_clients, or nothing is left to average",
            ),
            Strategy::Krum { byzantine } => enough(byzantine),
            Strategy::MultiKrum { byzantine, keep } => {
                enough(byzantine)?;
                check(
                    (1..=min_clients - u64::from(byzantine) - 2).contains(&u64::from(keep)),
                    KEY,
                    "keep 1 to cohort.min_clients - byzantine - 2 updates",
                )
            }
            Strategy::NormCappedMean { norm_max_l2 } => {
                check(positive(norm_max_l2), KEY, "norm_max_l2 must be a positive number")
            }
        }
    }
}
