//! Normalisation of one example by itself: of groups of channels (Wu & He 2018) or of the values
//! of each position (Ba et al. 2016).

use burn::tensor::Tensor;

use super::{Backward, Builder, Parameter, Signal};
use crate::site::Site;

/// Added to the variance, as in PyTorch.
const EPSILON: f64 = 1e-5;

/// To mean 0 and variance 1, then a trained scale and shift.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    /// Of channels; `None`: of each position's values.
    groups: Option<usize>,
    /// Scale, `[channels]` or `[width]`.
    pub(super) weight: Parameter<1>,
    /// Shift, in the shape of `weight`.
    pub(super) bias: Parameter<1>,
}

impl Norm {
    pub(super) fn new(builder: &Builder<'_>, prefix: &str, groups: Option<usize>) -> Self {
        Self {
            groups,
            weight: builder.parameter(prefix, "weight"),
            bias: builder.parameter(prefix, "bias"),
        }
    }

    pub(super) fn forward(&self, input: Signal) -> Signal {
        let dims = input.dims();
        let (normal, _) = normalise(self.to_groups(input));
        let normal = self.to_values(normal, &dims);
        let output = normal * self.broadcast(&self.weight) + self.broadcast(&self.bias);
        of_values(output, &dims)
    }

    pub(super) fn trace(&self, input: Signal, wants: bool) -> (Signal, Backward) {
        let dims = input.dims();
        let (normal, scale) = normalise(self.to_groups(input));
        let values = self.to_values(normal.clone(), &dims);
        let output = values.clone() * self.broadcast(&self.weight) + self.broadcast(&self.bias);
        let output = of_values(output, &dims);
        let norm = self.clone();
        let back: Backward = Box::new(move |d, sites| {
            let d = norm.to_values(norm.to_groups(d), &dims);
            if norm.weight.trainable {
                // One scale and shift for all positions, or for all of a channel's pixels.
                let over = if norm.groups.is_some() { 2 } else { 1 };
                let each = [dims[0], norm.weight.value.dims()[0]];
                let weights = (d.clone() * values).sum_dim(over).reshape(each);
                sites.push(Site::rows(norm.weight.offset, weights));
                let biases = d.clone().sum_dim(over).reshape(each);
                sites.push(Site::rows(norm.bias.offset, biases));
            }
            wants.then(|| {
                let d = d * norm.broadcast(&norm.weight);
                let d = d.reshape(normal.dims());
                let along = (d.clone() * normal.clone()).mean_dim(2);
                let d = (d.clone() - d.mean_dim(2) - normal * along) * scale;
                of_values(d, &dims)
            })
        });
        (output, back)
    }

    /// What is normalised together along the last dimension.
    fn to_groups(&self, signal: Signal) -> Tensor<3> {
        match self.groups {
            None => signal.sequence(),
            Some(groups) => {
                let image = signal.image();
                let [n, channels, height, width] = image.dims();
                image.reshape([n, groups, channels / groups * height * width])
            }
        }
    }

    /// `[n, positions, width]`, or `[n, channels, pixels]`, of a signal of shape `dims`.
    fn to_values(&self, groups: Tensor<3>, dims: &[usize]) -> Tensor<3> {
        match *dims {
            [n, channels, height, width] => groups.reshape([n, channels, height * width]),
            _ => groups,
        }
    }

    /// In the shape that goes with [`to_values`](Self::to_values).
    fn broadcast(&self, parameter: &Parameter<1>) -> Tensor<3> {
        let [n] = parameter.value.dims();
        let shape = if self.groups.is_some() { [1, n, 1] } else { [1, 1, n] };
        parameter.value.clone().reshape(shape)
    }
}

/// A signal of shape `dims`.
fn of_values(values: Tensor<3>, dims: &[usize]) -> Signal {
    let n = values.dims()[0];
    let n_values: usize = dims[1..].iter().product();
    Signal::of_dims(values.reshape([n, n_values]), dims)
}

/// `input` with mean 0 and variance 1 along the last dimension, and what it was multiplied by,
/// `[n, groups, 1]`.
fn normalise(input: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let centred = input.clone() - input.mean_dim(2);
    let variance = (centred.clone() * centred.clone()).mean_dim(2);
    let scale = (variance + EPSILON).sqrt().recip();
    (centred * scale.clone(), scale)
}
