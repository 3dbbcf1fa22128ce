//! Features worked out once from a data set's own, and kept beside it in memory.
//!
//! For what does not change while a model is trained, such as a fixed front layer.  They are as
//! private as the rows that they come from, and are written nowhere.

use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::Dataset;
use crate::dataset::Features;

/// Examples that a thread transforms at once.
const CHUNK: usize = 64;

/// The name of a transformation and what it gave.
type Kept = (String, Arc<Dataset>);

/// What was worked out last; shared by clones of a data set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Derived(Arc<Mutex<Option<Kept>>>);

impl Dataset {
    /// The same examples with features of shape `shape`, made by `transform` from those at the
    /// indices that it is given: `[indices, shape…]`.
    ///
    /// Worked out on all cores the first time and kept with this data set and its clones until
    /// another `key` is asked for; `key` must therefore name everything that `transform` depends
    /// on.  Kept as bfloat16, 2 bytes each, rounded to the nearest (relative error at most 2⁻⁸).
    ///
    /// # Panics
    /// If `transform` gives another number of values.
    #[must_use]
    pub fn derived(
        &self,
        key: &str,
        shape: &[usize],
        transform: impl Fn(&[usize]) -> Vec<f32> + Sync,
    ) -> Arc<Self> {
        // Held while it is worked out, so that two threads do not do it twice.
        let mut kept = self.derived.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((kept_key, dataset)) = &*kept
            && kept_key == key
        {
            return Arc::clone(dataset);
        }
        *kept = None;
        let n_features: usize = shape.iter().product();
        let indices: Vec<usize> = (0..self.len()).collect();
        let mut halves = vec![0; indices.len() * n_features];
        let n_threads = thread::available_parallelism().map_or(1, NonZero::get);
        let per_thread = indices.len().div_ceil(n_threads).max(1);
        let work = &|indices: &[usize], halves: &mut [u16]| {
            for (indices, halves) in
                indices.chunks(CHUNK).zip(halves.chunks_mut((CHUNK * n_features).max(1)))
            {
                let values = transform(indices);
                assert_eq!(values.len(), halves.len(), "features of one shape for each example");
                for (half, value) in halves.iter_mut().zip(values) {
                    *half = to_bfloat16(value);
                }
            }
        };
        thread::scope(|scope| {
            let parts = halves.chunks_mut((per_thread * n_features).max(1));
            for (indices, halves) in indices.chunks(per_thread).zip(parts) {
                scope.spawn(move || work(indices, halves));
            }
        });
        let dataset = Arc::new(self.with_features(shape, Features::Halves(halves)));
        *kept = Some((key.to_owned(), Arc::clone(&dataset)));
        dataset
    }
}

/// The bfloat16 nearest to `value`, ties to even; NaN stays NaN.
fn to_bfloat16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The value of a bfloat16, exactly.
pub(crate) fn from_bfloat16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{Contract, Normalise, Scale};

    #[test]
    fn bfloat16_rounds_to_the_nearest() {
        for exact in [0.0, -1.5, 256.0, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(from_bfloat16(to_bfloat16(exact)), exact);
        }
        assert_eq!(from_bfloat16(to_bfloat16(1.0 + 0.9 / 256.0)), 1.0);
        assert_eq!(from_bfloat16(to_bfloat16(1.0 + 1.1 / 256.0)), 1.0 + 2.0 / 256.0);
        // Half way: to the even one.
        assert_eq!(from_bfloat16(to_bfloat16(1.0 + 1.0 / 256.0)), 1.0);
        assert_eq!(from_bfloat16(to_bfloat16(1.0 + 3.0 / 256.0)), 1.0 + 4.0 / 256.0);
        assert!(from_bfloat16(to_bfloat16(f32::from_bits(0x7f80_0001))).is_nan());
        assert!(from_bfloat16(to_bfloat16(f32::from_bits(0xffff_ffff))).is_nan());
    }

    #[test]
    fn features_are_derived_once_for_a_key_and_in_order() {
        let contract = Contract { shape: vec![1], n_classes: 3, scale: Scale::Bytes };
        let bytes: Vec<u8> = (0..200).collect();
        let labels: Vec<u32> = (0..200).map(|i| i % 3).collect();
        let data = Dataset::from_bytes(&contract, bytes, labels).unwrap();
        let n_calls = AtomicUsize::new(0);
        let derive = |data: &Dataset, key: &str, add: f32| {
            data.derived(key, &[2], |indices| {
                n_calls.fetch_add(indices.len(), Ordering::Relaxed);
                indices.iter().flat_map(|i| [*i as f32, add]).collect()
            })
        };
        let derived = derive(&data, "a", 0.5);
        assert_eq!((derived.shape(), derived.len(), derived.n_classes()), (&[2][..], 200, 3));
        let batch = derived.batch(&[199, 4], Normalise::IDENTITY);
        assert_eq!((batch.features, batch.labels), (vec![199.0, 0.5, 4.0, 0.5], vec![1, 1]));
        assert_eq!(derived.subset(&[7]).batch(&[0], Normalise::IDENTITY).features, [7.0, 0.5]);
        let _ = derive(&data.clone(), "a", 9.0);
        assert_eq!(n_calls.load(Ordering::Relaxed), 200, "a clone shares what was worked out");
        let other = derive(&data, "b", 1.5).batch(&[0], Normalise::IDENTITY);
        assert_eq!((other.features[1], n_calls.load(Ordering::Relaxed)), (1.5, 400));
        let part = data.subset(&[3]);
        assert_eq!(derive(&part, "b", 2.5).len(), 1, "a part does not take over the whole");
        assert!(derive(&data.subset(&[]), "b", 0.0).is_empty());
    }
}
