//! DP-SGD's clipped gradient sum by book-keeping (Bu, Wang, Zha & Karypis 2023,
//! <https://arxiv.org/abs/2210.00038>), of examples or of persons.
//!
//! The layers' own way back (`layers`) computes the gradients `d` of the summed loss with respect
//! to each layer's output, and never a weight gradient. Examples do not mix, so row `i` of `d` is
//! example `i`'s own. With a layer's input `a`, example `i`'s weight gradient is `d_i a_iᵀ`; its
//! norm follows from `d` and `a`, and the clipped sum is one product in which `d` is scaled by the
//! clipping factors.
//!
//! The factors follow [`comity_privacy::clip_factor`], computed in `f64` from norms read back.
//! How norms and sums follow from a layer's `a` and `d` is in `site`; who is clipped together, in
//! `units`.

use burn::tensor::{Bool, Tensor, TensorData, activation};
use comity_datasets::Batch;

use crate::layers::Signal;
use crate::model::read;
use crate::units::Units;
use crate::{Model, TrainError};

/// Sum over the examples of `batch` whose `mask` is true of their gradients, each scaled to L2
/// norm at most `clip_norm_l2`: `[n_trainable]` in the manifest's order.
///
/// An example whose gradient is not finite contributes zero, and so does padding. Sums are of f32;
/// over many microbatches, add the results in f64.
///
/// # Errors
/// [`TrainError::Features`] if the examples do not fit the model.
///
/// # Panics
/// If `mask` has another length than `batch`.
pub fn clipped_gradient_sum(
    model: &Model,
    batch: &Batch,
    mask: &[bool],
    clip_norm_l2: f64,
) -> Result<Vec<f32>, TrainError> {
    assert_eq!(mask.len(), batch.labels.len(), "one mask value an example");
    clipped_sum(model, batch, mask, &Units::examples(mask.len()), clip_norm_l2)
}

/// Sum over persons of their gradients, each scaled to L2 norm at most `clip_norm_l2`; a person's
/// gradient is the sum of the gradients of those of its examples in `batch` whose `mask` is true.
/// The result is `[n_trainable]` in the manifest's order.
///
/// `persons`, one for each example, tells whose it is: any number below the number of examples.
/// All of a person's examples must be in this one call, or the person is
/// clipped more than once. Where no two examples are of one person, the result is that of
/// [`clipped_gradient_sum`], bit for bit.
///
/// A person whose gradient is not finite contributes zero, with all of its examples.
///
/// # Errors
/// [`TrainError::Features`] if the examples do not fit the model.
///
/// # Panics
/// If `mask` or `persons` has another length than `batch`, or a person is not below it.
pub fn clipped_person_gradient_sum(
    model: &Model,
    batch: &Batch,
    mask: &[bool],
    persons: &[usize],
    clip_norm_l2: f64,
) -> Result<Vec<f32>, TrainError> {
    let n = batch.labels.len();
    assert_eq!(mask.len(), n, "one mask value an example");
    assert_eq!(persons.len(), n, "one person an example");
    clipped_sum(model, batch, mask, &Units::persons(mask, persons), clip_norm_l2)
}

fn clipped_sum(
    model: &Model,
    batch: &Batch,
    mask: &[bool],
    units: &Units,
    clip_norm_l2: f64,
) -> Result<Vec<f32>, TrainError> {
    let features = model.features(batch)?;
    let n = batch.labels.len();
    if !mask.contains(&true) {
        return Ok(vec![0.0; model.manifest().n_trainable()]);
    }
    let (logits, back) = model.trace(features);
    // The sum's gradient, never the mean's: row i must be example i's own gradient. That of
    // cross-entropy is softmax minus the label's unit vector.
    let d = activation::softmax(logits, 1) - model.unit_vectors(batch);
    let mut sites = Vec::new();
    back(Signal::Flat(d), &mut sites);

    let device = model.device();
    let order = units.order(device);
    let squared_norms: Vec<f32> = units
        .groups()
        .iter()
        .flat_map(|group| {
            let squared_norms = sites
                .iter()
                .map(|site| site.squared_norms(group, order.as_ref()))
                .reduce(|sum, site| sum + site);
            read(squared_norms.expect("a manifest has at least one tensor"))
        })
        .collect();
    let factors: Vec<f32> = squared_norms
        .iter()
        .map(|squared_norm| {
            comity_privacy::clip_factor(f64::from(*squared_norm).sqrt(), clip_norm_l2) as f32
        })
        .collect();

    let factors: Vec<f32> = units
        .of_examples(&factors)
        .into_iter()
        .zip(mask)
        .map(|(factor, counts)| if *counts { factor } else { 0.0 })
        .collect();
    let factors = Tensor::<1>::from_data(TensorData::new(factors, [n]), device);
    // A factor of zero is not enough where a value is not finite: 0 * NaN is NaN. Dropping rows
    // costs a pass over everything, so it is done only where it is needed.
    let dropped = squared_norms.iter().any(|norm| !norm.is_finite()).then(|| {
        let dropped: Vec<bool> = squared_norms.iter().map(|norm| !norm.is_finite()).collect();
        Tensor::<1, Bool>::from_data(TensorData::new(units.of_examples(&dropped), [n]), device)
    });
    let mut sum = vec![0.0; model.manifest().n_trainable()];
    for site in sites {
        let site = match &dropped {
            None => site,
            Some(dropped) => site.without(dropped),
        };
        site.write_weighted_sum(&factors, &mut sum);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests;
