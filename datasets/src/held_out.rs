//! Records that a client keeps for testing and never trains on.
//!
//! Every unit (a record, or all records of a person) draws a lot, which depends on the seed and on
//! its place in its file alone; those with the lowest lots are kept.  So the same rows of a file are
//! kept whichever way the rows are divided over clients, as long as they stay together.

use chacha20::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::PartitionError;

/// How much a client keeps for testing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOut {
    /// Share that is kept, in `(0, 1)`; the number is rounded up, and one at least is left to train on.
    pub share: f64,
    /// Whether each class is kept in the same share, as nearly as whole numbers allow.
    pub stratified: bool,
}

impl HeldOut {
    /// Refuses a share that is none.
    ///
    /// # Errors
    /// [`PartitionError::Share`].
    pub fn check(&self) -> Result<(), PartitionError> {
        if self.share > 0.0 && self.share < 1.0 {
            return Ok(());
        }
        Err(PartitionError::Share(self.share))
    }

    /// The lots of the `n` units of one file, `[n]`.
    #[must_use]
    pub fn lots(n: usize, seed: u64) -> Vec<u64> {
        let mut key = [0; 32];
        key[..18].copy_from_slice(b"comity held out v1");
        key[24..].copy_from_slice(&seed.to_le_bytes());
        let mut rng = ChaCha20Rng::from_seed(key);
        (0..n).map(|_| rng.next_u64()).collect()
    }

    /// Divides `units` into those that are trained on and those that are kept, each in the order
    /// given. `labels` and `lots`: `[n]`, by unit.
    ///
    /// # Panics
    /// If a unit is not below `n`.
    #[must_use]
    pub fn split(&self, units: &[usize], labels: &[u32], lots: &[u64]) -> (Vec<usize>, Vec<usize>) {
        let mut classes = std::collections::BTreeMap::<u32, Vec<usize>>::new();
        for &unit in units {
            let class = if self.stratified { labels[unit] } else { 0 };
            classes.entry(class).or_default().push(unit);
        }
        let sizes: Vec<usize> = classes.values().map(Vec::len).collect();
        let mut kept = std::collections::BTreeSet::<usize>::new();
        for (mut units, n) in classes.into_values().zip(self.quotas(&sizes)) {
            units.sort_unstable_by_key(|unit| (lots[*unit], *unit));
            kept.extend(&units[..n]);
        }
        units.iter().partition(|unit| !kept.contains(unit))
    }

    /// How many units of each class are kept: largest remainders (Hamilton's method), so that the
    /// sum is right; the lower class wins a tie.
    fn quotas(&self, sizes: &[usize]) -> Vec<usize> {
        let n: usize = sizes.iter().sum();
        // The small term keeps 0.34 of 50 at 17, although the product may be a bit above it.
        let wanted = (self.share * n as f64 - 1e-9).ceil() as usize;
        let n_kept = wanted.min(n.saturating_sub(1));
        let exact = |size: usize| (size * n_kept, n.max(1));
        let mut quotas: Vec<usize> = sizes
            .iter()
            .map(|size| {
                let (numerator, denominator) = exact(*size);
                numerator / denominator
            })
            .collect();
        let mut by_remainder: Vec<usize> = (0..sizes.len()).collect();
        by_remainder.sort_by_key(|class| {
            let (numerator, denominator) = exact(sizes[*class]);
            std::cmp::Reverse(numerator % denominator)
        });
        let n_left = n_kept - quotas.iter().sum::<usize>();
        for class in by_remainder.into_iter().take(n_left) {
            quotas[class] += 1;
        }
        quotas
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THIRD: HeldOut = HeldOut { share: 0.34, stratified: true };

    proptest! {
        #[test]
        fn what_is_kept_is_a_share_of_each_class_and_one_is_left(
            labels in proptest::collection::vec(0u32..4, 1..200),
            share in 0.01f64..0.99,
            stratified: bool,
            seed: u64,
        ) {
            let held_out = HeldOut { share, stratified };
            let units: Vec<usize> = (0..labels.len()).collect();
            let lots = HeldOut::lots(labels.len(), seed);
            let (train, test) = held_out.split(&units, &labels, &lots);
            let mut all = [train.clone(), test.clone()].concat();
            all.sort_unstable();
            prop_assert_eq!(&all, &units);
            prop_assert!(!train.is_empty() && train.is_sorted() && test.is_sorted());
            let wanted = share * labels.len() as f64;
            prop_assert!((test.len() as f64 - wanted).abs() <= 1.0, "{} of {wanted}", test.len());
            for class in 0..4 {
                let n = |units: &[usize]| units.iter().filter(|u| labels[**u] == class).count();
                let exact = test.len() as f64 * n(&units) as f64 / labels.len() as f64;
                prop_assert!(!stratified || (n(&test) as f64 - exact).abs() < 1.0);
            }
        }
    }

    /// The published split of the heart-disease data has these sizes: 34 % kept, rounded up.
    #[test]
    fn sizes_are_those_of_the_published_split() {
        for (n, n_test) in [(303, 104), (261, 89), (46, 16), (130, 45)] {
            let labels: Vec<u32> = (0..n as u32).map(|i| u32::from(i % 5 < 2)).collect();
            let units: Vec<usize> = (0..n).collect();
            let (train, test) = THIRD.split(&units, &labels, &HeldOut::lots(n, 1));
            assert_eq!((train.len(), test.len()), (n - n_test, n_test));
        }
    }

    /// Pinned, so that a published experiment can be repeated with a later version.
    #[test]
    fn what_is_kept_is_the_same_on_every_machine_and_whoever_else_has_rows() {
        let labels: Vec<u32> = (0..40).map(|i| i % 2).collect();
        let lots = HeldOut::lots(40, 7);
        let test = |units: &[usize]| THIRD.split(units, &labels, &lots).1;
        let all: Vec<usize> = (0..20).collect();
        assert_eq!(test(&all), [1, 4, 5, 6, 12, 13, 14]);
        assert_eq!(HeldOut::lots(20, 7), lots[..20]);
        assert_ne!(HeldOut::lots(20, 8), lots[..20]);
    }

    #[test]
    fn a_single_record_is_trained_on_and_a_share_outside_is_refused() {
        assert_eq!(THIRD.split(&[3], &[0; 4], &[0; 4]), (vec![3], vec![]));
        assert_eq!(THIRD.split(&[], &[], &[]), (vec![], vec![]));
        assert!(THIRD.check().is_ok());
        for share in [0.0, 1.0, -0.1, f64::NAN] {
            assert!(HeldOut { share, stratified: true }.check().is_err());
        }
    }
}
