//! Folds a round's updates into the next model, chunk by chunk: memory does not grow with the
//! model or with the number of clients.

use std::io::Read as _;

use anyhow::{Context as _, ensure};
use comity_federation::{Accumulator, Aggregation, ModelDigest, Plan, UpdateDigest, aggregate};
use comity_journal::BlobStore;

/// Coordinates folded at once.
const CHUNK_COORDINATES: usize = 1 << 16;

/// The next model of a round: `base` plus the strategy's step on `updates`, stored as a blob.
///
/// Updates hold the trained parameters, which are a model's first ones; the frozen ones after
/// them are copied. `n_trainable` is the plan's.
pub(crate) fn fold(
    blobs: &BlobStore,
    settings: &Aggregation,
    base: ModelDigest,
    n_trainable: usize,
    updates: &[(UpdateDigest, u64)],
) -> anyhow::Result<ModelDigest> {
    let mut base = blobs.reader(&base.0).context("the round's model is missing")?;
    let mut readers = Vec::with_capacity(updates.len());
    for (digest, weight) in updates {
        let reader = blobs.reader(&digest.0).with_context(|| format!("update {digest}"))?;
        ensure!(
            reader.len() == 4 * n_trainable as u64 && reader.len() <= base.len(),
            "update {digest} has another length than the model's trained part"
        );
        readers.push((reader, *weight));
    }
    let mut next = blobs.writer()?;
    let mut left = 4 * n_trainable as u64;
    let mut frozen = base.len().saturating_sub(left);
    let mut model_bytes = vec![0; CHUNK_COORDINATES * 4];
    let mut update_bytes = vec![0; CHUNK_COORDINATES * 4];
    let mut values = Vec::with_capacity(CHUNK_COORDINATES);
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(model_bytes.len());
        base.read_exact(&mut model_bytes[..n])?;
        values.clear();
        values.extend(model_bytes[..n].as_chunks::<4>().0.iter().map(|w| f32::from_le_bytes(*w)));
        let mut sum = Accumulator::new(values.len());
        for (reader, weight) in &mut readers {
            reader.read_exact(&mut update_bytes[..n])?;
            sum.add(&update_bytes[..n], *weight);
        }
        let after = aggregate(settings, &values, &sum);
        ensure!(after.iter().all(|v| v.is_finite()), "the aggregated model is not finite");
        for (word, value) in model_bytes.chunks_exact_mut(4).zip(&after) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        next.write(&model_bytes[..n])?;
        left -= n as u64;
    }
    while frozen > 0 {
        let n = usize::try_from(frozen).unwrap_or(usize::MAX).min(model_bytes.len());
        base.read_exact(&mut model_bytes[..n])?;
        next.write(&model_bytes[..n])?;
        frozen -= n as u64;
    }
    Ok(ModelDigest(next.finish()?))
}

/// The sums of round 0's statistics, and the first model with what they say of its features; `base` is
/// copied chunk by chunk.
pub(crate) fn statistics(
    blobs: &BlobStore,
    plan: &Plan,
    base: ModelDigest,
    updates: &[(UpdateDigest, u64)],
) -> anyhow::Result<(ModelDigest, Vec<i64>)> {
    let request = plan.analytics_request().context("the plan asks for no statistics")?;
    let mut sum = Accumulator::new(usize::try_from(request.n_values())?);
    for (digest, weight) in updates {
        let bytes = blobs.read_all(&digest.0).with_context(|| format!("update {digest}"))?;
        ensure!(bytes.len() as u64 == 4 * request.n_values(), "update {digest}: another length");
        sum.add(&bytes, *weight);
    }
    let sums = sum.sum().to_vec();
    let Some((start, values)) = plan.standardisation(&sums)? else { return Ok((base, sums)) };
    let patch: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let patched = 4 * start as u64..4 * start as u64 + patch.len() as u64;
    let mut base = blobs.reader(&base.0).context("the first model is missing")?;
    ensure!(patched.end <= base.len(), "the first model is shorter than its plan says");
    let mut next = blobs.writer()?;
    let mut chunk = vec![0; CHUNK_COORDINATES * 4];
    let mut at = 0;
    while at < base.len() {
        let n = usize::try_from(base.len() - at).unwrap_or(usize::MAX).min(chunk.len());
        base.read_exact(&mut chunk[..n])?;
        let (from, to) = (patched.start.max(at), patched.end.min(at + n as u64));
        if from < to {
            let of_patch = (from - patched.start) as usize..(to - patched.start) as usize;
            chunk[(from - at) as usize..(to - at) as usize].copy_from_slice(&patch[of_patch]);
        }
        next.write(&chunk[..n])?;
        at += n as u64;
    }
    Ok((ModelDigest(next.finish()?), sums))
}

#[cfg(test)]
mod tests {
    use super::*;
    use comity_federation::{FixedPoint, Parameters, Strategy};

    #[test]
    fn folding_by_chunks_equals_folding_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path()).unwrap();
        let settings = Aggregation {
            strategy: Strategy::Fedavg,
            server_learning_rate: 0.5,
            fixed_point_bits: 22,
        };
        // More than two chunks, and a last one that is not full.
        let n = 2 * CHUNK_COORDINATES + 17;
        let base: Vec<f32> = (0..n).map(|i| (i % 1000) as f32 / 100.0).collect();
        let grid = FixedPoint::new(22).unwrap();
        let mut sum = Accumulator::new(n);
        let mut updates = Vec::new();
        for weight in [3u64, 5] {
            let after: Vec<f32> = base.iter().map(|v| v * weight as f32 + 1.0).collect();
            let bytes = grid.delta(&base, &after).unwrap().to_bytes();
            sum.add(&bytes, weight);
            updates.push((UpdateDigest(blobs.put(&bytes).unwrap()), weight));
        }
        let expected = Parameters::new(aggregate(&settings, &base, &sum));
        let start = ModelDigest(blobs.put(&Parameters::new(base).to_bytes()).unwrap());
        let next = fold(&blobs, &settings, start, n, &updates).unwrap();
        assert_eq!(next, expected.digest());
        updates.reverse();
        assert_eq!(fold(&blobs, &settings, start, n, &updates).unwrap(), next);
    }

    #[test]
    fn frozen_parameters_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path()).unwrap();
        let settings = Aggregation {
            strategy: Strategy::Fedavg,
            server_learning_rate: 1.0,
            fixed_point_bits: 22,
        };
        let n = 2 * CHUNK_COORDINATES + 5;
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let base = ModelDigest(blobs.put(&Parameters::new(values.clone()).to_bytes()).unwrap());
        let delta = FixedPoint::new(22).unwrap().delta(&[0.0, 1.0, 2.0], &[1.0, 1.0, 0.5]).unwrap();
        let update = UpdateDigest(blobs.put(&delta.to_bytes()).unwrap());
        let next = fold(&blobs, &settings, base, 3, &[(update, 2)]).unwrap();
        let expected = [&[1.0, 1.0, 0.5], &values[3..]].concat();
        assert_eq!(next, Parameters::new(expected).digest());
    }

    #[test]
    fn an_update_of_another_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path()).unwrap();
        let settings = Aggregation {
            strategy: Strategy::Fedavg,
            server_learning_rate: 1.0,
            fixed_point_bits: 22,
        };
        let base = ModelDigest(blobs.put(&[0; 8]).unwrap());
        let update = UpdateDigest(blobs.put(&[0; 4]).unwrap());
        let error = fold(&blobs, &settings, base, 2, &[(update, 1)]).unwrap_err();
        assert!(error.to_string().contains("another length"), "{error}");
    }
}
