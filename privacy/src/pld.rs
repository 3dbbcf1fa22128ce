//! Numerical composition of privacy-loss distributions, never below the truth.
//!
//! Each mechanism has a pair of distributions (P, Q) that dominates it; for the Poisson-sampled
//! Gaussian they are a normal and a mixture of two ([ZDW22], theorem 11). Its privacy loss ln dP/dQ is
//! put on a grid by *connecting the dots* ([DGKKM22], algorithm 1): the mass of each interval is split
//! between its ends so that both its P- and its Q-mass are kept. The result dominates the pair, exactly,
//! and its error is of second order in the mesh.
//!
//! Composition convolves. It is done once, by FFT, under an exponential tilt that moves the bulk of the
//! sum to the ε in question, so that rounding is relative to δ and not to 1. What is cut off is charged
//! to δ: the single step's upper tail as loss ∞, the sum's by a Chernoff bound. What a circular
//! convolution folds back only adds mass.
//!
//! [DGKKM22]: https://arxiv.org/abs/2207.04380
//! [ZDW22]: https://arxiv.org/abs/2106.08567

use std::f64::consts::SQRT_2;

use realfft::{RealFftPlanner, num_complex::Complex};

use crate::{accountant::Mechanism, unit::Relation};

/// Mesh of the losses, as a part of the ε that Rényi divergences give.
const MESH_PER_EPSILON: f64 = 1.0 / 20_000.0;
/// Mesh, at most this part of one step's standard deviation: each step's variance grows by at most
/// mesh² / 4.
const MESH_PER_DEVIATION: f64 = 0.1;
/// Smallest mesh; finer ones would lose the digits of a loss.
const MESH_MIN: f64 = 1e-9;
/// Longest grid: 16 MiB.
const GRID_MAX: usize = 1 << 21;
/// How often the mesh is doubled to fit the longest grid, before Rényi divergences have to do.
const COARSER_MAX: u32 = 8;
/// Part of δ that the cut-off upper tails of all steps may come to.
const STEP_TAIL: f64 = 1e-7;
/// Mass of the tilted sum that may lie on either side of the grid.
const SUM_TAIL: f64 = 1e-14;
/// Part of δ that is set aside for the rounding of sums and transforms: some ten times what it was
/// found to be against the exact curve without sampling.
const ROUNDING: f64 = 1e-6;
/// Blocks of losses in which moments are first estimated.
const BLOCKS: usize = 1024;

/// An upper bound on ε at `delta` of a schedule fixed in advance; `None` where a grid would be too
/// long, or a mechanism promises nothing.
///
/// `epsilon_hint`: what Rényi divergences say, positive and finite; it only sets the mesh.
pub(crate) fn epsilon(
    mechanisms: &[Mechanism],
    relation: Relation,
    delta: f64,
    epsilon_hint: f64,
) -> Option<f64> {
    if !(epsilon_hint > 0.0 && epsilon_hint.is_finite()) {
        return None;
    }
    let directions: &[Direction] = match relation {
        Relation::AddOrRemoveOne => &[Direction::Remove, Direction::Add],
        Relation::ReplaceOne => &[Direction::Replace],
    };
    let parts = parts(mechanisms)?;
    let mut mesh = (epsilon_hint * MESH_PER_EPSILON).max(MESH_MIN);
    for part in &parts {
        if let Part::Gaussian { q, sigma, .. } = *part {
            let deviation = (q * libm::expm1(1.0 / (sigma * sigma)).sqrt()).min(1.0 / sigma);
            mesh = mesh.min((deviation * MESH_PER_DEVIATION).max(MESH_MIN));
        }
    }
    'coarser: for _ in 0..COARSER_MAX {
        let mut largest = 0.0_f64;
        for &direction in directions {
            match composed(&parts, direction, delta, epsilon_hint, mesh) {
                Some(epsilon) => largest = largest.max(epsilon),
                None => {
                    mesh *= 2.0;
                    continue 'coarser;
                }
            }
        }
        return Some(largest);
    }
    None
}

/// One kind of release and how often it is made.
#[derive(Clone, Copy)]
enum Part {
    Gaussian { q: f64, sigma: f64, steps: u64 },
    Zcdp { rho: f64 },
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Remove,
    Add,
    Replace,
}

/// Releases of one kind together; `None` if one promises nothing.
fn parts(mechanisms: &[Mechanism]) -> Option<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    for mechanism in mechanisms {
        mechanism.validate().ok()?;
        let found = parts.iter_mut().any(|part| match (part, *mechanism) {
            (
                Part::Gaussian { q, sigma, steps },
                Mechanism::SampledGaussian { q: other_q, sigma: other_sigma, steps: more },
            ) if (*q, *sigma) == (other_q, other_sigma) => {
                *steps = steps.saturating_add(more);
                true
            }
            (Part::Zcdp { rho }, Mechanism::Zcdp { rho: more }) => {
                *rho += more;
                true
            }
            _ => false,
        });
        if found {
            continue;
        }
        match *mechanism {
            Mechanism::SampledGaussian { steps: 0, .. } => {}
            Mechanism::SampledGaussian { q, sigma, steps } => {
                parts.push(Part::Gaussian { q, sigma, steps });
            }
            Mechanism::Zcdp { rho: 0.0 } => {}
            Mechanism::Zcdp { rho } => parts.push(Part::Zcdp { rho }),
            Mechanism::Exempt => return None,
        }
    }
    Some(parts)
}

/// A privacy loss on the grid, repeated `times` times: `masses[i]` at `(first + i) · mesh`, the rest
/// at infinity.
struct Losses {
    first: i64,
    masses: Vec<f64>,
    infinite: f64,
    times: u64,
    /// Mean loss and mass of blocks of neighbouring points.
    blocks: Vec<(f64, f64)>,
}

impl Losses {
    fn new(first: i64, masses: Vec<f64>, infinite: f64, times: u64, mesh: f64) -> Self {
        let width = masses.len().div_ceil(BLOCKS).max(1);
        let blocks = masses
            .chunks(width)
            .enumerate()
            .filter_map(|(block, masses)| {
                let start = first + (block * width) as i64;
                let mass: f64 = masses.iter().sum();
                let moment: f64 =
                    masses.iter().enumerate().map(|(i, m)| m * (start + i as i64) as f64).sum();
                (mass > 0.0).then(|| (moment / mass * mesh, mass))
            })
            .collect();
        Self { first, masses, infinite, times, blocks }
    }

    /// `ln E exp(theta · loss)` of one release, from the blocks.
    fn log_moment_estimate(&self, theta: f64) -> f64 {
        let largest = self
            .blocks
            .iter()
            .map(|(loss, mass)| theta * loss + libm::log(*mass))
            .fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 =
            self.blocks.iter().map(|(loss, mass)| mass * libm::exp(theta * loss - largest)).sum();
        largest + libm::log(sum)
    }

    /// The same, from every point.
    fn log_moment(&self, theta: f64, mesh: f64) -> f64 {
        let shift = self.log_moment_estimate(theta);
        let sum: f64 = self
            .masses
            .iter()
            .enumerate()
            .map(|(i, mass)| mass * libm::exp(theta * self.loss(i, mesh) - shift))
            .sum();
        shift + libm::log(sum)
    }

    fn loss(&self, index: usize, mesh: f64) -> f64 {
        (self.first + index as i64) as f64 * mesh
    }
}

/// The smallest ε at `delta` of all parts in one direction; `None` if a grid would be too long.
fn composed(
    parts: &[Part],
    direction: Direction,
    delta: f64,
    epsilon_hint: f64,
    mesh: f64,
) -> Option<f64> {
    let n_steps: f64 = parts
        .iter()
        .map(|part| if let Part::Gaussian { steps, .. } = part { *steps as f64 } else { 1.0 })
        .sum();
    let tail = delta * STEP_TAIL / n_steps;
    let losses: Vec<Losses> = parts
        .iter()
        .map(|part| match *part {
            Part::Gaussian { q, sigma, steps } => {
                gaussian_losses(q, sigma, direction, steps, mesh, tail)
            }
            Part::Zcdp { rho } => zcdp_losses(
                if direction == Direction::Replace { 4.0 * rho } else { rho },
                mesh,
                tail,
            ),
        })
        .collect::<Option<_>>()?;
    let infinite: f64 = losses.iter().map(|part| part.infinite * part.times as f64).sum();
    let delta = delta * (1.0 - ROUNDING) - infinite;
    let estimate = |theta: f64| -> f64 {
        losses.iter().map(|part| part.times as f64 * part.log_moment_estimate(theta)).sum()
    };
    let exact = |theta: f64| -> f64 {
        losses.iter().map(|part| part.times as f64 * part.log_moment(theta, mesh)).sum()
    };

    let log_inverse_delta = -libm::log(delta);
    let theta =
        minimum(libm::log(1e-3 / epsilon_hint), libm::log(1e6 / epsilon_hint), |log_theta| {
            let theta = libm::exp(log_theta);
            (estimate(theta) + log_inverse_delta) / theta
        });
    let theta = libm::exp(theta);

    // The grid: where the tilted sum lies but for SUM_TAIL on either side.
    let here = estimate(theta);
    let change = theta * 1e-2;
    let variance =
        (estimate(theta + change) - 2.0 * here + estimate(theta - change)) / (change * change);
    let deviation = variance.max(mesh * mesh).sqrt();
    let reach = -libm::log(SUM_TAIL);
    let scales = || (-3..=6).map(|power| libm::exp2(f64::from(power)) / deviation);
    let (high, scale_high) = scales()
        .map(|scale| ((estimate(theta + scale) - here + reach) / scale, scale))
        .min_by(|a, b| a.0.total_cmp(&b.0))?;
    let low = scales()
        .map(|scale| (here - estimate(theta - scale) - reach) / scale)
        .max_by(f64::total_cmp)?;
    if !(high.is_finite() && low.is_finite() && high > low) {
        return None;
    }
    let (low_index, high_index) = ((low / mesh).floor() as i64, (high / mesh).ceil() as i64);
    let n = usize::try_from(high_index - low_index + 1).ok()?.max(16).next_power_of_two();
    if n > GRID_MAX {
        return None;
    }

    let mut planner = RealFftPlanner::<f64>::new();
    let forward = planner.plan_fft_forward(n);
    let mut product = vec![Complex::new(1.0, 0.0); n / 2 + 1];
    let mut log_moment = 0.0;
    for part in &losses {
        let shift = part.log_moment(theta, mesh);
        let mut tilted = forward.make_input_vec();
        for (i, mass) in part.masses.iter().enumerate() {
            let place = (part.first + i as i64).rem_euclid(n as i64) as usize;
            tilted[place] += mass * libm::exp(theta * part.loss(i, mesh) - shift);
        }
        let mut spectrum = forward.make_output_vec();
        forward.process(&mut tilted, &mut spectrum).ok()?;
        for (product, value) in product.iter_mut().zip(&spectrum) {
            *product *= power(*value, part.times);
        }
        log_moment += part.times as f64 * shift;
    }
    let inverse = planner.plan_fft_inverse(n);
    // A real signal has a real first and, of even length, a real last coefficient.
    product[0].im = 0.0;
    product[n / 2].im = 0.0;
    let mut sum = inverse.make_output_vec();
    inverse.process(&mut product, &mut sum).ok()?;

    // What lies above the grid, in the measure without the tilt.
    let top = low_index + n as i64 - 1;
    let above = exact(theta + scale_high) - log_moment - scale_high * (top as f64 * mesh)
        + log_moment
        - theta * (top as f64 * mesh);
    let target = delta - libm::exp(above);
    if target.is_nan() || target <= 0.0 {
        return None;
    }
    // From the top down: mass and mass · exp(top - loss) of all losses above ε. Then
    // δ(ε) = mass - exp(ε - top) · weighted.
    let (mut mass, mut weighted) = (0.0, 0.0);
    for index in (low_index..=top).rev() {
        let from_top = (top - index) as f64 * mesh;
        let at_this = mass - weighted * libm::exp(-from_top);
        if at_this > target {
            // The crossing lies between this point and the one above.
            let epsilon = top as f64 * mesh + libm::log((mass - target) / weighted);
            return Some(upwards(epsilon));
        }
        let place = index.rem_euclid(n as i64) as usize;
        let tilted = (sum[place] / n as f64).max(0.0);
        let here = tilted * libm::exp(log_moment - theta * (index as f64 * mesh));
        mass += here;
        weighted += here * libm::exp(from_top);
    }
    Some(upwards(low_index as f64 * mesh))
}

fn upwards(epsilon: f64) -> f64 {
    (epsilon * (1.0 + 1e-9)).max(0.0)
}

/// `value` to the power `times`, by its logarithm.
fn power(value: Complex<f64>, times: u64) -> Complex<f64> {
    if times == 1 {
        return value;
    }
    let (radius, angle) = (libm::hypot(value.re, value.im), libm::atan2(value.im, value.re));
    let radius = libm::exp(times as f64 * libm::log(radius));
    Complex::new(radius * libm::cos(times as f64 * angle), radius * libm::sin(times as f64 * angle))
}

/// Where `function`, which falls and then rises, is least between `low` and `high`: golden section.
fn minimum(mut low: f64, mut high: f64, function: impl Fn(f64) -> f64) -> f64 {
    const RATIO: f64 = 0.618_033_988_749_894_9;
    let (mut a, mut b) = (high - RATIO * (high - low), low + RATIO * (high - low));
    let (mut at_a, mut at_b) = (function(a), function(b));
    while high - low > 1e-2 {
        // An overflow is not a minimum: NaN counts as too far to the right.
        if at_a <= at_b || at_b.is_nan() {
            (high, b, at_b) = (b, a, at_a);
            a = high - RATIO * (high - low);
            at_a = function(a);
        } else {
            (low, a, at_a) = (a, b, at_b);
            b = low + RATIO * (high - low);
            at_b = function(b);
        }
    }
    (low + high) / 2.0
}

/// The dominating loss of one Poisson-sampled Gaussian release, on the grid.
///
/// In every direction P and Q are mixtures of N(0, σ²) and a shifted normal, mirrored where needed so
/// that the loss grows with x:
///
/// ```text
/// remove   P = (1-q) N(0) + q N(1)    Q = N(0)
/// add      P = N(0)                   Q = (1-q) N(0) + q N(-1)
/// replace  P = (1-q) N(0) + q N(1)    Q = (1-q) N(0) + q N(-1)
/// ```
fn gaussian_losses(
    q: f64,
    sigma: f64,
    direction: Direction,
    times: u64,
    mesh: f64,
    tail: f64,
) -> Option<Losses> {
    let variance = sigma * sigma;
    let shrunk = q * libm::exp(-0.5 / variance);
    if shrunk <= 0.0 {
        return None;
    }
    // The x at which the loss is `epsilon`; infinite where it never is.
    let x_at = |epsilon: f64| -> f64 {
        let log_ratio = |epsilon: f64| {
            // ln((exp(ε) - (1 - q)) / q)
            if epsilon > 300.0 {
                epsilon - libm::log(q)
            } else {
                libm::log((libm::expm1(epsilon) + q) / q)
            }
        };
        match direction {
            Direction::Remove if libm::expm1(epsilon) + q <= 0.0 => f64::NEG_INFINITY,
            Direction::Remove => variance * log_ratio(epsilon) + 0.5,
            Direction::Add if q == 1.0 => variance * epsilon - 0.5,
            Direction::Add if libm::expm1(-epsilon) + q <= 0.0 => f64::INFINITY,
            Direction::Add => -variance * log_ratio(-epsilon) - 0.5,
            Direction::Replace => {
                let stretched = (1.0 - q) * libm::sinh(epsilon / 2.0) / shrunk;
                variance * (epsilon / 2.0 + libm::asinh(stretched))
            }
        }
    };
    let loss_at = |x: f64| -> f64 {
        let log_mixture = |exponent: f64| {
            if exponent > 0.0 {
                exponent + libm::log(q + (1.0 - q) * libm::exp(-exponent))
            } else {
                libm::log1p(q * libm::expm1(exponent))
            }
        };
        let up = || log_mixture((x - 0.5) / variance);
        let down = || log_mixture((-x - 0.5) / variance);
        match direction {
            Direction::Remove => up(),
            Direction::Add => -down(),
            Direction::Replace => up() - down(),
        }
    };
    let shifted_p = direction != Direction::Add;
    let shift_q = if direction == Direction::Remove { None } else { Some(-1.0) };

    let z = (-2.0 * libm::log(tail)).sqrt();
    let (x_low, x_high) = (-sigma * z, sigma * z + if shifted_p { 1.0 } else { 0.0 });
    let (first, last) = ((loss_at(x_low) / mesh).floor(), (loss_at(x_high) / mesh).ceil());
    if !(first.is_finite() && last.is_finite() && last - first < GRID_MAX as f64) {
        return None;
    }
    let (first, last) = (first as i64, (last as i64).max(first as i64 + 1));
    let n = usize::try_from(last - first + 1).ok()?;

    let mut masses = vec![0.0; n];
    let end = Edge::at(x_at(first as f64 * mesh), sigma, shifted_p, shift_q);
    // All below the first point counts as if it were there.
    masses[0] += end.p_below(q, shifted_p);
    let mut start = end;
    let spread = -libm::expm1(-mesh);
    for index in first..last {
        let epsilon = index as f64 * mesh;
        let end = Edge::at(x_at((index + 1) as f64 * mesh), sigma, shifted_p, shift_q);
        let at_zero = between(start.zero, end.zero);
        let p =
            if shifted_p { (1.0 - q) * at_zero + q * between(start.one, end.one) } else { at_zero };
        let of_q = match shift_q {
            None => at_zero,
            Some(_) => (1.0 - q) * at_zero + q * between(start.minus_one, end.minus_one),
        };
        // Kept: upper + lower = P-mass, and upper·exp(-ε-mesh) + lower·exp(-ε) = Q-mass.
        let upper = (p - of_q * libm::exp(epsilon)) / spread;
        let upper = if upper.is_finite() { upper.clamp(0.0, p) } else { p };
        let place = (index - first) as usize;
        masses[place + 1] += upper;
        masses[place] += p - upper;
        start = end;
    }
    let infinite = start.p_above(q, shifted_p);
    Some(Losses::new(first, masses, infinite, times, mesh))
}

/// A point of the real line as seen from the means 0, 1 and -1, in standard deviations.
#[derive(Clone, Copy)]
struct Edge {
    zero: Tail,
    one: Tail,
    minus_one: Tail,
}

/// A standard normal's tail beyond a point, on the side where it is small.
#[derive(Clone, Copy)]
struct Tail {
    mass: f64,
    is_upper: bool,
}

impl Edge {
    fn at(x: f64, sigma: f64, needs_one: bool, minus_one: Option<f64>) -> Self {
        let nothing = Tail { mass: 0.0, is_upper: true };
        Self {
            zero: Tail::beyond(x / sigma),
            one: if needs_one { Tail::beyond((x - 1.0) / sigma) } else { nothing },
            minus_one: minus_one.map_or(nothing, |mean| Tail::beyond((x - mean) / sigma)),
        }
    }

    fn p_above(&self, q: f64, shifted: bool) -> f64 {
        if shifted {
            (1.0 - q) * self.zero.above() + q * self.one.above()
        } else {
            self.zero.above()
        }
    }

    fn p_below(&self, q: f64, shifted: bool) -> f64 {
        if shifted {
            (1.0 - q) * self.zero.below() + q * self.one.below()
        } else {
            self.zero.below()
        }
    }
}

impl Tail {
    fn beyond(z: f64) -> Self {
        Self { mass: 0.5 * libm::erfc(z.abs() / SQRT_2), is_upper: z > 0.0 }
    }

    fn above(self) -> f64 {
        if self.is_upper { self.mass } else { 1.0 - self.mass }
    }

    fn below(self) -> f64 {
        if self.is_upper { 1.0 - self.mass } else { self.mass }
    }
}

/// A standard normal's mass between two points.
fn between(start: Tail, end: Tail) -> f64 {
    let mass = match (start.is_upper, end.is_upper) {
        (true, true) => start.mass - end.mass,
        (false, false) => end.mass - start.mass,
        _ => 1.0 - start.mass - end.mass,
    };
    mass.max(0.0)
}

/// A loss that dominates every `rho`-zCDP mechanism, on the grid.
///
/// Its privacy profile δ(ε) is at most what CKS20, proposition 12, gives at any order; the true profile
/// is convex in exp(ε), so the greatest convex function below those values is a bound too, and its
/// corners are the masses. Negative ε follow from symmetry: δ(-ε) = 1 - exp(-ε) + exp(-ε) δ(ε).
fn zcdp_losses(rho: f64, mesh: f64, tail: f64) -> Option<Losses> {
    let profile = |epsilon: f64| -> f64 {
        // Orders about the optimum, 1 + (ε - ρ) / 2ρ, and low ones where that is below 1.
        let about = ((epsilon - rho) / (2.0 * rho)).max(1e-3);
        (-40..=40)
            .map(|k| {
                let above_one = about * libm::exp2(f64::from(k) / 8.0);
                let alpha = 1.0 + above_one;
                let log = above_one * (alpha * rho - epsilon + libm::log1p(-1.0 / alpha))
                    - libm::log(alpha);
                libm::exp(log)
            })
            .fold(1.0, f64::min)
    };
    let reach = rho + 2.0 * (rho * -libm::log(tail)).sqrt();
    let stride = ((reach / mesh / 2000.0).ceil() as i64).max(1);
    let n_points = (reach / mesh / stride as f64).ceil() as i64;
    if n_points * stride * 2 >= GRID_MAX as i64 {
        return None;
    }
    let right: Vec<f64> = (0..=n_points).map(|i| profile((i * stride) as f64 * mesh)).collect();
    let mut points: Vec<(i64, f64)> = Vec::new();
    for i in (1..=n_points).rev() {
        let shrunk = libm::exp(-((i * stride) as f64) * mesh);
        points.push((-i * stride, 1.0 - shrunk + shrunk * right[i as usize]));
    }
    points.extend(right.iter().enumerate().map(|(i, delta)| (i as i64 * stride, *delta)));

    // The lower hull, with exp(ε) as abscissa and (0, 1) as its start.
    let x_of = |point: &(i64, f64)| libm::exp(point.0 as f64 * mesh);
    let mut hull: Vec<(f64, f64, i64)> = vec![(0.0, 1.0, i64::MIN)];
    for point in &points {
        let (x, y) = (x_of(point), point.1);
        while hull.len() >= 2 {
            let (a, b) = (hull[hull.len() - 2], hull[hull.len() - 1]);
            if (b.1 - a.1) * (x - a.0) >= (y - a.1) * (b.0 - a.0) {
                hull.pop();
            } else {
                break;
            }
        }
        hull.push((x, y, point.0));
    }
    let first = hull.get(1)?.2;
    let last = hull.last()?.2;
    let mut masses = vec![0.0; usize::try_from(last - first + 1).ok()?];
    for i in 1..hull.len() {
        let (before, here) = (hull[i - 1], hull[i]);
        let left = (here.1 - before.1) / (here.0 - before.0);
        let right = hull.get(i + 1).map_or(0.0, |after| (after.1 - here.1) / (after.0 - here.0));
        masses[(here.2 - first) as usize] += (here.0 * (right - left)).max(0.0);
    }
    Some(Losses::new(first, masses, hull.last()?.1, 1, mesh))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gaussian::gaussian_epsilon;

    fn pld(mechanisms: &[Mechanism], delta: f64, hint: f64) -> f64 {
        epsilon(mechanisms, Relation::AddOrRemoveOne, delta, hint).unwrap()
    }

    #[test]
    fn without_sampling_it_is_the_exact_curve_and_never_below() {
        for (sigma, steps) in [(1.0, 1), (10.0, 100), (50.0, 10_000), (0.7, 3), (100.0, 10)] {
            for delta in [1e-3, 1e-6, 1e-10] {
                let mechanism = Mechanism::SampledGaussian { q: 1.0, sigma, steps };
                let mu = (steps as f64).sqrt() / sigma;
                let exact = gaussian_epsilon(mu, delta);
                if exact < 1e-3 {
                    continue;
                }
                let ours = pld(&[mechanism], delta, exact * 1.1);
                assert!(ours >= exact * (1.0 - 1e-9), "{sigma} {steps} {delta}: {ours} {exact}");
                assert!(ours <= exact * 1.0005, "{sigma} {steps} {delta}: {ours} {exact}");
                let replaced = epsilon(&[mechanism], Relation::ReplaceOne, delta, exact).unwrap();
                let exact = gaussian_epsilon(2.0 * mu, delta);
                assert!(replaced >= exact * (1.0 - 1e-9) && replaced <= exact * 1.0005);
            }
        }
    }

    #[test]
    fn every_loss_has_mass_one_and_keeps_the_mass_of_the_other_distribution() {
        for direction in [Direction::Remove, Direction::Add, Direction::Replace] {
            for (q, sigma) in [(0.01, 1.0), (0.3, 0.6), (1.0, 2.0), (1e-5, 0.4)] {
                let mesh = 1e-3;
                let losses = gaussian_losses(q, sigma, direction, 1, mesh, 1e-15).unwrap();
                let total: f64 = losses.masses.iter().sum::<f64>() + losses.infinite;
                assert!((total - 1.0).abs() < 1e-12, "{total}");
                let masses = losses.masses.iter().enumerate();
                let other: f64 = masses.map(|(i, m)| m * libm::exp(-losses.loss(i, mesh))).sum();
                assert!((other - 1.0).abs() < 1e-6, "{q} {sigma}: {other}");
            }
        }
        let losses = zcdp_losses(0.01, 1e-4, 1e-12).unwrap();
        let total: f64 = losses.masses.iter().sum::<f64>() + losses.infinite;
        assert!((total - 1.0).abs() < 1e-9, "{total}");
    }

    #[test]
    fn a_zcdp_release_costs_no_less_than_the_gaussian_it_covers() {
        for sigma in [1.0, 5.0, 30.0] {
            let rho = 1.0 / (2.0 * sigma * sigma);
            let exact = gaussian_epsilon(1.0 / sigma, 1e-6);
            let ours = pld(&[Mechanism::Zcdp { rho }], 1e-6, exact * 1.2);
            assert!(ours >= exact && ours < exact * 1.25, "{sigma}: {ours} {exact}");
        }
    }
}
