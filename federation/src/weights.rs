//! The weights with which contributions count, where a plan caps the share of a country.

use std::collections::BTreeMap;

use crate::Country;
use crate::accumulator::WEIGHT_TOTAL_MAX;

/// A whole, in the units of shares.
const WHOLE: u64 = 1_000_000;

/// Weights in the proportions of `weights`, each with its country, except that no country has more
/// than `share_max` millionths of the total: what is above is taken from its contributions alike.
///
/// A country that meets the cap exactly at the total it then belongs to is found by filling up from the
/// largest one (the water-filling of max-min fairness, Bertsekas & Gallager 1992, section 6.5.2).
/// Integers only: weights are first scaled up to some 2^31 together, so rounding moves a share by less
/// than a millionth.
///
/// # Panics
/// If there are so few countries that the cap cannot be kept, which the plan's quorum rules out.
pub(crate) fn capped(weights: &[(Country, u64)], share_max: u64) -> Vec<u64> {
    let total: u64 = weights.iter().map(|(_, weight)| weight).sum();
    let scale = (WEIGHT_TOTAL_MAX / 2 / total.max(1)).max(1);
    let mut by_country: BTreeMap<Country, u64> = BTreeMap::new();
    for (country, weight) in weights {
        *by_country.entry(*country).or_default() += weight * scale;
    }
    assert!(share_max * by_country.len() as u64 >= WHOLE, "the plan's quorum has enough countries");
    let mut largest: Vec<(u64, Country)> = by_country.iter().map(|(c, w)| (*w, *c)).collect();
    largest.sort_unstable_by(|one, other| other.cmp(one));
    // With the `n` largest capped, each may have `allowed` of what the others keep.
    let mut rest: u64 = total * scale;
    let mut allowed = u64::MAX;
    let mut n_capped = 0;
    for (n, (weight, _)) in (0u64..).zip(&largest) {
        let Some(left) = WHOLE.checked_sub(n * share_max).filter(|left| *left > 0) else { break };
        let limit = u64::try_from(u128::from(rest) * u128::from(share_max) / u128::from(left))
            .expect("the limit is at most the total over a millionth");
        allowed = limit;
        if *weight <= limit {
            break;
        }
        rest -= weight;
        n_capped += 1;
    }
    let capped: BTreeMap<Country, u64> =
        largest[..n_capped].iter().map(|(weight, country)| (*country, *weight)).collect();
    let of = |(country, weight): &(Country, u64)| match capped.get(country) {
        None => weight * scale,
        Some(of_country) => {
            let share = u128::from(weight * scale) * u128::from(allowed) / u128::from(*of_country);
            u64::try_from(share).expect("less than before").max(1)
        }
    };
    weights.iter().map(of).collect()
}

/// Weights in the proportions of `weights`, each over √(1 + its age in rounds) (FedBuff, Nguyen et al. 2022,
/// section 5.2).  Integers: they are first scaled up to some 2^31 together.
pub(crate) fn aged(weights: &[u64], ages: &[u32]) -> Vec<u64> {
    let total: u64 = weights.iter().sum();
    let scale = (WEIGHT_TOTAL_MAX / 2 / total.max(1)).max(1);
    // A square root of a small integer is the same double everywhere (IEEE 754).
    let aged = |(weight, age): (&u64, &u32)| {
        (((weight * scale) as f64 / (1.0 + f64::from(*age)).sqrt()) as u64).max(1)
    };
    weights.iter().zip(ages).map(aged).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shares(weights: &[(&str, u64)], share_max: u64) -> Vec<f64> {
        let weights: Vec<(Country, u64)> =
            weights.iter().map(|(c, w)| (c.parse().unwrap(), *w)).collect();
        let capped = capped(&weights, share_max);
        let total: u64 = capped.iter().sum();
        assert!(total <= WEIGHT_TOTAL_MAX);
        capped.iter().map(|w| (*w as f64 / total as f64 * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn a_country_above_the_cap_shares_it_among_its_clients() {
        // KR would have 80 %; its two clients keep their proportion, and the others theirs.
        let weights = [("KR", 600), ("JP", 100), ("KR", 200), ("VN", 100)];
        assert_eq!(shares(&weights, 400_000), [0.3, 0.3, 0.1, 0.3]);
        assert_eq!(shares(&weights, 900_000), [0.6, 0.1, 0.2, 0.1]);
        assert_eq!(shares(&weights, 1_000_000), [0.6, 0.1, 0.2, 0.1]);
    }

    #[test]
    fn an_update_three_rounds_old_counts_half() {
        let weights = aged(&[10, 10, 20], &[0, 3, 8]);
        let share = |i: usize| weights[i] as f64 / weights[0] as f64;
        assert!(
            (share(1) - 0.5).abs() < 1e-6 && (share(2) - 2.0 / 3.0).abs() < 1e-6,
            "{weights:?}"
        );
        assert!(aged(&[1 << 31, 1 << 31], &[0, 0]).iter().sum::<u64>() <= WEIGHT_TOTAL_MAX);
    }

    #[test]
    fn two_countries_can_be_above_the_cap() {
        let weights = [("KR", 1_000), ("JP", 900), ("VN", 50), ("TH", 50)];
        assert_eq!(shares(&weights, 400_000), [0.4, 0.4, 0.1, 0.1]);
        assert_eq!(shares(&weights, 250_000), [0.25; 4]);
        assert_eq!(shares(&weights[..2], 500_000), [0.5, 0.5]);
    }

    proptest! {
        #[test]
        fn no_country_passes_the_cap_and_nothing_changes_below_it(
            clients in prop::collection::vec((0u8..6, 1u64..1 << 20), 1..40),
            slack in 0u64..500_000,
        ) {
            let weights: Vec<(Country, u64)> = clients
                .iter()
                .map(|(c, w)| (format!("A{}", char::from(b'A' + c)).parse().unwrap(), *w))
                .collect();
            let countries: std::collections::BTreeSet<Country> =
                weights.iter().map(|(c, _)| *c).collect();
            let share_max = (WHOLE.div_ceil(countries.len() as u64) + slack).min(WHOLE);
            let capped = capped(&weights, share_max);
            let total: u64 = capped.iter().sum();
            prop_assert!(total <= WEIGHT_TOTAL_MAX);
            let before: u64 = weights.iter().map(|(_, w)| w).sum();
            for country in countries {
                let of = |weights: &mut dyn Iterator<Item = (Country, u64)>| -> u64 {
                    weights.filter(|(c, _)| *c == country).map(|(_, w)| w).sum()
                };
                let share = of(&mut weights.iter().zip(&capped).map(|((c, _), w)| (*c, *w)));
                prop_assert!(share as f64 <= (share_max + 1) as f64 / 1e6 * total as f64);
                let was = of(&mut weights.iter().copied());
                // Who was below the cap loses nothing to it.
                if was * WHOLE <= share_max * before {
                    prop_assert!(share as f64 / total as f64 >= was as f64 / before as f64 - 1e-6);
                }
            }
        }
    }
}
