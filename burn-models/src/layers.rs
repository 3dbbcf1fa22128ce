//! The declared layers: what each computes, and for book-keeping how it goes back.
//!
//! Each layer has two ways. [`Operation::forward`] is ordinary arithmetic, which burn's autodiff can
//! differentiate. [`Operation::trace`] computes the same and gives a [`Backward`], written out here:
//! from the loss's gradient with respect to the layer's output it makes that with respect to its
//! input, and leaves a [`Site`] for each trained tensor. Nothing is tracked then, no weight gradient
//! is formed, and nothing is computed for what is frozen. The tests hold the two against each other.

mod activation;
mod attention;
mod conv;
mod linear;
mod max_pool;
mod norm;
mod sequence;
mod standardise;

use std::collections::BTreeMap;

use burn::tensor::{Gradients, Tensor, TensorData};
use comity_federation::{Layer, Manifest};

use crate::site::Site;
use crate::{Device, model::read};

use attention::Attention;
use conv::{Conv2d, Pool};
use linear::Linear;
use norm::Norm;
use sequence::Embedding;
use standardise::Standardise;

/// What flows between layers, and its gradient: `[n, …]` with one example a row.
#[derive(Clone)]
pub(crate) enum Signal {
    /// `[n, n_values]`.
    Flat(Tensor<2>),
    /// `[n, positions, n_values]`.
    Sequence(Tensor<3>),
    /// `[n, channels, height, width]`.
    Image(Tensor<4>),
}

/// From the gradient of a layer's output to that of its input, if that was asked for; leaves sites.
pub(crate) type Backward = Box<dyn FnOnce(Signal, &mut Vec<Site>) -> Option<Signal>>;

/// One tensor of a model, in the manifest's shape.
#[derive(Clone, Debug)]
pub(crate) struct Parameter<const D: usize> {
    pub(crate) value: Tensor<D>,
    /// Where it begins among all of the model's parameters.
    pub(crate) offset: usize,
    pub(crate) trainable: bool,
}

/// A parameter of some rank.
pub(crate) enum ParameterMut<'a> {
    One(&'a mut Parameter<1>),
    Two(&'a mut Parameter<2>),
    Four(&'a mut Parameter<4>),
}

/// A layer with its tensors.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a handful a model, never moved in bulk")]
pub(crate) enum Operation {
    Linear(Linear),
    Conv2d(Conv2d),
    Pool(Pool),
    Norm(Norm),
    Standardise(Standardise),
    Embedding(Embedding),
    PositionEmbedding(Parameter<2>),
    Attention(Box<Attention>),
    Residual(Vec<Self>),
    /// Layers that are frozen or local: what that means stands in the manifest.
    Inside(Vec<Self>),
    MeanPool,
    Relu,
    Tanh,
    Gelu,
    Flatten,
}

/// Makes layers with the tensors of a manifest.
pub(crate) struct Builder<'a> {
    /// Offset and shape by name.
    tensors: BTreeMap<&'a str, (usize, &'a [usize], bool)>,
    /// All parameters.
    values: &'a [f32],
    device: &'a Device,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(manifest: &'a Manifest, values: &'a [f32], device: &'a Device) -> Self {
        let mut offset = 0;
        let tensors = manifest.tensors.iter().map(|tensor| {
            let at = offset;
            offset += tensor.n_elements();
            (tensor.name.as_str(), (at, tensor.shape.as_slice(), tensor.trainable))
        });
        Self { tensors: tensors.collect(), values, device }
    }

    /// The layers from the `first` on, whose tensors' names begin with `prefix`.
    pub(crate) fn layers(&self, layers: &[Layer], first: usize, prefix: &str) -> Vec<Operation> {
        let layers = layers.iter().enumerate().skip(first);
        layers
            .map(|(index, layer)| self.layer(layer, &format!("{prefix}layers.{index}.")))
            .collect()
    }

    fn layer(&self, layer: &Layer, prefix: &str) -> Operation {
        match *layer {
            Layer::Linear { .. } => Operation::Linear(Linear::new(self, prefix, None)),
            Layer::LoraLinear { lora, .. } => {
                Operation::Linear(Linear::new(self, prefix, Some(lora)))
            }
            Layer::Conv2d { kernel, stride, padding, .. } => {
                Operation::Conv2d(Conv2d::new(self, prefix, kernel, stride, padding))
            }
            Layer::MaxPool2d { kernel, stride } => {
                Operation::Pool(Pool { is_max: true, kernel, stride: stride.unwrap_or(kernel) })
            }
            Layer::AvgPool2d { kernel, stride } => {
                Operation::Pool(Pool { is_max: false, kernel, stride: stride.unwrap_or(kernel) })
            }
            Layer::GroupNorm { groups } => Operation::Norm(Norm::new(self, prefix, Some(groups))),
            Layer::Standardise => Operation::Standardise(Standardise::new(self, prefix)),
            Layer::LayerNorm => Operation::Norm(Norm::new(self, prefix, None)),
            Layer::Embedding { .. } => Operation::Embedding(Embedding::new(self, prefix)),
            Layer::PositionEmbedding => {
                Operation::PositionEmbedding(self.parameter(prefix, "weight"))
            }
            Layer::Attention { heads, causal, lora } => {
                Operation::Attention(Box::new(Attention::new(self, prefix, heads, causal, lora)))
            }
            Layer::Residual { ref layers } => Operation::Residual(self.layers(layers, 0, prefix)),
            Layer::Frozen { ref layers } | Layer::Local { ref layers } => {
                Operation::Inside(self.layers(layers, 0, prefix))
            }
            Layer::MeanPool => Operation::MeanPool,
            Layer::Relu => Operation::Relu,
            Layer::Tanh => Operation::Tanh,
            Layer::Gelu => Operation::Gelu,
            Layer::Flatten => Operation::Flatten,
            Layer::Scattering { .. } => {
                unreachable!("ModelSpec::manifest has checked that it comes first")
            }
        }
    }

    fn parameter<const D: usize>(&self, prefix: &str, name: &str) -> Parameter<D> {
        let (offset, shape, trainable) = self
            .tensors
            .get(format!("{prefix}{name}").as_str())
            .copied()
            .expect("a manifest has all tensors of its layers");
        let shape: [usize; D] = shape.try_into().expect("a tensor's rank follows from its layer");
        let n: usize = shape.iter().product();
        let data = TensorData::new(self.values[offset..offset + n].to_vec(), shape);
        Parameter { value: Tensor::from_data(data, self.device), offset, trainable }
    }
}

impl Operation {
    /// The layer's output.
    pub(crate) fn forward(&self, input: Signal) -> Signal {
        match self {
            Self::Linear(linear) => {
                let is_flat = matches!(input, Signal::Flat(_));
                Signal::of_positions(linear.forward(input.sequence()), is_flat)
            }
            Self::Conv2d(conv) => Signal::Image(conv.forward(input.image())),
            Self::Pool(pool) => Signal::Image(pool.forward(input.image())),
            Self::Norm(norm) => norm.forward(input),
            Self::Standardise(layer) => layer.forward(input),
            Self::Embedding(embedding) => Signal::Sequence(embedding.forward(input.rows())),
            Self::PositionEmbedding(weight) => {
                Signal::Sequence(input.sequence() + weight.value.clone().unsqueeze())
            }
            Self::Attention(attention) => Signal::Sequence(attention.forward(input.sequence())),
            Self::Residual(layers) => input.clone().add(forward_all(layers, input)),
            Self::Inside(layers) => forward_all(layers, input),
            Self::MeanPool => Signal::Flat(sequence::mean(input.sequence())),
            Self::Relu => input.map(activation::relu),
            Self::Tanh => input.map(activation::tanh),
            Self::Gelu => input.map(activation::gelu),
            Self::Flatten => Signal::Flat(input.rows()),
        }
    }

    /// The layer's output and the way back. Without `wants` the input's gradient is not computed.
    pub(crate) fn trace(&self, input: Signal, wants: bool) -> (Signal, Backward) {
        match self {
            Self::Linear(linear) => {
                let is_flat = matches!(input, Signal::Flat(_));
                let (output, back) = linear.trace(input.sequence(), wants);
                let back: Backward = Box::new(move |d, sites| {
                    back(d.sequence(), sites).map(|d| Signal::of_positions(d, is_flat))
                });
                (Signal::of_positions(output, is_flat), back)
            }
            Self::Conv2d(conv) => conv.trace(input.image(), wants),
            Self::Pool(pool) => pool.trace(input.image()),
            Self::Norm(norm) => norm.trace(input, wants),
            Self::Standardise(layer) => layer.trace(input, wants),
            Self::Embedding(embedding) => embedding.trace(input.rows()),
            Self::PositionEmbedding(weight) => {
                let output = self.forward(input);
                let (offset, trainable) = (weight.offset, weight.trainable);
                let back: Backward = Box::new(move |d, sites| {
                    if trainable {
                        sites.push(Site::rows(offset, d.clone().rows()));
                    }
                    wants.then_some(d)
                });
                (output, back)
            }
            Self::Attention(attention) => attention.trace(input.sequence(), wants),
            Self::Residual(layers) => {
                let (inside, back) = trace_all(layers, input.clone(), wants);
                let back: Backward = Box::new(move |d, sites| {
                    let inside = back(d.clone(), sites);
                    wants.then(|| d.add(inside.expect("it was asked for")))
                });
                (input.add(inside), back)
            }
            Self::Inside(layers) => trace_all(layers, input, wants),
            Self::MeanPool => {
                let input = input.sequence();
                let dims = input.dims();
                let back: Backward = Box::new(move |d, _| {
                    Some(Signal::Sequence(sequence::mean_back(d.rows(), dims)))
                });
                (Signal::Flat(sequence::mean(input)), back)
            }
            Self::Relu => {
                let output = input.map(activation::relu);
                let saved = output.clone().rows();
                (output, elementwise(move |d| activation::relu_back(d, saved)))
            }
            Self::Tanh => {
                let output = input.map(activation::tanh);
                let saved = output.clone().rows();
                (output, elementwise(move |d| activation::tanh_back(d, saved)))
            }
            Self::Gelu => {
                let saved = input.clone().rows();
                (input.map(activation::gelu), elementwise(move |d| activation::gelu_back(d, saved)))
            }
            Self::Flatten => {
                let dims = input.dims();
                let back: Backward = Box::new(move |d, _| Some(Signal::of_dims(d.rows(), &dims)));
                (Signal::Flat(input.rows()), back)
            }
        }
    }

    /// The layer's tensors.
    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        use ParameterMut::{One, Two};
        match self {
            Self::Linear(linear) => linear.parameters_mut(),
            Self::Conv2d(conv) => conv.parameters_mut(),
            Self::Norm(norm) => vec![One(&mut norm.weight), One(&mut norm.bias)],
            Self::Standardise(layer) => vec![One(&mut layer.mean), One(&mut layer.std)],
            Self::Embedding(embedding) => vec![Two(&mut embedding.weight)],
            Self::PositionEmbedding(weight) => vec![Two(weight)],
            Self::Attention(attention) => attention.parameters_mut(),
            Self::Residual(layers) | Self::Inside(layers) => {
                layers.iter_mut().flat_map(Self::parameters_mut).collect()
            }
            Self::Pool(_)
            | Self::MeanPool
            | Self::Relu
            | Self::Tanh
            | Self::Gelu
            | Self::Flatten => vec![],
        }
    }

    fn has_trainable(&self) -> bool {
        match self {
            Self::Linear(linear) => linear.has_trainable(),
            Self::Conv2d(conv) => conv.weight.trainable,
            Self::Norm(norm) => norm.weight.trainable,
            Self::Embedding(embedding) => embedding.weight.trainable,
            Self::PositionEmbedding(weight) => weight.trainable,
            Self::Attention(attention) => attention.has_trainable(),
            Self::Residual(layers) | Self::Inside(layers) => layers.iter().any(Self::has_trainable),
            Self::Pool(_)
            | Self::Standardise(_)
            | Self::MeanPool
            | Self::Relu
            | Self::Tanh
            | Self::Gelu
            | Self::Flatten => false,
        }
    }
}

/// The output of `layers`, one after the other.
pub(crate) fn forward_all(layers: &[Operation], input: Signal) -> Signal {
    layers.iter().fold(input, |signal, layer| layer.forward(signal))
}

/// The output of `layers`, one after the other, and the way back. What lies before the first
/// trained tensor is not gone back through, unless `wants` asks for the input's gradient.
pub(crate) fn trace_all(
    layers: &[Operation],
    input: Signal,
    mut wants: bool,
) -> (Signal, Backward) {
    let mut signal = input;
    let mut backs = Vec::new();
    for layer in layers {
        if !wants && !layer.has_trainable() {
            signal = layer.forward(signal);
            continue;
        }
        let (output, back) = layer.trace(signal, wants);
        signal = output;
        backs.push(back);
        wants = true;
    }
    let back: Backward = Box::new(move |mut d, sites| {
        for back in backs.into_iter().rev() {
            d = back(d, sites)?;
        }
        Some(d)
    });
    (signal, back)
}

/// The way back through a function of each value by itself.
fn elementwise(back: impl FnOnce(Tensor<2>) -> Tensor<2> + 'static) -> Backward {
    Box::new(move |d, _| Some(d.map(back)))
}

impl Signal {
    /// A batch of examples of shape `input` from its rows, `[n, n_features]`.
    pub(crate) fn of_examples(rows: Tensor<2>, input: &[usize]) -> Self {
        let n = rows.dims()[0];
        match *input {
            [positions, n_values] => Self::Sequence(rows.reshape([n, positions, n_values])),
            [channels, height, width] => Self::Image(rows.reshape([n, channels, height, width])),
            _ => Self::Flat(rows),
        }
    }

    fn dims(&self) -> Vec<usize> {
        match self {
            Self::Flat(tensor) => tensor.dims().to_vec(),
            Self::Sequence(tensor) => tensor.dims().to_vec(),
            Self::Image(tensor) => tensor.dims().to_vec(),
        }
    }

    /// The signal of shape `dims` with these rows.
    fn of_dims(rows: Tensor<2>, dims: &[usize]) -> Self {
        Self::of_examples(rows, &dims[1..])
    }

    /// One row an example.
    pub(crate) fn rows(self) -> Tensor<2> {
        match self {
            Self::Flat(tensor) => tensor,
            Self::Sequence(tensor) => {
                let [n, positions, n_values] = tensor.dims();
                tensor.reshape([n, positions * n_values])
            }
            Self::Image(tensor) => {
                let [n, channels, height, width] = tensor.dims();
                tensor.reshape([n, channels * height * width])
            }
        }
    }

    /// `[n, positions, n_values]`; flat ones have one position.
    fn sequence(self) -> Tensor<3> {
        match self {
            Self::Flat(tensor) => tensor.unsqueeze_dim(1),
            Self::Sequence(tensor) => tensor,
            Self::Image(_) => unreachable!("ModelSpec::manifest has checked each layer's input"),
        }
    }

    /// The reverse of [`sequence`](Self::sequence).
    fn of_positions(tensor: Tensor<3>, is_flat: bool) -> Self {
        if is_flat { Self::Flat(tensor.squeeze_dim(1)) } else { Self::Sequence(tensor) }
    }

    fn image(self) -> Tensor<4> {
        match self {
            Self::Image(tensor) => tensor,
            _ => unreachable!("ModelSpec::manifest has checked each layer's input"),
        }
    }

    /// `function` of the rows, in the same shape.
    fn map(self, function: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        let dims = self.dims();
        Self::of_dims(function(self.rows()), &dims)
    }

    fn add(self, other: Self) -> Self {
        match (self, other) {
            (Self::Flat(one), Self::Flat(other)) => Self::Flat(one + other),
            (Self::Sequence(one), Self::Sequence(other)) => Self::Sequence(one + other),
            (Self::Image(one), Self::Image(other)) => Self::Image(one + other),
            _ => unreachable!("ModelSpec::manifest has checked that a residual keeps its shape"),
        }
    }
}

impl<const D: usize> Parameter<D> {
    fn track(&mut self) {
        let value = self.value.clone().autodiff();
        self.value = if self.trainable { value.require_grad() } else { value };
    }

    fn take_gradient(&self, gradients: &mut Gradients, sum: &mut [f32]) {
        if self.trainable {
            let gradient = self.value.grad_remove(gradients);
            let gradient = read(gradient.expect("the loss depends on each tensor"));
            sum[self.offset..self.offset + gradient.len()].copy_from_slice(&gradient);
        }
    }
}

impl ParameterMut<'_> {
    /// Makes it a leaf that ordinary autodiff tracks, if it is trained.
    pub(crate) fn track(&mut self) {
        match self {
            Self::One(parameter) => parameter.track(),
            Self::Two(parameter) => parameter.track(),
            Self::Four(parameter) => parameter.track(),
        }
    }

    /// Moves its gradient to its part of `sum`, `[n_trainable]`, if it is trained.
    pub(crate) fn take_gradient(&mut self, gradients: &mut Gradients, sum: &mut [f32]) {
        match self {
            Self::One(parameter) => parameter.take_gradient(gradients, sum),
            Self::Two(parameter) => parameter.take_gradient(gradients, sum),
            Self::Four(parameter) => parameter.take_gradient(gradients, sum),
        }
    }
}
