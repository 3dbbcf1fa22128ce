//! What the plan says the data look like: public, and the same for every client.

use serde::{Deserialize, Serialize};

use crate::DataError;

/// Most features in one example; 2^28 `f32` are 1 GiB.
const N_FEATURES_MAX: usize = 1 << 28;

/// How a feature is written in a client's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Whole numbers 0 to 255, such as pixels; divided by 255 before normalisation.
    Bytes,
    /// Any finite number; used as it stands before normalisation.
    Real,
}

/// What a client's data must look like to take part in a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    /// Shape of one example, such as `[1, 28, 28]` (channels, height, width) or `[n_features]`.
    pub shape: Vec<usize>,
    /// Labels are 0 to `n_classes - 1`.
    pub n_classes: usize,
    /// How features are written.
    pub scale: Scale,
}

impl Contract {
    /// Number of features of one example.
    ///
    /// # Errors
    /// [`DataError::Contract`] if a side is zero, the product is out of bounds, or there are no
    /// classes.
    pub fn n_features(&self) -> Result<usize, DataError> {
        if self.n_classes == 0 || u32::try_from(self.n_classes).is_err() {
            return Err(DataError::Contract { reason: "n_classes must be 1 to 2^32 - 1" });
        }
        self.shape
            .iter()
            .try_fold(1usize, |product, side| product.checked_mul(*side))
            .filter(|n| (1..=N_FEATURES_MAX).contains(n) && !self.shape.is_empty())
            .ok_or(DataError::Contract { reason: "shape must multiply to 1 to 2^28 features" })
    }
}

/// Public constants that bring features to a common scale: `(x - mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalise {
    /// Subtracted first.
    pub mean: f32,
    /// Divided by second; positive.
    pub std: f32,
}

impl Normalise {
    /// Leaves features as they are.
    pub const IDENTITY: Self = Self { mean: 0.0, std: 1.0 };

    /// The normalised value of `x`.
    #[must_use]
    pub fn apply(&self, x: f32) -> f32 {
        (x - self.mean) / self.std
    }
}

impl Default for Normalise {
    fn default() -> Self {
        Self::IDENTITY
    }
}
