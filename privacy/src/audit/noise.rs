//! Whether integer noise has the distribution that the accountant assumes, and is independent.
//!
//! The hypothesis is the discrete Gaussian of σ = 2^m grid units ([CKS20]); at the m of every plan,
//! 30, its moments and the probabilities of any interval that is tested here differ from those of
//! the continuous Gaussian by factors within exp(-2π² 2⁶⁰) of 1, so the latter's are used. Each test
//! has an equal share of a family-wise false-alarm rate of 10⁻⁶ (Bonferroni), whatever the
//! dependence between the tests.
//!
//! What such tests cannot see: a defect that is smaller than their resolution (a variance that is
//! off by less than about 0.3 % at 10⁷ values), and a key that somebody else knows.
//!
//! [CKS20]: https://arxiv.org/abs/2004.00010

use serde::Serialize;

use super::normal::{binomial_upper_tail, chi_square_upper_tail, normal_quantile, two_sided};

/// Probability that noise without any defect fails one of the tests.
pub const FALSE_ALARM_RATE: f64 = 1e-6;
/// Values below which the tests' normal approximations are not good enough.
pub const N_VALUES_MIN: usize = 100_000;
/// Bins of equal probability.
const N_BINS: usize = 256;
/// Distances within one step's vector.
const LAGS: [usize; 8] = [1, 2, 3, 4, 8, 16, 64, 1024];
/// Tails, in standard deviations.
const TAILS: [f64; 3] = [3.0, 4.0, 5.0];

/// One test and its result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NoiseTest {
    /// What was looked at.
    pub name: String,
    /// What was seen.
    pub observed: f64,
    /// What noise without a defect shows on average.
    pub expected: f64,
    /// Probability of something at least as far off, without a defect.
    pub p_value: f64,
}

/// All tests of one sample.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NoiseReport {
    /// How many values were drawn.
    pub n_values: u64,
    /// A test fails if its p-value is below this.
    pub p_value_min: f64,
    /// The tests.
    pub tests: Vec<NoiseTest>,
}

impl NoiseReport {
    /// The tests that failed.
    pub fn failures(&self) -> impl Iterator<Item = &NoiseTest> {
        let failed = |p_value: f64| p_value.is_nan() || p_value < self.p_value_min;
        self.tests.iter().filter(move |test| failed(test.p_value))
    }

    /// Whether no test failed.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }
}

/// Tests noise of σ = `2^log2_sigma`.
///
/// `values`: `[key][step][coordinate]`, all steps equally long. `n_lanes`: how many threads drew
/// the steps in turn, so that each lane is compared with the next and with itself.
///
/// # Panics
/// If there are fewer than two keys, two steps a key, 2,000 coordinates or 100,000 values in all,
/// or the steps differ in length.
pub fn test_noise(values: &[Vec<Vec<i64>>], log2_sigma: u32, n_lanes: usize) -> NoiseReport {
    let steps: Vec<&[i64]> = values.iter().flatten().map(Vec::as_slice).collect();
    let width = steps.first().map_or(0, |step| step.len());
    let n_values = width * steps.len();
    assert!(values.len() >= 2 && values.iter().all(|key| key.len() >= 2), "two keys, two steps");
    assert!(width >= 2000 && steps.iter().all(|step| step.len() == width), "steps of one length");
    assert!(n_values >= N_VALUES_MIN, "too few values for the tests' approximations");
    let sample = Sample { values, scale: 2.0_f64.powi(log2_sigma as i32) };

    let mut tests = moments(&sample, &steps);
    tests.push(bins(&sample, &steps));
    tests.push(low_bits(&steps));
    tests.extend(tails(&sample, &steps));
    for lag in LAGS {
        let pairs = steps.iter().map(|step| (&step[..width - lag], &step[lag..]));
        tests.push(sample.correlation(&format!("coordinates {lag} apart"), pairs));
    }
    for lag in [1, 2] {
        let pairs = steps.iter().map(|step| (&step[..width - lag], &step[lag..]));
        tests.push(sample.correlation_of_squares(&format!("squares, {lag} apart"), pairs));
    }
    tests.push(sample.correlation("steps 1 apart", sample.steps_apart(1)));
    tests.push(sample.correlation_of_squares("squares, steps 1 apart", sample.steps_apart(1)));
    tests.push(sample.repeats("repeats, steps 1 apart", sample.steps_apart(1)));
    let shortest = values.iter().map(Vec::len).min().unwrap_or(0);
    if n_lanes > 1 && n_lanes < shortest {
        let name = format!("steps {n_lanes} apart (one lane)");
        tests.push(sample.correlation(&name, sample.steps_apart(n_lanes)));
        let name = format!("repeats, steps {n_lanes} apart (one lane)");
        tests.push(sample.repeats(&name, sample.steps_apart(n_lanes)));
    }
    tests.push(sample.correlation("keys", sample.keys_apart()));
    tests.push(sample.correlation_of_squares("squares, keys", sample.keys_apart()));
    tests.push(sample.repeats("repeats, keys", sample.keys_apart()));
    NoiseReport {
        n_values: n_values as u64,
        p_value_min: FALSE_ALARM_RATE / tests.len() as f64,
        tests,
    }
}

struct Sample<'a> {
    values: &'a [Vec<Vec<i64>>],
    scale: f64,
}

impl<'a> Sample<'a> {
    /// Pairs of the same key's vectors, `lag` steps apart.
    fn steps_apart(&self, lag: usize) -> impl Iterator<Item = (&'a [i64], &'a [i64])> {
        self.values.iter().flat_map(move |key| {
            key.iter().zip(&key[lag..]).map(|(a, b)| (a.as_slice(), b.as_slice()))
        })
    }

    /// Pairs of the same step's vectors under neighbouring keys.
    fn keys_apart(&self) -> impl Iterator<Item = (&'a [i64], &'a [i64])> {
        self.values.windows(2).flat_map(|keys| {
            keys[0].iter().zip(&keys[1]).map(|(a, b)| (a.as_slice(), b.as_slice()))
        })
    }

    fn correlation<'b>(
        &self,
        name: &str,
        pairs: impl Iterator<Item = (&'b [i64], &'b [i64])>,
    ) -> NoiseTest {
        // The product of independent standard normals has mean 0 and variance 1.
        self.mean_product(format!("correlation, {name}"), pairs, |a, b| a * b)
    }

    fn correlation_of_squares<'b>(
        &self,
        name: &str,
        pairs: impl Iterator<Item = (&'b [i64], &'b [i64])>,
    ) -> NoiseTest {
        // Each factor has mean 0 and variance 2.
        let product = |a: f64, b: f64| (a * a - 1.0) * (b * b - 1.0) / 2.0;
        self.mean_product(format!("correlation, {name}"), pairs, product)
    }

    /// The mean of a product that has mean 0 and variance 1.
    fn mean_product<'b>(
        &self,
        name: String,
        pairs: impl Iterator<Item = (&'b [i64], &'b [i64])>,
        product: impl Fn(f64, f64) -> f64,
    ) -> NoiseTest {
        let (mut sum, mut n) = (0.0, 0_usize);
        for (first, second) in pairs {
            sum += first
                .iter()
                .zip(second)
                .map(|(a, b)| product(*a as f64 / self.scale, *b as f64 / self.scale))
                .sum::<f64>();
            n += first.len();
        }
        let mean = sum / n as f64;
        NoiseTest {
            name,
            observed: mean,
            expected: 0.0,
            p_value: two_sided(mean * (n as f64).sqrt()),
        }
    }

    /// Coordinates at which two vectors that should be independent agree.
    fn repeats<'b>(
        &self,
        name: &str,
        pairs: impl Iterator<Item = (&'b [i64], &'b [i64])>,
    ) -> NoiseTest {
        let (mut n_equal, mut n) = (0_u64, 0_u64);
        for (first, second) in pairs {
            n_equal += first.iter().zip(second).filter(|(a, b)| a == b).count() as u64;
            n += first.len() as u64;
        }
        // The difference of two has σ√2, so it is 0 with probability 1 / (2 σ √π); not above 1 for
        // the smallest σ either.
        let p = (1.0 / (2.0 * self.scale * std::f64::consts::PI.sqrt())).min(1.0);
        NoiseTest {
            name: name.to_owned(),
            observed: n_equal as f64,
            expected: n as f64 * p,
            p_value: binomial_upper_tail(n, n_equal, p),
        }
    }
}

/// Mean, variance, and the third and fourth moment, in units of σ.
fn moments(sample: &Sample<'_>, steps: &[&[i64]]) -> Vec<NoiseTest> {
    let mut sums = [0.0_f64; 4];
    for step in steps {
        // Summed a step at a time, so that rounding stays small.
        let mut of_step = [0.0_f64; 4];
        for value in *step {
            let z = *value as f64 / sample.scale;
            let z2 = z * z;
            of_step[0] += z;
            of_step[1] += z2;
            of_step[2] += z2 * z;
            of_step[3] += z2 * z2;
        }
        for (sum, part) in sums.iter_mut().zip(of_step) {
            *sum += part;
        }
    }
    let n = (steps.len() * steps[0].len()) as f64;
    // Mean and variance of z, z², z³ and z⁴ of a normal variable.
    let expected = [(0.0, 1.0), (1.0, 2.0), (0.0, 15.0), (3.0, 96.0)];
    let names = ["mean", "variance", "third moment", "fourth moment"];
    names
        .iter()
        .zip(sums)
        .zip(expected)
        .map(|((name, sum), (mean, variance))| NoiseTest {
            name: (*name).to_owned(),
            observed: sum / n,
            expected: mean,
            p_value: two_sided((sum / n - mean) / (variance / n).sqrt()),
        })
        .collect()
}

/// Chi-square over bins of equal probability.
fn bins(sample: &Sample<'_>, steps: &[&[i64]]) -> NoiseTest {
    let edges: Vec<f64> =
        (1..N_BINS).map(|bin| normal_quantile(bin as f64 / N_BINS as f64) * sample.scale).collect();
    let mut counts = vec![0_u64; N_BINS];
    for value in steps.iter().flat_map(|step| *step) {
        let value = *value as f64;
        counts[edges.partition_point(|edge| *edge <= value)] += 1;
    }
    chi_square(format!("chi-square over {N_BINS} bins"), &counts)
}

/// Chi-square over the lowest four bits, which are uniform at every σ of 16 or more.
fn low_bits(steps: &[&[i64]]) -> NoiseTest {
    let mut counts = vec![0_u64; 16];
    for value in steps.iter().flat_map(|step| *step) {
        counts[(value & 15) as usize] += 1;
    }
    chi_square("chi-square over the lowest 4 bits".to_owned(), &counts)
}

fn chi_square(name: String, counts: &[u64]) -> NoiseTest {
    let each = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    let statistic = counts.iter().map(|count| (*count as f64 - each).powi(2) / each).sum::<f64>();
    let df = counts.len() as f64 - 1.0;
    // Too good is as suspicious as too bad.
    let upper = chi_square_upper_tail(statistic, df);
    NoiseTest {
        name,
        observed: statistic,
        expected: df,
        p_value: (2.0 * upper.min(1.0 - upper)).min(1.0),
    }
}

/// How many values lie further out than 3, 4 and 5 σ.
fn tails(sample: &Sample<'_>, steps: &[&[i64]]) -> Vec<NoiseTest> {
    let n = (steps.len() * steps[0].len()) as u64;
    TAILS
        .iter()
        .map(|tail| {
            let limit = tail * sample.scale;
            let beyond = |value: &&i64| value.unsigned_abs() as f64 > limit;
            let count = steps.iter().flat_map(|step| *step).filter(beyond).count() as u64;
            let p = two_sided(*tail);
            let upper = binomial_upper_tail(n, count, p);
            let lower = 1.0 - binomial_upper_tail(n, count + 1, p);
            NoiseTest {
                name: format!("values beyond {tail} σ"),
                observed: count as f64,
                expected: n as f64 * p,
                p_value: (2.0 * upper.min(lower)).min(1.0),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{KeyedNoise, Noise, NoiseKind};

    const BITS: u32 = 30;

    /// Two keys, four steps each; seeded, so no false alarm.
    fn sample(kind: NoiseKind) -> Vec<Vec<Vec<i64>>> {
        let step = |source: &dyn Noise, index| {
            let mut values = vec![0; 25_000];
            source.fork(index).draw(kind, BITS, &mut values).unwrap();
            values
        };
        [1, 2]
            .map(|key| {
                let source = KeyedNoise::under([key; 32]);
                (0..4).map(|index| step(&source, index)).collect()
            })
            .to_vec()
    }

    fn failures(values: &[Vec<Vec<i64>>]) -> Vec<String> {
        test_noise(values, BITS, 2).failures().map(|test| test.name.clone()).collect()
    }

    fn each(values: &mut [Vec<Vec<i64>>], change: impl Fn(&mut i64)) {
        values.iter_mut().flatten().flatten().for_each(change);
    }

    #[test]
    fn both_kinds_of_noise_pass() {
        for kind in [NoiseKind::DiscreteGaussian, NoiseKind::FloatGaussian] {
            let report = test_noise(&sample(kind), BITS, 2);
            assert!(report.passed(), "{:?}", report.failures().collect::<Vec<_>>());
            assert!(report.tests.len() >= 27 && report.n_values == 200_000);
        }
    }

    #[test]
    fn a_wrong_distribution_is_seen() {
        let good = sample(NoiseKind::DiscreteGaussian);
        type Change = fn(&mut i64);
        let defects: [(&str, Change); 5] = [
            ("variance", |v| *v /= 2),
            ("mean", |v| *v += 1 << 26),
            ("third moment", |v| *v = if *v > 0 { *v * 9 / 8 } else { *v * 6 / 7 }),
            ("values beyond 4 σ", |v| *v = (*v).clamp(-(3 << BITS), 3 << BITS)),
            ("chi-square over the lowest 4 bits", |v| *v &= !1),
        ];
        for (name, change) in defects {
            let mut bad = good.clone();
            each(&mut bad, change);
            let failures = failures(&bad);
            let seen = failures.iter().any(|failure| failure == name);
            // 200,000 values have too few beyond 4 σ to miss them for certain; 3 σ then tells.
            let far = name.contains("beyond") && failures.iter().any(|f| f.contains("beyond"));
            assert!(seen || far, "{name}: {failures:?}");
        }
    }

    #[test]
    fn dependence_is_seen() {
        let good = sample(NoiseKind::FloatGaussian);
        let mut reused_step = good.clone();
        reused_step[1][2] = good[1][1].clone();
        let mut reused_key = good.clone();
        reused_key[1] = good[0].clone();
        let mut one_lane = good.clone();
        one_lane[0][3] = good[0][1].clone();
        let mut neighbours = good.clone();
        for step in neighbours.iter_mut().flatten() {
            for i in 1..step.len() {
                step[i] = (0.995 * step[i] as f64 + 0.1 * step[i - 1] as f64) as i64;
            }
        }
        let mut magnitudes = good.clone();
        for step in magnitudes.iter_mut().flatten() {
            for pair in step.chunks_exact_mut(2) {
                pair[1] = pair[0].abs() * pair[1].signum();
            }
        }
        for (name, bad) in [
            ("repeats, steps 1 apart", reused_step),
            ("repeats, keys", reused_key),
            ("repeats, steps 2 apart (one lane)", one_lane),
            ("correlation, coordinates 1 apart", neighbours),
            ("correlation, squares, 1 apart", magnitudes),
        ] {
            let failures = failures(&bad);
            assert!(failures.iter().any(|failure| failure == name), "{name}: {failures:?}");
        }
    }
}
