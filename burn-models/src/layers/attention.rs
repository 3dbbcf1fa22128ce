//! Multi-head self-attention (Vaswani et al. 2017) by its four linear maps.

use burn::tensor::{Tensor, activation};
use comity_federation::Lora;

use super::linear::Linear;
use super::{Backward, Builder, ParameterMut, Signal};

/// From `[n, positions, width]` to the same shape.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
    causal: bool,
}

impl Attention {
    pub(super) fn new(
        builder: &Builder<'_>,
        prefix: &str,
        heads: usize,
        causal: bool,
        lora: Option<Lora>,
    ) -> Self {
        let linear = |name: &str| Linear::new(builder, &format!("{prefix}{name}."), lora);
        Self {
            query: linear("query"),
            key: linear("key"),
            value: linear("value"),
            out: linear("out"),
            heads,
            causal,
        }
    }

    pub(super) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        [&mut self.query, &mut self.key, &mut self.value, &mut self.out]
            .into_iter()
            .flat_map(Linear::parameters_mut)
            .collect()
    }

    pub(super) fn has_trainable(&self) -> bool {
        self.query.has_trainable()
    }

    pub(super) fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        let query = self.split(self.query.forward(input.clone()));
        let key = self.split(self.key.forward(input.clone()));
        let value = self.split(self.value.forward(input));
        self.out.forward(join(self.weights(query, key).matmul(value)))
    }

    pub(super) fn trace(&self, input: Tensor<3>, wants: bool) -> (Signal, Backward) {
        let (query, query_back) = self.query.trace(input.clone(), wants);
        let (key, key_back) = self.key.trace(input.clone(), wants);
        let (value, value_back) = self.value.trace(input, wants);
        let [query, key, value] = [query, key, value].map(|tensor| self.split(tensor));
        let weights = self.weights(query.clone(), key.clone());
        let (output, out_back) = self.out.trace(join(weights.clone().matmul(value.clone())), true);
        let attention = self.clone();
        let back: Backward = Box::new(move |d, sites| {
            let d = out_back(d.sequence(), sites).expect("it was asked for");
            let d = attention.split(d);
            let d_value = weights.clone().swap_dims(2, 3).matmul(d.clone());
            let d_weights = d.matmul(value.swap_dims(2, 3));
            // Through softmax: each row's mean under its own weights goes.
            let product = d_weights * weights.clone();
            let d_scores = product.clone() - weights * product.sum_dim(3);
            let d_scores = d_scores * attention.scale(&query);
            let d_query = d_scores.clone().matmul(key);
            let d_key = d_scores.swap_dims(2, 3).matmul(query);
            let d_query = query_back(join(d_query), sites);
            let d_key = key_back(join(d_key), sites);
            let d_value = value_back(join(d_value), sites);
            Some(Signal::Sequence(d_query? + d_key? + d_value?))
        });
        (Signal::Sequence(output), back)
    }

    /// `[n, positions, width]` to `[n, heads, positions, width / heads]`.
    fn split(&self, tensor: Tensor<3>) -> Tensor<4> {
        let [n, positions, width] = tensor.dims();
        tensor.reshape([n, positions, self.heads, width / self.heads]).swap_dims(1, 2)
    }

    fn scale(&self, query: &Tensor<4>) -> f64 {
        1.0 / (query.dims()[3] as f64).sqrt()
    }

    /// Each head's weights, `[n, heads, positions, positions]`, rows of sum 1.
    fn weights(&self, query: Tensor<4>, key: Tensor<4>) -> Tensor<4> {
        let scale = self.scale(&query);
        let mut scores = query.matmul(key.swap_dims(2, 3)) * scale;
        if self.causal {
            let [_, _, positions, _] = scores.dims();
            let zeros = Tensor::<2>::zeros([positions, positions], &scores.device());
            let later = (zeros + f32::NEG_INFINITY).triu(1);
            // Not a product with -inf: below the diagonal that would be NaN.
            scores = scores + later.unsqueeze();
        }
        activation::softmax(scores, 3)
    }
}

/// The reverse of `split`.
fn join(tensor: Tensor<4>) -> Tensor<3> {
    let [n, heads, positions, width] = tensor.dims();
    tensor.swap_dims(1, 2).reshape([n, positions, heads * width])
}
