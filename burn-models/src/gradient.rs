//! The ordinary gradient, for training without differential privacy.

use comity_datasets::Batch;

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
    let features = model.features(batch)?;
    model.check_tokens(batch)?;
    let mut tracked = model.tracked();
    let mut losses = cross_entropy(tracked.forward(features.autodiff()), model.labels(batch));
    if mask.contains(&false) {
        let weights: Vec<f32> = mask.iter().map(|counts| f32::from(u8::from(*counts))).collect();
        losses = losses * Tensor::from_data(TensorData::new(weights, [n, 1]), model.device());
    }
    let mut gradients = losses.sum().backward();
    let mut sum = vec![0.0; model.manifest().n_trainable()];
    for mut parameter in tracked.parameters_mut() {
        parameter.take_gradient(&mut gradients, &mut sum);
    }
    Ok(sum)
}
