//! From tokens to sequences and from sequences to one vector.

use burn::tensor::{Int, Tensor};

use super::{Backward, Builder, Parameter, Signal};
use crate::site::Site;

/// From tokens, `[n, positions]`, to `[n, positions, width]`.
#[derive(Clone, Debug)]
pub(crate) struct Embedding {
    /// `[vocabulary, width]`.
    pub(super) weight: Parameter<2>,
}

impl Embedding {
    pub(super) fn new(builder: &Builder<'_>, prefix: &str) -> Self {
        Self { weight: builder.parameter(prefix, "weight") }
    }

    pub(super) fn forward(&self, tokens: Tensor<2>) -> Tensor<3> {
        let (indices, bad) = self.indices(tokens);
        self.vectors(&indices) + bad
    }

    /// The input has no gradient: tokens are given.
    pub(super) fn trace(&self, tokens: Tensor<2>) -> (Signal, Backward) {
        let (indices, bad) = self.indices(tokens);
        let output = self.vectors(&indices) + bad.clone();
        let (offset, trainable) = (self.weight.offset, self.weight.trainable);
        let vocabulary = self.weight.value.dims()[0];
        let back: Backward = Box::new(move |d, sites| {
            if trainable {
                // A layer above may have hidden that a token is bad; the norm must not.
                sites.push(Site::lookup(offset, indices, d.sequence() + bad, vocabulary));
            }
            None
        });
        (Signal::Sequence(output), back)
    }

    fn vectors(&self, indices: &Tensor<2, Int>) -> Tensor<3> {
        let [n, positions] = indices.dims();
        let [_, width] = self.weight.value.dims();
        let flat = indices.clone().reshape([n * positions]);
        self.weight.value.clone().select(0, flat).reshape([n, positions, width])
    }

    /// Indices within the table, and NaN where a token is none of `0..vocabulary`, zero elsewhere,
    /// `[n, positions, 1]`: such an example is dropped as any other that is not finite.
    fn indices(&self, tokens: Tensor<2>) -> (Tensor<2, Int>, Tensor<3>) {
        let last = self.weight.value.dims()[0] - 1;
        let near = tokens.clone().clamp(0.0, last as f64).floor();
        let valid = tokens.equal(near.clone());
        let bad = valid.clone().float().recip() * 0.0;
        (near.mask_fill(valid.bool_not(), 0.0).int(), bad.unsqueeze_dim(2))
    }
}

/// Mean over the positions of `[n, positions, width]`, `[n, width]`.
pub(super) fn mean(input: Tensor<3>) -> Tensor<2> {
    input.mean_dim(1).squeeze_dim(1)
}

/// The way back of [`mean`] to an input of `dims`.
pub(super) fn mean_back(d: Tensor<2>, dims: [usize; 3]) -> Tensor<3> {
    (d * (1.0 / dims[1] as f64)).unsqueeze_dim::<3>(1).expand(dims)
}
