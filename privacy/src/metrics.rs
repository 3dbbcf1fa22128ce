//! Single numbers and histograms, released with OpenDP's discrete Gaussian.
//!
//! A loss is bounded and counted in units of 2⁻¹⁰ nats, so a sum of losses is a count of units to which
//! a record adds at most its bound.
//! A record adds at most 1 to a count and to one bin of a histogram, so under "add or remove one"
//! the L2 sensitivity is 1 and noise of σ = 1/√(2ρ) is ρ-zCDP (Canonne, Kamath and Steinke 2020,
//! theorem 4).

use serde::{Deserialize, Serialize};

use crate::{
    accountant::Mechanism, error::PrivacyError, ledger::Reservation, noise::Noise,
    release::Released, unit::PrivacyUnit,
};

/// Releases how many records fall into each bin, paid by a reservation of one
/// [`Mechanism::Zcdp`].
///
/// `counts`: the bins are fixed in public and each record is in at most one of them. Released
/// counts may be negative.
///
/// # Errors
/// [`PrivacyError::ReservationMismatch`] unless exactly one zCDP release with a positive ρ was
/// reserved, and those of the noise.
pub fn release_histogram(
    reservation: Reservation,
    noise: &mut dyn Noise,
    counts: &[u64],
) -> Result<Released<Vec<i64>>, PrivacyError> {
    match reservation.mechanisms() {
        [Mechanism::Zcdp { rho }] if *rho > 0.0 => {
            let released = add_count_noise(noise, counts, count_sigma(*rho, PrivacyUnit::Record))?;
            Ok(reservation.release(released))
        }
        _ => Err(reservation.mismatch("one zcdp release")),
    }
}

/// The sum of the records' losses that a round releases.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossRequest {
    /// zCDP spent in each round.
    pub rho_per_round: f64,
    /// Losses above count as this, in nats.
    pub upper: f64,
}

impl LossRequest {
    /// A sum of losses is a whole number of these: 2⁻¹⁰ nats.
    pub const UNIT: f64 = 1.0 / 1024.0;
    /// The largest bound on a loss, in nats.
    const UPPER_MAX: f64 = 1e4;

    pub(crate) fn validate(&self) -> Result<(), PrivacyError> {
        for (what, value, allowed, holds) in [
            (
                "loss.rho_per_round",
                self.rho_per_round,
                "positive and finite",
                self.rho_per_round > 0.0 && self.rho_per_round.is_finite(),
            ),
            (
                "loss.upper",
                self.upper,
                "0.001 to 10000",
                (Self::UNIT..=Self::UPPER_MAX).contains(&self.upper),
            ),
        ] {
            if !holds {
                return Err(PrivacyError::OutOfRange { what, value, allowed });
            }
        }
        Ok(())
    }

    /// The largest contribution of one record, in units.
    fn units_max(&self) -> i64 {
        (self.upper / Self::UNIT).floor() as i64
    }

    /// The sum of `losses`, each bounded and rounded to units. What is not a number counts as the bound.
    pub(crate) fn sum(&self, losses: &[f32]) -> i64 {
        let most = self.units_max();
        losses
            .iter()
            .map(|loss| match (f64::from(*loss) / Self::UNIT).round() {
                units if units.is_nan() => most,
                units => (units as i64).clamp(0, most),
            })
            .fold(0, i64::saturating_add)
    }

    /// The σ of its noise for `unit`, in units; rounded up.
    pub(crate) fn sigma(&self, unit: PrivacyUnit) -> f64 {
        (count_sigma(self.rho_per_round, unit) * self.units_max() as f64).next_up()
    }
}

/// The σ at which a count, to which each record adds at most 1, is `rho`-zCDP for `unit`; rounded
/// up.
pub(crate) fn count_sigma(rho: f64, unit: PrivacyUnit) -> f64 {
    let sigma = (1.0 / (2.0 * rho)).next_up().sqrt().next_up();
    match unit.records_max() {
        1 => sigma,
        n_records => (sigma * f64::from(n_records)).next_up(),
    }
}

fn add_count_noise(
    noise: &mut dyn Noise,
    counts: &[u64],
    sigma: f64,
) -> Result<Vec<i64>, PrivacyError> {
    counts
        .iter()
        .map(|&count| noise.release_integer(i64::try_from(count).unwrap_or(i64::MAX), sigma))
        .collect()
}

#[cfg(test)]
mod tests {
    use opendp::{
        domains::AtomDomain, measurements::make_gaussian, measures::ZeroConcentratedDivergence,
        metrics::AbsoluteDistance,
    };

    use super::*;
    use crate::{
        budget::Budget,
        ledger::{Charge, Ledger, Limit, ReservationKey},
        noise::KeyedNoise,
    };

    fn reservation(mechanisms: Vec<Mechanism>) -> Reservation {
        let budget = Some(Budget::new(10.0, 1e-5).unwrap());
        let key = ReservationKey { run: "labels".to_owned(), round: 0 };
        Ledger::new(Limit { budget, exempt_allowed: true })
            .reserve(&mut Vec::new(), key, Charge::single(mechanisms, [0; 32], None))
            .unwrap()
    }

    #[test]
    fn opendp_agrees_with_what_a_count_is_charged() {
        for rho in [1e-6, 0.003, 0.1, 1.0 / 3.0, 2.0] {
            let measurement = make_gaussian::<_, _, ZeroConcentratedDivergence>(
                AtomDomain::<i64>::default(),
                AbsoluteDistance::<f64>::default(),
                count_sigma(rho, PrivacyUnit::Record),
                None,
            )
            .unwrap();
            let charged = measurement.map(&1.0).unwrap();
            assert!(charged <= rho && charged > rho * (1.0 - 1e-12), "{rho}: {charged}");
        }
    }

    #[test]
    fn a_sum_of_losses_is_bounded_record_by_record() {
        let loss = LossRequest { rho_per_round: 0.02, upper: 2.0 };
        let hostile = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 1e30, 0.0, 0.5];
        assert_eq!(loss.sum(&hostile), 2048 + 2048 + 2048 + 512);
        assert_eq!(loss.sum(&[]), 0);
        for (unit, n_records) in
            [(PrivacyUnit::Record, 1.0), (PrivacyUnit::Person { records_max: 3 }, 3.0)]
        {
            // Noise of sigma at a sensitivity of the bound is what is charged, and hardly more.
            let charged = (2048.0 * n_records / loss.sigma(unit)).powi(2) / 2.0;
            assert!(charged <= 0.02 && charged > 0.02 * (1.0 - 1e-12), "{charged}");
        }
        for bad in [
            LossRequest { rho_per_round: 0.0, ..loss },
            LossRequest { rho_per_round: f64::NAN, ..loss },
            LossRequest { upper: 0.0, ..loss },
            LossRequest { upper: f64::INFINITY, ..loss },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_histogram_is_released_with_its_receipt() {
        let mut noise = KeyedNoise::from_os().unwrap();
        let paid = vec![Mechanism::Zcdp { rho: 0.5 }];
        let released =
            release_histogram(reservation(paid.clone()), &mut noise, &[0, 50, 1000]).unwrap();
        assert_eq!(released.receipt().mechanisms(), paid);
        // sigma is 1: 9 sigmas, false-alarm rate 1e-18.
        for (noisy, count) in released.value().iter().zip([0, 50, 1000]) {
            assert!((noisy - count).abs() <= 9, "{noisy} {count}");
        }
    }

    #[test]
    fn a_histogram_is_not_released_on_any_other_reservation() {
        let mut noise = KeyedNoise::from_os().unwrap();
        for mechanisms in [
            vec![],
            vec![Mechanism::Exempt],
            vec![Mechanism::Zcdp { rho: 0.0 }],
            vec![Mechanism::Zcdp { rho: 0.1 }; 2],
            vec![Mechanism::SampledGaussian { q: 1.0, sigma: 5.0, steps: 1 }],
        ] {
            let error = release_histogram(reservation(mechanisms), &mut noise, &[1]).unwrap_err();
            assert!(matches!(error, PrivacyError::ReservationMismatch { .. }), "{error}");
        }
    }
}
