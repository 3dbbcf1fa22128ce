//! The least noise that keeps a plan within its budget.

use crate::{
    accountant::{self, Accountant, Mechanism},
    budget::Budget,
    error::PrivacyError,
    schedule::FixedSchedule,
    unit::Relation,
};

/// Smallest noise multiplier that is ever returned.
const NOISE_MULTIPLIER_MIN: f64 = 0.01;
/// Largest noise multiplier that is tried.
pub(crate) const NOISE_MULTIPLIER_MAX: f64 = 1e6;
/// How near to the least noise the result is.
const RELATIVE_TOLERANCE: f64 = 5e-5;
/// The same for the first bracket, by Rényi divergences.
const BRACKET_TOLERANCE: f64 = 1e-2;
/// First step below what Rényi divergences ask for.
const START: f64 = 0.9;
/// Evaluations of numerical composition, in pairs, after which the bracket has to do.
const EVALUATIONS_MAX: usize = 12;

/// The smallest noise multiplier, within 1e-4 and rounded up to six digits, at which `steps`
/// Poisson-sampled Gaussian steps at rate `q` together with the `fixed` releases stay within
/// `budget`.
///
/// # Errors
/// [`PrivacyError::OutOfRange`] for a `q` outside `(0, 1]` or no steps;
/// [`PrivacyError::FixedPartExceedsBudget`] if `fixed` alone costs too much;
/// [`PrivacyError::TargetOutOfReach`] if even the largest noise multiplier does not suffice.
pub fn calibrate_noise_multiplier(
    budget: Budget,
    q: f64,
    steps: u64,
    fixed: &[Mechanism],
) -> Result<f64, PrivacyError> {
    Mechanism::SampledGaussian { q, sigma: 1.0, steps }.validate()?;
    if steps == 0 {
        return Err(PrivacyError::OutOfRange {
            what: "number of steps",
            value: 0.0,
            allowed: "at least 1",
        });
    }
    let (epsilon, delta) = (budget.epsilon.get(), budget.delta.get());
    let mut fixed_part = Accountant::new();
    for mechanism in fixed {
        mechanism.validate()?;
        fixed_part.charge(mechanism);
    }
    let tightest = |mechanisms: Vec<Mechanism>| {
        let schedule = FixedSchedule::declared(mechanisms);
        accountant::epsilon(&schedule, Relation::AddOrRemoveOne, delta).epsilon
    };
    let fixed_epsilon = tightest(fixed.to_vec());
    if fixed_epsilon > epsilon {
        return Err(PrivacyError::FixedPartExceedsBudget { epsilon, delta, fixed_epsilon });
    }
    let within = |sigma: f64| {
        let mut whole = fixed_part.clone();
        whole.charge(&Mechanism::SampledGaussian { q, sigma, steps });
        whole.report(delta).epsilon <= epsilon
    };

    let (mut low, mut high) = (1.0, 1.0);
    if within(high) {
        while within(low) {
            high = low;
            low /= 2.0;
            if low < NOISE_MULTIPLIER_MIN {
                return Ok(high);
            }
        }
    } else {
        while !within(high) {
            low = high;
            high *= 2.0;
            if high > NOISE_MULTIPLIER_MAX {
                return Err(PrivacyError::TargetOutOfReach {
                    epsilon,
                    delta,
                    noise_multiplier_max: NOISE_MULTIPLIER_MAX,
                });
            }
        }
    }
    while high > low * (1.0 + BRACKET_TOLERANCE) {
        let middle = (low * high).sqrt();
        if within(middle) { high = middle } else { low = middle }
    }

    // Rényi divergences allow `high`; numerical composition allows less noise. Its ε is nearly a
    // power of σ, so a secant on logarithms takes few of its dear evaluations.
    let cost = |sigma: f64| {
        let mut mechanisms = fixed.to_vec();
        mechanisms.push(Mechanism::SampledGaussian { q, sigma, steps });
        tightest(mechanisms)
    };
    let mut upper = (high, cost(high));
    let mut lower = (high * START, cost(high * START));
    while lower.1 <= epsilon {
        upper = lower;
        lower = (lower.0 * START, cost(lower.0 * START));
        if lower.0 < NOISE_MULTIPLIER_MIN {
            return Ok(upper.0);
        }
    }
    for _ in 0..EVALUATIONS_MAX {
        if upper.0 <= lower.0 * (1.0 + RELATIVE_TOLERANCE) {
            break;
        }
        let slope = libm::log(upper.1 / lower.1) / libm::log(upper.0 / lower.0);
        let guess = upper.0 * libm::exp(libm::log(epsilon / upper.1) / slope);
        // A little to the safe side, so that the bracket closes from both ends.
        let guess = guess * (1.0 + RELATIVE_TOLERANCE / 3.0);
        let inside = guess > lower.0 && guess < upper.0;
        let middle = if inside { guess } else { (lower.0 * upper.0).sqrt() };
        let at = (middle, cost(middle));
        if at.1 <= epsilon {
            upper = at;
            let nearly = (middle * (1.0 - RELATIVE_TOLERANCE / 1.5)).max(lower.0);
            let at = (nearly, cost(nearly));
            if at.1 <= epsilon { upper = at } else { lower = at }
        } else {
            lower = at;
        }
    }
    // `upper` itself is known to be within; a rounded figure that is not (the bound's last digits
    // need not be monotone) gives way to it.
    let rounded = round_up_to_six_digits(upper.0);
    Ok(if cost(rounded) <= epsilon { rounded } else { upper.0 })
}

fn round_up_to_six_digits(value: f64) -> f64 {
    let magnitude = libm::floor(libm::log10(value)) as i32;
    let scale = libm::pow(10.0, f64::from((5 - magnitude).clamp(-300, 300)));
    (value * scale).ceil() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(q: f64, sigma: f64, steps: u64, fixed: &[Mechanism], delta: f64) -> f64 {
        let mut all = fixed.to_vec();
        all.push(Mechanism::SampledGaussian { q, sigma, steps });
        let schedule = FixedSchedule::declared(all);
        accountant::epsilon(&schedule, Relation::AddOrRemoveOne, delta).epsilon
    }

    #[test]
    fn calibration_inverts_the_accountant() {
        let metrics = [Mechanism::Zcdp { rho: 0.001 }];
        for (epsilon, delta, q, steps) in [
            (1.0, 1e-5, 0.01, 1000),
            (3.0, 1e-5, 256.0 / 60000.0, 14063),
            (0.5, 1e-6, 0.5, 100),
            (8.0, 1e-5, 0.08192, 875),
            (2.0, 1e-5, 1.0, 50),
            (100.0, 1e-3, 0.05, 2000),
        ] {
            for fixed in [&metrics[..], &[]] {
                let budget = Budget::new(epsilon, delta).unwrap();
                let sigma = calibrate_noise_multiplier(budget, q, steps, fixed).unwrap();
                assert!(cost(q, sigma, steps, fixed, delta) <= epsilon);
                assert!(cost(q, sigma * (1.0 - 1.5e-4), steps, fixed, delta) > epsilon);
            }
        }
    }

    #[test]
    fn an_impossible_target_says_what_to_change() {
        let budget = Budget::new(0.1, 1e-6).unwrap();
        let error = calibrate_noise_multiplier(budget, 0.1, 10, &[Mechanism::Zcdp { rho: 1.0 }])
            .unwrap_err();
        assert!(matches!(error, PrivacyError::FixedPartExceedsBudget { .. }), "{error}");
        assert!(error.to_string().contains("give metrics less or raise the budget"));
        let error = calibrate_noise_multiplier(budget, 0.1, 10, &[Mechanism::Exempt]).unwrap_err();
        assert!(matches!(error, PrivacyError::FixedPartExceedsBudget { .. }), "{error}");

        let tiny = Budget::new(1e-6, 1e-12).unwrap();
        let error = calibrate_noise_multiplier(tiny, 1.0, 1_000_000_000, &[]).unwrap_err();
        assert!(matches!(error, PrivacyError::TargetOutOfReach { .. }), "{error}");
    }

    #[test]
    fn meaningless_schedules_are_refused() {
        let budget = Budget::new(1.0, 1e-6).unwrap();
        for (q, steps) in [(0.0, 1), (1.5, 1), (f64::NAN, 1), (0.5, 0)] {
            assert!(calibrate_noise_multiplier(budget, q, steps, &[]).is_err());
        }
    }

    #[test]
    fn rounding_goes_up() {
        for (value, expected) in [(1.234_561_2, 1.234_57), (0.123_456_1, 0.123_457), (12.5, 12.5)] {
            let rounded = round_up_to_six_digits(value);
            assert!((rounded - expected).abs() < 1e-12 && rounded >= value, "{rounded}");
        }
    }
}
