//! What the server's step needs to know of a plan.

use std::ops::Range;

use super::training::Optimizer;
use super::{Aggregation, Plan, Strategy};
use crate::{FixedPoint, PlanError};

/// A strategy with its numbers, and how a round's model is laid out:
/// `[n_shared][n_kept][n_shared] ... [n_shared]`, the last ones being what the strategy remembers.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerStep {
    pub(crate) strategy: Strategy,
    pub(crate) server_learning_rate: f64,
    pub(crate) grid: FixedPoint,
    pub(crate) n_shared: usize,
    pub(crate) n_kept: usize,
    pub(crate) n_states: usize,
    pub(crate) control: ControlTerms,
}

/// What SCAFFOLD divides by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ControlTerms {
    /// Total weight of all clients that the plan names.
    pub(crate) weight_named: f64,
    /// Number of local steps times the local learning rate.
    pub(crate) path: f64,
}

impl ControlTerms {
    const NONE: Self = Self { weight_named: 1.0, path: 1.0 };
}

impl ServerStep {
    /// The step that `settings` name, for updates of `n_shared` coordinates and a model with `n_kept`
    /// parameters behind them that no update touches.  For a plan there is [`Plan::server_step`].
    ///
    /// # Panics
    /// If the settings were not validated.
    #[must_use]
    pub fn new(settings: &Aggregation, n_shared: usize, n_kept: usize) -> Self {
        Self {
            strategy: settings.strategy,
            server_learning_rate: settings.server_learning_rate,
            grid: FixedPoint::new(settings.fixed_point_bits).expect("the plan was validated"),
            n_shared,
            n_kept,
            n_states: settings.strategy.server_state().len(),
            control: ControlTerms::NONE,
        }
    }

    /// How many coordinates an update has.
    #[must_use]
    pub fn n_shared(&self) -> usize {
        self.n_shared
    }

    /// The grid on which updates lie.
    #[must_use]
    pub fn grid(&self) -> FixedPoint {
        self.grid
    }

    /// How many values a round's model has, with what the strategy remembers.
    #[must_use]
    pub fn n_values(&self) -> usize {
        self.n_shared + self.n_kept + self.n_states * self.n_shared
    }

    /// Where the values lie that the strategy remembers as number `state`.
    pub(crate) fn state(&self, state: usize) -> Range<usize> {
        let start = self.n_shared + self.n_kept + state * self.n_shared;
        start..start + self.n_shared
    }
}

impl Plan {
    /// The server's step of this plan.
    ///
    /// # Errors
    /// As [`manifest`](Self::manifest).
    pub fn server_step(&self) -> Result<ServerStep, PlanError> {
        let manifest = self.model_manifest()?;
        let n_shared = manifest.n_shared();
        let step = ServerStep::new(&self.aggregation, n_shared, manifest.n_parameters() - n_shared);
        let weights = self.cohort.clients.iter().map(|named| self.weight(named));
        Ok(ServerStep {
            control: ControlTerms {
                weight_named: weights.sum::<u64>() as f64,
                path: self.control_path(),
            },
            ..step
        })
    }

    /// SCAFFOLD's divisor: the number of local steps times their learning rate.
    #[must_use]
    pub fn control_path(&self) -> f64 {
        let (Optimizer::Sgd { learning_rate, .. } | Optimizer::Adam { learning_rate, .. }) =
            self.training.optimizer;
        f64::from(self.training.local_steps.unwrap_or(1)) * learning_rate
    }
}
