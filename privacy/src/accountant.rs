//! What a list of releases costs: the smallest sound ε, and which bound gave it.
//!
//! Three bounds are known here: Rényi divergences (always), the exact Gaussian (when nothing was
//! sampled), and numerical composition of privacy losses. The last is tightest and holds only for a
//! schedule fixed in advance, so it is computed from a [`FixedSchedule`] alone. The exact Gaussian, and
//! Rényi divergences at each fixed order, also hold when a later release is chosen after seeing an
//! earlier one. Picking the best order at the end, as done here, is proved for schedules fixed in
//! advance; a steward who chooses the next *run* by the results of the last relies on it as common
//! practice, not as a theorem.

use serde::{Deserialize, Serialize};

use crate::{
    error::PrivacyError, gaussian::gaussian_epsilon, pld, rdp::RdpCurve, schedule::FixedSchedule,
    unit::Relation,
};

/// Unit curves kept for reuse; a plan has one or two.
const CACHED_CURVES_MAX: usize = 8;

/// One kind of release, as the accountants see it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Mechanism {
    /// `steps` Gaussian releases, each on its own Poisson sample (Abadi et al. 2016, algorithm 1).
    SampledGaussian {
        /// Sampling rate, in `(0, 1]`.
        q: f64,
        /// Noise multiplier: standard deviation over sensitivity.
        sigma: f64,
        /// How many of them.
        steps: u64,
    },
    /// A `rho`-zCDP release, such as a count with discrete Gaussian noise.
    Zcdp {
        /// Its zero-concentrated divergence, `1 / (2 sigma²)` for a Gaussian of sensitivity 1.
        rho: f64,
    },
    /// A release without differential privacy: ε is infinite.
    Exempt,
}

impl Mechanism {
    /// Checks that the parameters mean something.
    ///
    /// # Errors
    /// [`PrivacyError::OutOfRange`] unless `0 < q <= 1`, `sigma` is positive and finite, and `rho`
    /// is finite and not negative.
    pub fn validate(&self) -> Result<(), PrivacyError> {
        let refuse = |what, value, allowed| Err(PrivacyError::OutOfRange { what, value, allowed });
        match *self {
            Mechanism::SampledGaussian { q, .. } if !(q > 0.0 && q <= 1.0) => {
                refuse("sampling rate", q, "above 0 and at most 1")
            }
            Mechanism::SampledGaussian { sigma, .. } if !(sigma > 0.0 && sigma.is_finite()) => {
                refuse("noise multiplier", sigma, "positive and finite")
            }
            Mechanism::Zcdp { rho } if !(rho >= 0.0 && rho.is_finite()) => {
                refuse("rho", rho, "finite and not negative")
            }
            _ => Ok(()),
        }
    }
}

/// Which bound gave an [`EpsilonReport`] its ε.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoundKind {
    /// Rényi differential privacy.
    Rdp,
    /// Numerical composition of privacy-loss distributions.
    Pld,
    /// The exact curve of composed Gaussians without sampling.
    ExactGaussian,
}

/// The cost of some releases at one δ. In JSON an infinite ε is `null`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpsilonReport {
    /// The smallest sound ε.
    #[serde(deserialize_with = "infinite_if_null")]
    pub epsilon: f64,
    /// The bound that gave it.
    pub bound: BoundKind,
    /// What RDP says.
    #[serde(deserialize_with = "infinite_if_null")]
    pub rdp_epsilon: f64,
    /// The Rényi order at which it says so; 0 if no order gives a bound.
    pub rdp_order: f64,
    /// What numerical composition says, where the schedule was fixed in advance.
    pub pld_epsilon: Option<f64>,
    /// What the exact Gaussian says, if it applies.
    pub exact_gaussian_epsilon: Option<f64>,
}

fn infinite_if_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::INFINITY))
}

/// The smallest sound ε at `delta` of a schedule that was fixed in advance.
///
/// Mechanisms with meaningless parameters cost infinitely much. Rényi divergences say nothing about
/// replacing a record under Poisson sampling; they are then infinite.
pub fn epsilon(schedule: &FixedSchedule, relation: Relation, delta: f64) -> EpsilonReport {
    let mechanisms = schedule.mechanisms();
    let mut report = match relation {
        Relation::AddOrRemoveOne => adaptive_epsilon(mechanisms, delta),
        Relation::ReplaceOne => match doubled(mechanisms) {
            Some(doubled) => adaptive_epsilon(&doubled, delta),
            None => EpsilonReport::unbounded(),
        },
    };
    let valid = mechanisms.iter().all(|mechanism| mechanism.validate().is_ok());
    if report.exact_gaussian_epsilon.is_some() || !valid || !(delta > 0.0 && delta < 1.0) {
        return report;
    }
    // Replacing is removing and adding: twice what Rényi divergences say of one is the right size.
    let hint = match relation {
        Relation::AddOrRemoveOne => report.rdp_epsilon,
        Relation::ReplaceOne => 2.0 * adaptive_epsilon(mechanisms, delta).rdp_epsilon,
    };
    report.pld_epsilon = pld::epsilon(mechanisms, relation, delta, hint);
    if let Some(pld_epsilon) = report.pld_epsilon.filter(|pld| *pld < report.epsilon) {
        report.epsilon = pld_epsilon;
        report.bound = BoundKind::Pld;
    }
    report
}

/// The smallest sound ε at `delta` of releases of which a later one may have been chosen after seeing
/// an earlier one.
pub fn adaptive_epsilon(mechanisms: &[Mechanism], delta: f64) -> EpsilonReport {
    let mut accountant = Accountant::new();
    for mechanism in mechanisms {
        accountant.charge(mechanism);
    }
    accountant.report(delta)
}

/// The same releases where a neighbour moves twice as far; `None` if one samples.
fn doubled(mechanisms: &[Mechanism]) -> Option<Vec<Mechanism>> {
    mechanisms
        .iter()
        .map(|mechanism| match *mechanism {
            Mechanism::SampledGaussian { q, sigma, steps } => {
                (q == 1.0).then_some(Mechanism::SampledGaussian { q, sigma: sigma / 2.0, steps })
            }
            Mechanism::Zcdp { rho } => Some(Mechanism::Zcdp { rho: 4.0 * rho }),
            Mechanism::Exempt => Some(Mechanism::Exempt),
        })
        .collect()
}

impl EpsilonReport {
    /// No promise.
    fn unbounded() -> Self {
        Self {
            epsilon: f64::INFINITY,
            bound: BoundKind::Rdp,
            rdp_epsilon: f64::INFINITY,
            rdp_order: 0.0,
            pld_epsilon: None,
            exact_gaussian_epsilon: None,
        }
    }
}

/// A running account of releases, so that a ledger does not start from the beginning each time.
#[derive(Debug, Clone)]
pub(crate) struct Accountant {
    curve: RdpCurve,
    gaussian: GaussianPart,
    /// Something was charged that promises nothing.
    exempt: bool,
    unit_curves: Vec<((f64, f64), RdpCurve)>,
}

/// Whether everything charged so far is a Gaussian without sampling.
#[derive(Debug, Clone, Copy)]
enum GaussianPart {
    Nothing,
    All { mu_squared: f64 },
    Mixed,
}

impl Accountant {
    pub(crate) fn new() -> Self {
        Self {
            curve: RdpCurve::zero(),
            gaussian: GaussianPart::Nothing,
            exempt: false,
            unit_curves: Vec::new(),
        }
    }

    pub(crate) fn charge(&mut self, mechanism: &Mechanism) {
        if mechanism.validate().is_err() {
            self.exempt = true;
            return;
        }
        match *mechanism {
            Mechanism::SampledGaussian { q, sigma, steps } => {
                let mut curve = self.unit_curve(q, sigma);
                curve.scale(steps);
                self.curve.compose(&curve);
                let mu_squared = steps as f64 / (sigma * sigma);
                self.gaussian = match self.gaussian {
                    GaussianPart::Nothing if q == 1.0 => GaussianPart::All { mu_squared },
                    GaussianPart::All { mu_squared: before } if q == 1.0 => {
                        GaussianPart::All { mu_squared: before + mu_squared }
                    }
                    _ => GaussianPart::Mixed,
                };
            }
            Mechanism::Zcdp { rho } => {
                self.curve.compose(&RdpCurve::zcdp(rho));
                self.gaussian = GaussianPart::Mixed;
            }
            Mechanism::Exempt => self.exempt = true,
        }
    }

    pub(crate) fn report(&self, delta: f64) -> EpsilonReport {
        if self.exempt {
            return EpsilonReport::unbounded();
        }
        let (rdp_epsilon, rdp_order) = self.curve.epsilon(delta);
        let exact_gaussian_epsilon = match self.gaussian {
            GaussianPart::All { mu_squared } => Some(gaussian_epsilon(mu_squared.sqrt(), delta)),
            GaussianPart::Nothing | GaussianPart::Mixed => None,
        };
        let (epsilon, bound) = match exact_gaussian_epsilon {
            Some(exact) if exact <= rdp_epsilon => (exact, BoundKind::ExactGaussian),
            _ => (rdp_epsilon, BoundKind::Rdp),
        };
        EpsilonReport {
            epsilon,
            bound,
            rdp_epsilon,
            rdp_order,
            pld_epsilon: None,
            exact_gaussian_epsilon,
        }
    }

    fn unit_curve(&mut self, q: f64, sigma: f64) -> RdpCurve {
        if let Some((_, curve)) = self.unit_curves.iter().find(|(key, _)| *key == (q, sigma)) {
            return curve.clone();
        }
        let curve = RdpCurve::sampled_gaussian(q, sigma, 1);
        if self.unit_curves.len() == CACHED_CURVES_MAX {
            self.unit_curves.remove(0);
        }
        self.unit_curves.push(((q, sigma), curve.clone()));
        curve
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epsilon(mechanisms: &[Mechanism], delta: f64) -> EpsilonReport {
        let schedule = FixedSchedule::declared(mechanisms.to_vec());
        super::epsilon(&schedule, Relation::AddOrRemoveOne, delta)
    }

    #[test]
    fn unsampled_gaussians_get_the_exact_bound() {
        let report =
            epsilon(&[Mechanism::SampledGaussian { q: 1.0, sigma: 10.0, steps: 100 }], 1e-5);
        assert_eq!(report.bound, BoundKind::ExactGaussian);
        assert!((report.epsilon - 4.377_178_1).abs() < 1e-6);
        assert!((report.rdp_epsilon - 4.728_507).abs() < 1e-5);
    }

    #[test]
    fn one_sampled_release_among_gaussians_forbids_the_exact_bound() {
        let exact = Mechanism::SampledGaussian { q: 1.0, sigma: 10.0, steps: 1 };
        let sampled = Mechanism::SampledGaussian { q: 0.5, sigma: 10.0, steps: 1 };
        for mechanisms in
            [[exact, sampled], [sampled, exact], [exact, Mechanism::Zcdp { rho: 0.1 }]]
        {
            let report = epsilon(&mechanisms, 1e-5);
            assert_ne!(report.bound, BoundKind::ExactGaussian);
            assert_eq!(report.exact_gaussian_epsilon, None);
        }
    }

    #[test]
    fn an_exempt_release_costs_everything() {
        let report = epsilon(&[Mechanism::Zcdp { rho: 0.1 }, Mechanism::Exempt], 1e-5);
        assert_eq!(report.epsilon, f64::INFINITY);
        assert!(serde_json::to_string(&report).unwrap().contains(r#""epsilon":null"#));
    }

    #[test]
    fn nothing_costs_nothing() {
        assert_eq!(epsilon(&[], 1e-5).epsilon, 0.0);
    }

    #[test]
    fn order_and_grouping_do_not_matter() {
        let step = Mechanism::SampledGaussian { q: 0.02, sigma: 1.3, steps: 50 };
        let metric = Mechanism::Zcdp { rho: 0.01 };
        let apart = epsilon(&[step, metric, step, step], 1e-5).epsilon;
        let together = epsilon(
            &[metric, Mechanism::SampledGaussian { q: 0.02, sigma: 1.3, steps: 150 }],
            1e-5,
        );
        assert!((apart / together.epsilon - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_format_of_a_mechanism_is_stable() {
        let text = r#"{"kind":"sampled_gaussian","q":0.01,"sigma":1.5,"steps":10}"#;
        let mechanism: Mechanism = serde_json::from_str(text).unwrap();
        assert_eq!(mechanism, Mechanism::SampledGaussian { q: 0.01, sigma: 1.5, steps: 10 });
        assert_eq!(serde_json::to_string(&mechanism).unwrap(), text);
        assert_eq!(serde_json::to_string(&Mechanism::Exempt).unwrap(), r#"{"kind":"exempt"}"#);
    }

    #[test]
    fn meaningless_mechanisms_are_named_and_promise_nothing() {
        for mechanism in [
            Mechanism::SampledGaussian { q: 1.1, sigma: 1.0, steps: 1 },
            Mechanism::SampledGaussian { q: 0.0, sigma: 1.0, steps: 1 },
            Mechanism::SampledGaussian { q: 0.5, sigma: f64::NAN, steps: 1 },
            Mechanism::SampledGaussian { q: 1.0, sigma: -1.0, steps: 1 },
            Mechanism::Zcdp { rho: -1.0 },
            Mechanism::Zcdp { rho: f64::INFINITY },
        ] {
            assert!(mechanism.validate().is_err(), "{mechanism:?}");
            assert_eq!(epsilon(&[mechanism], 1e-5).epsilon, f64::INFINITY, "{mechanism:?}");
        }
        assert!(Mechanism::Zcdp { rho: 0.0 }.validate().is_ok());
        assert!(Mechanism::Exempt.validate().is_ok());
    }
}
