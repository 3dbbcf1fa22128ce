//! A run's models: the first one, and what a round's updates make of the last one; chunk by chunk, so
//! that memory does not grow with the model or with the number of clients.

use std::io::{Read as _, Seek as _, SeekFrom};

use anyhow::{Context as _, ensure};
use comity_federation::{
    Accumulator, Base, Contribution, Fold, Manifest, ModelDigest, Plan, ServerStep, SquareSum,
    UpdateDigest, UpdateEncoding, Updates,
};
use comity_journal::{BlobError, BlobReader, BlobStore, BlobWriter, failpoint};

/// Coordinates copied at once.
const CHUNK_COORDINATES: usize = 1 << 16;
/// Most updates whose files are kept open; of more, each is opened for each chunk.
const OPEN_FILES_MAX: usize = 32;

/// A round's updates in the blob store.
struct Stored<'a> {
    blobs: &'a BlobStore,
    updates: Vec<UpdateDigest>,
    /// As many as are kept open, with the byte at which each stands.
    open: Vec<(BlobReader, u64)>,
    encoding: UpdateEncoding,
    n_coordinates: usize,
    /// Encoded bytes on their way to be decoded.
    encoded: Vec<u8>,
}

impl<'a> Stored<'a> {
    /// The updates, each of which is to have `n_coordinates`.
    fn open(
        blobs: &'a BlobStore,
        updates: impl IntoIterator<Item = UpdateDigest>,
        encoding: UpdateEncoding,
        n_coordinates: usize,
    ) -> anyhow::Result<Self> {
        let mut stored = Self {
            blobs,
            updates: updates.into_iter().collect(),
            open: Vec::new(),
            encoding,
            n_coordinates,
            encoded: Vec::new(),
        };
        let n_bytes = encoding.bytes(n_coordinates as u64);
        for digest in &stored.updates {
            // It may have been written before a restart: what the disk altered must not be summed.
            let reader =
                blobs.reader_of_whole(&digest.0).with_context(|| format!("update {digest}"))?;
            ensure!(
                reader.len() == n_bytes,
                "update {digest} has another length than the model's trained part"
            );
            if stored.updates.len() <= OPEN_FILES_MAX {
                stored.open.push((reader, 0));
            }
        }
        Ok(stored)
    }
}

impl Updates for Stored<'_> {
    type Error = anyhow::Error;

    fn read(&mut self, index: usize, from: usize, into: &mut [u8]) -> anyhow::Result<()> {
        let digest = self.updates[index];
        let mut opened;
        let (reader, at) = match self.open.get_mut(index) {
            Some((reader, at)) => (reader, at),
            None => {
                opened = (self.blobs.reader(&digest.0)?, 0);
                (&mut opened.0, &mut opened.1)
            }
        };
        let range = from..from + into.len() / 4;
        let span = self.encoding.span(&range, self.n_coordinates);
        if *at != span.start {
            reader.seek(SeekFrom::Start(span.start))?;
        }
        let read = if self.encoding.is_exact() {
            reader.read_exact(into)
        } else {
            self.encoded.resize((span.end - span.start) as usize, 0);
            reader.read_exact(&mut self.encoded)
        };
        read.with_context(|| format!("update {digest}"))?;
        if !self.encoding.is_exact() {
            self.encoding.decode(&range, &self.encoded, into);
        }
        *at = span.end;
        Ok(())
    }
}

/// A round's model in the blob store.
struct StoredModel {
    reader: BlobReader,
    /// The byte at which it stands.
    at: u64,
    bytes: Vec<u8>,
}

impl Base<anyhow::Error> for StoredModel {
    fn read(&mut self, from: usize, into: &mut [f32]) -> anyhow::Result<()> {
        let from = 4 * from as u64;
        if self.at != from {
            self.reader.seek(SeekFrom::Start(from))?;
        }
        self.bytes.resize(4 * into.len(), 0);
        self.reader.read_exact(&mut self.bytes).context("the round's model")?;
        self.at = from + self.bytes.len() as u64;
        for (value, word) in into.iter_mut().zip(self.bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*word);
        }
        Ok(())
    }
}

/// The model that `seed` starts, stored as a blob.
pub(crate) fn first_model(
    blobs: &BlobStore,
    manifest: &Manifest,
    seed: u64,
) -> anyhow::Result<ModelDigest> {
    let mut first = blobs.writer()?;
    let mut bytes = Vec::new();
    manifest.initialise(seed, |values| {
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        first.write(&bytes)
    })?;
    Ok(ModelDigest(first.finish()?))
}

/// The next model of a round: what `step` makes of `base` and `updates`, with the round's `gain`, stored as a
/// blob.
pub(crate) fn fold(
    blobs: &BlobStore,
    step: ServerStep,
    encoding: UpdateEncoding,
    base: ModelDigest,
    updates: &[(UpdateDigest, u64)],
    gain: f64,
) -> anyhow::Result<ModelDigest> {
    let reader = blobs.reader_of_whole(&base.0).context("the round's model")?;
    ensure!(
        reader.len() == 4 * step.n_values() as u64,
        "the round's model has another length than its plan says"
    );
    let mut base = StoredModel { reader, at: 0, bytes: Vec::new() };
    let weights = updates.iter().map(|(_, weight)| *weight).collect();
    let named = updates.iter().map(|(update, _)| *update);
    let mut stored = Stored::open(blobs, named, encoding, step.n_shared())?;
    let mut fold = Fold::new(step, weights, gain, &mut stored)?;
    let mut next = blobs.writer()?;
    let mut bytes = Vec::new();
    for range in fold.chunks() {
        let after = fold.step(range, &mut base, &mut stored)?;
        ensure!(after.iter().all(|v| v.is_finite()), "the aggregated model is not finite");
        bytes.clear();
        bytes.extend(after.iter().flat_map(|value| value.to_le_bytes()));
        next.write(&bytes)?;
    }
    finish(next)
}

/// The L2 norm of a stored update in grid steps, rounded up; read chunk by chunk.
pub(crate) fn norm_steps(blobs: &BlobStore, contribution: &Contribution) -> anyhow::Result<u64> {
    let n = usize::try_from(contribution.n_parameters)?;
    let mut stored = Stored::open(blobs, [contribution.update], contribution.encoding, n)?;
    let mut squares = SquareSum::default();
    let mut chunk = vec![0; 4 * CHUNK_COORDINATES.min(n)];
    for from in (0..n).step_by(CHUNK_COORDINATES) {
        let part = &mut chunk[..4 * CHUNK_COORDINATES.min(n - from)];
        stored.read(0, from, part)?;
        squares.add(part);
    }
    Ok(squares.norm())
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
    let sums = sum.into_sum();
    let Some((start, values)) = plan.standardisation(&sums)? else { return Ok((base, sums)) };
    let patch: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let patched = 4 * start as u64..4 * start as u64 + patch.len() as u64;
    let mut base = blobs.reader_of_whole(&base.0).context("the first model")?;
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
    Ok((finish(next)?, sums))
}

fn finish(next: BlobWriter) -> anyhow::Result<ModelDigest> {
    failpoint::reach("coordinator::before_fold_stored");
    let model = ModelDigest(next.finish()?);
    failpoint::reach("coordinator::after_fold_stored");
    Ok(model)
}

/// Whether a fold failed for a reason that passes: the disk is full, or a file is damaged and can be put
/// back. What else fails is in the updates themselves.
pub(crate) fn is_of_the_disk(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<BlobError>() || cause.is::<std::io::Error>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use comity_federation::{
        Aggregation, ClientId, Encoded, Parameters, PlanDigest, Rounding, Strategy,
    };

    const STRATEGIES: [Strategy; 9] = [
        Strategy::Fedavgm { momentum: 0.9 },
        Strategy::Fedadam { beta1: 0.9, beta2: 0.99, tau: 1e-3 },
        Strategy::Scaffold,
        Strategy::Fedavg,
        Strategy::Median,
        Strategy::TrimmedMean { trim: 2 },
        Strategy::Krum { byzantine: 1 },
        Strategy::MultiKrum { byzantine: 1, keep: 3 },
        Strategy::NormCappedMean { norm_max_l2: 100.0 },
    ];

    fn settings(strategy: Strategy) -> Aggregation {
        Aggregation {
            strategy,
            server_learning_rate: 0.5,
            fixed_point_bits: 22,
            country_weight_max: None,
            update_norm_max_l2: None,
            update_encoding: UpdateEncoding::Int32,
        }
    }

    /// As [`super::fold`], for updates of `n_shared` coordinates.
    fn fold(
        blobs: &BlobStore,
        settings: &Aggregation,
        (base, n_kept): (ModelDigest, usize),
        n_shared: usize,
        updates: &[(UpdateDigest, u64)],
    ) -> anyhow::Result<ModelDigest> {
        let step = ServerStep::new(settings, n_shared, n_kept);
        super::fold(blobs, step, settings.update_encoding, base, updates, 1.0)
    }

    /// The same in memory, each section of the model at once.
    fn fold_in_memory<U: Updates<Error = std::convert::Infallible> + ?Sized>(
        step: ServerStep,
        weights: Vec<u64>,
        base: &[f32],
        updates: &mut U,
    ) -> Parameters {
        let (n_shared, n_values) = (step.n_shared(), step.n_values());
        let n_kept = (n_values - n_shared) % n_shared;
        let Ok(mut fold) = Fold::new(step, weights, 1.0, updates);
        let mut next = Vec::new();
        let mut from = 0;
        while from < n_values {
            let n = if from == n_shared && n_kept > 0 { n_kept } else { n_shared };
            let Ok(values) = fold.step(from..from + n, &mut &base[..], updates);
            next.extend(values);
            from += n;
        }
        Parameters::new(next)
    }

    /// `n_updates` updates of `n` coordinates in a store, and the same bytes in memory.
    fn stored(
        blobs: &BlobStore,
        n_updates: u32,
        n: usize,
    ) -> (Vec<Vec<u8>>, Vec<(UpdateDigest, u64)>) {
        let updates: Vec<Vec<u8>> = (0..n_updates)
            .map(|u| {
                let value = |i: u32| (i + u).wrapping_mul(2_654_435_761).rotate_left(u) as i32 / 64;
                (0..n as u32).flat_map(|i| value(i).to_le_bytes()).collect()
            })
            .collect();
        let digests = (3..)
            .zip(&updates)
            .map(|(weight, bytes)| (UpdateDigest(blobs.put(bytes).unwrap()), weight));
        let digests = digests.collect();
        (updates, digests)
    }

    #[test]
    fn every_strategy_makes_the_same_model_of_files_as_of_memory() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path()).unwrap();
        // More than two chunks and a last one that is not full; once more files than are kept open.
        for (n_updates, n) in [(7, 2 * CHUNK_COORDINATES + 17), (OPEN_FILES_MAX as u32 + 3, 301)] {
            let (bytes, updates) = stored(&blobs, n_updates, n);
            let mut slices: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
            let slices = &mut slices[..];
            for strategy in STRATEGIES {
                let settings = settings(strategy);
                let step = ServerStep::new(&settings, n, 5);
                let base: Vec<f32> =
                    (0..step.n_values()).map(|i| (i % 1000) as f32 / 100.0).collect();
                let start = Parameters::new(base.clone());
                let start = (ModelDigest(blobs.put(&start.to_bytes()).unwrap()), 5);
                let weights = updates.iter().map(|u| u.1).collect();
                let expected = fold_in_memory(step, weights, &base, slices);
                let next = fold(&blobs, &settings, start, n, &updates).unwrap();
                assert_eq!(next, expected.digest(), "{strategy:?}");
                let mut turned = updates.clone();
                turned.reverse();
                let again = fold(&blobs, &settings, start, n, &turned).unwrap();
                assert_eq!(again, next, "{strategy:?}");
            }
        }
    }

    #[test]
    fn the_first_model_is_the_one_that_the_simulator_starts_from() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path()).unwrap();
        let plan = include_str!("../../examples/fashion/plan.toml");
        let plan = Plan::from_toml(plan).unwrap();
        let manifest = plan.manifest().unwrap();
        let first = first_model(&blobs, &manifest, plan.seed).unwrap();
        assert_eq!(first, manifest.initial_parameters(plan.seed).digest());
        blobs.verify(&first.0).unwrap();
    }

    #[test]
    fn quantised_updates_fold_from_files_as_from_memory_whatever_the_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path()).unwrap();
        let n = CHUNK_COORDINATES + 1234;
        let client: ClientId = "KR/a".parse().unwrap();
        for encoding in [UpdateEncoding::Int16, UpdateEncoding::Int8] {
            let updates: Vec<Vec<u8>> = (1..=7)
                .map(|round| {
                    let rounding = Rounding { plan: PlanDigest([1; 32]), round, client: &client };
                    let values: Vec<i32> =
                        (0..n as i32).map(|i| i.wrapping_mul(40_503 * round as i32) / 64).collect();
                    encoding.encode(&values, rounding)
                })
                .collect();
            let digests: Vec<(UpdateDigest, u64)> =
                updates.iter().map(|bytes| (UpdateDigest(blobs.put(bytes).unwrap()), 1)).collect();
            let slices: Vec<&[u8]> = updates.iter().map(Vec::as_slice).collect();
            for strategy in STRATEGIES {
                let settings = Aggregation { update_encoding: encoding, ..settings(strategy) };
                let mut memory = Encoded { updates: &slices, encoding, n_coordinates: n };
                let step = ServerStep::new(&settings, n, 0);
                let base = vec![0.25f32; step.n_values()];
                let start = Parameters::new(base.clone());
                let start = (ModelDigest(blobs.put(&start.to_bytes()).unwrap()), 0);
                let expected = fold_in_memory(step, vec![1; 7], &base, &mut memory);
                let next = fold(&blobs, &settings, start, n, &digests).unwrap();
                assert_eq!(next, expected.digest(), "{encoding:?} {strategy:?}");
            }
        }
    }

    #[test]
    fn frozen_parameters_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path()).unwrap();
        let n = 2 * CHUNK_COORDINATES + 5;
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let base = ModelDigest(blobs.put(&Parameters::new(values.clone()).to_bytes()).unwrap());
        let delta: Vec<u8> =
            [1 << 23, 0, -(3 << 22)].into_iter().flat_map(i32::to_le_bytes).collect();
        let update = UpdateDigest(blobs.put(&delta).unwrap());
        let next =
            fold(&blobs, &settings(Strategy::Fedavg), (base, n - 3), 3, &[(update, 2)]).unwrap();
        let expected = [&[1.0, 1.0, 0.5], &values[3..]].concat();
        assert_eq!(next, Parameters::new(expected).digest());
    }

    #[test]
    fn a_stored_updates_norm_is_that_of_all_its_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path()).unwrap();
        let n = 2 * CHUNK_COORDINATES + 6;
        let bytes = (-3i32).to_le_bytes().repeat(n);
        let update = UpdateDigest(blobs.put(&bytes).unwrap());
        let contribution = Contribution {
            round: 1,
            plan: PlanDigest([0; 32]),
            base: ModelDigest([0; 32]),
            update,
            n_parameters: n as u64,
            encoding: UpdateEncoding::Int32,
            n_correct: None,
            loss_sum: None,
        };
        let norm = norm_steps(&blobs, &contribution).unwrap() as f64;
        assert_eq!(norm, (9.0 * n as f64).sqrt().ceil());
        let longer = Contribution { n_parameters: n as u64 + 1, ..contribution };
        assert!(norm_steps(&blobs, &longer).is_err());
    }

    #[test]
    fn an_update_of_another_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path()).unwrap();
        let base = ModelDigest(blobs.put(&[0; 8]).unwrap());
        let update = UpdateDigest(blobs.put(&[0; 4]).unwrap());
        let error =
            fold(&blobs, &settings(Strategy::Fedavg), (base, 0), 2, &[(update, 1)]).unwrap_err();
        assert!(error.to_string().contains("another length"), "{error}");
        assert!(!is_of_the_disk(&error));
    }

    #[test]
    fn what_the_disk_altered_before_a_restart_is_not_folded_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = || BlobStore::open(dir.path()).unwrap();
        let blobs = store();
        let base = ModelDigest(blobs.put(&[0; 8]).unwrap());
        let update = UpdateDigest(blobs.put(&[1; 8]).unwrap());
        for digest in [base.0, update.0] {
            let hex = ModelDigest(digest).to_string();
            let file = dir.path().join(&hex[..2]).join(&hex[2..]);
            let whole = std::fs::read(&file).unwrap();
            for altered in [vec![2; 8], vec![1; 7], Vec::new()] {
                std::fs::write(&file, altered).unwrap();
                let error =
                    fold(&store(), &settings(Strategy::Fedavg), (base, 0), 2, &[(update, 1)])
                        .unwrap_err();
                assert!(
                    is_of_the_disk(&error) && format!("{error:#}").contains(&hex[2..]),
                    "{error:#}"
                );
            }
            std::fs::write(&file, whole).unwrap();
        }
        fold(&store(), &settings(Strategy::Fedavg), (base, 0), 2, &[(update, 1)]).unwrap();
    }
}
