//! Linear maps, trained or frozen with a trained low-rank change.

use burn::tensor::Tensor;
use burn::tensor::module::linear;
use comity_federation::Lora;

use super::{Builder, Parameter, ParameterMut};
use crate::site::Site;

/// From `[n, positions, n_in]` to `[n, positions, n_out]`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `[n_out, n_in]`.
    weight: Parameter<2>,
    /// `[n_out]`.
    bias: Parameter<1>,
    change: Option<Change>,
}

/// `scale · b a`, added to the weight (Hu et al. 2021).
#[derive(Clone, Debug)]
struct Change {
    /// `[rank, n_in]`.
    a: Parameter<2>,
    /// `[n_out, rank]`.
    b: Parameter<2>,
    scale: f64,
}

/// As [`super::Backward`], between sequences.
pub(super) type SequenceBackward = Box<dyn FnOnce(Tensor<3>, &mut Vec<Site>) -> Option<Tensor<3>>>;

impl Linear {
    pub(super) fn new(builder: &Builder<'_>, prefix: &str, lora: Option<Lora>) -> Self {
        Self {
            weight: builder.parameter(prefix, "weight"),
            bias: builder.parameter(prefix, "bias"),
            change: lora.map(|lora| Change {
                a: builder.parameter(prefix, "lora_a"),
                b: builder.parameter(prefix, "lora_b"),
                scale: f64::from(lora.alpha) / lora.rank as f64,
            }),
        }
    }

    pub(super) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        let mut parameters =
            vec![ParameterMut::Two(&mut self.weight), ParameterMut::One(&mut self.bias)];
        if let Some(change) = &mut self.change {
            parameters.extend([ParameterMut::Two(&mut change.a), ParameterMut::Two(&mut change.b)]);
        }
        parameters
    }

    pub(super) fn has_trainable(&self) -> bool {
        self.weight.trainable || self.change.as_ref().is_some_and(|change| change.a.trainable)
    }

    pub(super) fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        self.outputs(input).0
    }

    /// The output, and `scale · input aᵀ` where there is a change, `[n · positions, rank]`.
    fn outputs(&self, input: Tensor<3>) -> (Tensor<3>, Option<Tensor<2>>) {
        let [n, positions, n_in] = input.dims();
        let [n_out, _] = self.weight.value.dims();
        let rows = input.reshape([n * positions, n_in]);
        let weight = self.weight.value.clone().transpose();
        let mut output = linear(rows.clone(), weight, Some(self.bias.value.clone()));
        let low = self.change.as_ref().map(|change| {
            let low = rows.matmul(change.a.value.clone().transpose()) * change.scale;
            output = output.clone() + low.clone().matmul(change.b.value.clone().transpose());
            low
        });
        (output.reshape([n, positions, n_out]), low)
    }

    pub(super) fn trace(&self, input: Tensor<3>, wants: bool) -> (Tensor<3>, SequenceBackward) {
        let [n, positions, n_in] = input.dims();
        let (output, low) = self.outputs(input.clone());
        let linear = self.clone();
        let back: SequenceBackward = Box::new(move |d, sites| {
            let [_, _, n_out] = d.dims();
            let rows = d.clone().reshape([n * positions, n_out]);
            let mut d_input = wants.then(|| rows.clone().matmul(linear.weight.value));
            if let (Some(change), Some(low)) = (linear.change, low) {
                let d_low = rows.matmul(change.b.value) * change.scale;
                if change.a.trainable {
                    let [_, rank] = low.dims();
                    let of_positions = |rows: Tensor<2>| rows.reshape([n, positions, rank]);
                    let d_low = of_positions(d_low.clone());
                    sites.push(Site::product(change.a.offset, input.clone(), d_low, None));
                    let low = of_positions(low);
                    sites.push(Site::product(change.b.offset, low, d.clone(), None));
                }
                d_input = d_input.map(|d_input| d_input + d_low.matmul(change.a.value));
            }
            if linear.weight.trainable {
                let bias = Some(linear.bias.offset);
                sites.push(Site::product(linear.weight.offset, input, d, bias));
            }
            d_input.map(|d_input| d_input.reshape([n, positions, n_in]))
        });
        (output, back)
    }
}
