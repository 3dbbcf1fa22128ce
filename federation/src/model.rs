//! A model as data: a list of declared layers, the tensors they need, and how they start.
//!
//! The coordinator never links a tensor library, so shapes and initial values are worked out
//! here; `burn-models` builds the same layers for a device.  Tensor names and layouts are those
//! of a PyTorch `Sequential` (`layers.0.weight`, linear `[out, in]`, conv `[out, in, k, k]`).

use chacha20::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::{Parameters, PlanError};

/// Most layers in one model.
const N_LAYERS_MAX: usize = 1024;
/// Most parameters in one model: 2^32 of four bytes are 16 GiB.
const N_PARAMETERS_MAX: u64 = 1 << 32;
/// Coarsest scale of a scattering layer: one coefficient to 64 x 64 pixels.
const SCATTERING_SCALES_MAX: usize = 6;
/// Most angles of a scattering layer.
const SCATTERING_ANGLES_MAX: usize = 64;

/// One declared layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Layer {
    /// Affine map of `[n_in]` to `[out]`, with bias.
    Linear {
        /// Number of outputs.
        out: usize,
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
    /// `max(x, 0)`.
    Relu,
    /// Hyperbolic tangent.
    Tanh,
    /// `[channels, height, width]` to `[channels * height * width]`.
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

fn one() -> usize {
    1
}

/// A model as a list of layers; the last one's outputs are the classes' scores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Applied in order.
    pub layers: Vec<Layer>,
}

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Such as `layers.0.weight`.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Number of inputs to one output, which sets the scale of initial values.
    pub fan_in: usize,
}

impl TensorSpec {
    /// Number of elements.
    #[must_use]
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The tensors of a model, in the order in which [`Parameters`] lays them out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// In the order of the layers, weight before bias.
    pub tensors: Vec<TensorSpec>,
}

impl Manifest {
    /// Number of trainable parameters.
    #[must_use]
    pub fn n_parameters(&self) -> usize {
        self.tensors.iter().map(TensorSpec::n_elements).sum()
    }

    /// Starting values drawn uniformly from ±1/√fan_in (He et al. 2015 with a = √5, PyTorch's
    /// default) by ChaCha20 from `seed`: the same on every machine.
    #[must_use]
    pub fn initial_parameters(&self, seed: u64) -> Parameters {
        let mut key = blake3::Hasher::new_derive_key("comity initial parameters v1");
        key.update(&seed.to_le_bytes());
        let mut rng = ChaCha20Rng::from_seed(*key.finalize().as_bytes());
        let mut values = Vec::with_capacity(self.n_parameters());
        for tensor in &self.tensors {
            let bound = 1.0 / (tensor.fan_in as f32).sqrt();
            for _ in 0..tensor.n_elements() {
                // 24 bits make an exact f32 in [0, 1).
                let unit = (rng.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0);
                values.push((2.0 * unit - 1.0) * bound);
            }
        }
        Parameters::new(values)
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
        if self.layers.is_empty() || self.layers.len() > N_LAYERS_MAX {
            return Err(PlanError::invalid(
                "model.layers",
                format!("{} layers; a model has 1 to {N_LAYERS_MAX}", self.layers.len()),
            ));
        }
        let mut shape = input.to_vec();
        let mut shapes = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let fits = match layer {
                Layer::Scattering { .. } if index > 0 => {
                    Err("scattering learns nothing and is computed once: put it first".to_owned())
                }
                layer => layer.output_shape(&shape),
            };
            shape =
                fits.map_err(|reason| PlanError::Layer { index, input: shape.clone(), reason })?;
            shapes.push(shape.clone());
        }
        Ok(shapes)
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
            let weight = match *layer {
                Layer::Linear { out } => Some((vec![out, before[0]], out)),
                Layer::Conv2d { out, kernel, .. } => {
                    Some((vec![out, before[0], kernel, kernel], out))
                }
                _ => None,
            };
            if let Some((shape, out)) = weight {
                let fan_in: usize = shape[1..].iter().product();
                n_parameters = (fan_in as u64)
                    .checked_mul(out as u64)
                    .and_then(|n| n.checked_add(out as u64))
                    .and_then(|n| n.checked_add(n_parameters))
                    .filter(|n| *n <= N_PARAMETERS_MAX)
                    .ok_or_else(|| PlanError::Layer {
                        index,
                        input: before.clone(),
                        reason: format!("the model would pass {N_PARAMETERS_MAX} parameters"),
                    })?;
                let name = |part: &str| format!("layers.{index}.{part}");
                tensors.push(TensorSpec { name: name("weight"), shape, fan_in });
                tensors.push(TensorSpec { name: name("bias"), shape: vec![out], fan_in });
            }
            before = after;
        }
        if tensors.is_empty() {
            return Err(PlanError::invalid(
                "model.layers",
                "no layer has parameters to train".into(),
            ));
        }
        Ok(Manifest { tensors })
    }
}

impl Layer {
    /// Shape of the output for an input of shape `input`, or why it does not fit.
    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, String> {
        let image = || match *input {
            [channels, height, width] => Ok((channels, height, width)),
            _ => Err("it needs [channels, height, width]; remove an earlier flatten".to_owned()),
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
                [_] if out > 0 => Ok(vec![out]),
                [_] => Err("out must be at least 1".to_owned()),
                _ => Err("it needs [n]; put a flatten before it".to_owned()),
            },
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
            Self::Relu | Self::Tanh => Ok(input.to_vec()),
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
            Self::Flatten => input
                .iter()
                .try_fold(1usize, |product, side| product.checked_mul(*side))
                .map(|n| vec![n])
                .ok_or_else(|| "its size overflows".to_owned()),
        }
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
    fn initial_values_depend_on_the_seed_only() {
        let manifest = tramer_boneh().manifest(&[1, 28, 28], 10).unwrap();
        let (a, b) = (manifest.initial_parameters(1), manifest.initial_parameters(1));
        assert_eq!(a.digest(), b.digest());
        assert_ne!(a.digest(), manifest.initial_parameters(2).digest());
        let bound = 1.0 / 8.0;
        assert!(a.values()[..1024].iter().all(|v| v.abs() <= bound));
    }

    #[test]
    fn unknown_layer_keys_are_refused() {
        let text = "[[layers]]\ntype = \"linear\"\nout = 3\nbias = false\n";
        assert!(toml::from_str::<ModelSpec>(text).is_err());
    }
}
