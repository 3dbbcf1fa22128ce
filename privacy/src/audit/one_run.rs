//! Lower bounds on ε from a single training run.
//!
//! Each of m canaries is put into the data with probability 1/2, independently. Somebody who sees
//! only what was released gives each a score, and guesses of some of them that they were in or out.
//! If the release were (ε, δ)-private, the number of correct guesses could not be large:
//!
//! - **[SNJ23]** Steinke, Nasr and Jagielski 2023, theorem 5.2: it is, but for a term in δ, at most
//!   binomial with probability exp(ε) / (1 + exp(ε)). Sound for every mechanism.
//! - **[MMC24]** Mahloujifar, Melis and Chaudhuri 2024, algorithm 3: a tighter recursion for a
//!   mechanism whose whole trade-off curve is known. Here the curve is that of the Gaussian
//!   mechanism of parameter μ. **That is exact for DP-SGD without sampling, and an approximation for
//!   DP-SGD on Poisson samples**, whose curve is not Gaussian; what is compared is the Gaussian
//!   curve that costs the same ε at the same δ.
//!
//! How many guesses are made must not be chosen by their success. A fixed list of numbers is tried
//! and the error divided among them and the two methods (Bonferroni).
//!
//! [SNJ23]: https://arxiv.org/abs/2305.08846
//! [MMC24]: https://arxiv.org/abs/2410.22235

use serde::Serialize;

use super::normal::{normal_cdf, normal_quantile};
use crate::gaussian::gaussian_epsilon;

/// Shares of the canaries about which a guess is made.
const GUESS_SHARES: [f64; 6] = [0.02, 0.05, 0.1, 0.25, 0.5, 1.0];
/// The two bounds share the error.
const METHODS: f64 = 2.0;
/// Where the search for a bound gives up; no audit has so many canaries.
const EPSILON_MAX: f64 = 64.0;
/// Halvings of the bracket of a bound.
const BISECTIONS: u32 = 60;

/// What guessing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Guesses {
    /// Canaries, each in with probability 1/2.
    pub n_canaries: u64,
    /// Canaries about which a guess was made.
    pub n_guesses: u64,
    /// Guesses that were right.
    pub n_correct: u64,
}

/// What one run says about its ε.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OneRunAudit {
    /// With how much confidence both bounds hold together.
    pub confidence: f64,
    /// At this δ.
    pub delta: f64,
    /// The largest ε that SNJ23 refutes; 0 if none.
    pub snj23_epsilon: f64,
    /// The guesses that gave it.
    pub snj23_guesses: Guesses,
    /// The largest μ of a Gaussian trade-off curve that MMC24 refutes; 0 if none.
    pub mmc24_mu: f64,
    /// The ε of that curve at δ.
    pub mmc24_epsilon: f64,
    /// The guesses that gave it.
    pub mmc24_guesses: Guesses,
    /// Share of the included canaries above a threshold that one in a thousand of the others passes.
    pub tpr_at_fpr_0_001: f64,
    /// Share of the included canaries above a threshold that one in a hundred of the others passes.
    pub tpr_at_fpr_0_01: f64,
}

impl OneRunAudit {
    /// The larger of the two lower bounds on ε.
    pub fn epsilon(&self) -> f64 {
        self.snj23_epsilon.max(self.mmc24_epsilon)
    }
}

/// Bounds ε from below by the scores of canaries, with what is known of each: whether it was in.
///
/// A higher score speaks for "in". For each number of guesses, half go to the highest scores ("in")
/// and half to the lowest ("out"); equal scores are taken in the order given, which must not depend
/// on what was in. A score that is NaN counts as the lowest.
///
/// # Panics
/// If there are fewer than 100 canaries, too few to refute anything, or `delta` or `confidence` is
/// not in `(0, 1)`.
pub fn audit_scores(scores: &[(f64, bool)], delta: f64, confidence: f64) -> OneRunAudit {
    assert!(scores.len() >= 100, "an audit in one run takes at least 100 canaries");
    assert!(delta > 0.0 && delta < 1.0, "delta is a probability");
    assert!(confidence > 0.0 && confidence < 1.0, "confidence is a probability");
    let mut ordered: Vec<(f64, bool)> = scores
        .iter()
        .map(|&(score, is_in)| (if score.is_nan() { f64::NEG_INFINITY } else { score }, is_in))
        .collect();
    ordered.sort_by(|a, b| b.0.total_cmp(&a.0));
    let significance = (1.0 - confidence) / (GUESS_SHARES.len() as f64 * METHODS);
    let tried: Vec<Guesses> =
        GUESS_SHARES.iter().map(|share| guess(&ordered, share * ordered.len() as f64)).collect();
    let best = |bound: &dyn Fn(Guesses) -> f64| {
        let bounds = tried.iter().map(|guesses| (bound(*guesses), *guesses));
        bounds.max_by(|a, b| a.0.total_cmp(&b.0)).expect("the list is not empty")
    };
    let (snj23_epsilon, snj23_guesses) = best(&|g| snj23_epsilon(g, delta, significance));
    let (mmc24_mu, mmc24_guesses) = best(&|g| mmc24_mu(g, significance));
    OneRunAudit {
        confidence,
        delta,
        snj23_epsilon,
        snj23_guesses,
        mmc24_mu,
        mmc24_epsilon: gaussian_epsilon(mmc24_mu, delta),
        mmc24_guesses,
        tpr_at_fpr_0_001: tpr_at_fpr(&ordered, 0.001),
        tpr_at_fpr_0_01: tpr_at_fpr(&ordered, 0.01),
    }
}

/// `ordered` by falling score: the first half of `n_guesses` are guessed in, the last half out.
fn guess(ordered: &[(f64, bool)], n_guesses: f64) -> Guesses {
    let half = ((n_guesses / 2.0).round() as usize).clamp(1, ordered.len() / 2);
    let (first, last) = (&ordered[..half], &ordered[ordered.len() - half..]);
    let n_correct = first.iter().filter(|(_, is_in)| *is_in).count()
        + last.iter().filter(|(_, is_in)| !*is_in).count();
    Guesses {
        n_canaries: ordered.len() as u64,
        n_guesses: 2 * half as u64,
        n_correct: n_correct as u64,
    }
}

/// The share of those in that score higher than all but a share `fpr` of those out; `ordered` by
/// falling score.
fn tpr_at_fpr(ordered: &[(f64, bool)], fpr: f64) -> f64 {
    let n_in = ordered.iter().filter(|(_, is_in)| *is_in).count();
    let allowed = (fpr * (ordered.len() - n_in) as f64).floor() as usize;
    let (mut n_true, mut n_false) = (0_usize, 0_usize);
    for (_, is_in) in ordered {
        if *is_in {
            n_true += 1;
        } else if n_false == allowed {
            break;
        } else {
            n_false += 1;
        }
    }
    if n_in == 0 { 0.0 } else { n_true as f64 / n_in as f64 }
}

/// The largest ε that so many correct guesses refute at `significance`; 0 if none. SNJ23
pub fn snj23_epsilon(guesses: Guesses, delta: f64, significance: f64) -> f64 {
    largest_refuted(|epsilon| snj23_p_value(guesses, epsilon, delta) < significance)
}

/// At most the probability of so many correct guesses under (ε, δ)-DP: theorem 5.2 of SNJ23,
/// `P(X ≥ v) + 2 m δ max_i P(v - i ≤ X < v) / i` with `X` binomial.
pub fn snj23_p_value(guesses: Guesses, epsilon: f64, delta: f64) -> f64 {
    let Guesses { n_canaries, n_guesses, n_correct } = guesses;
    let (n, v) = (n_guesses as f64, n_correct as f64);
    let log_choose = libm::lgamma(n + 1.0) - libm::lgamma(v + 1.0) - libm::lgamma(n - v + 1.0);
    // P(X = v), and from it its neighbours: upwards for the tail, downwards for the maximum.
    let log_p = -libm::log1p(libm::exp(-epsilon));
    let log_odds = epsilon;
    let at_v = log_choose + n * log_p - (n - v) * log_odds;
    let (mut tail, mut log_term, mut k) = (libm::exp(at_v), at_v, v);
    while k < n {
        log_term += libm::log((n - k) / (k + 1.0)) + log_odds;
        k += 1.0;
        tail += libm::exp(log_term);
    }
    let (mut below, mut largest) = (0.0, 0.0_f64);
    (log_term, k) = (at_v, v);
    while k > 0.0 {
        log_term += libm::log(k / (n - k + 1.0)) - log_odds;
        k -= 1.0;
        below += libm::exp(log_term);
        largest = largest.max(below / (v - k));
    }
    (tail + 2.0 * n_canaries as f64 * delta * largest).min(1.0)
}

/// The largest μ of a Gaussian trade-off curve that so many correct guesses refute at
/// `significance`; 0 if none. MMC24
pub fn mmc24_mu(guesses: Guesses, significance: f64) -> f64 {
    largest_refuted(|mu| mmc24_refutes(guesses, mu, significance))
}

/// Whether so many correct guesses are less likely than `significance` under the Gaussian trade-off
/// curve of `mu`: algorithm 3 of MMC24 with two choices a canary.
///
/// `r` and `h` are the masses, a canary, of runs with right and with wrong guesses that the
/// recursion still allows; together they must not exceed the share of canaries that were guessed.
pub fn mmc24_refutes(guesses: Guesses, mu: f64, significance: f64) -> bool {
    let m = guesses.n_canaries as f64;
    let (n, c) = (guesses.n_guesses as f64, guesses.n_correct as f64);
    // The curve, turned around: what a set of probability x may shrink to.
    let shrunk = |x: f64| normal_cdf(normal_quantile(x.min(1.0)) - mu);
    let mut r = significance * c / m;
    let mut h = significance * (n - c) / m;
    for i in (0..guesses.n_correct).rev() {
        let next = h.max(shrunk(r));
        if next <= h {
            break;
        }
        let i = i as f64;
        r = (r + i / (n - i) * (next - h)).min(1.0);
        h = next;
    }
    r + h > n / m
}

/// The largest value, up to 64, at which `refuted` holds, which falls from true to false.
fn largest_refuted(refuted: impl Fn(f64) -> bool) -> f64 {
    if !refuted(0.0) {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, EPSILON_MAX);
    for _ in 0..BISECTIONS {
        let middle = (low + high) / 2.0;
        if refuted(middle) { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use chacha20::ChaCha20Rng;
    use rand_core::{Rng, SeedableRng};
    use rand_distr::{Distribution, StandardNormal};

    use super::*;
    use crate::audit::normal::binomial_upper_tail;

    const fn guesses(n_canaries: u64, n_guesses: u64, n_correct: u64) -> Guesses {
        Guesses { n_canaries, n_guesses, n_correct }
    }

    /// Ideal attack on the Gaussian mechanism of parameter `mu`.
    fn gaussian_scores(m: usize, mu: f64, seed: u64) -> Vec<(f64, bool)> {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        (0..m)
            .map(|_| {
                let is_in = rng.next_u64() & 1 == 1;
                let normal: f64 = StandardNormal.sample(&mut rng);
                (normal + if is_in { mu } else { 0.0 }, is_in)
            })
            .collect()
    }

    #[test]
    fn without_delta_the_bound_is_the_binomial_one() {
        for (n, v) in [(100, 100), (100, 80), (1000, 700), (50, 20)] {
            for epsilon in [0.0, 0.5, 2.0] {
                let p = 1.0 / (1.0 + f64::exp(-epsilon));
                let exact = binomial_upper_tail(n, v, p);
                let ours = snj23_p_value(guesses(5000, n, v), epsilon, 0.0);
                assert!((ours - exact).abs() < 1e-9, "{n} {v} {epsilon}: {ours} {exact}");
            }
        }
        // All right: exp(ε)/(1+exp(ε)) to the hundredth is 0.05.
        let all = snj23_epsilon(guesses(100, 100, 100), 0.0, 0.05);
        let p = 0.05_f64.powf(0.01);
        assert!((all - (p / (1.0 - p)).ln()).abs() < 1e-9, "{all}");
    }

    /// Computed with numpy and scipy from the papers' formulas.
    #[test]
    fn both_bounds_meet_independent_figures() {
        for (g, epsilon, mu) in REFERENCE {
            let ours = snj23_epsilon(g, 1e-5, 0.05);
            assert!((ours - epsilon).abs() < 1e-5, "{g:?}: {ours} {epsilon}");
            let ours = mmc24_mu(g, 0.05);
            assert!((ours - mu).abs() < 1e-5, "{g:?}: {ours} {mu}");
        }
    }

    const REFERENCE: [(Guesses, f64, f64); 5] = [
        (guesses(1000, 100, 90), 1.626_143_5, 0.602_503_6),
        (guesses(1000, 20, 20), 1.791_284_2, 0.582_164_3),
        (guesses(5000, 500, 400), 1.195_218_3, 0.429_596_0),
        (guesses(2000, 2000, 1400), 0.765_865_0, 0.358_114_9),
        (guesses(1000, 250, 180), 0.704_774_0, 0.301_967_9),
    ];

    #[test]
    fn a_fair_coin_refutes_nothing_and_certainty_refutes_much() {
        let half = guesses(1000, 200, 100);
        assert_eq!(snj23_epsilon(half, 1e-5, 0.05), 0.0);
        assert_eq!(mmc24_mu(half, 0.05), 0.0);
        let all = guesses(1000, 1000, 1000);
        assert!(snj23_epsilon(all, 1e-5, 0.05) > 4.0);
        assert!(mmc24_mu(all, 0.05) > 1.5);
    }

    /// Seeded; the bound may fail in 5 % of runs by what it promises.
    #[test]
    fn bounds_hold_in_at_least_95_of_100_runs_and_say_something() {
        for mu in [0.5, 1.0, 2.0] {
            let truth = gaussian_epsilon(mu, 1e-5);
            let audits: Vec<OneRunAudit> = (0..100)
                .map(|seed| audit_scores(&gaussian_scores(1000, mu, seed), 1e-5, 0.95))
                .collect();
            let n_wrong = audits.iter().filter(|audit| audit.epsilon() > truth).count();
            assert!(n_wrong <= 5, "{mu}: {n_wrong} wrong bounds");
            let mean = audits.iter().map(|audit| audit.mmc24_epsilon).sum::<f64>() / 100.0;
            assert!(mean > 0.15 * truth, "{mu}: {mean} of {truth}");
            assert!(audits.iter().all(|audit| audit.tpr_at_fpr_0_01 >= audit.tpr_at_fpr_0_001));
        }
    }

    #[test]
    fn a_rate_of_true_positives_counts_those_above_the_threshold() {
        let ordered: Vec<(f64, bool)> =
            (0..200).map(|i| (-f64::from(i), i < 30 || (40..110).contains(&i))).collect();
        // 100 in, 100 out: one false positive is allowed at 1 %, none at 0.1 %.
        assert_eq!(tpr_at_fpr(&ordered, 0.001), 0.3);
        assert_eq!(tpr_at_fpr(&ordered, 0.01), 0.3);
        assert_eq!(tpr_at_fpr(&ordered, 0.1), 1.0);
    }

    #[test]
    fn a_score_that_is_not_a_number_is_the_lowest() {
        let mut scores = vec![(f64::NAN, false); 50];
        scores.extend(vec![(1.0, true); 50]);
        assert_eq!(audit_scores(&scores, 1e-5, 0.95).snj23_guesses.n_correct, 100);
    }
}
