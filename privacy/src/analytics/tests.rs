use super::*;
use crate::{
    Charge, Ledger, Limit, Mechanism, PrivacyPlan, PrivacyRequest, Randomness, ReservationKey,
    plan::tests::request,
};

fn asked() -> AnalyticsRequest {
    AnalyticsRequest {
        rho: 0.02,
        queries: vec![
            Query::Count,
            Query::LabelHistogram,
            Query::Moments { lower: -2.0, upper: 6.0 },
            Query::Histogram {
                channel: 1,
                lower: 0.0,
                upper: 1.0,
                bins: 20,
                quantiles: vec![0.25, 0.5],
            },
        ],
        n_channels: 2,
        n_classes: 3,
        bits: 12,
    }
}

/// Two channels of two values; the first around 1, the second uniform in 0..1.
fn record(i: u32, n: u32) -> ([f32; 4], u32) {
    let uniform = (i as f32 + 0.5) / n as f32;
    let swing = if i.is_multiple_of(2) { 1.5 } else { -1.5 };
    ([1.0 + swing, 1.0 - swing, uniform, uniform], i % 3)
}

#[test]
fn sums_tell_what_they_are_asked() {
    let request = asked();
    request.validate().unwrap();
    assert_eq!(request.n_values(), 1 + 3 + 5 + 20);
    let mut tally = Tally::new(request.clone());
    for i in 0..3000 {
        let (features, label) = record(i, 3000);
        tally.add(&features, label).unwrap();
    }
    let estimates = request.estimate(&tally.sums).unwrap();
    assert_eq!(estimates[0], Estimate::Count { n: 3000 });
    assert_eq!(estimates[1], Estimate::LabelHistogram { counts: vec![1000; 3] });
    let Estimate::Moments { mean, std } = &estimates[2] else { panic!("{estimates:?}") };
    let near = |values: &[f64], expected: [f64; 2]| {
        values.iter().zip(expected).all(|(value, expected)| (value - expected).abs() < 0.01)
    };
    assert!(near(mean, [1.0, 0.5]), "{mean:?}");
    assert!(near(std, [1.5, (1.0_f64 / 12.0).sqrt()]), "{std:?}");
    let Estimate::Histogram { counts, quantiles } = &estimates[3] else { panic!("{estimates:?}") };
    assert_eq!(*counts, vec![150; 20]);
    assert_eq!(quantiles.len(), 2);
    assert!(quantiles.iter().all(|(q, value)| (q - value).abs() < 1e-9), "{quantiles:?}");
    assert!(!format!("{tally:?}").contains("3000"));
}

/// Whatever a record holds, its sums stay within what each query is charged for.
#[test]
fn no_record_adds_more_than_its_query_is_charged_for() {
    let request = asked();
    let extremes = [0.0, 1.0, -2.0, 6.0, 1e30, -1e30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let mut largest = vec![0.0_f64; request.queries.len()];
    for a in extremes {
        for b in extremes {
            for label in 0..3 {
                let mut tally = Tally::new(request.clone());
                tally.add(&[a, b, b, a], label).unwrap();
                let mut rest = &tally.sums[..];
                for (query, largest) in request.queries.iter().zip(&mut largest) {
                    let (own, others) = rest.split_at(request.n_values_of(query) as usize);
                    rest = others;
                    let norm = own.iter().map(|v| (*v as f64).powi(2)).sum::<f64>().sqrt();
                    assert!(norm <= request.sensitivity_of(query), "{query:?}: {own:?}");
                    *largest = largest.max(norm / request.sensitivity_of(query));
                }
            }
        }
    }
    // The bounds are met, not merely kept.
    assert!(largest.iter().all(|part| *part > 0.999), "{largest:?}");
}

#[test]
fn noise_is_what_is_charged_for_each_unit() {
    let request = asked();
    for (unit, n_records) in
        [(PrivacyUnit::Record, 1.0), (PrivacyUnit::Person { records_max: 7 }, 7.0)]
    {
        let charged: f64 = request
            .queries
            .iter()
            .map(|query| {
                let part =
                    n_records * request.sensitivity_of(query) / request.sigma_of(query, unit);
                part * part / 2.0
            })
            .sum();
        assert!(charged <= request.rho && charged > request.rho * (1.0 - 1e-9), "{charged}");
    }
}

#[test]
fn statistics_are_paid_for_and_released_once_and_only_with_noise() {
    let plan =
        PrivacyPlan::calibrate(&PrivacyRequest { analytics: Some(asked()), ..request() }).unwrap();
    let without = PrivacyPlan::calibrate(&request()).unwrap();
    assert!(plan.noise_multiplier() > without.noise_multiplier());
    assert_ne!(plan.digest(), without.digest());
    assert!(plan.epsilon_total().epsilon <= 3.0);
    assert!(plan.epsilon_after(0).epsilon > 0.0);

    let limit = Limit { budget: Some(plan.budget()), exempt_allowed: false };
    let (mut ledger, mut store) = (Ledger::new(limit), Vec::new());
    let mut reserve = |round, charge| {
        ledger.reserve(&mut store, ReservationKey { run: "a".to_owned(), round }, charge)
    };
    let randomness = Randomness::seeded(1);
    let paid = reserve(0, plan.analytics_charge(&randomness).unwrap()).unwrap();
    assert_eq!(paid.mechanisms(), [Mechanism::Zcdp { rho: 0.02 }]);
    let mut tally = plan.tally().unwrap();
    for i in 0..3000 {
        let (features, label) = record(i, 3000);
        tally.add(&features, label).unwrap();
    }
    let clear = tally.sums.clone();
    let released = plan.release_statistics(paid, randomness, tally, |values| values).unwrap();
    assert_eq!(released.receipt().mechanisms(), [Mechanism::Zcdp { rho: 0.02 }]);
    let mut rest = released.value().iter().zip(&clear);
    let mut n_same = 0;
    for query in &asked().queries {
        let sigma = asked().sigma_of(query, PrivacyUnit::Record);
        for (noisy, clear) in rest.by_ref().take(asked().n_values_of(query) as usize) {
            let noise = (i64::from(*noisy) - clear) as f64;
            n_same += u32::from(noise == 0.0);
            assert!(noise.abs() < 9.0 * sigma, "{query:?}: {noise} of {sigma}");
        }
    }
    assert!(n_same < 8, "{n_same} of 29 values left without noise");

    // A training round's reservation pays for no statistics, nor the other way round.
    let randomness = Randomness::seeded(2);
    let paid = reserve(1, plan.charge(&randomness)).unwrap();
    let tally = plan.tally().unwrap();
    assert!(plan.release_statistics(paid, randomness, tally, |v| v).is_err());
    let randomness = Randomness::seeded(3);
    // The schedule holds the statistics once.
    let again = reserve(2, plan.analytics_charge(&randomness).unwrap()).unwrap_err();
    assert!(matches!(again, PrivacyError::ReservationConflict { .. }), "{again:?}");
    let other = Charge::single(vec![Mechanism::Zcdp { rho: 0.02 }], [9; 32], Some(randomness.id));
    let paid = Ledger::new(limit)
        .reserve(&mut Vec::new(), ReservationKey { run: "b".to_owned(), round: 0 }, other)
        .unwrap();
    let tally = plan.tally().unwrap();
    assert!(plan.release_statistics(paid, randomness, tally, |v| v).is_err());
    assert!(matches!(without.tally(), Err(PrivacyError::AnalyticsNotPlanned)));
}

#[test]
fn questions_without_a_meaning_are_refused() {
    let base = asked();
    let with = |query| AnalyticsRequest { queries: vec![query], ..asked() };
    let histogram = |channel, lower, upper, bins, quantiles: &[f64]| {
        with(Query::Histogram { channel, lower, upper, bins, quantiles: quantiles.to_vec() })
    };
    for bad in [
        AnalyticsRequest { rho: 0.0, ..base.clone() },
        AnalyticsRequest { rho: f64::NAN, ..base.clone() },
        AnalyticsRequest { queries: vec![], ..base.clone() },
        AnalyticsRequest { n_channels: 0, ..base.clone() },
        AnalyticsRequest { bits: 1, ..base.clone() },
        AnalyticsRequest { n_channels: 1 << 40, ..base.clone() },
        with(Query::Moments { lower: 1.0, upper: 1.0 }),
        with(Query::Moments { lower: f64::MIN, upper: f64::MAX }),
        with(Query::Moments { lower: f64::NAN, upper: 1.0 }),
        histogram(2, 0.0, 1.0, 4, &[]),
        histogram(0, 0.0, 1.0, 0, &[]),
        histogram(0, 0.0, 1.0, 4, &[1.0]),
    ] {
        let error = bad.validate().unwrap_err();
        assert!(matches!(error, PrivacyError::Analytics { .. }), "{bad:?}: {error}");
    }
    let mut tally = Tally::new(base.clone());
    assert!(tally.add(&[0.0; 3], 0).is_err() && tally.add(&[], 0).is_err());
    assert!(tally.add(&[0.0; 4], 3).is_err());
    assert!(base.estimate(&[0; 3]).is_err());
    // Nothing but noise is still a statistic.
    let estimates = base.estimate(&vec![-5; base.n_values() as usize]).unwrap();
    let Estimate::Moments { mean, std } = &estimates[2] else { panic!("{estimates:?}") };
    assert!(mean.iter().chain(std).all(|value| value.is_finite()));
    assert!(std.iter().all(|std| *std > 0.0));
}
