//! The ordinary gradient, for training without differential privacy.

use comity_datasets::Batch;

use crate::model::{Tracked, cross_entropy, read};
use crate::{Model, TrainError};
use burn::tensor::{Tensor, TensorData};

/// Sum of the cross-entropies' gradients over the examples of `batch` whose `mask` is true,
/// `[n_parameters]` in the manifest's order.
///
/// # Errors
/// [`TrainError::Features`] if the examples do not fit the model.
pub fn gradient_sum(model: &Model, batch: &Batch, mask: &[bool]) -> Result<Vec<f32>, TrainError> {
    let n = batch.labels.len();
    assert_eq!(mask.len(), n, "one mask value an example");
    if n == 0 {
        return Ok(vec![0.0; model.manifest().n_parameters()]);
    }
    let features = model.features(batch)?;
    let (model_tracked, tracked) = model.tracked();
    let mut losses = cross_entropy(model_tracked.forward(features), model.labels(batch));
    if mask.contains(&false) {
        let weights: Vec<f32> = mask.iter().map(|counts| f32::from(u8::from(*counts))).collect();
        losses = losses * Tensor::from_data(TensorData::new(weights, [n, 1]), model.device());
    }
    let mut gradients = losses.sum().backward();
    let mut sum = Vec::with_capacity(model.manifest().n_parameters());
    for tensors in tracked {
        let bias = match tensors {
            Tracked::Linear(weight, bias) => {
                let gradient = weight.grad_remove(&mut gradients);
                sum.extend(read(gradient.expect("the loss depends on each weight").transpose()));
                bias
            }
            Tracked::Conv2d(weight, bias) => {
                let gradient = weight.grad_remove(&mut gradients);
                sum.extend(read(gradient.expect("the loss depends on each weight")));
                bias
            }
        };
        sum.extend(read(bias.grad_remove(&mut gradients).expect("the loss depends on each bias")));
    }
    Ok(sum)
}
