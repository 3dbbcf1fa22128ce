//! Randomness that an audit can look at: batches that two runs share, and noise that is seen as it
//! is added. Both go through the seams that deployed code uses, and neither is linked by it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use comity_privacy::{KeyedNoise, Noise, NoiseKind, PrivacyError, Randomness};
use rand_core::TryRng;

/// What a session asked of its noise, and what it got, in the order of asking.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tape {
    /// One for each step whose noise was added.
    pub(crate) steps: Vec<TapedStep>,
    /// One for each count that was released.
    pub(crate) counts: Vec<TapedCount>,
    /// One for each draw of a vector, in the order of the steps that they are for.
    pub(crate) draws: Vec<TapedDraw>,
}

/// One step's sum on the grid, before and after its noise.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TapedStep {
    /// The clipped sum in grid units, without noise: private, never released.
    pub(crate) before: Vec<i64>,
    /// With noise.
    pub(crate) after: Vec<i64>,
}

/// One released count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TapedCount {
    /// Without noise: private, never released.
    pub(crate) before: i64,
    /// With noise.
    pub(crate) after: i64,
    /// Standard deviation asked for.
    pub(crate) sigma: f64,
}

/// One vector of noise that was drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TapedDraw {
    /// The step that it is for: the index of its fork.
    pub(crate) step: u64,
    /// `log2` of its standard deviation.
    pub(crate) log2_sigma: u32,
    /// Its length.
    pub(crate) n_values: usize,
    /// Whether it was the exact sampler's.
    pub(crate) exact: bool,
}

/// Deployed noise, [`KeyedNoise`], with a tape beside it.
///
/// With a history, the second of two runs sees what the first released in place of its own sums
/// with noise: the two runs are then compared step by step *given the same outputs so far*, which
/// is what a step's sensitivity is defined by.
pub(crate) struct TapedNoise {
    inner: Box<dyn Noise>,
    tape: Arc<Mutex<Tape>>,
    history: Option<History>,
    /// How deep in forks this source is, and its index there.
    fork: (u32, u64),
}

#[derive(Clone)]
struct History {
    steps: VecDeque<Vec<i64>>,
    counts: VecDeque<i64>,
}

impl TapedNoise {
    /// Fresh noise of the operating system's, and the tape on which it is recorded.
    pub(crate) fn recording() -> Result<(Self, Arc<Mutex<Tape>>), PrivacyError> {
        Self::over(Box::new(KeyedNoise::from_os()?), None)
    }

    /// As [`recording`](Self::recording), but what is released is what `first` released.
    pub(crate) fn replaying(first: &Tape) -> Result<(Self, Arc<Mutex<Tape>>), PrivacyError> {
        let history = History {
            steps: first.steps.iter().map(|step| step.after.clone()).collect(),
            counts: first.counts.iter().map(|count| count.after).collect(),
        };
        Self::over(Box::new(KeyedNoise::from_os()?), Some(history))
    }

    /// Recorded noise of any source.
    pub(crate) fn over_source(inner: Box<dyn Noise>) -> (Self, Arc<Mutex<Tape>>) {
        let tape = Arc::default();
        (Self { inner, tape: Arc::clone(&tape), history: None, fork: (0, 0) }, tape)
    }

    fn over(
        inner: Box<dyn Noise>,
        history: Option<History>,
    ) -> Result<(Self, Arc<Mutex<Tape>>), PrivacyError> {
        let (noise, tape) = Self::over_source(inner);
        Ok((Self { history, ..noise }, tape))
    }
}

impl Noise for TapedNoise {
    fn fork(&self, index: u64) -> Box<dyn Noise> {
        Box::new(Self {
            inner: self.inner.fork(index),
            tape: Arc::clone(&self.tape),
            history: None,
            fork: (self.fork.0 + 1, index),
        })
    }

    fn draw(
        &mut self,
        kind: NoiseKind,
        log2_sigma: u32,
        values: &mut [i64],
    ) -> Result<(), PrivacyError> {
        self.inner.draw(kind, log2_sigma, values)?;
        lock(&self.tape).draws.push(TapedDraw {
            step: self.fork.1,
            log2_sigma,
            n_values: values.len(),
            exact: kind == NoiseKind::DiscreteGaussian,
        });
        Ok(())
    }

    fn add(&mut self, drawn: &[i64], values: &mut [i64]) {
        let before = values.to_vec();
        self.inner.add(drawn, values);
        if let Some(after) = self.history.as_mut().and_then(|history| history.steps.pop_front())
            && after.len() == values.len()
        {
            values.copy_from_slice(&after);
        }
        lock(&self.tape).steps.push(TapedStep { before, after: values.to_vec() });
    }

    fn release_integer(&mut self, value: i64, sigma: f64) -> Result<i64, PrivacyError> {
        let own = self.inner.release_integer(value, sigma)?;
        let taped = self.history.as_mut().and_then(|history| history.counts.pop_front());
        let after = taped.unwrap_or(own);
        lock(&self.tape).counts.push(TapedCount { before: value, after, sigma });
        Ok(after)
    }
}

/// The tape, also after a panic elsewhere: it is only looked at.
pub(crate) fn lock(tape: &Mutex<Tape>) -> std::sync::MutexGuard<'_, Tape> {
    tape.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Batches for [`PoissonSampler`](comity_privacy::PoissonSampler) in which a record's fate depends
/// on nothing but its position and the step, so that data sets of different sizes share them; and
/// one record that is in every batch.
pub(crate) struct SharedBatches {
    seed: [u8; 32],
    /// Records of the data set that is sampled.
    n_records: usize,
    /// The record that is always in, where the data set has it.
    always: usize,
    words_drawn: u64,
}

impl SharedBatches {
    pub(crate) fn new(seed: [u8; 32], n_records: usize, always: usize) -> Self {
        Self { seed, n_records, always, words_drawn: 0 }
    }

    fn word(&mut self) -> u64 {
        let n_records = self.n_records.max(1) as u64;
        let (step, record) = (self.words_drawn / n_records, self.words_drawn % n_records);
        self.words_drawn += 1;
        if record == self.always as u64 {
            return 0;
        }
        let mut hasher = blake3::Hasher::new_derive_key("comity audit batches v1");
        hasher.update(&self.seed).update(&step.to_le_bytes()).update(&record.to_le_bytes());
        let hash = hasher.finalize();
        let word = hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
        u64::from_le_bytes(*word)
    }
}

impl TryRng for SharedBatches {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.word() as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.word())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for part in bytes.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            part.copy_from_slice(&word[..part.len()]);
        }
        Ok(())
    }
}

/// A session's randomness out of `noise` and `batches`; `id` names it in the audit's own ledger.
pub(crate) fn randomness(noise: TapedNoise, batches: SharedBatches, id: [u8; 32]) -> Randomness {
    Randomness { sampling: Box::new(batches), noise: Box::new(noise), id }
}

#[cfg(test)]
mod tests {
    use comity_privacy::PoissonSampler;

    use super::*;

    #[test]
    fn data_sets_of_different_sizes_share_their_batches() {
        let batches = |n: usize| {
            let rng = Box::new(SharedBatches::new([1; 32], n, 200));
            let mut sampler = PoissonSampler::new(0.3, rng).unwrap();
            (0..5).map(|_| sampler.sample(n)).collect::<Vec<_>>()
        };
        let (with, without) = (batches(201), batches(200));
        for (mut with, without) in with.into_iter().zip(without) {
            assert_eq!(with.pop(), Some(200), "the record is in every batch");
            assert_eq!(with, without);
            assert!((30..90).contains(&without.len()), "{}", without.len());
        }
    }

    #[test]
    fn a_replay_releases_what_was_released_and_keeps_its_own_sums() {
        let drawn = [5, -7];
        let (mut first, tape) = TapedNoise::recording().unwrap();
        let mut values = [100, 200];
        first.add(&drawn, &mut values);
        let count = first.release_integer(50, 3.0).unwrap();
        let recorded = lock(&tape).clone();
        assert_eq!(recorded.steps[0], TapedStep { before: vec![100, 200], after: vec![105, 193] });

        let (mut second, tape) = TapedNoise::replaying(&recorded).unwrap();
        let mut values = [101, 200];
        second.add(&drawn, &mut values);
        assert_eq!(values, [105, 193]);
        assert_eq!(second.release_integer(51, 3.0).unwrap(), count);
        let replayed = lock(&tape).clone();
        assert_eq!(replayed.steps[0].before, [101, 200]);
        assert_eq!(replayed.counts, [TapedCount { before: 51, after: count, sigma: 3.0 }]);
    }
}
