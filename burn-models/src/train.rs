//! A client's part of a round: local steps from the round's model.

use std::num::NonZero;
use std::thread;

use chacha20::ChaCha20Rng;
use comity_datasets::{Batch, Dataset, Normalise};
use comity_federation::{ModelSpec, Parameters, Training};
use comity_privacy::{PrivacyUnit, Session};
use fearless_simd::{Level, dispatch};
use rand_core::{Rng, SeedableRng};

use crate::front::Examples;
use crate::noise_pool::NoisePool;
use crate::optimizer::{OptimizerState, WeightAverage};
use crate::{
    Correction, Device, Model, TrainError, clipped_gradient_sum, clipped_person_gradient_sum,
    gradient_sum,
};

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
    /// Without differential privacy, exactly so many batches; absent: as `training` says of these examples.
    pub n_steps: Option<u32>,
    /// What is added to every gradient, under differential privacy after its noise; absent: nothing.
    pub correction: Option<&'a Correction>,
    /// Where to compute.
    pub device: &'a Device,
    /// On how many cores, where the device is the CPU; the result does not depend on it.
    pub n_threads: NonZero<usize>,
}

/// As many cores as this process may use.
#[must_use]
pub fn all_cores() -> NonZero<usize> {
    thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN)
}

/// Trains with differential privacy until `session` has no steps left: DP-SGD (Abadi et al. 2016,
/// algorithm 1) with the session's batches, clipping norm and noise.
///
/// Where the session protects persons, persons are drawn, and the sum of a person's gradients is
/// clipped as one; no person may then have more rows than the unit's cap or a microbatch holds.
///
/// `progress` is told the steps done and their number, both of which are public.
///
/// # Errors
/// [`TrainError`], such as [`TrainError::NoPersons`]; no partial result leaves, though steps that
/// were taken remain paid for.
pub fn train_private(
    task: &TrainingTask<'_>,
    session: &mut Session,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<Parameters, TrainError> {
    let mut trainer = Trainer::new(task)?;
    let n_steps = session.steps_left();
    let clip_norm_l2 = session.clip_norm_l2();
    let units = Population::of(task, session.unit())?;
    NoisePool::with(session.noise_ahead()?, task.n_threads, |noise| {
        while session.steps_left() > 0 {
            let drawn = session.next_batch(units.len())?;
            let microbatches = units.microbatches(&drawn, task.training.microbatch as usize);
            let sum = trainer.sum(&microbatches, |m, part| part.clipped_sum(m, clip_norm_l2))?;
            let gradient = session.privatise(&sum, noise.next()?)?;
            trainer.step(&gradient)?;
            progress(n_steps - session.steps_left(), n_steps);
        }
        trainer.finish()
    })
}

/// Trains without differential privacy: shuffled epochs of mean gradients, as many as the plan says or as
/// its number of steps takes, of which the last may end early. The same `seed` gives
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
    let n_steps = (task.n_steps.or(task.training.local_steps))
        .unwrap_or_else(|| n_batches.saturating_mul(task.training.local_epochs.unwrap_or(1)));
    let mut rng = ChaCha20Rng::from_seed(seed);
    let mut indices: Vec<usize> = (0..task.dataset.len()).collect();
    let mut n_done = 0;
    while n_done < n_steps {
        shuffle(&mut indices, &mut rng);
        for indices in indices.chunks(batch).take((n_steps - n_done) as usize) {
            let mean = trainer.mean_gradient(indices)?;
            trainer.step(&mean)?;
            n_done += 1;
            progress(n_done, n_steps);
        }
    }
    trainer.finish()
}

/// What is drawn together: a row, or a person's rows.
enum Population {
    Records(usize),
    /// `[n_persons][n_rows]`.
    Persons(Vec<Vec<usize>>),
}

impl Population {
    fn of(task: &TrainingTask<'_>, unit: PrivacyUnit) -> Result<Self, TrainError> {
        let PrivacyUnit::Person { records_max } = unit else {
            return Ok(Self::Records(task.dataset.len()));
        };
        let persons = task.dataset.rows_by_person().ok_or(TrainError::NoPersons)?;
        let rows_max = persons.iter().map(Vec::len).max().unwrap_or(0);
        if rows_max > records_max as usize {
            return Err(TrainError::PersonPastCap { records_max });
        }
        if rows_max > task.training.microbatch as usize {
            return Err(TrainError::Setting {
                key: "training.microbatch",
                reason: "must be at least privacy.unit.person.records_max",
            });
        }
        Ok(Self::Persons(persons))
    }

    fn len(&self) -> usize {
        match self {
            Self::Records(n) => *n,
            Self::Persons(persons) => persons.len(),
        }
    }

    /// The rows of the units at `drawn`, at most `size` at once, nobody's rows apart.
    fn microbatches(&self, drawn: &[usize], size: usize) -> Vec<Microbatch> {
        let Self::Persons(persons) = self else { return records(drawn, size) };
        let mut microbatches: Vec<Microbatch> = Vec::new();
        for &person in drawn {
            let rows = &persons[person];
            match microbatches.last_mut() {
                Some(last) if last.rows.len() + rows.len() <= size => last.add_person(rows),
                _ => {
                    let mut next = Microbatch { rows: Vec::new(), slots: Some(Vec::new()) };
                    next.add_person(rows);
                    microbatches.push(next);
                }
            }
        }
        microbatches
    }
}

/// Rows whose gradients are computed at once.
#[derive(Debug, PartialEq)]
struct Microbatch {
    rows: Vec<usize>,
    /// Whose each row is, numbered from 0 without a gap; `None`: each row stands for itself.
    slots: Option<Vec<usize>>,
}

impl Microbatch {
    fn add_person(&mut self, rows: &[usize]) {
        self.rows.extend(rows);
        if let Some(slots) = &mut self.slots {
            let next = slots.last().map_or(0, |last| last + 1);
            slots.extend(std::iter::repeat_n(next, rows.len()));
        }
    }
}

/// Rows that stand for themselves, at most `size` at once.
fn records(rows: &[usize], size: usize) -> Vec<Microbatch> {
    rows.chunks(size).map(|rows| Microbatch { rows: rows.to_vec(), slots: None }).collect()
}

/// A microbatch as the device sees it: padded to the plan's size.
struct Padded {
    batch: Batch,
    /// `[microbatch]`; false where a row is padding.
    mask: Vec<bool>,
    /// `[microbatch]`, padding with nobody in particular.
    slots: Option<Vec<usize>>,
}

impl Padded {
    /// The sum of the gradients of rows or persons, each clipped, `[n_parameters]`.
    fn clipped_sum(&self, model: &Model, clip_norm_l2: f64) -> Result<Vec<f32>, TrainError> {
        let Self { batch, mask, slots } = self;
        match slots {
            None => clipped_gradient_sum(model, batch, mask, clip_norm_l2),
            Some(slots) => clipped_person_gradient_sum(model, batch, mask, slots, clip_norm_l2),
        }
    }
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
        let n_threads = if *task.device == Device::flex() { task.n_threads.get() } else { 1 };
        Ok(Self {
            task,
            examples: Examples::new(task.spec, task.dataset, task.normalise)?,
            values: task.start.values().to_vec(),
            average: task
                .training
                .ema_decay
                .map(|decay| WeightAverage::new(decay, task.start.values())),
            optimizer: OptimizerState::new(task.training.optimizer, model.manifest().n_trainable()),
            model,
            n_threads,
        })
    }

    /// The mean gradient over the examples at `indices`, `[n_trainable]`.
    fn mean_gradient(&self, indices: &[usize]) -> Result<Vec<f32>, TrainError> {
        let microbatch = self.task.training.microbatch as usize;
        let n = indices.len();
        // Up to 2²⁴ every number is an `f32`, and the quotient of two is rounded once either way.
        if n <= microbatch.min(1 << f32::MANTISSA_DIGITS) && self.model.is_without_tensors() {
            let batch = self.examples.batch(indices);
            let mut mean = gradient_sum(&self.model, &batch, &vec![true; n])?;
            dispatch!(Level::new(), _ => divide(&mut mean, n as f32));
            return Ok(mean);
        }
        let parts = records(indices, microbatch);
        let sum = self.sum(&parts, |model, p| gradient_sum(model, &p.batch, &p.mask))?;
        Ok(sum.iter().map(|value| (value / n as f64) as f32).collect())
    }

    /// Sum of `gradient` over `microbatches`, `[n_trainable]`.
    ///
    /// All microbatches have the same shape, short ones padded, so that an accelerator compiles
    /// its kernels once. Their sums are added in f64 in their order, so the result does not depend
    /// on the number of threads.
    fn sum(
        &self,
        microbatches: &[Microbatch],
        gradient: impl Fn(&Model, &Padded) -> Result<Vec<f32>, TrainError> + Sync,
    ) -> Result<Vec<f64>, TrainError> {
        let microbatch = self.task.training.microbatch as usize;
        let compute = |part: &Microbatch| {
            let mut batch = self.examples.batch(&part.rows);
            batch.features.resize(microbatch * self.model.n_features(), 0.0);
            batch.labels.resize(microbatch, 0);
            let mask = (0..microbatch).map(|row| row < part.rows.len()).collect();
            let slots = part.slots.clone().map(|mut slots| {
                slots.resize(microbatch, 0);
                slots
            });
            gradient(&self.model, &Padded { batch, mask, slots })
        };
        let mut sum = vec![0.0; self.model.manifest().n_trainable()];
        for wave in microbatches.chunks(self.n_threads) {
            let (first, others) = wave.split_first().expect("chunks are not empty");
            let parts: Vec<Result<Vec<f32>, TrainError>> = thread::scope(|scope| {
                let others: Vec<_> =
                    others.iter().map(|part| scope.spawn(|| compute(part))).collect();
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
        // The trained parameters are the first ones.
        let corrected = self
            .task
            .correction
            .map(|correction| correction.apply(gradient, &self.values, self.task.start.values()));
        let gradient = corrected.as_deref().unwrap_or(gradient);
        self.optimizer.step(&mut self.values[..gradient.len()], gradient);
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

#[inline(always)]
fn divide(values: &mut [f32], by: f32) {
    values.iter_mut().for_each(|value| *value /= by);
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
            local_epochs: Some(1),
            local_steps: None,
            microbatch: 16,
            ema_decay: None,
        };
        let task = TrainingTask {
            spec: &spec,
            start: &start,
            dataset: &dataset,
            normalise: Normalise::IDENTITY,
            training: &training,
            n_steps: None,
            correction: None,
            device: &Device::flex(),
            n_threads: all_cores(),
        };
        let indices: Vec<usize> = (0..70).rev().collect();
        let parts = records(&indices, 16);
        let sum = |n_threads| {
            let trainer = Trainer { n_threads, ..Trainer::new(&task).unwrap() };
            let clipped = trainer.sum(&parts, |m, p| p.clipped_sum(m, 0.1));
            let plain = trainer.sum(&parts, |m, p| gradient_sum(m, &p.batch, &p.mask));
            (clipped.unwrap(), plain.unwrap())
        };
        let one = sum(1);
        assert!(one.0.iter().any(|value| *value != 0.0));
        // Often, because threads that share a node of burn's graph fail only now and then.
        for n_threads in [2, 3, 8].repeat(40) {
            assert_eq!(sum(n_threads), one);
        }

        // Persons, of one to five rows: the sum of each one's clipped gradient, one at a time.
        let persons = Population::Persons(
            (0..23).map(|person| (3 * person..3 * person + 1 + person % 3).collect()).collect(),
        );
        let drawn: Vec<usize> = (0..23).filter(|person| person % 4 != 1).collect();
        let trainer = Trainer { n_threads: 2, ..Trainer::new(&task).unwrap() };
        let Population::Persons(rows) = &persons else { unreachable!() };
        let gradients: Vec<Vec<f64>> = drawn
            .iter()
            .map(|person| {
                let parts = records(&rows[*person], 16);
                trainer.sum(&parts, |m, p| gradient_sum(m, &p.batch, &p.mask)).unwrap()
            })
            .collect();
        let norm = |gradient: &[f64]| gradient.iter().map(|v| v * v).sum::<f64>().sqrt();
        let mut norms: Vec<f64> = gradients.iter().map(|gradient| norm(gradient)).collect();
        norms.sort_by(f64::total_cmp);
        // Half of them are clipped.
        let clip = norms[norms.len() / 2];
        let mut expected = vec![0.0; start.values().len()];
        for gradient in &gradients {
            let factor = (clip / norm(gradient)).min(1.0);
            for (sum, value) in expected.iter_mut().zip(gradient) {
                *sum += value * factor;
            }
        }
        let parts = persons.microbatches(&drawn, 16);
        let sum = trainer.sum(&parts, |m, p| p.clipped_sum(m, clip)).unwrap();
        for (got, expected) in sum.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-4, "{got} {expected}");
        }
    }

    #[test]
    fn nobodys_rows_are_in_two_microbatches() {
        let persons = Population::Persons(vec![vec![0, 4], vec![1], vec![2, 3, 7], vec![5, 6]]);
        let part = |rows: &[usize], slots: &[usize]| Microbatch {
            rows: rows.to_vec(),
            slots: Some(slots.to_vec()),
        };
        assert_eq!(
            persons.microbatches(&[0, 1, 2, 3], 4),
            [part(&[0, 4, 1], &[0, 0, 1]), part(&[2, 3, 7], &[0, 0, 0]), part(&[5, 6], &[0, 0])]
        );
        assert!(persons.microbatches(&[], 4).is_empty());
        assert_eq!(Population::Records(9).microbatches(&[1, 8], 1), records(&[1, 8], 1));
    }
}
