//! From declared layers to stages and the buffers between them.

use std::collections::BTreeMap;

use comity_federation::{Layer, Manifest};
use fearless_simd::Level;

use super::conv::Conv;
use super::elementwise::Function;
use super::linear::Linear;
use super::norm::Norm;
use super::pool::Pool;
use super::{Network, Operation, Slot, Stage, Tensors};

/// Builds a [`Network`] layer by layer.
struct Planner<'a> {
    /// Offset, length and whether it is trained, by name.
    tensors: BTreeMap<&'a str, (usize, usize, bool)>,
    stages: Vec<Stage>,
    slots: Vec<Slot>,
    shape: Shape,
    n_single: usize,
    n_sums: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// Channels, height, width.
    Image([usize; 3]),
    List(usize),
}

impl Shape {
    fn len(self) -> usize {
        match self {
            Self::Image(sides) => sides.iter().product(),
            Self::List(n) => n,
        }
    }
}

impl Network {
    /// The stages of `layers` from the `first` on, whose tensors are those of `manifest`, for examples
    /// of shape `input`. `None` if one of the layers is not made for this.
    ///
    /// The layers fit each other: `ModelSpec::manifest` has checked them.
    pub(crate) fn new(
        layers: &[Layer],
        first: usize,
        input: &[usize],
        manifest: &Manifest,
    ) -> Option<Self> {
        let shape = match *input {
            [channels, height, width] => Shape::Image([channels, height, width]),
            [n] => Shape::List(n),
            _ => return None,
        };
        let mut offset = 0;
        let tensors = manifest.tensors.iter().map(|tensor| {
            let (at, n) = (offset, tensor.n_elements());
            offset += n;
            (tensor.name.as_str(), (at, n, tensor.trainable))
        });
        let mut planner = Planner {
            tensors: tensors.collect(),
            stages: Vec::new(),
            slots: vec![Slot { len: shape.len(), is_kept: true, is_d_kept: false }],
            shape,
            n_single: 0,
            n_sums: 0,
        };
        let mut flat = Vec::new();
        flatten(layers, first, "", &mut flat);
        swap_functions_and_pools(&mut flat);
        for (index, (layer, prefix)) in flat.iter().enumerate() {
            let next = flat.get(index + 1).map(|(layer, _)| *layer);
            planner.push(layer, next, prefix)?;
        }
        planner.finish(input, manifest.n_trainable())
    }
}

/// Layers one after the other with their tensors' prefixes, frozen ones among the others.
fn flatten<'a>(
    layers: &'a [Layer],
    first: usize,
    prefix: &str,
    flat: &mut Vec<(&'a Layer, String)>,
) {
    for (index, layer) in layers.iter().enumerate().skip(first) {
        let prefix = format!("{prefix}layers.{index}.");
        match layer {
            Layer::Frozen { layers } => flatten(layers, 0, &prefix, flat),
            layer => flat.push((layer, prefix)),
        }
    }
}

/// A function that never falls, of the largest value, is the largest of the function's values; so it
/// is computed after the pool, of fewer.
fn swap_functions_and_pools(layers: &mut [(&Layer, String)]) {
    for index in 1..layers.len() {
        let pools = matches!(layers[index].0, Layer::MaxPool2d { kernel, stride } if stride.unwrap_or(*kernel) > 1);
        if pools && matches!(layers[index - 1].0, Layer::Relu | Layer::Tanh) {
            layers.swap(index - 1, index);
        }
    }
}

impl Planner<'_> {
    fn push(&mut self, layer: &Layer, next: Option<&Layer>, prefix: &str) -> Option<()> {
        match (layer, self.shape) {
            (&Layer::Conv2d { out, kernel, stride, padding }, Shape::Image(image)) => {
                self.conv(image, [out, kernel, stride, padding], next, prefix);
            }
            (&Layer::MaxPool2d { kernel, stride }, Shape::Image(image)) => {
                self.pool(image, true, kernel, stride.unwrap_or(kernel));
            }
            (&Layer::AvgPool2d { kernel, stride }, Shape::Image(image)) => {
                self.pool(image, false, kernel, stride.unwrap_or(kernel));
            }
            (&Layer::GroupNorm { groups }, Shape::Image([channels, height, width])) => {
                self.norm(Norm { pixels: height * width, channels, groups }, prefix);
            }
            (Layer::LayerNorm, Shape::List(channels)) => {
                self.norm(Norm { pixels: 1, channels, groups: 1 }, prefix);
            }
            (&Layer::Linear { out }, Shape::List(n_in)) => {
                let tensors = self.tensors(prefix, "weight", "bias");
                let linear = Linear { n_in, n_out: out };
                self.keep_input();
                self.shape = Shape::List(out);
                self.stage(Operation::Linear(linear), Some(tensors), None);
            }
            (Layer::Standardise, shape) if self.stages.is_empty() => {
                let tensors = self.tensors(prefix, "mean", "std");
                let channels = match shape {
                    Shape::Image([channels, ..]) => channels,
                    Shape::List(n) => n,
                };
                self.replace(Operation::Standardise { channels }, Some(tensors));
            }
            (Layer::Relu, _) => self.function(Function::Relu),
            (Layer::Tanh, _) => self.function(Function::Tanh),
            (Layer::Gelu, _) => self.function(Function::Gelu),
            (Layer::Flatten, shape) => {
                self.shape = Shape::List(shape.len());
                match shape {
                    Shape::Image([channels, height, width])
                        if channels > 1 && height * width > 1 =>
                    {
                        let pixels = height * width;
                        self.stage(Operation::Flatten { channels, pixels }, None, None);
                        self.n_single = self.stages.len();
                    }
                    _ => {}
                }
            }
            _ => return None,
        }
        if matches!(self.shape, Shape::Image(_)) {
            self.n_single = self.stages.len();
        }
        Some(())
    }

    fn finish(mut self, input: &[usize], n_trainable: usize) -> Option<Network> {
        let is_trained = |stage: &Stage| stage.tensors.is_some_and(|tensors| tensors.is_trained);
        let first_trained = self.stages.iter().position(is_trained)?;
        // From here on stages take whole batches.
        let boundary = self.last_slot_of(self.n_single);
        let mut whole = vec![boundary];
        whole.extend(
            self.stages[self.n_single..].iter().flat_map(|s| [Some(s.output), s.saved]).flatten(),
        );
        for slot in whole {
            self.slots[slot].is_kept = true;
            self.slots[slot].is_d_kept = true;
        }
        let image = match *input {
            [channels, height, width] if channels > 1 => Some([channels, height * width]),
            _ => None,
        };
        Some(Network {
            level: Level::new(),
            stages: self.stages,
            slots: self.slots,
            n_single: self.n_single,
            first_trained,
            image,
            n_trainable,
            n_sums: self.n_sums,
        })
    }

    fn conv(
        &mut self,
        [channels, height, width]: [usize; 3],
        [n_out, kernel, stride, padding]: [usize; 4],
        next: Option<&Layer>,
        prefix: &str,
    ) {
        let [mut height, mut width] = [height, width];
        if padding > 0 {
            let operation = Operation::Pad { channels, height, width, padding };
            [height, width] = [height, width].map(|side| side + 2 * padding);
            self.shape = Shape::Image([channels, height, width]);
            self.stage(operation, None, None);
        }
        let wants = self.is_any_trained();
        let tensors = self.tensors(prefix, "weight", "bias");
        let mut conv = Conv::new([channels, height, width], n_out, kernel, stride);
        if let Some(&Layer::MaxPool2d { kernel, stride }) = next {
            let stride = stride.unwrap_or(kernel);
            conv.set_sparse(stride * stride, wants);
        }
        self.keep_input();
        self.shape = Shape::Image([n_out, conv.height_out, conv.width_out]);
        let sums = self.sums(if tensors.is_trained { conv.n_sums() } else { 0 });
        self.stage(Operation::Conv(conv), Some(tensors), None);
        self.last().sums = sums;
    }

    fn pool(&mut self, image: [usize; 3], is_max: bool, kernel: usize, stride: usize) {
        let [channels, height, width] = image;
        let pool = Pool { is_max, kernel, stride, channels, height, width };
        self.shape = Shape::Image([channels, pool.height_out(), pool.width_out()]);
        let saved = is_max.then(|| self.slot(self.shape.len(), true));
        self.stage(Operation::Pool(pool), None, saved);
    }

    fn norm(&mut self, norm: Norm, prefix: &str) {
        let tensors = self.tensors(prefix, "weight", "bias");
        let saved = self.slot(norm.n_saved(), true);
        let sums = self.sums(2 * norm.channels);
        self.stage(Operation::Norm(norm), Some(tensors), Some(saved));
        self.last().sums = sums;
    }

    fn function(&mut self, function: Function) {
        // The stage before does not read its own output on the way back, unless it is such a function.
        let is_free = self.stages.last().is_some_and(|stage| {
            !matches!(stage.operation, Operation::Function(_) | Operation::Standardise { .. })
        });
        if function.saves_output() && is_free {
            self.replace(Operation::Function(function), None);
            self.keep_input();
        } else {
            self.keep_input();
            self.stage(Operation::Function(function), None, None);
            self.keep_input();
        }
    }

    fn is_any_trained(&self) -> bool {
        self.stages.iter().any(|stage| stage.tensors.is_some_and(|tensors| tensors.is_trained))
    }

    fn tensors(&self, prefix: &str, weight: &str, bias: &str) -> Tensors {
        let of = |name: &str| {
            let name = format!("{prefix}{name}");
            *self.tensors.get(name.as_str()).expect("a manifest has all tensors of its layers")
        };
        let ((weight, n_weight, is_trained), (bias, n_bias, _)) = (of(weight), of(bias));
        Tensors { weight, n_weight, bias, n_bias, is_trained }
    }

    fn slot(&mut self, len: usize, is_kept: bool) -> usize {
        self.slots.push(Slot { len, is_kept, is_d_kept: false });
        self.slots.len() - 1
    }

    fn sums(&mut self, n: usize) -> usize {
        self.n_sums += n;
        self.n_sums - n
    }

    /// The slot that the stage at `index` reads.
    fn last_slot_of(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |index| self.stages[index].output)
    }

    /// Keeps the last slot's values of each example for the way back.
    fn keep_input(&mut self) {
        let slot = self.last_slot_of(self.stages.len());
        self.slots[slot].is_kept = true;
    }

    fn last(&mut self) -> &mut Stage {
        self.stages.last_mut().expect("a stage was pushed before")
    }

    /// A stage with an output of its own, of the shape that was set.
    fn stage(&mut self, operation: Operation, tensors: Option<Tensors>, saved: Option<usize>) {
        let input = self.last_slot_of(self.stages.len());
        let output = self.slot(self.shape.len(), false);
        self.stages.push(Stage { operation, input, output, saved, tensors, sums: 0 });
    }

    /// A stage whose output takes its input's place.
    fn replace(&mut self, operation: Operation, tensors: Option<Tensors>) {
        let slot = self.last_slot_of(self.stages.len());
        self.stages.push(Stage {
            operation,
            input: slot,
            output: slot,
            saved: None,
            tensors,
            sums: 0,
        });
    }
}
