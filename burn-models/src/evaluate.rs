//! How good a model is on examples at hand. The figures are exact and so private, unless the
//! examples are public.

use comity_datasets::{Dataset, Normalise};
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

/// Evaluates `parameters` on all of `dataset`, `batch` examples at once.
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
) -> Result<Evaluation, TrainError> {
    let (n_correct, losses) = losses(spec, parameters, dataset, normalise, device, batch)?;
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
    let n_classes = dataset.n_classes();
    let mut model = Model::new(spec, dataset.shape(), n_classes, &device.clone().inner())?;
    model.load(parameters)?;
    let examples = Examples::new(spec, dataset, normalise)?;
    let indices: Vec<usize> = (0..n).collect();
    let (mut n_correct, mut losses) = (0, Vec::with_capacity(n));
    for indices in indices.chunks(batch) {
        let batch = examples.batch(indices);
        let logits = model.forward(model.features(&batch)?);
        losses.extend(read(cross_entropy(logits.clone(), model.labels(&batch))));
        n_correct += read(logits)
            .chunks(n_classes)
            .zip(&batch.labels)
            .filter(|(scores, label)| is_highest(scores, **label as usize))
            .count();
    }
    Ok((n_correct, losses))
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
