//! Functions of each value by itself, their ways back, and the loss.

use std::f32::consts::{FRAC_1_SQRT_2, PI};

use fearless_simd::prelude::*;
use fearless_simd::{Level, Simd, dispatch};

/// What is computed of each value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Relu,
    Tanh,
    Gelu,
}

impl Function {
    /// Whether the way back reads the output; otherwise it reads the input.
    pub(super) fn saves_output(self) -> bool {
        self != Self::Gelu
    }

    /// Replaces `values` by the function of them.
    pub(super) fn apply(self, level: Level, values: &mut [f32]) {
        match self {
            Self::Relu => dispatch!(level, simd => map(simd, values, relu::<_>)),
            Self::Tanh => dispatch!(level, simd => map(simd, values, tanh::<_>)),
            Self::Gelu => values.iter_mut().for_each(|value| *value *= cumulative(*value)),
        }
    }

    /// Multiplies `d` by the slope, from the output, or from the input where that is what is saved.
    pub(super) fn back(self, level: Level, saved: &[f32], d: &mut [f32]) {
        match self {
            Self::Relu => dispatch!(level, _ => relu_back(saved, d)),
            Self::Tanh => dispatch!(level, _ => tanh_back(saved, d)),
            Self::Gelu => {
                for (d, input) in d.iter_mut().zip(saved) {
                    let density = libm::expf(-0.5 * input * input) / (2.0 * PI).sqrt();
                    *d *= cumulative(*input) + input * density;
                }
            }
        }
    }
}

/// The normal distribution's Φ.
fn cumulative(value: f32) -> f32 {
    0.5 * (1.0 + libm::erff(value * FRAC_1_SQRT_2))
}

fn map<S: Simd>(simd: S, values: &mut [f32], function: impl Fn(S, S::f32s) -> S::f32s) {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut chunks = values.chunks_exact_mut(S::f32s::LEN);
            for chunk in &mut chunks {
                function(simd, S::f32s::from_slice(simd, chunk)).store_slice(chunk);
            }
            let rest = chunks.into_remainder();
            let mut last = S::f32s::splat(simd, 0.0);
            last.as_mut_slice()[..rest.len()].copy_from_slice(rest);
            let n = rest.len();
            rest.copy_from_slice(&function(simd, last).as_slice()[..n]);
        },
    );
}

#[inline(always)]
fn relu<S: Simd>(simd: S, value: S::f32s) -> S::f32s {
    let zero = S::f32s::splat(simd, 0.0);
    value.simd_le(zero).select(zero, value)
}

#[inline(always)]
fn relu_back(output: &[f32], d: &mut [f32]) {
    for (d, output) in d.iter_mut().zip(output) {
        *d = if *output <= 0.0 { 0.0 } else { *d };
    }
}

/// A quotient of polynomials, within some units in the last place (the coefficients of Eigen's
/// `ptanh`, which TensorFlow and JAX use too).
#[inline(always)]
fn tanh<S: Simd>(simd: S, value: S::f32s) -> S::f32s {
    const ODD: [f32; 7] = [
        -2.760_768_4e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297_1e-8,
        1.485_722_4e-5,
        6.372_619_3e-4,
        4.893_524_6e-3,
    ];
    const EVEN: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];
    /// Beyond it the nearest number is one.
    const END: f32 = 7.905_311;
    let splat = |value| S::f32s::splat(simd, value);
    let x = value.min(splat(END)).max(splat(-END));
    let square = x * x;
    let sum = |coefficients: &[f32]| {
        coefficients[1..]
            .iter()
            .fold(splat(coefficients[0]), |sum, c| sum.mul_add(square, splat(*c)))
    };
    let quotient = x * sum(&ODD) / sum(&EVEN);
    // What is tiny is its own tangent; NaN stays what it is.
    let is_own = value.abs().simd_lt(splat(4e-4)) | value.simd_ne(value);
    is_own.select(value, quotient)
}

#[inline(always)]
fn tanh_back(output: &[f32], d: &mut [f32]) {
    for (d, output) in d.iter_mut().zip(output) {
        *d *= 1.0 - output * output;
    }
}

/// Replaces an example's scores by its cross-entropy's gradient with respect to them, and returns
/// the cross-entropy in nats.
pub(super) fn cross_entropy(scores: &mut [f32], label: usize) -> f32 {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let own = scores[label] - highest;
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = libm::expf(*score - highest);
        sum += *score;
    }
    scores.iter_mut().for_each(|score| *score /= sum);
    scores[label] -= 1.0;
    libm::logf(sum) - own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Vec<f32> {
        let fine = (-3000..3000).map(|i| i as f32 / 300.0);
        let small = (-40_i32..40).map(|i| 2.0_f32.powi(-i.abs()) * i.signum() as f32);
        fine.chain(small).chain([100.0, -100.0, f32::INFINITY, f32::NEG_INFINITY]).collect()
    }

    fn after(function: Function, values: &[f32]) -> Vec<f32> {
        let mut after = values.to_vec();
        function.apply(Level::new(), &mut after);
        after
    }

    #[test]
    fn functions_are_within_a_few_units_in_the_last_place() {
        for (function, exact) in [
            (Function::Relu, (|x: f64| x.max(0.0)) as fn(f64) -> f64),
            (Function::Tanh, f64::tanh),
            (Function::Gelu, |x| {
                if x == f64::NEG_INFINITY {
                    f64::NAN
                } else {
                    0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
                }
            }),
        ] {
            for (x, y) in values().iter().zip(after(function, &values())) {
                let exact = exact(f64::from(*x));
                let error = (f64::from(y) - exact).abs();
                let close = error <= 1e-6 * exact.abs() + 1e-7 * f64::from(x.abs()).min(1.0);
                assert!(
                    close || y.is_nan() && exact.is_nan() || f64::from(y) == exact,
                    "{function:?} of {x}: {y} not {exact}"
                );
            }
        }
    }

    #[test]
    fn nan_stays_nan() {
        for function in [Function::Relu, Function::Tanh, Function::Gelu] {
            assert!(after(function, &[f32::NAN; 17]).iter().all(|value| value.is_nan()));
        }
    }

    #[test]
    fn slopes_are_those_of_differences() {
        for function in [Function::Relu, Function::Tanh, Function::Gelu] {
            let at: Vec<f32> = (-40..40).map(|i| i as f32 / 8.0 + 0.03).collect();
            let shifted = |by: f32| after(function, &at.iter().map(|x| x + by).collect::<Vec<_>>());
            let (high, low) = (shifted(0.01), shifted(-0.01));
            let saved = if function.saves_output() { after(function, &at) } else { at.clone() };
            let mut d = vec![2.0; at.len()];
            function.back(Level::new(), &saved, &mut d);
            for i in 0..at.len() {
                let slope = 2.0 * (high[i] - low[i]) / 0.02;
                assert!((d[i] - slope).abs() < 1e-3, "{function:?} at {}: {} {slope}", at[i], d[i]);
            }
        }
    }

    #[test]
    fn cross_entropy_is_that_of_softmax() {
        let mut scores = [1.0, -2.0, 0.5];
        let loss = cross_entropy(&mut scores, 1);
        let sum: f64 = [1.0_f64, -2.0, 0.5].map(f64::exp).iter().sum();
        assert!((f64::from(loss) - (sum.ln() + 2.0)).abs() < 1e-6);
        let softmax = [1.0_f64, -2.0, 0.5].map(|score| score.exp() / sum);
        for (got, expected) in scores.iter().zip([softmax[0], softmax[1] - 1.0, softmax[2]]) {
            assert!((f64::from(*got) - expected).abs() < 1e-6);
        }
        let mut huge = [3e38, 0.0];
        assert_eq!(cross_entropy(&mut huge, 0), 0.0);
        assert!(cross_entropy(&mut [f32::NAN, 0.0], 1).is_nan());
        assert!(cross_entropy(&mut [f32::INFINITY, 0.0], 1).is_nan());
    }
}
