//! The plan's declared layers as tensors on a device.
//!
//! [`Model::forward`] can leave a trace for book-keeping: for each layer with parameters its input
//! and a zero *probe* added to its output, whose gradient is the loss's gradient with respect to
//! that output. There is no layer that mixes examples, so none has to be refused.

use burn::tensor::activation;
use burn::tensor::module::{avg_pool2d, conv2d, linear, max_pool2d, unfold4d};
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions, PadMode, UnfoldOptions};
use burn::tensor::{Int, Tensor, TensorData};
use comity_datasets::Batch;
use comity_federation::{Layer, Manifest, ModelSpec, Parameters};

use crate::{Device, TrainError};

/// A model on a device.
#[derive(Clone, Debug)]
pub struct Model {
    /// Those after the front.
    layers: Vec<Operation>,
    /// Shape of one example after the front.
    input: Vec<usize>,
    manifest: Manifest,
    device: Device,
}

/// A layer with its tensors.
#[derive(Clone, Debug)]
enum Operation {
    /// `weight`: `[n_in, n_out]`, the transpose of the canonical layout.
    Linear {
        weight: Tensor<2>,
        bias: Tensor<1>,
    },
    /// `weight`: `[n_out, n_in, kernel, kernel]`.
    Conv2d {
        weight: Tensor<4>,
        bias: Tensor<1>,
        window: Window,
    },
    MaxPool2d {
        kernel: usize,
        stride: usize,
    },
    AvgPool2d {
        kernel: usize,
        stride: usize,
    },
    Relu,
    Tanh,
    Flatten,
}

/// How a convolution's square kernel moves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

/// What book-keeping needs to know of one pass through one layer with parameters.
#[expect(clippy::large_enum_variant, reason = "one a layer and pass, never moved in bulk")]
pub(crate) enum Trace {
    /// `input`: `[n, n_in]`; `probe`: `[n, n_out]`.
    Linear { input: Tensor<2>, probe: Tensor<2> },
    /// `input`: `[n, n_in, height, width]`; `columns`: its windows, if they were needed already;
    /// `probe`: `[n, n_out, height, width]`.
    Conv2d { input: Tensor<4>, columns: Option<Tensor<3>>, probe: Tensor<4>, window: Window },
}

/// What flows between layers.
enum Signal {
    Flat(Tensor<2>),
    Image(Tensor<4>),
}

/// One layer's parameters, tracked: weight and bias.
pub(crate) enum Tracked {
    Linear(Tensor<2>, Tensor<1>),
    Conv2d(Tensor<4>, Tensor<1>),
}

impl Model {
    /// The model of `spec` for examples of shape `input`, all parameters zero, on `device`.
    ///
    /// Where `spec` begins with a front (scattering), the model begins after it: features are then
    /// those that the front gives.
    ///
    /// Parameters stay outside of autodiff. Each pass that needs gradients makes leaves of its
    /// own: leaves shared between threads would join their graphs, and burn then refuses the
    /// second backward pass ("graph tape has already been consumed").
    ///
    /// # Errors
    /// [`TrainError::Plan`] if the layers do not fit `input` or `n_classes`.
    pub fn new(
        spec: &ModelSpec,
        input: &[usize],
        n_classes: usize,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let manifest = spec.manifest(input, n_classes)?;
        let device = device.clone().inner();
        let mut tensors = manifest.tensors.iter();
        let mut shapes =
            || tensors.next().map(|t| t.shape.clone()).expect("a manifest has all tensors");
        let n_front = spec.n_front();
        let input = match n_front {
            0 => input.to_vec(),
            n => spec.shapes(input)?[n - 1].clone(),
        };
        let layers = spec.layers[n_front..]
            .iter()
            .map(|layer| match *layer {
                Layer::Linear { .. } => {
                    let (weight, bias) = (shapes(), shapes());
                    Operation::Linear {
                        weight: Tensor::zeros([weight[1], weight[0]], &device),
                        bias: Tensor::zeros([bias[0]], &device),
                    }
                }
                Layer::Conv2d { kernel, stride, padding, .. } => {
                    let (weight, bias) = (shapes(), shapes());
                    Operation::Conv2d {
                        weight: Tensor::zeros([weight[0], weight[1], kernel, kernel], &device),
                        bias: Tensor::zeros([bias[0]], &device),
                        window: Window { kernel, stride, padding },
                    }
                }
                Layer::MaxPool2d { kernel, stride } => {
                    Operation::MaxPool2d { kernel, stride: stride.unwrap_or(kernel) }
                }
                Layer::AvgPool2d { kernel, stride } => {
                    Operation::AvgPool2d { kernel, stride: stride.unwrap_or(kernel) }
                }
                Layer::Relu => Operation::Relu,
                Layer::Tanh => Operation::Tanh,
                Layer::Flatten => Operation::Flatten,
                Layer::Scattering { .. } => {
                    unreachable!("ModelSpec::manifest has checked that it comes first")
                }
            })
            .collect();
        Ok(Self { layers, input, manifest, device })
    }

    /// The model's tensors, in the order of [`Parameters`].
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the model is.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of features of one example, after the front.
    #[must_use]
    pub fn n_features(&self) -> usize {
        self.input.iter().product()
    }

    /// Sets all parameters.
    ///
    /// # Errors
    /// [`TrainError::Parameters`] if their number is another; the model is then unchanged.
    pub fn load(&mut self, parameters: &Parameters) -> Result<(), TrainError> {
        self.load_values(parameters.values())
    }

    pub(crate) fn load_values(&mut self, values: &[f32]) -> Result<(), TrainError> {
        let expected = self.manifest.n_parameters();
        if values.len() != expected {
            return Err(TrainError::Parameters { expected, got: values.len() });
        }
        let device = self.device.clone();
        let mut rest = values;
        let mut take = |n: usize| {
            let (taken, after) = rest.split_at(n);
            rest = after;
            taken.to_vec()
        };
        for layer in &mut self.layers {
            match layer {
                Operation::Linear { weight, bias } => {
                    let [n_in, n_out] = weight.dims();
                    let data = TensorData::new(take(n_in * n_out), [n_out, n_in]);
                    *weight = Tensor::<2>::from_data(data, &device).transpose();
                    *bias = Tensor::from_data(TensorData::new(take(n_out), [n_out]), &device);
                }
                Operation::Conv2d { weight, bias, .. } => {
                    let dims = weight.dims();
                    let data = TensorData::new(take(dims.iter().product()), dims);
                    *weight = Tensor::from_data(data, &device);
                    *bias = Tensor::from_data(TensorData::new(take(dims[0]), [dims[0]]), &device);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All parameters, in the manifest's order.
    #[must_use]
    pub fn parameters(&self) -> Parameters {
        let mut values = Vec::with_capacity(self.manifest.n_parameters());
        for layer in &self.layers {
            match layer {
                Operation::Linear { weight, bias } => {
                    values.extend(read(weight.clone().transpose()));
                    values.extend(read(bias.clone()));
                }
                Operation::Conv2d { weight, bias, .. } => {
                    values.extend(read(weight.clone()));
                    values.extend(read(bias.clone()));
                }
                _ => {}
            }
        }
        Parameters::new(values)
    }

    /// Scores of `features`, `[n, n_features]`, for each class: `[n, n_classes]`.
    #[must_use]
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        self.pass(features, None)
    }

    /// As [`forward`](Self::forward), leaving a trace for each layer with parameters. The
    /// parameters stay untracked.
    pub(crate) fn forward_traced(&self, features: Tensor<2>) -> (Tensor<2>, Vec<Trace>) {
        let mut traces = Vec::new();
        let logits = self.pass(features, Some(&mut traces));
        (logits, traces)
    }

    /// The same model with parameters that ordinary autodiff tracks, and those parameters.
    pub(crate) fn tracked(&self) -> (Self, Vec<Tracked>) {
        let mut model = self.clone();
        let mut tracked = Vec::new();
        for layer in &mut model.layers {
            match layer {
                Operation::Linear { weight, bias } => {
                    *weight = weight.clone().autodiff().require_grad();
                    *bias = bias.clone().autodiff().require_grad();
                    tracked.push(Tracked::Linear(weight.clone(), bias.clone()));
                }
                Operation::Conv2d { weight, bias, .. } => {
                    *weight = weight.clone().autodiff().require_grad();
                    *bias = bias.clone().autodiff().require_grad();
                    tracked.push(Tracked::Conv2d(weight.clone(), bias.clone()));
                }
                _ => {}
            }
        }
        (model, tracked)
    }

    fn pass(&self, features: Tensor<2>, mut traces: Option<&mut Vec<Trace>>) -> Tensor<2> {
        let n = features.dims()[0];
        let mut signal = match *self.input {
            [channels, height, width] => {
                Signal::Image(features.reshape([n, channels, height, width]))
            }
            _ => Signal::Flat(features),
        };
        for layer in &self.layers {
            signal = match (layer, signal) {
                (Operation::Linear { weight, bias }, Signal::Flat(input)) => {
                    let output = linear(input.clone(), weight.clone(), Some(bias.clone()));
                    Signal::Flat(match traces.as_deref_mut() {
                        None => output,
                        Some(traces) => {
                            let (output, probe) = probed(output, traces.is_empty());
                            traces.push(Trace::Linear { input: input.inner(), probe });
                            output
                        }
                    })
                }
                (Operation::Conv2d { weight, bias, window }, Signal::Image(input)) => {
                    Signal::Image(match traces.as_deref_mut() {
                        None => conv(input, weight, bias, *window),
                        Some(traces) => {
                            let is_first = traces.is_empty();
                            let (output, columns) = if is_first {
                                let (output, columns) =
                                    conv_by_columns(input.clone(), weight, bias, *window);
                                (output, Some(columns))
                            } else {
                                (conv(input.clone(), weight, bias, *window), None)
                            };
                            let (output, probe) = probed(output, is_first);
                            traces.push(Trace::Conv2d {
                                input: input.inner(),
                                columns,
                                probe,
                                window: *window,
                            });
                            output
                        }
                    })
                }
                (Operation::MaxPool2d { kernel, stride }, Signal::Image(input)) => {
                    let options = MaxPoolOptions::new([*kernel; 2]).with_stride([*stride; 2]);
                    Signal::Image(max_pool2d(input, options))
                }
                (Operation::AvgPool2d { kernel, stride }, Signal::Image(input)) => {
                    let options = AvgPoolOptions::new([*kernel; 2]).with_stride([*stride; 2]);
                    Signal::Image(avg_pool2d(input, options))
                }
                (Operation::Relu, Signal::Flat(input)) => Signal::Flat(activation::relu(input)),
                (Operation::Relu, Signal::Image(input)) => Signal::Image(activation::relu(input)),
                (Operation::Tanh, Signal::Flat(input)) => Signal::Flat(input.tanh()),
                (Operation::Tanh, Signal::Image(input)) => Signal::Image(input.tanh()),
                (Operation::Flatten, Signal::Image(input)) => {
                    let [n, channels, height, width] = input.dims();
                    Signal::Flat(input.reshape([n, channels * height * width]))
                }
                (Operation::Flatten, signal) => signal,
                _ => unreachable!("ModelSpec::manifest has checked each layer's input"),
            };
        }
        match signal {
            Signal::Flat(logits) => logits,
            Signal::Image(_) => unreachable!("ModelSpec::manifest has checked the last layer"),
        }
    }

    /// The batch's features on the model's device, `[n, n_features]`.
    ///
    /// # Errors
    /// [`TrainError::Features`] if the examples have another size than the model's input.
    pub(crate) fn features(&self, batch: &Batch) -> Result<Tensor<2>, TrainError> {
        let n = batch.labels.len();
        let expected = self.n_features();
        if batch.features.len() != n * expected {
            return Err(TrainError::Features { expected, got: batch.features.len() / n.max(1) });
        }
        let data = TensorData::new(batch.features.clone(), [n, expected]);
        Ok(Tensor::from_data(data, &self.device))
    }

    /// The batch's labels on the model's device, `[n, 1]`.
    pub(crate) fn labels(&self, batch: &Batch) -> Tensor<2, Int> {
        let labels: Vec<i32> = batch.labels.iter().map(|label| *label as i32).collect();
        Tensor::from_data(TensorData::new(labels, [batch.labels.len(), 1]), &self.device)
    }
}

impl Window {
    pub(crate) fn options(self) -> ConvOptions<2> {
        ConvOptions::new([self.stride; 2], [self.padding; 2], [1, 1], 1)
    }

    /// The windows of `input`, `[n, n_in, h, w]`, as columns `[n, n_in * kernel², n_positions]`.
    pub(crate) fn unfold(self, input: Tensor<4>) -> Tensor<3> {
        // burn unfolds a padded input by a convolution with a kernel of ones and zeros, which
        // costs more than the layer itself; without padding it only rearranges.
        let p = self.padding;
        let input = if p == 0 { input } else { input.pad((p, p, p, p), PadMode::Constant(0.0)) };
        unfold4d(input, [self.kernel; 2], UnfoldOptions::new([self.stride; 2], [0, 0], [1, 1]))
    }
}

fn conv(input: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, window: Window) -> Tensor<4> {
    conv2d(input, weight.clone(), Some(bias.clone()), window.options())
}

/// The convolution and the columns of its input, `[n, n_in * kernel², n_positions]`, which
/// book-keeping needs anyway. Only for the first layer: burn would go back through it slowly.
fn conv_by_columns(
    input: Tensor<4>,
    weight: &Tensor<4>,
    bias: &Tensor<1>,
    window: Window,
) -> (Tensor<4>, Tensor<3>) {
    let [n, _, height, width] = input.dims();
    let side = |side: usize| (side + 2 * window.padding - window.kernel) / window.stride + 1;
    let [n_out, n_in, kernel, _] = weight.dims();
    let columns = window.unfold(input);
    let weight = weight.clone().reshape([1, n_out, n_in * kernel * kernel]);
    let output = weight.matmul(columns.clone()) + bias.clone().reshape([1, n_out, 1]);
    (output.reshape([n, n_out, side(height), side(width)]), columns)
}

/// A layer's output with its probe: a leaf of zeros added to it. The first layer's output depends
/// on nothing that is tracked, so it is a leaf itself and needs no addition.
fn probed<const D: usize>(output: Tensor<D>, is_first: bool) -> (Tensor<D>, Tensor<D>) {
    if is_first {
        let probe = output.autodiff().require_grad();
        (probe.clone(), probe)
    } else {
        let probe = Tensor::zeros(output.dims(), &output.device()).require_grad();
        (output + probe.clone(), probe)
    }
}

/// Cross-entropy of each example, `[n, 1]`, from scores and labels `[n, 1]`.
pub(crate) fn cross_entropy(logits: Tensor<2>, labels: Tensor<2, Int>) -> Tensor<2> {
    activation::log_softmax(logits, 1).gather(1, labels).neg()
}

/// Copies a tensor to memory.
pub(crate) fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("all our tensors are of f32")
}
