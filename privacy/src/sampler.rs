//! True Poisson sampling: every record is in a batch independently with the same probability.
//!
//! Shuffled or fixed-size batches are *not* offered: the accountant's amplification does not hold
//! for them (Chua et al. 2024).

use rand_core::Rng;

use crate::error::PrivacyError;

const DRAWS_AT_ONCE: usize = 64;

/// Draws Poisson batches at one sampling rate.
pub struct PoissonSampler {
    inclusion: Inclusion,
    rng: Box<dyn Rng + Send>,
}

enum Inclusion {
    Always,
    /// A record is in when a uniform 64-bit integer is below this.
    Below(u64),
}

impl PoissonSampler {
    /// A sampler that includes each record with probability `rate`.
    ///
    /// The probability is rounded down to a multiple of 2⁻⁶⁴, never up, so a plan that accounts for
    /// `rate` covers it.
    ///
    /// # Errors
    /// [`PrivacyError::OutOfRange`] unless `0 < rate <= 1`.
    pub fn new(rate: f64, rng: Box<dyn Rng + Send>) -> Result<Self, PrivacyError> {
        let inclusion = if rate == 1.0 {
            Inclusion::Always
        } else if rate > 0.0 && rate < 1.0 {
            // Exact: scaling by a power of two does not round, and the cast truncates.
            Inclusion::Below((rate * 2.0_f64.powi(64)) as u64)
        } else {
            return Err(PrivacyError::OutOfRange {
                what: "sampling rate",
                value: rate,
                allowed: "above 0 and at most 1",
            });
        };
        Ok(Self { inclusion, rng })
    }

    /// The positions, ascending, of the records in the next batch. It may be empty.
    pub fn sample(&mut self, n_records: usize) -> Vec<usize> {
        let Inclusion::Below(threshold) = self.inclusion else {
            return (0..n_records).collect();
        };
        let mut batch = Vec::new();
        let mut bytes = [0_u8; 8 * DRAWS_AT_ONCE];
        for start in (0..n_records).step_by(DRAWS_AT_ONCE) {
            let n_draws = DRAWS_AT_ONCE.min(n_records - start);
            let drawn = &mut bytes[..8 * n_draws];
            self.rng.fill_bytes(drawn);
            let (draws, _) = drawn.as_chunks::<8>();
            for (offset, draw) in draws.iter().enumerate() {
                if u64::from_le_bytes(*draw) < threshold {
                    batch.push(start + offset);
                }
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use chacha20::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;
    use crate::statistics::{chi_square, chi_square_limit};

    fn sampler(rate: f64, seed: u8) -> PoissonSampler {
        PoissonSampler::new(rate, Box::new(ChaCha20Rng::from_seed([seed; 32]))).unwrap()
    }

    /// False-alarm rate of each statistical test here: 1e-4, spent once, on choosing the seed.
    #[test]
    fn batch_sizes_are_binomial() {
        let (n, q, batches) = (200_usize, 0.1, 50_000);
        let mut sampler = sampler(q, 1);
        let mut observed = vec![0_u64; n + 1];
        for _ in 0..batches {
            observed[sampler.sample(n).len()] += 1;
        }
        let mut log_p = n as f64 * (1.0 - q).ln();
        let mut expected = vec![log_p.exp() * f64::from(batches)];
        for k in 1..=n {
            log_p += ((n - k + 1) as f64 / k as f64).ln() + (q / (1.0 - q)).ln();
            expected.push(log_p.exp() * f64::from(batches));
        }
        let (statistic, cells) = chi_square(&observed, &expected);
        assert!(statistic < chi_square_limit(cells - 1, 3.72), "{statistic} on {cells} cells");
    }

    #[test]
    fn inclusion_is_independent_across_steps_and_records() {
        let (n, q, steps) = (1000_usize, 0.3, 400);
        let mut sampler = sampler(q, 2);
        let mut was_in = vec![false; n];
        // Pairs: (this record last step, this record now) and (its neighbour now, it now).
        let (mut across_steps, mut across_records) = ([0_u64; 4], [0_u64; 4]);
        for step in 0..=steps {
            let mut is_in = vec![false; n];
            for index in sampler.sample(n) {
                is_in[index] = true;
            }
            if step > 0 {
                for index in 0..n {
                    let now = usize::from(is_in[index]);
                    across_steps[2 * usize::from(was_in[index]) + now] += 1;
                    across_records[2 * usize::from(is_in[(index + 1) % n]) + now] += 1;
                }
            }
            was_in = is_in;
        }
        let total = (n * steps) as f64;
        let expected =
            [(1.0 - q) * (1.0 - q), (1.0 - q) * q, q * (1.0 - q), q * q].map(|p| p * total);
        for observed in [across_steps, across_records] {
            let (statistic, cells) = chi_square(&observed, &expected);
            assert!(statistic < chi_square_limit(cells - 1, 3.72), "{statistic} {observed:?}");
        }
    }

    #[test]
    fn rate_one_takes_everyone_exactly() {
        assert_eq!(sampler(1.0, 3).sample(5), [0, 1, 2, 3, 4]);
        assert_eq!(sampler(1.0, 3).sample(0), [0; 0]);
    }

    #[test]
    fn empty_batches_happen() {
        let mut sampler = sampler(0.001, 4);
        let n_empty = (0..100).filter(|_| sampler.sample(10).is_empty()).count();
        assert!(n_empty > 90);
        assert!(sampler.sample(0).is_empty());
    }

    #[test]
    fn meaningless_rates_are_refused() {
        for rate in [0.0, -0.1, 1.000_001, f64::NAN, f64::INFINITY] {
            let rng = Box::new(ChaCha20Rng::from_seed([0; 32]));
            assert!(PoissonSampler::new(rate, rng).is_err(), "{rate}");
        }
    }
}
