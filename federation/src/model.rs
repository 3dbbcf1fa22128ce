//! A model as data: a list of declared layers, the tensors they need, and how they start.
//!
//! The coordinator never links a tensor library, so shapes and initial values are worked out
//! here; `burn-models` builds the same layers for a device.  Tensor names and layouts are those
//! of a PyTorch `Sequential` (`layers.0.weight`, linear `[out, in]`, conv `[out, in, k, k]`).

use chacha20::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Parameters, PlanError};

/// Most layers in one model, those inside of others included.
const N_LAYERS_MAX: usize = 1024;
/// Most levels of layers inside of others.
const N_LEVELS_MAX: usize = 4;
/// Most tokens of an embedding: features are f32, which hold integers up to here exactly.
const VOCABULARY_MAX: usize = 1 << 24;
/// Most positions of a sequence under attention, which takes memory of their square.
const N_POSITIONS_MAX: usize = 1 << 14;
/// Most parameters in one model: 2^32 of four bytes are 16 GiB.
const N_PARAMETERS_MAX: u64 = 1 << 32;
/// Most starting values that are held at once.
pub const START_VALUES_MAX: usize = 1 << 16;
/// Coarsest scale of a scattering layer: one coefficient to 64 x 64 pixels.
const SCATTERING_SCALES_MAX: usize = 6;
/// Most angles of a scattering layer.
const SCATTERING_ANGLES_MAX: usize = 64;

/// One declared layer. A layer maps an example by itself: none looks at the others in its batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Layer {
    /// Affine map of `[n_in]` to `[out]`, with bias; of each position of `[positions, n_in]`.
    Linear {
        /// Number of outputs.
        out: usize,
    },
    /// As `Linear`, with weight and bias frozen and a trained low-rank change added to the weight:
    /// `W + (alpha / rank) B A` (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>).
    LoraLinear {
        /// Number of outputs.
        out: usize,
        /// The trained change.
        lora: Lora,
    },
    /// 2-D convolution of `[channels, height, width]`, square kernel, with bias.
    Conv2d {
        /// Number of output channels.
        out: usize,
        /// Side of the kernel.
        kernel: usize,
        /// Step between applications.
        #[serde(default = "one")]
        stride: usize,
        /// Zeros added on each side.
        #[serde(default)]
        padding: usize,
    },
    /// Largest value in each square window.
    MaxPool2d {
        /// Side of the window.
        kernel: usize,
        /// Step between windows; absent: `kernel`, so that windows do not overlap.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stride: Option<usize>,
    },
    /// Mean of each square window.
    AvgPool2d {
        /// Side of the window.
        kernel: usize,
        /// Step between windows; absent: `kernel`, so that windows do not overlap.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stride: Option<usize>,
    },
    /// Group normalisation of `[channels, height, width]` (Wu & He 2018): each group of channels to
    /// mean 0 and variance 1, then a trained scale and shift for each channel.
    GroupNorm {
        /// Number of groups; divides the channels.
        groups: usize,
    },
    /// Each channel of `[channels, height, width]`, or each of `[n]`, minus its mean and over its standard
    /// deviation, as the plan's statistics estimate them before training; frozen. First layer, and only
    /// with a `moments` query in `[analytics]`.
    Standardise,
    /// Layer normalisation (Ba et al. 2016) of `[n]` or of each position of `[positions, n]`, with a
    /// trained scale and shift for each of `n`.
    LayerNorm,
    /// A trained vector for each token: `[positions]` of integers to `[positions, out]`. First layer.
    Embedding {
        /// Number of tokens; features are `0..vocabulary`.
        vocabulary: usize,
        /// Length of a vector.
        out: usize,
    },
    /// Adds a trained vector to each position of `[positions, n]`.
    PositionEmbedding,
    /// Multi-head self-attention over `[positions, n]` (Vaswani et al. 2017): linear maps to query,
    /// key and value, softmax(query keyᵀ / √(n / heads)) value in each head, a linear map out.
    Attention {
        /// Number of heads; divides `n`.
        heads: usize,
        /// Whether a position sees itself and earlier ones only.
        #[serde(default)]
        causal: bool,
        /// Freezes the four linear maps and trains this change of each; absent: they are trained.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lora: Option<Lora>,
    },
    /// The input plus what `layers` make of it, which has its shape (He et al. 2016).
    Residual {
        /// Applied in order.
        layers: Vec<Self>,
    },
    /// `layers`, none of which is trained: their parameters stay as the model starts.
    Frozen {
        /// Applied in order.
        layers: Vec<Self>,
    },
    /// `layers`, whose parameters each client trains and keeps for itself: none of them leaves it, and none of
    /// another client's arrives.  Personalisation by local layers: a local head (FedPer, Arivazhagan et al. 2019,
    /// <https://arxiv.org/abs/1912.00818>), or local normalisation (as FedBN, Li et al. 2021,
    /// <https://arxiv.org/abs/2102.07623>, with group or layer normalisation, since batch normalisation mixes
    /// examples).
    Local {
        /// Applied in order.
        layers: Vec<Self>,
    },
    /// Mean over the positions of `[positions, n]`.
    MeanPool,
    /// `max(x, 0)`.
    Relu,
    /// Hyperbolic tangent.
    Tanh,
    /// `x Φ(x)` (Hendrycks & Gimpel 2016), exactly.
    Gelu,
    /// `[channels, height, width]` or `[positions, n]` to one dimension.
    Flatten,
    /// Wavelet scattering of order two (Bruna & Mallat 2013): `[channels, height, width]` to
    /// `[channels * paths, height / 2^scales, width / 2^scales]`, where
    /// `paths = 1 + angles scales + angles² scales (scales − 1) / 2`.
    ///
    /// Fixed filters, nothing learnt from data and no parameters, so its features cost no privacy
    /// (Tramèr & Boneh 2021). Only as the first layer, where it is computed once a data set.
    Scattering {
        /// Number of scales, `J`.
        scales: usize,
        /// Number of angles, `L`.
        angles: usize,
        /// Divides the channels into so many groups, each brought to mean zero and variance one
        /// within each example (Wu & He 2018, without parameters); absent: not done.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        norm_groups: Option<usize>,
    },
}

/// A trained low-rank change of a frozen linear map (Hu et al. 2021).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Rows of `A` and columns of `B`; at most the map's inputs and outputs.
    pub rank: usize,
    /// The change is scaled by `alpha / rank`.
    pub alpha: u32,
}

fn one() -> usize {
    1
}

/// A model as a list of layers; the last one's outputs are the classes' scores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Applied in order.
    #[serde(deserialize_with = "layers")]
    pub layers: Vec<Layer>,
}

/// Reads layers, and says of those that people look for and that cannot be clipped an example at
/// a time what to use instead.
fn layers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Layer>, D::Error> {
    use serde::de::Error;
    let layers = Vec::<serde_json::Value>::deserialize(deserializer)?;
    for layer in &layers {
        refuse_mixing(layer).map_err(D::Error::custom)?;
    }
    layers
        .into_iter()
        .map(|layer| serde_json::from_value(layer).map_err(D::Error::custom))
        .collect()
}

/// Refuses batch normalisation and tied weights, by name, in `layer` and those inside.
fn refuse_mixing(layer: &serde_json::Value) -> Result<(), String> {
    let name = layer.get("type").and_then(serde_json::Value::as_str).unwrap_or_default();
    if name.starts_with("batch_norm") {
        return Err(format!(
            "layer type {name:?} mixes the examples of a batch, so that none has a gradient of its own to clip; use group_norm, or layer_norm in a sequence"
        ));
    }
    for key in ["tie", "tied", "tied_to", "tie_weights", "shared", "shared_with"] {
        if layer.get(key).is_some() {
            return Err(format!(
                "key `{key}` of a layer of type {name:?}: layers that share one tensor are not offered, because the norm of its gradient does not follow from the layers' own norms; give each layer a tensor of its own"
            ));
        }
    }
    let inside = layer.get("layers").and_then(serde_json::Value::as_array);
    inside.into_iter().flatten().try_for_each(refuse_mixing)
}

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Such as `layers.0.weight`.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Whether it is trained and noised; otherwise it stays as it starts.
    pub trainable: bool,
    /// Whether it is trained at each client and kept there; otherwise what is trained is sent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// Its values at the start.
    pub start: Start,
}

/// A tensor's values at the start.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Uniform in ±1/√fan_in.
    Uniform {
        /// Number of inputs to one output.
        fan_in: usize,
    },
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// All the same.
    Filled {
        /// As what.
        value: f32,
    },
}

impl TensorSpec {
    /// Number of elements.
    #[must_use]
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it is trained and sent.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.trainable && !self.local
    }
}

/// The tensors of a model, in the order in which [`Parameters`] lays them out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Those that are trained and shared, then those that are trained and local, then those that are frozen;
    /// each in the order of the layers, weight before bias. So the shared parameters are the first ones.
    pub tensors: Vec<TensorSpec>,
}

impl Manifest {
    /// Number of parameters, frozen ones included.
    #[must_use]
    pub fn n_parameters(&self) -> usize {
        self.tensors.iter().map(TensorSpec::n_elements).sum()
    }

    /// Number of trained parameters: the first ones of a model's.
    #[must_use]
    pub fn n_trainable(&self) -> usize {
        self.tensors.iter().filter(|tensor| tensor.trainable).map(TensorSpec::n_elements).sum()
    }

    /// Number of parameters that are trained and shared: the first ones of a model's, and all that an update
    /// holds.
    #[must_use]
    pub fn n_shared(&self) -> usize {
        self.tensors.iter().filter(|tensor| tensor.is_shared()).map(TensorSpec::n_elements).sum()
    }

    /// Number of parameters that each client trains and keeps: those behind the shared ones.
    #[must_use]
    pub fn n_local(&self) -> usize {
        self.n_trainable() - self.n_shared()
    }

    /// Starting values, uniform ones in ±1/√fan_in (He et al. 2015 with a = √5, PyTorch's
    /// default) by ChaCha20 from `seed`: the same on every machine.
    #[must_use]
    pub fn initial_parameters(&self, seed: u64) -> Parameters {
        let mut values = Vec::with_capacity(self.n_parameters());
        let Ok(()) = self.initialise(seed, |piece| {
            values.extend_from_slice(piece);
            Ok::<(), std::convert::Infallible>(())
        });
        Parameters::new(values)
    }

    /// Hands the values of [`initial_parameters`](Self::initial_parameters) to `take`, in order and in
    /// pieces of at most [`START_VALUES_MAX`]: a model need not fit into memory to be begun.
    ///
    /// # Errors
    /// The first error of `take`, which is then not called again.
    pub fn initialise<E>(
        &self,
        seed: u64,
        mut take: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut key = blake3::Hasher::new_derive_key("comity initial parameters v1");
        key.update(&seed.to_le_bytes());
        let mut rng = ChaCha20Rng::from_seed(*key.finalize().as_bytes());
        let mut piece = Vec::with_capacity(START_VALUES_MAX);
        for tensor in &self.tensors {
            let mut left = tensor.n_elements();
            while left > 0 {
                let n = left.min(START_VALUES_MAX);
                piece.clear();
                match tensor.start {
                    Start::Zeros => piece.resize(n, 0.0),
                    Start::Ones => piece.resize(n, 1.0),
                    Start::Filled { value } => piece.resize(n, value),
                    Start::Uniform { fan_in } => {
                        let bound = 1.0 / (fan_in as f32).sqrt();
                        // 24 bits make an exact f32 in [0, 1).
                        let unit = |word: u32| (word >> 8) as f32 * (1.0 / 16_777_216.0);
                        piece.extend((0..n).map(|_| (2.0 * unit(rng.next_u32()) - 1.0) * bound));
                    }
                }
                take(&piece)?;
                left -= n;
            }
        }
        Ok(())
    }
}

impl ModelSpec {
    /// How many of the first layers are a front: without parameters and independent of all data but
    /// the example itself, so that their output is computed once a data set.
    #[must_use]
    pub fn n_front(&self) -> usize {
        usize::from(matches!(self.layers.first(), Some(Layer::Scattering { .. })))
    }

    /// Shape after each layer, starting from one example's `input` shape.
    ///
    /// # Errors
    /// [`PlanError::Layer`] names the layer that does not fit and why.
    pub fn shapes(&self, input: &[usize]) -> Result<Vec<Vec<usize>>, PlanError> {
        let n_layers = n_layers(&self.layers, 0).ok_or_else(|| {
            PlanError::invalid(
                "model.layers",
                format!("layers are inside of one another to at most {N_LEVELS_MAX} levels"),
            )
        })?;
        if self.layers.is_empty() || n_layers > N_LAYERS_MAX {
            return Err(PlanError::invalid(
                "model.layers",
                format!("{n_layers} layers; a model has 1 to {N_LAYERS_MAX}"),
            ));
        }
        let mut shape = input.to_vec();
        let mut shapes = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let fits = match layer {
                Layer::Scattering { .. } if index > 0 => {
                    Err("scattering learns nothing and is computed once: put it first".to_owned())
                }
                Layer::Standardise if index == 0 => Ok(shape.clone()),
                layer => layer.output_shape_at(index, &shape),
            };
            shape =
                fits.map_err(|reason| PlanError::Layer { index, input: shape.clone(), reason })?;
            shapes.push(shape.clone());
        }
        Ok(shapes)
    }

    /// Number of tokens, where features are tokens: integers that must not be normalised.
    #[must_use]
    pub fn vocabulary(&self) -> Option<usize> {
        self.layers.first().and_then(Layer::vocabulary)
    }

    /// The model's tensors for examples of shape `input` and `n_classes` classes.
    ///
    /// # Errors
    /// [`PlanError::Layer`] if a layer does not fit, or the last does not end in `[n_classes]`.
    pub fn manifest(&self, input: &[usize], n_classes: usize) -> Result<Manifest, PlanError> {
        let shapes = self.shapes(input)?;
        let last = shapes.last().expect("shapes refuses an empty model");
        if *last != [n_classes] {
            return Err(PlanError::invalid(
                "model.layers",
                format!(
                    "the last layer gives shape {last:?}, but the data have {n_classes} classes: end with linear out = {n_classes}"
                ),
            ));
        }
        let mut tensors = Vec::new();
        let mut before = input.to_vec();
        let mut n_parameters: u64 = 0;
        for (index, (layer, after)) in self.layers.iter().zip(shapes).enumerate() {
            let first = tensors.len();
            layer.push_tensors(&before, &format!("layers.{index}"), true, &mut tensors);
            n_parameters = tensors[first..]
                .iter()
                .try_fold(n_parameters, |sum, tensor| {
                    let sides = tensor.shape.iter().map(|side| *side as u64);
                    let n = sides.into_iter().try_fold(1, u64::checked_mul)?;
                    sum.checked_add(n).filter(|n| *n <= N_PARAMETERS_MAX)
                })
                .ok_or_else(|| PlanError::Layer {
                    index,
                    input: before.clone(),
                    reason: format!("the model would pass {N_PARAMETERS_MAX} parameters"),
                })?;
            before = after;
        }
        if !tensors.iter().any(|tensor| tensor.trainable) {
            return Err(PlanError::invalid(
                "model.layers",
                "no layer has parameters to train".into(),
            ));
        }
        if !tensors.iter().any(TensorSpec::is_shared) {
            return Err(PlanError::invalid(
                "model.layers",
                "every layer that is trained is local, so there is nothing to federate; take at least one out of \
                 its local layer"
                    .into(),
            ));
        }
        // Stable, so that the order of the layers remains within each kind.
        tensors.sort_by_key(|tensor| (!tensor.trainable, tensor.local));
        Ok(Manifest { tensors })
    }
}

/// Number of layers, those inside of others included; `None` if they are too deep.
fn n_layers(layers: &[Layer], level: usize) -> Option<usize> {
    if level > N_LEVELS_MAX {
        return None;
    }
    layers.iter().try_fold(layers.len(), |sum, layer| match layer {
        Layer::Residual { layers } | Layer::Frozen { layers } | Layer::Local { layers } => {
            Some(sum + n_layers(layers, level + 1)?)
        }
        _ => Some(sum),
    })
}

impl Layer {
    /// Number of tokens, where the layer reads tokens.
    fn vocabulary(&self) -> Option<usize> {
        match self {
            Self::Embedding { vocabulary, .. } => Some(*vocabulary),
            Self::Frozen { layers } | Self::Local { layers } => {
                layers.first().and_then(Self::vocabulary)
            }
            _ => None,
        }
    }

    /// As [`output_shape`](Self::output_shape), of the layer at `index` of several.
    fn output_shape_at(&self, index: usize, input: &[usize]) -> Result<Vec<usize>, String> {
        if index > 0 && self.vocabulary().is_some() {
            return Err("an embedding reads tokens, so it is the first layer".to_owned());
        }
        self.output_shape(input)
    }

    /// Shape of the output for an input of shape `input`, or why it does not fit.
    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, String> {
        let image = || match *input {
            [channels, height, width] => Ok((channels, height, width)),
            _ => Err("it needs [channels, height, width]; remove an earlier flatten".to_owned()),
        };
        let sequence = || match *input {
            [positions, n] => Ok((positions, n)),
            _ => Err("it needs [positions, n]; put an embedding before it".to_owned()),
        };
        let windows = |side: usize, kernel: usize, stride: usize, padding: usize| {
            if kernel == 0
                || stride == 0
                || kernel > 4096
                || stride > 4096
                || padding >= kernel.max(1)
            {
                return Err(format!(
                    "kernel {kernel}, stride {stride}, padding {padding}: kernel and stride are 1 to 4096, padding less than kernel"
                ));
            }
            (side + 2 * padding)
                .checked_sub(kernel)
                .map(|room| room / stride + 1)
                .ok_or_else(|| format!("kernel {kernel} is larger than the image side {side}"))
        };
        match *self {
            Self::Linear { out } => match *input {
                _ if out == 0 => Err("out must be at least 1".to_owned()),
                [_] => Ok(vec![out]),
                [positions, _] => Ok(vec![positions, out]),
                _ => Err("it needs [n] or [positions, n]; put a flatten before it".to_owned()),
            },
            Self::Standardise => {
                Err("it brings the data's own features to a common scale: put it first".to_owned())
            }
            Self::LoraLinear { out, lora } => {
                let shape = Self::Linear { out }.output_shape(input)?;
                lora.check(*input.last().expect("linear has checked it"), out)?;
                Ok(shape)
            }
            Self::Conv2d { out, kernel, stride, padding } => {
                let (_, height, width) = image()?;
                if out == 0 {
                    return Err("out must be at least 1".to_owned());
                }
                Ok(vec![
                    out,
                    windows(height, kernel, stride, padding)?,
                    windows(width, kernel, stride, padding)?,
                ])
            }
            Self::MaxPool2d { kernel, stride } | Self::AvgPool2d { kernel, stride } => {
                let (channels, height, width) = image()?;
                let stride = stride.unwrap_or(kernel);
                Ok(vec![
                    channels,
                    windows(height, kernel, stride, 0)?,
                    windows(width, kernel, stride, 0)?,
                ])
            }
            Self::Scattering { scales, angles, norm_groups } => {
                let (channels, height, width) = image()?;
                if !(1..=SCATTERING_SCALES_MAX).contains(&scales)
                    || !(1..=SCATTERING_ANGLES_MAX).contains(&angles)
                {
                    return Err(format!(
                        "scales {scales}, angles {angles}: use 1 to {SCATTERING_SCALES_MAX} and 1 to {SCATTERING_ANGLES_MAX}"
                    ));
                }
                if height.min(width) <= 1 << scales {
                    return Err(format!(
                        "{scales} scales need images of more than {} pixels a side",
                        1 << scales
                    ));
                }
                let paths = 1 + angles * scales + angles * angles * scales * (scales - 1) / 2;
                let channels = channels
                    .checked_mul(paths)
                    .ok_or_else(|| "its number of channels overflows".to_owned())?;
                if norm_groups.is_some_and(|n| n == 0 || channels % n != 0) {
                    return Err(format!("norm_groups must divide its {channels} channels"));
                }
                Ok(vec![channels, height >> scales, width >> scales])
            }
            Self::GroupNorm { groups } => {
                let (channels, ..) = image()?;
                if groups == 0 || !channels.is_multiple_of(groups) {
                    return Err(format!("groups {groups} must divide the {channels} channels"));
                }
                Ok(input.to_vec())
            }
            Self::LayerNorm => match input.len() {
                1 | 2 => Ok(input.to_vec()),
                _ => Err("it needs [n] or [positions, n]; use group_norm for images".to_owned()),
            },
            Self::Embedding { vocabulary, out } => match *input {
                [positions] if (1..=VOCABULARY_MAX).contains(&vocabulary) && out > 0 => {
                    Ok(vec![positions, out])
                }
                [_] => Err(format!("vocabulary is 1 to {VOCABULARY_MAX} and out at least 1")),
                _ => Err("it needs [positions]: one token a position".to_owned()),
            },
            Self::PositionEmbedding => sequence().map(|_| input.to_vec()),
            Self::Attention { heads, lora, .. } => {
                let (positions, n) = sequence()?;
                if positions > N_POSITIONS_MAX {
                    return Err(format!(
                        "{positions} positions, attention takes {N_POSITIONS_MAX}; cut the sequences"
                    ));
                }
                if heads == 0 || !n.is_multiple_of(heads) {
                    return Err(format!("heads {heads} must divide the {n} values of a position"));
                }
                lora.map_or(Ok(()), |lora| lora.check(n, n))?;
                Ok(input.to_vec())
            }
            Self::Residual { ref layers } => {
                if layers.first().and_then(Self::vocabulary).is_some() {
                    return Err("tokens cannot be added to; put the embedding before it".to_owned());
                }
                let after = output_shape_of_all(layers, input)?;
                if after == input {
                    Ok(after)
                } else {
                    Err(format!("its layers give shape {after:?}; they must give the input's"))
                }
            }
            Self::Frozen { ref layers } | Self::Local { ref layers } => {
                output_shape_of_all(layers, input)
            }
            Self::MeanPool => sequence().map(|(_, n)| vec![n]),
            Self::Relu | Self::Tanh | Self::Gelu => Ok(input.to_vec()),
            Self::Flatten => input
                .iter()
                .try_fold(1usize, |product, side| product.checked_mul(*side))
                .map(|n| vec![n])
                .ok_or_else(|| "its size overflows".to_owned()),
        }
    }

    /// Appends the layer's tensors for an input of shape `input`, which fits.
    fn push_tensors(
        &self,
        input: &[usize],
        prefix: &str,
        trainable: bool,
        tensors: &mut Vec<TensorSpec>,
    ) {
        let mut push = |name: &str, shape: &[usize], trainable, start| {
            let name = format!("{prefix}.{name}");
            let shape = shape.to_vec();
            tensors.push(TensorSpec { name, shape, trainable, local: false, start });
        };
        let last = *input.last().expect("no shape is empty");
        match *self {
            Self::Linear { out } => {
                let start = Start::Uniform { fan_in: last };
                push("weight", &[out, last], trainable, start);
                push("bias", &[out], trainable, start);
            }
            Self::LoraLinear { out, lora } => {
                let start = Start::Uniform { fan_in: last };
                push("weight", &[out, last], false, start);
                push("bias", &[out], false, start);
                // B starts at 0, so that the model starts as its base.
                push("lora_a", &[lora.rank, last], trainable, start);
                push("lora_b", &[out, lora.rank], trainable, Start::Zeros);
            }
            Self::Conv2d { out, kernel, .. } => {
                let fan_in = input[0].saturating_mul(kernel * kernel);
                let start = Start::Uniform { fan_in };
                push("weight", &[out, input[0], kernel, kernel], trainable, start);
                push("bias", &[out], trainable, start);
            }
            Self::GroupNorm { .. } => {
                push("weight", &[input[0]], trainable, Start::Ones);
                push("bias", &[input[0]], trainable, Start::Zeros);
            }
            Self::Standardise => {
                push("mean", &[input[0]], false, Start::Zeros);
                push("std", &[input[0]], false, Start::Ones);
            }
            Self::LayerNorm => {
                push("weight", &[last], trainable, Start::Ones);
                push("bias", &[last], trainable, Start::Zeros);
            }
            Self::Embedding { vocabulary, out } => {
                push("weight", &[vocabulary, out], trainable, Start::Uniform { fan_in: out });
            }
            Self::PositionEmbedding => {
                push("weight", input, trainable, Start::Uniform { fan_in: last });
            }
            Self::Attention { lora, .. } => {
                let map = match lora {
                    None => Self::Linear { out: last },
                    Some(lora) => Self::LoraLinear { out: last, lora },
                };
                for name in ["query", "key", "value", "out"] {
                    map.push_tensors(input, &format!("{prefix}.{name}"), trainable, tensors);
                }
            }
            Self::Residual { ref layers }
            | Self::Frozen { ref layers }
            | Self::Local { ref layers } => {
                let trainable = trainable && !matches!(self, Self::Frozen { .. });
                let first = tensors.len();
                let mut shape = input.to_vec();
                for (index, layer) in layers.iter().enumerate() {
                    let prefix = format!("{prefix}.layers.{index}");
                    layer.push_tensors(&shape, &prefix, trainable, tensors);
                    shape = layer.output_shape(&shape).expect("the whole was checked");
                }
                if matches!(self, Self::Local { .. }) {
                    // What is frozen inside of it is as frozen as elsewhere.
                    tensors[first..].iter_mut().for_each(|tensor| tensor.local = tensor.trainable);
                }
            }
            Self::MaxPool2d { .. }
            | Self::AvgPool2d { .. }
            | Self::MeanPool
            | Self::Relu
            | Self::Tanh
            | Self::Gelu
            | Self::Flatten
            | Self::Scattering { .. } => {}
        }
    }
}

/// Shape after `layers`, inside of another layer.
fn output_shape_of_all(layers: &[Layer], input: &[usize]) -> Result<Vec<usize>, String> {
    if layers.is_empty() {
        return Err("it has no layers inside; name at least one".to_owned());
    }
    layers.iter().enumerate().try_fold(input.to_vec(), |shape, (index, layer)| {
        if matches!(layer, Layer::Scattering { .. }) {
            return Err("scattering is not inside of a layer: put it first".to_owned());
        }
        let reason = |reason| format!("layer {index} inside of it, for {shape:?}: {reason}");
        layer.output_shape_at(index, &shape).map_err(reason)
    })
}

impl Lora {
    fn check(self, n_in: usize, n_out: usize) -> Result<(), String> {
        if (1..=n_in.min(n_out)).contains(&self.rank) && self.alpha > 0 {
            return Ok(());
        }
        Err(format!(
            "lora rank {} and alpha {}: rank is 1 to {}, alpha at least 1",
            self.rank,
            self.alpha,
            n_in.min(n_out)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tramer_boneh() -> ModelSpec {
        ModelSpec {
            layers: vec![
                Layer::Conv2d { out: 16, kernel: 8, stride: 2, padding: 2 },
                Layer::Tanh,
                Layer::MaxPool2d { kernel: 2, stride: Some(1) },
                Layer::Conv2d { out: 32, kernel: 4, stride: 2, padding: 0 },
                Layer::Tanh,
                Layer::Flatten,
                Layer::Linear { out: 32 },
                Layer::Tanh,
                Layer::Linear { out: 10 },
            ],
        }
    }

    #[test]
    fn shapes_and_tensors_follow_from_the_layers() {
        let manifest = tramer_boneh().manifest(&[1, 28, 28], 10).unwrap();
        let names: Vec<_> = manifest.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names[..2], ["layers.0.weight", "layers.0.bias"]);
        assert_eq!(manifest.tensors[0].shape, [16, 1, 8, 8]);
        assert_eq!(manifest.tensors[4].shape, [32, 32 * 5 * 5]);
    }

    #[test]
    fn a_layer_that_does_not_fit_is_named() {
        let spec = ModelSpec { layers: vec![Layer::Linear { out: 10 }] };
        let error = spec.manifest(&[1, 28, 28], 10).unwrap_err().to_string();
        assert!(error.contains("layer 0") && error.contains("flatten"), "{error}");
        let spec = ModelSpec { layers: vec![Layer::Flatten, Layer::Linear { out: 9 }] };
        let error = spec.manifest(&[1, 28, 28], 10).unwrap_err().to_string();
        assert!(error.contains("10 classes"), "{error}");
    }

    #[test]
    fn shape_overflow_is_an_error_not_a_panic() {
        let spec =
            ModelSpec { layers: vec![Layer::Linear { out: usize::MAX }, Layer::Linear { out: 2 }] };
        assert!(spec.manifest(&[usize::MAX], 2).is_err());
    }

    #[test]
    fn scattering_comes_first_and_has_the_shape_of_its_paths() {
        let scattering = |scales, angles, norm_groups| ModelSpec {
            layers: vec![
                Layer::Scattering { scales, angles, norm_groups },
                Layer::Flatten,
                Layer::Linear { out: 10 },
            ],
        };
        let spec = scattering(2, 8, Some(27));
        assert_eq!(spec.shapes(&[1, 28, 28]).unwrap()[0], [81, 7, 7]);
        assert_eq!(spec.shapes(&[3, 32, 30]).unwrap()[0], [243, 8, 7]);
        let manifest = spec.manifest(&[1, 28, 28], 10).unwrap();
        assert_eq!((spec.n_front(), manifest.n_parameters()), (1, 10 * 81 * 49 + 10));
        assert_eq!(manifest.tensors[0].name, "layers.2.weight");
        for (scales, angles, groups, expected) in [
            (0, 8, None, "scales 0"),
            (7, 8, None, "scales 7"),
            (2, 0, None, "angles 0"),
            (5, 8, None, "more than 32 pixels"),
            (2, 8, Some(0), "81 channels"),
            (2, 8, Some(28), "81 channels"),
        ] {
            let error = scattering(scales, angles, groups).shapes(&[1, 28, 28]).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let late = ModelSpec {
            layers: vec![
                Layer::Relu,
                Layer::Scattering { scales: 2, angles: 8, norm_groups: None },
            ],
        };
        assert_eq!(late.n_front(), 0);
        assert!(late.shapes(&[1, 28, 28]).unwrap_err().to_string().contains("put it first"));
    }

    #[test]
    fn a_start_in_pieces_is_the_start_drawn_value_by_value() {
        let layers = vec![Layer::LayerNorm, Layer::Linear { out: 311 }, Layer::Linear { out: 3 }];
        let manifest = ModelSpec { layers }.manifest(&[499], 3).unwrap();
        assert!(manifest.tensors.iter().any(|t| t.n_elements() > 2 * START_VALUES_MAX));
        let mut key = blake3::Hasher::new_derive_key("comity initial parameters v1");
        key.update(&7u64.to_le_bytes());
        let mut rng = ChaCha20Rng::from_seed(*key.finalize().as_bytes());
        let mut expected = Vec::new();
        for tensor in &manifest.tensors {
            for _ in 0..tensor.n_elements() {
                expected.push(match tensor.start {
                    Start::Zeros => 0.0,
                    Start::Ones => 1.0,
                    Start::Filled { value } => value,
                    Start::Uniform { fan_in } => {
                        let unit = (rng.next_u32() >> 8) as f32 / 16_777_216.0;
                        (2.0 * unit - 1.0) * (1.0 / (fan_in as f32).sqrt())
                    }
                });
            }
        }
        assert_eq!(manifest.initial_parameters(7).values(), expected);
        let mut n_pieces = 0;
        let stopped = manifest.initialise(7, |piece| {
            assert!(piece.len() <= START_VALUES_MAX);
            n_pieces += 1;
            if n_pieces == 2 { Err("full") } else { Ok(()) }
        });
        assert_eq!((stopped, n_pieces), (Err("full"), 2));
    }

    #[test]
    fn initial_values_depend_on_the_seed_only() {
        let manifest = tramer_boneh().manifest(&[1, 28, 28], 10).unwrap();
        let (a, b) = (manifest.initial_parameters(1), manifest.initial_parameters(1));
        assert_eq!(a.digest(), b.digest());
        assert_ne!(a.digest(), manifest.initial_parameters(2).digest());
        let bound = 1.0 / 8.0;
        assert!(a.values()[..1024].iter().all(|v| v.abs() <= bound));
    }

    #[test]
    fn trained_tensors_come_first_and_frozen_ones_do_not_count() {
        let lora = Lora { rank: 2, alpha: 4 };
        let spec = ModelSpec {
            layers: vec![
                Layer::Frozen { layers: vec![Layer::Linear { out: 6 }, Layer::Tanh] },
                Layer::LoraLinear { out: 5, lora },
                Layer::LayerNorm,
                Layer::Linear { out: 3 },
            ],
        };
        let manifest = spec.manifest(&[4], 3).unwrap();
        let names: Vec<_> = manifest.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "layers.1.lora_a",
                "layers.1.lora_b",
                "layers.2.weight",
                "layers.2.bias",
                "layers.3.weight",
                "layers.3.bias",
                "layers.0.layers.0.weight",
                "layers.0.layers.0.bias",
                "layers.1.weight",
                "layers.1.bias",
            ]
        );
        assert_eq!(manifest.n_trainable(), 2 * 6 + 5 * 2 + 2 * 5 + 3 * 5 + 3);
        assert_eq!(manifest.n_parameters(), manifest.n_trainable() + 6 * 4 + 6 + 5 * 6 + 5);
        let values = manifest.initial_parameters(1);
        assert_eq!(values.values().len(), manifest.n_parameters());
        assert!(values.values()[12..22].iter().all(|v| *v == 0.0), "B starts at zero");
        assert!(values.values()[22..27].iter().all(|v| *v == 1.0), "a scale starts at one");
        let frozen = ModelSpec { layers: vec![Layer::Frozen { layers: spec.layers }] };
        let error = frozen.manifest(&[4], 3).unwrap_err().to_string();
        assert!(error.contains("no layer has parameters to train"), "{error}");
    }

    #[test]
    fn the_sample_transformer_trains_a_small_part() {
        #[derive(Deserialize)]
        struct Sample {
            model: ModelSpec,
        }
        let sample: Sample =
            toml::from_str(include_str!("../../docs/samples/transformer.toml")).unwrap();
        let manifest = sample.model.manifest(&[64], 4).unwrap();
        // LoRA of four maps of attention and two others, three norms, the last layer.
        let lora = 4 * 4 * (64 + 64) + 2 * 4 * (64 + 256);
        assert_eq!(manifest.n_trainable(), lora + 3 * 2 * 64 + 4 * 64 + 4);
        assert!(manifest.n_parameters() > 50 * manifest.n_trainable());
        assert_eq!(sample.model.vocabulary(), Some(4000));
        let json = serde_json::to_vec(&sample.model).unwrap();
        assert_eq!(serde_json::from_slice::<ModelSpec>(&json).unwrap(), sample.model);
    }

    #[test]
    fn what_mixes_examples_or_ties_weights_is_refused_with_the_alternative() {
        for (layers, alternative) in [
            ("{ type = \"batch_norm\" }", "use group_norm"),
            ("{ type = \"batch_norm2d\", momentum = 0.1 }", "use group_norm"),
            ("{ type = \"residual\", layers = [{ type = \"batch_norm\" }] }", "use group_norm"),
            ("{ type = \"linear\", out = 3, tied_to = 0 }", "a tensor of its own"),
            (
                "{ type = \"frozen\", layers = [{ type = \"relu\", tie = 1 }] }",
                "a tensor of its own",
            ),
        ] {
            let text = format!("layers = [{layers}]");
            let error = toml::from_str::<ModelSpec>(&text).unwrap_err().to_string();
            assert!(error.contains(alternative), "{error}");
            let json = serde_json::to_string(&toml::from_str::<toml::Table>(&text).unwrap());
            let error = serde_json::from_str::<ModelSpec>(&json.unwrap()).unwrap_err().to_string();
            assert!(error.contains(alternative), "{error}");
        }
    }

    #[test]
    fn layers_of_sequences_that_do_not_fit_are_refused_with_the_remedy() {
        use Layer::{
            Attention, Embedding, Frozen, GroupNorm, LayerNorm, Linear, MeanPool, Residual,
        };
        let attention = |heads, lora| Attention { heads, causal: false, lora };
        let tokens = Embedding { vocabulary: 9, out: 6 };
        let lora = |rank, alpha| Lora { rank, alpha };
        for (layers, input, part) in [
            (vec![attention(4, None)], vec![5, 6], "heads 4 must divide"),
            (vec![attention(0, None)], vec![5, 6], "heads 0 must divide"),
            (vec![attention(2, None)], vec![1 << 15, 6], "cut the sequences"),
            (vec![attention(2, Some(lora(7, 1)))], vec![5, 6], "rank is 1 to 6"),
            (vec![attention(2, Some(lora(1, 0)))], vec![5, 6], "alpha at least 1"),
            (vec![MeanPool], vec![6], "put an embedding before it"),
            (vec![GroupNorm { groups: 2 }], vec![3, 4, 4], "must divide the 3 channels"),
            (vec![LayerNorm], vec![3, 4, 4], "use group_norm"),
            (vec![Embedding { vocabulary: 0, out: 6 }], vec![5], "vocabulary is 1 to"),
            (vec![tokens.clone()], vec![3, 4, 4], "one token a position"),
            (vec![Linear { out: 4 }, tokens.clone()], vec![5], "it is the first layer"),
            (
                vec![Residual { layers: vec![tokens.clone(), MeanPool] }],
                vec![6],
                "put the embedding before",
            ),
            (vec![Residual { layers: vec![Linear { out: 5 }] }], vec![6], "give the input's"),
            (vec![Frozen { layers: vec![] }], vec![6], "no layers inside"),
            (vec![Frozen { layers: vec![LayerNorm, tokens] }], vec![6], "it is the first layer"),
        ] {
            let error = ModelSpec { layers }.shapes(&input).unwrap_err().to_string();
            assert!(error.contains("layer 0") || error.contains("layer 1"), "{error}");
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn layers_too_deep_inside_of_one_another_are_refused() {
        let mut layer = Layer::Linear { out: 3 };
        for _ in 0..=N_LEVELS_MAX {
            layer = Layer::Frozen { layers: vec![layer] };
        }
        let error = ModelSpec { layers: vec![layer] }.shapes(&[3]).unwrap_err().to_string();
        assert!(error.contains("levels"), "{error}");
    }

    #[test]
    fn unknown_layer_keys_are_refused() {
        let text = "[[layers]]\ntype = \"linear\"\nout = 3\nbias = false\n";
        assert!(toml::from_str::<ModelSpec>(text).is_err());
    }
}
