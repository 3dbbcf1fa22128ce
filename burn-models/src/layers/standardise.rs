//! Features to a common scale, by means and standard deviations that are frozen tensors: the plan's
//! statistics, not the batch's.

use burn::tensor::Tensor;

use super::{Backward, Builder, Parameter, Signal};

/// `(x - mean) / std`, channel by channel.
#[derive(Clone, Debug)]
pub(crate) struct Standardise {
    /// `[channels]`.
    pub(super) mean: Parameter<1>,
    /// `[channels]`.
    pub(super) std: Parameter<1>,
}

impl Standardise {
    pub(super) fn new(builder: &Builder<'_>, prefix: &str) -> Self {
        Self { mean: builder.parameter(prefix, "mean"), std: builder.parameter(prefix, "std") }
    }

    pub(super) fn forward(&self, input: Signal) -> Signal {
        self.by_channel(input, |values, mean, std| (values - mean) / std)
    }

    pub(super) fn trace(&self, input: Signal, wants: bool) -> (Signal, Backward) {
        let output = self.forward(input);
        let layer = self.clone();
        let back: Backward =
            Box::new(move |d, _| wants.then(|| layer.by_channel(d, |d, _, std| d / std)));
        (output, back)
    }

    /// `map` of values `[n, channels, values]` with means and standard deviations
    /// `[1, channels, 1]`.
    fn by_channel(
        &self,
        signal: Signal,
        map: impl FnOnce(Tensor<3>, Tensor<3>, Tensor<3>) -> Tensor<3>,
    ) -> Signal {
        let dims = signal.dims();
        let [channels] = self.mean.value.dims();
        let rows = signal.rows();
        let [n, n_values] = rows.dims();
        let values = rows.reshape([n, channels, n_values / channels]);
        let constant = |parameter: &Parameter<1>| parameter.value.clone().reshape([1, channels, 1]);
        let mapped = map(values, constant(&self.mean), constant(&self.std));
        Signal::of_dims(mapped.reshape([n, n_values]), &dims)
    }
}
