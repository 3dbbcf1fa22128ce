//! What a client does in a round, as a plan says it.

use serde::{Deserialize, Serialize};

use super::{check, positive};
use crate::PlanError;

/// Most passes over the data, and most batches, in a round.
const LOCAL_EPOCHS_MAX: u32 = 1000;
/// See [`LOCAL_EPOCHS_MAX`].
const LOCAL_STEPS_MAX: u32 = 1 << 24;

/// What a client does in a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// The local step.
    pub optimizer: Optimizer,
    /// Batch size; under DP the expected number of privacy units in a Poisson batch.
    pub batch: u32,
    /// Passes over the data a round; under DP in expectation.  Either this or `local_steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_epochs: Option<u32>,
    /// Batches a round, the same number at every client whatever its size: shuffled epochs follow one
    /// another, and a short last batch counts as one; under DP so many Poisson batches.  Either this or
    /// `local_epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_steps: Option<u32>,
    /// Examples that the device holds at once; batches are padded to a multiple.
    pub microbatch: u32,
    /// Decay of an exponential moving average of the round's weights, which then leaves in place of
    /// the last ones, in `(0, 1)`; absent: the last ones. It reads only what is private already, so
    /// it costs nothing (De et al. 2022, section 3.4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
}

/// The local step; its state starts afresh in each round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// Stochastic gradient descent.
    Sgd {
        /// Positive.
        learning_rate: f64,
        /// In `[0, 1)`.
        #[serde(default)]
        momentum: f64,
    },
    /// Adam (Kingma & Ba 2015).
    Adam {
        /// Positive.
        learning_rate: f64,
        /// In `[0, 1)`.
        #[serde(default = "beta1")]
        beta1: f64,
        /// In `[0, 1)`.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Positive.
        #[serde(default = "epsilon")]
        epsilon: f64,
    },
}

fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn epsilon() -> f64 {
    1e-8
}

impl Training {
    /// Steps that a client takes with `units` privacy units or records.
    pub(crate) fn n_steps(&self, units: u64) -> u32 {
        if let Some(steps) = self.local_steps {
            return steps;
        }
        let epochs = u64::from(self.local_epochs.unwrap_or(1));
        let steps = units.saturating_mul(epochs).div_ceil(u64::from(self.batch));
        u32::try_from(steps.max(1)).unwrap_or(u32::MAX)
    }

    /// Checks every key.
    pub(super) fn validate(&self) -> Result<(), PlanError> {
        let fraction = |value: f64| (0.0..1.0).contains(&value);
        check((1..=1 << 24).contains(&self.batch), "training.batch", "use 1 to 2^24")?;
        check(
            self.local_epochs.is_some() != self.local_steps.is_some(),
            "training.local_epochs",
            "say either local_epochs, the passes over a client's data a round, or local_steps, the batches a \
             round; not both",
        )?;
        check(
            self.local_epochs.is_none_or(|n| (1..=LOCAL_EPOCHS_MAX).contains(&n)),
            "training.local_epochs",
            "use 1 to 1000",
        )?;
        check(
            self.local_steps.is_none_or(|n| (1..=LOCAL_STEPS_MAX).contains(&n)),
            "training.local_steps",
            "use 1 to 2^24",
        )?;
        check((1..=1 << 16).contains(&self.microbatch), "training.microbatch", "use 1 to 65536")?;
        check(
            self.ema_decay.is_none_or(|decay| decay > 0.0 && fraction(decay)),
            "training.ema_decay",
            "use a number between 0 and 1, or leave it out",
        )?;
        let (rate, rest) = match self.optimizer {
            Optimizer::Sgd { learning_rate, momentum } => (learning_rate, fraction(momentum)),
            Optimizer::Adam { learning_rate, beta1, beta2, epsilon } => {
                (learning_rate, fraction(beta1) && fraction(beta2) && positive(epsilon))
            }
        };
        check(positive(rate), "training.optimizer.learning_rate", "use a positive number")?;
        check(rest, "training.optimizer", "momentum and betas lie in [0, 1), epsilon is positive")
    }
}
