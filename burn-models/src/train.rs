//! A client's part of a round: local steps from the round's model.

use std::num::NonZero;
use std::thread;

use chacha20::ChaCha20Rng;
use comity_datasets::{Batch, Dataset, Normalise};
use comity_federation::{ModelSpec, Parameters, Training};
use comity_privacy::Session;
use rand_core::{Rng, SeedableRng};

use crate::front::Examples;
use crate::noise_pool::NoisePool;
use crate::optimizer::{OptimizerState, WeightAverage};
use crate::{Device, Model, TrainError, clipped_gradient_sum, gradient_sum};

/// What to train, from where, on what.
#[derive(Clone, Copy, Debug)]
pub struct TrainingTask<'a> {
    /// The plan's layers.
    pub spec: &'a ModelSpec,
    /// The round's model.
    pub start: &'a Parameters,
    /// The client's examples.
    pub dataset: &'a Dataset,
    /// The plan's normalisation.
    pub normalise: Normalise,
    /// The plan's local steps. The optimizer's state starts afresh with each call.
    pub training: &'a Training,
    /// Where to compute.
    pub device: &'a Device,
}

/// Trains with differential privacy until `session` has no steps left: DP-SGD (Abadi et al. 2016,
/// algorithm 1) with the session's batches, clipping norm and noise.
///
/// `progress` is told the steps done and their number, both of which are public.
///
/// # Errors
/// [`TrainError`]; no partial result leaves, though steps that were taken remain paid for.
pub fn train_private(
    task: &TrainingTask<'_>,
    session: &mut Session,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<Parameters, TrainError> {
    let mut trainer = Trainer::new(task)?;
    let n_steps = session.steps_left();
    let clip_norm_l2 = session.clip_norm_l2();
    NoisePool::with(session.noise_ahead()?, |noise| {
        while session.steps_left() > 0 {
            let indices = session.next_batch(task.dataset.len())?;
            let sum = trainer.sum(&indices, |model, batch, mask| {
                clipped_gradient_sum(model, batch, mask, clip_norm_l2)
            })?;
            let gradient = session.privatise(&sum, noise.next()?)?;
            trainer.step(&gradient)?;
            progress(n_steps - session.steps_left(), n_steps);
        }
        trainer.finish()
    })
}

/// Trains without differential privacy: shuffled epochs of mean gradients. The same `seed` gives
/// the same result on the CPU, whatever its number of cores.
///
/// `progress` is told the steps done and their number.
///
/// # Errors
/// [`TrainError::NoData`] for an empty data set, and those of a model that does not fit.
pub fn train_plain(
    task: &TrainingTask<'_>,
    seed: [u8; 32],
    progress: &mut dyn FnMut(u32, u32),
) -> Result<Parameters, TrainError> {
    let mut trainer = Trainer::new(task)?;
    if task.dataset.is_empty() {
        return Err(TrainError::NoData);
    }
    let batch = task.training.batch as usize;
    let n_batches = u32::try_from(task.dataset.len().div_ceil(batch)).unwrap_or(u32::MAX);
    let n_steps = n_batches.saturating_mul(task.training.local_epochs);
    let mut rng = ChaCha20Rng::from_seed(seed);
    let mut indices: Vec<usize> = (0..task.dataset.len()).collect();
    let mut n_done = 0;
    for _ in 0..task.training.local_epochs {
        shuffle(&mut indices, &mut rng);
        for indices in indices.chunks(batch) {
            let sum = trainer.sum(indices, gradient_sum)?;
            let n = indices.len() as f64;
            let mean: Vec<f32> = sum.iter().map(|value| (value / n) as f32).collect();
            trainer.step(&mean)?;
            n_done += 1;
            progress(n_done, n_steps);
        }
    }
    trainer.finish()
}

/// The state of a round's local steps.
struct Trainer<'a> {
    task: &'a TrainingTask<'a>,
    model: Model,
    examples: Examples<'a>,
    values: Vec<f32>,
    optimizer: OptimizerState,
    average: Option<WeightAverage>,
    n_threads: usize,
}

impl<'a> Trainer<'a> {
    fn new(task: &'a TrainingTask<'a>) -> Result<Self, TrainError> {
        for (key, value) in [
            ("training.batch", task.training.batch),
            ("training.microbatch", task.training.microbatch),
        ] {
            if value == 0 {
                return Err(TrainError::Setting { key, reason: "must be at least 1" });
            }
        }
        let mut model =
            Model::new(task.spec, task.dataset.shape(), task.dataset.n_classes(), task.device)?;
        model.load(task.start)?;
        // An accelerator has its own parallelism; flex, as we build it, runs on one core.
        let n_threads = if *task.device == Device::flex() {
            thread::available_parallelism().map_or(1, NonZero::get)
        } else {
            1
        };
        Ok(Self {
            task,
            examples: Examples::new(task.spec, task.dataset, task.normalise)?,
            values: task.start.values().to_vec(),
            average: task
                .training
                .ema_decay
                .map(|decay| WeightAverage::new(decay, task.start.values())),
            optimizer: OptimizerState::new(
                task.training.optimizer,
                model.manifest().n_parameters(),
            ),
            model,
            n_threads,
        })
    }

    /// Sum of `gradient` over microbatches of the examples at `indices`, `[n_parameters]`.
    ///
    /// All microbatches have the same shape, the last one padded, so that an accelerator compiles
    /// its kernels once. Their sums are added in f64 in the order of `indices`, so the result does
    /// not depend on the number of threads.
    fn sum(
        &self,
        indices: &[usize],
        gradient: impl Fn(&Model, &Batch, &[bool]) -> Result<Vec<f32>, TrainError> + Sync,
    ) -> Result<Vec<f64>, TrainError> {
        let microbatch = self.task.training.microbatch as usize;
        let compute = |indices: &[usize]| {
            let mut batch = self.examples.batch(indices);
            batch.features.resize(microbatch * self.model.n_features(), 0.0);
            batch.labels.resize(microbatch, 0);
            let mask: Vec<bool> = (0..microbatch).map(|row| row < indices.len()).collect();
            gradient(&self.model, &batch, &mask)
        };
        let mut sum = vec![0.0; self.values.len()];
        let microbatches: Vec<&[usize]> = indices.chunks(microbatch).collect();
        for wave in microbatches.chunks(self.n_threads) {
            let (first, others) = wave.split_first().expect("chunks are not empty");
            let parts: Vec<Result<Vec<f32>, TrainError>> = thread::scope(|scope| {
                let others: Vec<_> =
                    others.iter().map(|indices| scope.spawn(|| compute(indices))).collect();
                let first = compute(first);
                std::iter::once(first)
                    .chain(others.into_iter().map(|other| {
                        other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                    }))
                    .collect()
            });
            for part in parts {
                for (sum, value) in sum.iter_mut().zip(part?) {
                    *sum += f64::from(value);
                }
            }
        }
        Ok(sum)
    }

    fn step(&mut self, gradient: &[f32]) -> Result<(), TrainError> {
        self.optimizer.step(&mut self.values, gradient);
        if let Some(average) = &mut self.average {
            average.add(&self.values);
        }
        self.model.load_values(&self.values)
    }

    fn finish(self) -> Result<Parameters, TrainError> {
        if self.values.iter().any(|value| !value.is_finite()) {
            return Err(TrainError::NotFinite);
        }
        Ok(Parameters::new(self.average.map_or(self.values, |average| average.values())))
    }
}

/// Fisher–Yates with unbiased positions (Lemire 2019).
fn shuffle(indices: &mut [usize], rng: &mut ChaCha20Rng) {
    for i in (1..indices.len()).rev() {
        let n = i as u64 + 1;
        let threshold = n.wrapping_neg() % n;
        let j = loop {
            let product = u128::from(rng.next_u64()) * u128::from(n);
            if product as u64 >= threshold {
                break (product >> 64) as usize;
            }
        };
        indices.swap(i, j);
    }
}

#[cfg(test)]
mod tests {
    use comity_datasets::{Contract, Scale};
    use comity_federation::{Layer, Optimizer};

    use super::*;

    #[test]
    fn sums_do_not_depend_on_the_number_of_threads() {
        let contract = Contract { shape: vec![1, 8, 8], n_classes: 3, scale: Scale::Bytes };
        let features = (0..70 * 64).map(|i| (i * 31 % 251) as u8).collect();
        let labels = (0..70).map(|i| i % 3).collect();
        let dataset = Dataset::from_bytes(&contract, features, labels).unwrap();
        let spec = ModelSpec {
            layers: vec![
                Layer::Conv2d { out: 5, kernel: 3, stride: 1, padding: 1 },
                Layer::Tanh,
                Layer::Flatten,
                Layer::Linear { out: 3 },
            ],
        };
        let start = spec.manifest(&contract.shape, 3).unwrap().initial_parameters(1);
        let training = Training {
            optimizer: Optimizer::Sgd { learning_rate: 0.1, momentum: 0.0 },
            batch: 70,
            local_epochs: 1,
            microbatch: 16,
            ema_decay: None,
        };
        let task = TrainingTask {
            spec: &spec,
            start: &start,
            dataset: &dataset,
            normalise: Normalise::IDENTITY,
            training: &training,
            device: &Device::flex(),
        };
        let indices: Vec<usize> = (0..70).rev().collect();
        let sum = |n_threads| {
            let trainer = Trainer { n_threads, ..Trainer::new(&task).unwrap() };
            let clipped = |m: &Model, b: &Batch, k: &[bool]| clipped_gradient_sum(m, b, k, 0.1);
            (trainer.sum(&indices, clipped).unwrap(), trainer.sum(&indices, gradient_sum).unwrap())
        };
        let one = sum(1);
        assert!(one.0.iter().any(|value| *value != 0.0));
        // Often, because threads that share a node of burn's graph fail only now and then.
        for n_threads in [2, 3, 8].repeat(40) {
            assert_eq!(sum(n_threads), one);
        }
    }
}
