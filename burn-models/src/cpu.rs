//! Training and scoring on the processor, without tensors: a model of common layers as a list of
//! stages over buffers that are kept from step to step.
//!
//! burn's CPU backend allocates, clears and copies for each operation of each step, which costs a
//! small network more than its arithmetic. Here an image goes through all its layers while it is in
//! the cache, convolutions read windows where they lie, and the way back through a max pool follows
//! only the values that were chosen. Models with other layers (attention, embeddings, residuals,
//! low-rank changes), and all models on accelerators, go burn's way: [`Network::new`] says which.
//!
//! The bits of a result do not depend on the number of threads, on how examples are grouped to be
//! scored, or on the width of the machine's vectors. They do depend on whether the machine multiplies
//! and adds in one instruction, which all x86-64 since 2013 and all ARM64 do.
//!
//! - `product`: the one matrix product · `conv`, `pool`, `elementwise`, `norm`: layers and their ways back
//! - `plan`: from declared layers to stages · here: how a batch goes through them

mod conv;
mod elementwise;
mod linear;
mod norm;
mod plan;
mod pool;
mod product;
mod strip;

use fearless_simd::Level;

use conv::{Conv, ConvWeights};
use elementwise::{Function, cross_entropy};
use linear::{Linear, LinearWeights};
use norm::Norm;
use pool::Pool;
use product::SLACK;

/// Vectors' lanes by which rows are padded and costs are reckoned, on whatever machine.
const LANES: usize = 16;

/// `n`, or the next number of whole vectors.
fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// A model as stages, without its parameters.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    level: Level,
    stages: Vec<Stage>,
    slots: Vec<Slot>,
    /// Stages at the beginning that take one example after the other.
    n_single: usize,
    /// What lies before it is not gone back through.
    first_trained: usize,
    /// Channels and pixels of the input, where it is an image.
    image: Option<[usize; 2]>,
    n_trainable: usize,
    /// Length of all stages' sums.
    n_sums: usize,
}

/// Values that flow from stage to stage, or that one keeps for its way back.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Of one example.
    len: usize,
    /// Whether each example of a batch has a place of its own.
    is_kept: bool,
    /// The same of gradients.
    is_d_kept: bool,
}

#[derive(Clone, Debug)]
struct Stage {
    operation: Operation,
    input: usize,
    /// The input's, where values are replaced.
    output: usize,
    /// Where it keeps what its way back needs besides input and output.
    saved: Option<usize>,
    tensors: Option<Tensors>,
    /// Where its gradient is summed, if not at once in its place.
    sums: usize,
}

/// Where a weight and its bias are among all parameters.
#[derive(Clone, Copy, Debug)]
struct Tensors {
    weight: usize,
    n_weight: usize,
    bias: usize,
    n_bias: usize,
    is_trained: bool,
}

#[derive(Clone, Debug)]
enum Operation {
    Conv(Conv),
    Linear(Linear),
    Pool(Pool),
    /// Zeros around an image.
    Pad {
        channels: usize,
        height: usize,
        width: usize,
        padding: usize,
    },
    Function(Function),
    Norm(Norm),
    /// `(x - weight) / bias` of each channel.
    Standardise {
        channels: usize,
    },
    /// From channels together to channels apart, `[channels, pixels]`.
    Flatten {
        channels: usize,
        pixels: usize,
    },
}

/// A model's parameters in the order in which stages read them.
#[derive(Clone, Debug)]
pub(crate) struct Weights(Vec<StageWeights>);

#[derive(Clone, Debug)]
enum StageWeights {
    None,
    Conv(ConvWeights),
    Linear(LinearWeights),
    /// Weight and bias as they are.
    Plain(Vec<f32>, Vec<f32>),
}

/// The buffers of one thread, which grow to the largest batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workspace {
    /// Number of examples that there is room for.
    n_max: usize,
    values: Vec<Vec<f32>>,
    d: Vec<Vec<f32>>,
    sums: Vec<f32>,
}

impl Workspace {
    fn make_room(&mut self, network: &Network, n: usize) {
        if n <= self.n_max && self.values.len() == network.slots.len() {
            return;
        }
        let room =
            |slot: &Slot, is_kept: bool| vec![0.0; slot.len * if is_kept { n } else { 1 } + SLACK];
        self.values = network.slots.iter().map(|slot| room(slot, slot.is_kept)).collect();
        self.d = network.slots.iter().map(|slot| room(slot, slot.is_d_kept)).collect();
        self.sums = vec![0.0; network.n_sums];
        self.n_max = n;
    }
}

impl Network {
    /// Room for the parameters, to be filled by [`pack`](Self::pack).
    pub(crate) fn weights(&self) -> Weights {
        let stages = self.stages.iter().enumerate();
        Weights(
            stages
                .map(|(index, stage)| match (&stage.operation, stage.tensors) {
                    (Operation::Conv(conv), _) => {
                        StageWeights::Conv(conv.weights(index > self.first_trained))
                    }
                    (Operation::Linear(linear), _) => {
                        StageWeights::Linear(linear.weights(index > self.first_trained))
                    }
                    (_, Some(tensors)) => {
                        StageWeights::Plain(vec![0.0; tensors.n_weight], vec![0.0; tensors.n_bias])
                    }
                    (_, None) => StageWeights::None,
                })
                .collect(),
        )
    }

    /// Takes all parameters, `[n_parameters]`.
    pub(crate) fn pack(&self, values: &[f32], weights: &mut Weights) {
        for (stage, weights) in self.stages.iter().zip(&mut weights.0) {
            let Some(tensors) = stage.tensors else { continue };
            let weight = &values[tensors.weight..tensors.weight + tensors.n_weight];
            let bias = &values[tensors.bias..tensors.bias + tensors.n_bias];
            match (&stage.operation, weights) {
                (Operation::Conv(conv), StageWeights::Conv(weights)) => {
                    conv.pack(weight, bias, weights);
                }
                (Operation::Linear(linear), StageWeights::Linear(weights)) => {
                    linear.pack(weight, bias, weights);
                }
                (_, StageWeights::Plain(own_weight, own_bias)) => {
                    own_weight.copy_from_slice(weight);
                    own_bias.copy_from_slice(bias);
                }
                _ => unreachable!("weights are those of their network"),
            }
        }
    }

    /// Writes the sum of the cross-entropies' gradients over those of the examples `features`,
    /// `[n, n_features]`, whose `mask` is true to `sum`, `[n_trainable]`.
    pub(crate) fn gradient_sum(
        &self,
        weights: &Weights,
        workspace: &mut Workspace,
        features: &[f32],
        labels: &[u32],
        mask: &[bool],
        sum: &mut [f32],
    ) {
        assert_eq!(sum.len(), self.n_trainable, "one value a trained parameter");
        let rows = || mask.iter().enumerate().filter(|(_, counts)| **counts).map(|(row, _)| row);
        let n = rows().count();
        if n == 0 {
            sum.fill(0.0);
            return;
        }
        self.forward(weights, workspace, features, rows(), n);
        let last = self.last_slot();
        let (scores, d) = (&workspace.values[last], &mut workspace.d[last]);
        let n_classes = self.slots[last].len;
        d[..n * n_classes].copy_from_slice(&scores[..n * n_classes]);
        for (d, row) in d.chunks_exact_mut(n_classes).zip(rows()) {
            cross_entropy(d, labels[row] as usize);
        }
        self.back(weights, workspace, n, sum);
    }

    /// Gives `take` the scores, the label and the cross-entropy in nats of each example of `features`,
    /// `[n, n_features]`.
    pub(crate) fn score(
        &self,
        weights: &Weights,
        workspace: &mut Workspace,
        features: &[f32],
        labels: &[u32],
        mut take: impl FnMut(&[f32], u32, f32),
    ) {
        /// Examples that go through together: few enough to stay in the cache.
        const N: usize = 32;
        let last = self.last_slot();
        let n_classes = self.slots[last].len;
        let mut scored = vec![0.0; n_classes];
        for first in (0..labels.len()).step_by(N) {
            let rows = first..labels.len().min(first + N);
            self.forward(weights, workspace, features, rows.clone(), rows.len());
            for (scores, label) in workspace.values[last].chunks_exact(n_classes).zip(&labels[rows])
            {
                scored.copy_from_slice(scores);
                take(scores, *label, cross_entropy(&mut scored, *label as usize));
            }
        }
    }

    fn last_slot(&self) -> usize {
        self.stages.last().map_or(0, |stage| stage.output)
    }

    /// Takes `n` examples, those at `rows` of `features`, through all stages.
    fn forward(
        &self,
        weights: &Weights,
        workspace: &mut Workspace,
        features: &[f32],
        rows: impl Iterator<Item = usize>,
        n: usize,
    ) {
        workspace.make_room(self, n);
        let len = self.slots[0].len;
        for (own, row) in workspace.values[0].chunks_exact_mut(len).zip(rows) {
            let features = &features[row * len..(row + 1) * len];
            match self.image {
                Some([channels, pixels]) => transpose(features, channels, pixels, own),
                None => own.copy_from_slice(features),
            }
        }
        for example in 0..n {
            for index in 0..self.n_single {
                self.forward_stage(index, weights, workspace, example, 1);
            }
        }
        for index in self.n_single..self.stages.len() {
            self.forward_stage(index, weights, workspace, 0, n);
        }
    }

    /// Takes `n` examples from `first` on through one stage.
    fn forward_stage(
        &self,
        index: usize,
        weights: &Weights,
        workspace: &mut Workspace,
        first: usize,
        n: usize,
    ) {
        let stage = &self.stages[index];
        let level = self.level;
        let at = |slot: usize| self.slots[slot].start(first);
        let mut output = std::mem::take(&mut workspace.values[stage.output]);
        let to = &mut output[at(stage.output)..];
        let n_values = n * self.slots[stage.output].len;
        if stage.input == stage.output {
            match (&stage.operation, &weights.0[index]) {
                (Operation::Function(function), _) => function.apply(level, &mut to[..n_values]),
                (Operation::Standardise { channels }, StageWeights::Plain(mean, std)) => {
                    for (i, value) in to[..n_values].iter_mut().enumerate() {
                        *value = (*value - mean[i % channels]) / std[i % channels];
                    }
                }
                _ => unreachable!("these alone replace their input"),
            }
            workspace.values[stage.output] = output;
            return;
        }
        let mut saved = stage.saved.map(|slot| std::mem::take(&mut workspace.values[slot]));
        let from = &workspace.values[stage.input][at(stage.input)..];
        match (&stage.operation, &weights.0[index]) {
            (Operation::Conv(conv), StageWeights::Conv(weights)) => {
                conv.forward(level, weights, from, to);
            }
            (Operation::Linear(linear), StageWeights::Linear(weights)) => {
                linear.forward(level, weights, from, n, to);
            }
            (Operation::Pool(pool), _) => {
                let chosen = match (&mut saved, stage.saved) {
                    (Some(saved), Some(slot)) => &mut saved[at(slot)..],
                    _ => &mut [],
                };
                pool.forward(level, from, to, chosen);
            }
            (&Operation::Pad { channels, height, width, padding }, _) => {
                let row_out = (width + 2 * padding) * channels;
                let rows = from[..height * width * channels].chunks_exact(width * channels);
                for (y, row) in rows.enumerate() {
                    let start = (y + padding) * row_out + padding * channels;
                    to[start..start + row.len()].copy_from_slice(row);
                }
            }
            (Operation::Function(function), _) => {
                to[..n_values].copy_from_slice(&from[..n_values]);
                function.apply(level, &mut to[..n_values]);
            }
            (Operation::Norm(norm), StageWeights::Plain(weight, bias)) => {
                let (len, slot) = (self.slots[stage.output].len, stage.saved.unwrap_or_default());
                let saved = saved.as_mut().expect("a norm saves what is normal");
                let saved = saved[at(slot)..].chunks_exact_mut(norm.n_saved());
                let rows = from.chunks_exact(len).zip(to.chunks_exact_mut(len)).zip(saved);
                for ((from, to), saved) in rows.take(n) {
                    norm.forward(weight, bias, from, to, saved);
                }
            }
            (&Operation::Flatten { channels, pixels }, _) => {
                transpose(&from[..n_values], pixels, channels, &mut to[..n_values]);
            }
            _ => unreachable!("weights are those of their network"),
        }
        workspace.values[stage.output] = output;
        if let (Some(saved), Some(slot)) = (saved, stage.saved) {
            workspace.values[slot] = saved;
        }
    }

    /// From the gradient of the last slot to the gradients of all trained parameters.
    fn back(&self, weights: &Weights, workspace: &mut Workspace, n: usize, sum: &mut [f32]) {
        workspace.sums.fill(0.0);
        for index in (self.n_single.max(self.first_trained)..self.stages.len()).rev() {
            self.back_stage(index, weights, workspace, 0, n, sum);
        }
        for example in 0..n {
            for index in (self.first_trained..self.n_single).rev() {
                self.back_stage(index, weights, workspace, example, 1, sum);
            }
        }
        for stage in &self.stages {
            let Some(tensors) = stage.tensors.filter(|tensors| tensors.is_trained) else {
                continue;
            };
            let sums = &workspace.sums[stage.sums..];
            // A layer's bias follows its weight.
            let own = &mut sum[tensors.weight..tensors.bias + tensors.n_bias];
            let (weight, bias) = own.split_at_mut(tensors.n_weight);
            match &stage.operation {
                Operation::Conv(conv) => conv.unpack(&sums[..conv.n_sums()], weight, bias),
                Operation::Norm(norm) => {
                    weight.copy_from_slice(&sums[..norm.channels]);
                    bias.copy_from_slice(&sums[norm.channels..2 * norm.channels]);
                }
                _ => {}
            }
        }
    }

    fn back_stage(
        &self,
        index: usize,
        weights: &Weights,
        workspace: &mut Workspace,
        first: usize,
        n: usize,
        sum: &mut [f32],
    ) {
        let stage = &self.stages[index];
        let level = self.level;
        let wants = index > self.first_trained;
        let at = |slot: usize| self.slots[slot].start(first);
        let d_at = |slot: usize| self.slots[slot].d_start(first);
        let mut d_output = std::mem::take(&mut workspace.d[stage.output]);
        let d = &mut d_output[d_at(stage.output)..];
        let n_values = n * self.slots[stage.output].len;
        if stage.input == stage.output {
            if let Operation::Function(function) = &stage.operation {
                let saved = &workspace.values[stage.output][at(stage.output)..];
                function.back(level, &saved[..n_values], &mut d[..n_values]);
            }
            workspace.d[stage.output] = d_output;
            return;
        }
        let mut d_input = std::mem::take(&mut workspace.d[stage.input]);
        let to = &mut d_input[d_at(stage.input)..];
        let input = &workspace.values[stage.input][at(stage.input)..];
        let saved = stage.saved.map(|slot| &workspace.values[slot][at(slot)..]);
        let is_trained = stage.tensors.is_some_and(|tensors| tensors.is_trained);
        match (&stage.operation, &weights.0[index]) {
            (Operation::Conv(conv), StageWeights::Conv(weights)) => {
                if wants {
                    to[..self.slots[stage.input].len].fill(0.0);
                }
                let sums = &mut workspace.sums[stage.sums..];
                let sums = is_trained.then(|| &mut sums[..conv.n_sums()]);
                conv.back(level, weights, input, d, sums, wants.then_some(to));
            }
            (Operation::Linear(linear), StageWeights::Linear(weights)) => {
                if let Some(tensors) = stage.tensors.filter(|tensors| tensors.is_trained) {
                    linear.weight_gradient(level, input, d, n, &mut sum[tensors.weight..]);
                    linear.bias_gradient(level, d, n, &mut sum[tensors.bias..]);
                }
                if wants {
                    linear.input_gradient(level, weights, d, n, to);
                }
            }
            (Operation::Pool(pool), _) => pool.back(level, d, saved.unwrap_or_default(), to),
            (&Operation::Pad { channels, height, width, padding }, _) => {
                let row_out = (width + 2 * padding) * channels;
                let rows = to[..height * width * channels].chunks_exact_mut(width * channels);
                for (y, row) in rows.enumerate() {
                    let start = (y + padding) * row_out + padding * channels;
                    row.copy_from_slice(&d[start..start + width * channels]);
                }
            }
            (Operation::Function(function), _) => {
                let saved = match function.saves_output() {
                    true => &workspace.values[stage.output][at(stage.output)..],
                    false => input,
                };
                to[..n_values].copy_from_slice(&d[..n_values]);
                function.back(level, &saved[..n_values], &mut to[..n_values]);
            }
            (Operation::Norm(norm), StageWeights::Plain(weight, _)) => {
                let len = self.slots[stage.output].len;
                let saved = saved.unwrap_or_default();
                for example in 0..n {
                    let sums = &mut workspace.sums[stage.sums..];
                    norm.back(
                        weight,
                        &saved[example * norm.n_saved()..],
                        &d[example * len..],
                        is_trained.then(|| &mut sums[..2 * norm.channels]),
                        wants.then(|| &mut to[example * len..]),
                    );
                }
            }
            (&Operation::Flatten { channels, pixels }, _) => {
                transpose(&d[..n_values], channels, pixels, &mut to[..n_values]);
            }
            _ => unreachable!("weights are those of their network"),
        }
        workspace.d[stage.output] = d_output;
        workspace.d[stage.input] = d_input;
    }
}

impl Slot {
    /// Where an example's values begin.
    fn start(&self, example: usize) -> usize {
        if self.is_kept { example * self.len } else { 0 }
    }

    /// Where an example's gradients begin.
    fn d_start(&self, example: usize) -> usize {
        if self.is_d_kept { example * self.len } else { 0 }
    }
}

/// Writes `from`, `[rows, columns]`, to `to` as `[columns, rows]`.
fn transpose(from: &[f32], rows: usize, columns: usize, to: &mut [f32]) {
    if rows == 1 || columns == 1 {
        to[..from.len()].copy_from_slice(from);
        return;
    }
    for (row, from) in from.chunks_exact(columns).enumerate() {
        for (to, value) in to[row..].iter_mut().step_by(rows).zip(from) {
            *to = *value;
        }
    }
}

#[cfg(test)]
mod tests;
