//! A model's front: layers without parameters whose output depends on an example alone, computed
//! once a data set instead of once a step.
//!
//! Their filters are fixed before any data are seen and each example's features are computed from
//! that example only, so what DP-SGD promises for the features it promises for the records.

use std::sync::Arc;

use comity_datasets::{Batch, Dataset, Normalise};
use comity_federation::{Layer, ModelSpec};

use crate::TrainError;
use crate::scattering::Scattering;

/// Examples as the first layer after the front takes them.
pub(crate) enum Examples<'a> {
    /// There is no front.
    Rows(&'a Dataset, Normalise),
    /// After the front, kept beside the data set.
    Features(Arc<Dataset>),
}

impl<'a> Examples<'a> {
    /// The examples of `dataset` behind the front of `spec`.
    ///
    /// # Errors
    /// [`TrainError::Plan`] if the layers do not fit the data.
    pub(crate) fn new(
        spec: &ModelSpec,
        dataset: &'a Dataset,
        normalise: Normalise,
    ) -> Result<Self, TrainError> {
        let shapes = spec.shapes(dataset.shape())?;
        let Some(&Layer::Scattering { scales, angles, norm_groups }) =
            spec.layers[..spec.n_front()].first()
        else {
            return Ok(Self::Rows(dataset, normalise));
        };
        let key = format!("scattering {scales} {angles} {norm_groups:?} of {normalise:?}");
        let front = Scattering::new(scales, angles, norm_groups, dataset.shape());
        Ok(Self::Features(dataset.derived(&key, &shapes[0], |indices| {
            front.features(&dataset.batch(indices, normalise).features)
        })))
    }

    /// The examples at `indices`, in that order.
    pub(crate) fn batch(&self, indices: &[usize]) -> Batch {
        match self {
            Self::Rows(dataset, normalise) => dataset.batch(indices, *normalise),
            Self::Features(dataset) => dataset.batch(indices, Normalise::IDENTITY),
        }
    }
}
