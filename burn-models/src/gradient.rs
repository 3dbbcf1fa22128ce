//! The ordinary gradient, for training without differential privacy.

use comity_datasets::Batch;

use crate::layers::Operation;
use crate::model::cross_entropy;
use crate::{Model, TrainError};
use burn::tensor::{Tensor, TensorData};

/// Sum of the cross-entropies' gradients over the examples of `batch` whose `mask` is true,
/// `[n_trainable]` in the manifest's order.
///
/// # Errors
/// [`TrainError::Features`] if the examples do not fit the model, [`TrainError::Token`] if a token
/// is none of the vocabulary's.
pub fn gradient_sum(model: &Model, batch: &Batch, mask: &[bool]) -> Result<Vec<f32>, TrainError> {
    let n = batch.labels.len();
    assert_eq!(mask.len(), n, "one mask value an example");
    if n == 0 {
        return Ok(vec![0.0; model.manifest().n_trainable()]);
    }
    model.check_features(batch)?;
    model.check_tokens(batch)?;
    let mut sum = vec![0.0; model.manifest().n_trainable()];
    let done = model.on_cpu(|network, weights, workspace| {
        network.gradient_sum(weights, workspace, &batch.features, &batch.labels, mask, &mut sum);
    });
    if done.is_none() {
        autodiff_gradient_sum(model, batch, mask, &mut sum)?;
    }
    Ok(sum)
}

/// As [`gradient_sum`], by burn's autodiff, written to `sum`.
pub(crate) fn autodiff_gradient_sum(
    model: &Model,
    batch: &Batch,
    mask: &[bool],
    sum: &mut [f32],
) -> Result<(), TrainError> {
    let (scores, mut layers) = model.track(model.features(batch)?);
    let mut losses = cross_entropy(scores, model.labels(batch));
    if mask.contains(&false) {
        let weights: Vec<f32> = mask.iter().map(|counts| f32::from(u8::from(*counts))).collect();
        let weights = TensorData::new(weights, [mask.len(), 1]);
        losses = losses * Tensor::from_data(weights, model.device());
    }
    let mut gradients = losses.sum().backward();
    for mut parameter in layers.iter_mut().flat_map(Operation::parameters_mut) {
        parameter.take_gradient(&mut gradients, sum);
    }
    Ok(())
}
