//! DP-SGD's clipped gradient sum by book-keeping (Bu, Wang, Zha & Karypis 2023,
//! <https://arxiv.org/abs/2210.00038>).
//!
//! The parameters are untracked, so the one backward pass computes only the gradients `d` of the
//! summed loss with respect to each layer's output, and never a weight gradient. Examples do not
//! mix, so row `i` of `d` is example `i`'s own. With a layer's input `a`, example `i`'s weight
//! gradient is `d_i a_iᵀ`; its norm follows from `d` and `a`, and the clipped sum is one product
//! in which `d` is scaled by the clipping factors.
//!
//! The factors follow [`comity_privacy::clip_factor`], computed in `f64` from norms read back.

use burn::tensor::module::conv2d_weight_backward;
use burn::tensor::{Bool, Gradients, Tensor, TensorData};
use comity_datasets::Batch;

use crate::model::{Trace, Window, cross_entropy, read};
use crate::{Model, TrainError};

/// How much dearer it is to write and read back a per-example weight gradient than to multiply
/// and add it: the rate at which memory is exchanged for arithmetic.
const MEMORY_COST: usize = 8;

/// One layer's activations and output gradients, from which both norms and sums follow.
#[expect(clippy::large_enum_variant, reason = "one a layer and pass, never moved in bulk")]
enum Layer {
    /// `a`: `[n, n_in]`, `d`: `[n, n_out]`.
    Linear { a: Tensor<2>, d: Tensor<2> },
    /// `weights`: per-example gradients `[n, n_out * n_in * kernel²]`; `biases`: `[n, n_out]`.
    ConvMaterialised { weights: Tensor<2>, biases: Tensor<2> },
    /// `a`: `[n, n_in, height, width]`, `d`: `[n, n_out, height, width]`.
    ConvGram { a: Tensor<4>, d: Tensor<4>, weight: Tensor<4>, window: Window },
}

/// Sum over the examples of `batch` whose `mask` is true of their gradients, each scaled to L2
/// norm at most `clip_norm_l2`: `[n_parameters]` in the manifest's order.
///
/// An example whose gradient is not finite contributes zero, and so does padding. Sums are of f32;
/// over many microbatches, add the results in f64.
///
/// # Errors
/// [`TrainError::Features`] if the examples do not fit the model.
///
/// # Panics
/// If `mask` has another length than `batch`.
pub fn clipped_gradient_sum(
    model: &Model,
    batch: &Batch,
    mask: &[bool],
    clip_norm_l2: f64,
) -> Result<Vec<f32>, TrainError> {
    let n = batch.labels.len();
    assert_eq!(mask.len(), n, "one mask value an example");
    if n == 0 {
        return Ok(vec![0.0; model.manifest().n_parameters()]);
    }
    let (logits, traces) = model.forward_traced(model.features(batch)?);
    // The sum, never the mean: row i of each probe's gradient must be example i's own gradient.
    let mut gradients = cross_entropy(logits, model.labels(batch)).sum().backward();
    let layers: Vec<Layer> =
        traces.into_iter().map(|trace| Layer::new(trace, &mut gradients)).collect();

    let squared_norms = layers
        .iter()
        .map(Layer::squared_norms)
        .reduce(|sum, layer| sum + layer)
        .expect("a manifest has at least one tensor");
    let squared_norms = read(squared_norms);
    let factors: Vec<f32> = squared_norms
        .iter()
        .zip(mask)
        .map(|(squared_norm, counts)| {
            let norm = f64::from(*squared_norm).sqrt();
            if *counts { comity_privacy::clip_factor(norm, clip_norm_l2) as f32 } else { 0.0 }
        })
        .collect();

    let device = model.device();
    // A factor of zero is not enough where a value is not finite: 0 * NaN is NaN. Dropping rows
    // costs a pass over everything, so it is done only where it is needed.
    let dropped = squared_norms.iter().any(|norm| !norm.is_finite()).then(|| {
        let dropped: Vec<bool> = squared_norms.iter().map(|norm| !norm.is_finite()).collect();
        Tensor::<1, Bool>::from_data(TensorData::new(dropped, [n]), device)
    });
    let factors = Tensor::<1>::from_data(TensorData::new(factors, [n]), device);
    let mut sum = Vec::with_capacity(model.manifest().n_parameters());
    for layer in layers {
        let layer = match &dropped {
            None => layer,
            Some(dropped) => layer.without(dropped),
        };
        layer.push_weighted_sum(&factors, &mut sum);
    }
    Ok(sum)
}

impl Layer {
    fn new(trace: Trace, gradients: &mut Gradients) -> Self {
        match trace {
            Trace::Linear { input, probe } => {
                let d = probe.grad_remove(gradients).expect("the loss depends on each layer");
                Self::Linear { a: input, d }
            }
            Trace::Conv2d { input, columns, weight, probe, window } => {
                let d = probe.grad_remove(gradients).expect("the loss depends on each layer");
                if gram_is_cheaper(weight.dims(), d.dims()) {
                    return Self::ConvGram { a: input, d, weight, window };
                }
                let [n, n_out, height, width] = d.dims();
                let d = d.reshape([n, n_out, height * width]);
                let biases = d.clone().sum_dim(2).reshape([n, n_out]);
                let columns = columns.unwrap_or_else(|| window.unfold(input));
                let n_weights = n_out * columns.dims()[1];
                let weights = d.matmul(columns.swap_dims(1, 2)).reshape([n, n_weights]);
                Self::ConvMaterialised { weights, biases }
            }
        }
    }

    /// Squared L2 norm of each example's gradient of this layer's parameters, `[n, 1]`.
    fn squared_norms(&self) -> Tensor<2> {
        match self {
            // ‖d aᵀ‖² = ‖a‖² ‖d‖², and the bias's gradient is d.
            Self::Linear { a, d } => (squares(a.clone()) + 1.0) * squares(d.clone()),
            Self::ConvMaterialised { weights, biases } => {
                squares(weights.clone()) + squares(biases.clone())
            }
            // ‖d Uᵀ‖² = ⟨UᵀU, dᵀd⟩, of the size of positions instead of weights.
            Self::ConvGram { a, d, window, .. } => {
                let [n, n_out, height, width] = d.dims();
                let columns = window.unfold(a.clone());
                let d = d.clone().reshape([n, n_out, height * width]);
                let biases = squares(d.clone().sum_dim(2).reshape([n, n_out]));
                let gram_a = columns.clone().swap_dims(1, 2).matmul(columns);
                let gram_d = d.clone().swap_dims(1, 2).matmul(d);
                let positions = height * width;
                let weights = (gram_a * gram_d).reshape([n, positions * positions]).sum_dim(1);
                // Rounding may bring a norm that is nearly zero below it. Not `clamp_min`, which
                // would turn NaN into zero and hide that the example must be dropped.
                weights.abs() + biases
            }
        }
    }

    /// The layer with zeros in place of the examples that are `dropped`, `[n]`.
    fn without(self, dropped: &Tensor<1, Bool>) -> Self {
        match self {
            Self::Linear { a, d } => {
                Self::Linear { a: zero_rows(a, dropped), d: zero_rows(d, dropped) }
            }
            Self::ConvMaterialised { weights, biases } => Self::ConvMaterialised {
                weights: zero_rows(weights, dropped),
                biases: zero_rows(biases, dropped),
            },
            Self::ConvGram { a, d, weight, window } => Self::ConvGram {
                a: zero_rows(a, dropped),
                d: zero_rows(d, dropped),
                weight,
                window,
            },
        }
    }

    /// Appends the sum of the examples' gradients weighted by `factors`, `[n]`.
    fn push_weighted_sum(self, factors: &Tensor<1>, sum: &mut Vec<f32>) {
        let n = factors.dims()[0];
        match self {
            Self::Linear { a, d } => {
                let d = d * factors.clone().reshape([n, 1]);
                sum.extend(read(d.clone().transpose().matmul(a)));
                sum.extend(read(d.sum_dim(0)));
            }
            Self::ConvMaterialised { weights, biases } => {
                let factors = factors.clone().reshape([1, n]);
                sum.extend(read(factors.clone().matmul(weights)));
                sum.extend(read(factors.matmul(biases)));
            }
            Self::ConvGram { a, d, weight, window } => {
                let d = d * factors.clone().reshape([n, 1, 1, 1]);
                let bias = d.clone().sum_dim(0).sum_dim(2).sum_dim(3);
                sum.extend(read(conv2d_weight_backward(a, weight, d, window.options())));
                sum.extend(read(bias));
            }
        }
    }
}

/// Whether a convolution's norms cost less by Gram matrices of its positions than by writing out
/// each example's weight gradient. `weight`: `[out, in, k, k]`; `output`: `[n, out, h, w]`.
fn gram_is_cheaper(weight: [usize; 4], output: [usize; 4]) -> bool {
    let n_positions = output[2] * output[3];
    let n_column: usize = weight[1..].iter().product();
    n_positions * n_positions * (n_column + weight[0]) < MEMORY_COST * weight[0] * n_column
}

/// Sum of squares of each row, `[n, 1]`.
fn squares(rows: Tensor<2>) -> Tensor<2> {
    (rows.clone() * rows).sum_dim(1)
}

/// `tensor` with zeros in place of the examples that are `dropped`, `[n]`.
fn zero_rows<const D: usize>(tensor: Tensor<D>, dropped: &Tensor<1, Bool>) -> Tensor<D> {
    let dims = tensor.dims();
    let mut broadcast = [1; D];
    broadcast[0] = dims[0];
    let mask = dropped.clone().reshape(broadcast).expand(dims);
    let zeros = Tensor::zeros(dims, &tensor.device());
    tensor.mask_where(mask, zeros)
}

#[cfg(test)]
mod tests;
