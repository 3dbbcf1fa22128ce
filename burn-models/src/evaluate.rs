//! How good a model is on examples at hand. The figures are exact and so private, unless the
//! examples are public.

use std::num::NonZero;
use std::thread;

use comity_datasets::{Batch, Dataset, Normalise};
use comity_federation::{ModelSpec, Parameters};

use crate::front::Examples;
use crate::model::{cross_entropy, read};
use crate::{Device, Model, TrainError};

/// A model's figures on a data set.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct Evaluation {
    /// Number of examples.
    pub n: usize,
    /// How many have their highest score at their label.
    pub n_correct: usize,
    /// `n_correct / n`.
    pub accuracy: f64,
    /// Mean cross-entropy, in nats.
    pub loss: f64,
}

/// Evaluates `parameters` on all of `dataset`, `batch` examples at once on each of `n_threads` cores,
/// where the device is the CPU; the result does not depend on their number.
///
/// # Errors
/// [`TrainError::NoData`] for an empty data set, [`TrainError::Setting`] for a batch of zero, and
/// those of a model that does not fit.
pub fn evaluate(
    spec: &ModelSpec,
    parameters: &Parameters,
    dataset: &Dataset,
    normalise: Normalise,
    device: &Device,
    batch: usize,
    n_threads: NonZero<usize>,
) -> Result<Evaluation, TrainError> {
    let (n_correct, losses) =
        losses(spec, parameters, dataset, normalise, device, batch, n_threads)?;
    let n = losses.len();
    let loss = losses.into_iter().map(f64::from).sum::<f64>() / n as f64;
    Ok(Evaluation { n, n_correct, accuracy: n_correct as f64 / n as f64, loss })
}

/// How many of `dataset` are classified correctly, and the cross-entropy of each, `[n]`, in nats.
///
/// # Errors
/// As [`evaluate`].
pub(crate) fn losses(
    spec: &ModelSpec,
    parameters: &Parameters,
    dataset: &Dataset,
    normalise: Normalise,
    device: &Device,
    batch: usize,
    n_threads: NonZero<usize>,
) -> Result<(usize, Vec<f32>), TrainError> {
    if batch == 0 {
        return Err(TrainError::Setting {
            key: "training.microbatch",
            reason: "must be at least 1",
        });
    }
    let n = dataset.len();
    if n == 0 {
        return Err(TrainError::NoData);
    }
    let device = device.clone().inner();
    let mut model = Model::new(spec, dataset.shape(), dataset.n_classes(), &device)?;
    model.load(parameters)?;
    let examples = Examples::new(spec, dataset, normalise)?;
    let indices: Vec<usize> = (0..n).collect();
    // An accelerator has its own parallelism.
    let n_threads = if device == Device::flex() { n_threads.get() } else { 1 };
    // Whole batches, so that each is the same on however many cores.
    let share = n.div_ceil(batch).div_ceil(n_threads) * batch;
    let score = |indices: &[usize]| -> Result<(usize, Vec<f32>), TrainError> {
        let (mut n_correct, mut losses) = (0, Vec::with_capacity(indices.len()));
        for indices in indices.chunks(batch) {
            n_correct += score(&model, &examples.batch(indices), &mut losses)?;
        }
        Ok((n_correct, losses))
    };
    let parts: Vec<_> = thread::scope(|scope| {
        let mut shares = indices.chunks(share);
        let first = shares.next().unwrap_or_default();
        let others: Vec<_> = shares.map(|indices| scope.spawn(|| score(indices))).collect();
        let first = score(first);
        let others = others
            .into_iter()
            .map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        std::iter::once(first).chain(others).collect()
    });
    let (mut n_correct, mut losses) = (0, Vec::with_capacity(n));
    for part in parts {
        let (n, own) = part?;
        n_correct += n;
        losses.extend(own);
    }
    Ok((n_correct, losses))
}

/// Adds the cross-entropy of each example to `losses` and returns how many are classified correctly.
fn score(model: &Model, batch: &Batch, losses: &mut Vec<f32>) -> Result<usize, TrainError> {
    model.check_features(batch)?;
    let mut n_correct = 0;
    let done = model.on_cpu(|network, weights, workspace| {
        let take = |scores: &[f32], label: u32, loss| {
            losses.push(loss);
            n_correct += usize::from(is_highest(scores, label as usize));
        };
        network.score(weights, workspace, &batch.features, &batch.labels, take);
    });
    if done.is_none() {
        let scores = model.forward(model.features(batch)?);
        losses.extend(read(cross_entropy(scores.clone(), model.labels(batch))));
        let [_, n_classes] = scores.dims();
        n_correct = read(scores)
            .chunks(n_classes)
            .zip(&batch.labels)
            .filter(|(scores, label)| is_highest(scores, **label as usize))
            .count();
    }
    Ok(n_correct)
}

/// Whether `scores[label]` is the highest, the first where several are equal; NaN is never.
fn is_highest(scores: &[f32], label: usize) -> bool {
    let own = scores[label];
    !own.is_nan()
        && scores.iter().enumerate().all(|(class, score)| {
            class == label || *score < own || (*score == own && class > label)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_and_nan_are_not_correct_by_luck() {
        assert!(is_highest(&[1.0, 2.0], 1));
        assert!(is_highest(&[2.0, 2.0], 0) && !is_highest(&[2.0, 2.0], 1));
        assert!(!is_highest(&[f32::NAN, 2.0], 0) && !is_highest(&[f32::NAN, 2.0], 1));
        assert!(!is_highest(&[f32::NAN; 2], 0));
    }
}
