//! The same examples with other labels or with a mark on them: what attackers in simulations train on.

use crate::dataset::Features;
use crate::{DataError, Dataset};

impl Dataset {
    /// The same features under the labels that `label` makes of a row's index and label.
    ///
    /// # Errors
    /// [`DataError::Contract`] if a label is not below the number of classes.
    pub fn relabelled(&self, label: impl Fn(usize, u32) -> u32) -> Result<Self, DataError> {
        let labels = self.labels().iter().enumerate().map(|(row, old)| label(row, *old));
        self.with_labels(labels.collect())
    }

    /// The same examples, of which the first `n` have `value`, as the file has it, at the positions of
    /// an example that are `marked`.
    ///
    /// # Errors
    /// [`DataError::Contract`] if `value` is none that the features can have.
    pub fn stamped(
        &self,
        n: usize,
        marked: impl Fn(usize) -> bool,
        value: f32,
    ) -> Result<Self, DataError> {
        let n_features: usize = self.shape().iter().product();
        let positions: Vec<usize> = (0..n_features).filter(|position| marked(*position)).collect();
        let rows = 0..n.min(self.len());
        let places = rows.flat_map(|row| positions.iter().map(move |p| row * n_features + p));
        let mut features = self.features().clone();
        match &mut features {
            Features::Bytes(bytes) => {
                if value.fract() != 0.0 || !(0.0..=255.0).contains(&value) {
                    return Err(DataError::Contract { reason: "a mark of bytes is 0 to 255" });
                }
                places.for_each(|place| bytes[place] = value as u8);
            }
            Features::Reals(reals) => places.for_each(|place| reals[place] = value),
            Features::Halves(_) => {
                return Err(DataError::Contract { reason: "derived features bear no mark" });
            }
        }
        Ok(self.with_features(self.shape(), features))
    }
}
