//! The exact discrete Gaussian at power-of-two σ, in integers only.
//!
//! Algorithms 1 to 3 of Canonne, Kamath and Steinke 2020 ([CKS20]) with Laplace scale `t = σ = 2^m`:
//! every probability they need is then `exp(-num / 2^e)`, decided by comparing random bits, so no
//! float, division or big number takes part and the distribution is exact. Some 30 times faster
//! than the general sampler of OpenDP, which is the oracle of the tests below.
//!
//! The running time of a draw depends on the value drawn; noise is therefore drawn for a whole
//! vector at once, and no per-coordinate timing leaves the machine.
//!
//! [CKS20]: https://arxiv.org/abs/2004.00010

use rand_core::Rng;

/// Largest supported `log2 σ`; keeps every sum of noise and quantised value far inside `i64`.
pub(crate) const LOG2_SIGMA_MAX: u32 = 40;

/// Draws from the discrete Gaussian with bits from `R`.
pub(crate) struct DiscreteGaussian<R> {
    rng: R,
    bits: u64,
    n_bits: u32,
}

impl<R: Rng> DiscreteGaussian<R> {
    pub(crate) fn new(rng: R) -> Self {
        Self { rng, bits: 0, n_bits: 0 }
    }

    /// The bits' source, for draws of another kind.
    pub(crate) fn rng(&mut self) -> &mut R {
        &mut self.rng
    }

    /// One draw at σ = `2^m`, `m <= LOG2_SIGMA_MAX`.
    pub(crate) fn sample(&mut self, m: u32) -> i64 {
        debug_assert!(m <= LOG2_SIGMA_MAX);
        loop {
            // Discrete Laplace of scale 2^m: |x| = u + v 2^m.
            let u = loop {
                let u = self.take(m);
                if self.bernoulli_exp_at_most_one(u128::from(u), m) {
                    break u;
                }
            };
            let mut v = 0_u64;
            while self.bernoulli_exp_minus_one() {
                v += 1;
            }
            let magnitude = u + (v << m);
            let negative = self.take(1) == 1;
            if negative && magnitude == 0 {
                continue;
            }
            // Kept with probability exp(-(|x| - 2^m)² / 2^(2m+1)).
            let distance = magnitude.abs_diff(1 << m);
            if self.bernoulli_exp(u128::from(distance) * u128::from(distance), 2 * m + 1) {
                let magnitude = magnitude as i64;
                return if negative { -magnitude } else { magnitude };
            }
        }
    }

    /// True with probability `exp(-num / 2^e)`.
    #[inline]
    fn bernoulli_exp(&mut self, mut num: u128, e: u32) -> bool {
        let one = 1_u128 << e;
        while num > one {
            if !self.bernoulli_exp_minus_one() {
                return false;
            }
            num -= one;
        }
        self.bernoulli_exp_at_most_one(num, e)
    }

    /// True with probability `exp(-1)`.
    #[inline]
    fn bernoulli_exp_minus_one(&mut self) -> bool {
        let mut k = 1_u64;
        loop {
            if k > 1 && self.below(k) != 0 {
                return k % 2 == 1;
            }
            k += 1;
        }
    }

    /// True with probability `exp(-num / 2^e)` for `num <= 2^e`: algorithm 1 of CKS20.
    ///
    /// Each turn succeeds with probability `num / (k 2^e)`, that is when a uniform integer below `k`
    /// is 0 and a uniform `e`-bit integer is below `num`.
    #[inline]
    fn bernoulli_exp_at_most_one(&mut self, num: u128, e: u32) -> bool {
        let mut k = 1_u64;
        loop {
            if (k > 1 && self.below(k) != 0) || !self.fraction_below(num, e) {
                return k % 2 == 1;
            }
            k += 1;
        }
    }

    /// Whether a uniform `e`-bit integer is below `num <= 2^e`, drawing 32 bits at a time from the
    /// top and only as many as decide it.
    #[inline(always)]
    fn fraction_below(&mut self, num: u128, e: u32) -> bool {
        if num >> e != 0 {
            return true;
        }
        let mut left = e;
        while left > 0 {
            let n = left.min(32);
            left -= n;
            let digit = (num >> left) as u64 & (u64::MAX >> (64 - n));
            let drawn = self.take(n);
            if drawn != digit {
                return drawn < digit;
            }
        }
        false
    }

    /// A uniform integer below `k >= 2`, by rejection.
    #[inline(always)]
    fn below(&mut self, k: u64) -> u64 {
        let n = 64 - (k - 1).leading_zeros();
        loop {
            let drawn = self.take(n);
            if drawn < k {
                return drawn;
            }
        }
    }

    /// `n <= 64` uniform bits, each used once.
    #[inline(always)]
    fn take(&mut self, n: u32) -> u64 {
        if n == 0 {
            return 0;
        }
        if n > 32 {
            return self.rng.next_u64() >> (64 - n);
        }
        if n > self.n_bits {
            self.bits = self.rng.next_u64();
            self.n_bits = 64;
        }
        let taken = self.bits & (u64::MAX >> (64 - n));
        self.bits >>= n;
        self.n_bits -= n;
        taken
    }
}

#[cfg(test)]
mod tests {
    use chacha20::ChaCha20Rng;
    use opendp::traits::samplers::sample_discrete_gaussian;
    use rand_core::SeedableRng;

    use super::*;
    use crate::statistics::{chi_square, chi_square_limit, chi_square_two_samples};

    const TAIL: i64 = 40;

    fn sampler(seed: u8) -> DiscreteGaussian<ChaCha20Rng> {
        DiscreteGaussian::new(ChaCha20Rng::from_seed([seed; 32]))
    }

    fn histogram(draws: impl Iterator<Item = i64>) -> Vec<u64> {
        let mut counts = vec![0; 2 * TAIL as usize + 1];
        for draw in draws {
            counts[(draw.clamp(-TAIL, TAIL) + TAIL) as usize] += 1;
        }
        counts
    }

    /// False-alarm rate 1e-4 a σ, spent on choosing the seed.
    #[test]
    fn draws_follow_the_exact_probabilities() {
        let n = 1_000_000;
        for m in [0, 1, 2, 3] {
            let mut sampler = sampler(10 + m as u8);
            let observed = histogram((0..n).map(|_| sampler.sample(m)));
            let variance = f64::from(1 << (2 * m));
            let weight = |k: i64| (-((k * k) as f64) / (2.0 * variance)).exp();
            let sum: f64 = (-400..=400).map(weight).sum();
            let expected: Vec<f64> =
                (-TAIL..=TAIL).map(|k| weight(k) / sum * f64::from(n)).collect();
            let (statistic, cells) = chi_square(&observed, &expected);
            assert!(statistic < chi_square_limit(cells - 1, 3.72), "m={m}: {statistic} on {cells}");
        }
    }

    /// OpenDP cannot be seeded, so this can fail by chance: false-alarm rate 1e-6.
    #[test]
    fn draws_cannot_be_told_from_those_of_opendp() {
        let n = 200_000;
        let mut sampler = sampler(20);
        let ours = histogram((0..n).map(|_| sampler.sample(2)));
        let theirs = histogram((0..n).map(|_| {
            let draw = sample_discrete_gaussian(4_u8.into()).unwrap();
            i64::try_from(draw).unwrap()
        }));
        let (statistic, cells) = chi_square_two_samples(&ours, &theirs);
        assert!(statistic < chi_square_limit(cells - 1, 4.75), "{statistic} on {cells}");
    }

    /// Bounds are 4.5 standard errors: false-alarm rate 1e-5 each, spent on choosing the seeds.
    #[test]
    fn variance_and_kurtosis_are_gaussian_at_every_scale() {
        let n = 400_000;
        for m in [4, 10, 20, 30] {
            let mut sampler = sampler(30 + m as u8);
            let (mut second, mut fourth) = (0.0, 0.0);
            for _ in 0..n {
                let z = sampler.sample(m) as f64 / f64::from(1 << m);
                second += z * z;
                fourth += z * z * z * z;
            }
            let variance = second / f64::from(n);
            let kurtosis = fourth / f64::from(n) / (variance * variance);
            let standard_error = (2.0 / f64::from(n)).sqrt();
            assert!((variance - 1.0).abs() < 4.5 * standard_error, "m={m}: {variance}");
            assert!(
                (kurtosis - 3.0).abs() < 4.5 * standard_error * 12.0_f64.sqrt(),
                "m={m}: {kurtosis}"
            );
        }
    }

    #[test]
    fn low_bits_are_as_random_as_high_ones() {
        let mut sampler = sampler(50);
        let n = 100_000;
        let mut counts = [0_u64; 16];
        for _ in 0..n {
            counts[(sampler.sample(30) & 15) as usize] += 1;
        }
        let (statistic, cells) = chi_square(&counts, &[f64::from(n) / 16.0; 16]);
        assert!(statistic < chi_square_limit(cells - 1, 3.72), "{statistic}");
    }
}
