use super::*;
use crate::ledger::{Charge, Ledger, Limit, ReservationKey};

pub(crate) fn request() -> PrivacyRequest {
    PrivacyRequest {
        unit: PrivacyUnit::Record,
        relation: Relation::AddOrRemoveOne,
        budget: Budget::new(3.0, 1e-5).unwrap(),
        units_declared: 2000,
        batch_expected: 100,
        steps_per_round: 5,
        rounds: 10,
        clip_norm_l2: 1.5,
        n_parameters: 1000,
        metrics_rho_per_round: 1e-4,
        loss: None,
        analytics: None,
    }
}

fn variants() -> Vec<PrivacyRequest> {
    let base = request();
    vec![
        base.clone(),
        PrivacyRequest { budget: Budget::new(3.1, 1e-5).unwrap(), ..base.clone() },
        PrivacyRequest { budget: Budget::new(3.0, 1e-6).unwrap(), ..base.clone() },
        PrivacyRequest { units_declared: 2001, ..base.clone() },
        PrivacyRequest { batch_expected: 101, ..base.clone() },
        PrivacyRequest { steps_per_round: 6, ..base.clone() },
        PrivacyRequest { rounds: 11, ..base.clone() },
        PrivacyRequest { clip_norm_l2: 1.6, ..base.clone() },
        PrivacyRequest { n_parameters: 1001, ..base.clone() },
        PrivacyRequest { metrics_rho_per_round: 2e-4, ..base.clone() },
        PrivacyRequest {
            loss: Some(LossRequest { rho_per_round: 1e-4, upper: 3.0 }),
            ..base.clone()
        },
        PrivacyRequest { loss: Some(LossRequest { rho_per_round: 1e-4, upper: 4.0 }), ..base },
    ]
}

#[test]
fn the_whole_run_stays_within_the_budget_and_uses_it() {
    let plan = PrivacyPlan::calibrate(&request()).unwrap();
    let total = plan.epsilon_total().epsilon;
    assert!(total <= 3.0 && total > 2.99, "{total}");
    assert_eq!(plan.sampling_rate(), 0.05);
    let mut last = 0.0;
    for rounds in 0..=plan.rounds() {
        let after = plan.epsilon_after(rounds).epsilon;
        assert!(after >= last);
        last = after;
    }
    assert_eq!(plan.epsilon_after(0).epsilon, 0.0);
    assert_eq!(last, total);
}

#[test]
fn the_ledger_is_debited_what_the_plan_promised() {
    let plan = PrivacyPlan::calibrate(&request()).unwrap();
    let limit = Limit { budget: Some(plan.budget()), exempt_allowed: false };
    let (mut ledger, mut store) = (Ledger::new(limit), Vec::new());
    for round in 0..plan.rounds() {
        let key = ReservationKey { run: "a".to_owned(), round };
        let randomness = Randomness::seeded(round as u8);
        let reservation = ledger.reserve(&mut store, key, plan.charge(&randomness)).unwrap();
        assert!(plan.session(reservation, randomness).is_ok());
        let promised = plan.epsilon_after(round + 1).epsilon;
        assert!((ledger.spent().epsilon / promised - 1.0).abs() < 1e-9);
    }
    let key = ReservationKey { run: "a".to_owned(), round: plan.rounds() };
    let charge = plan.charge(&Randomness::seeded(200));
    let error = ledger.reserve(&mut store, key, charge).unwrap_err();
    assert!(matches!(error, PrivacyError::ReservationConflict { .. }), "{error}");
}

#[test]
fn the_digest_changes_when_any_field_changes() {
    let digests: std::collections::BTreeSet<_> = variants()
        .iter()
        .map(|request| PrivacyPlan::calibrate(request).unwrap().digest())
        .collect();
    assert_eq!(digests.len(), variants().len());
    let again = PrivacyPlan::calibrate(&request()).unwrap();
    assert!(digests.contains(&again.digest()));
}

#[test]
fn the_digest_depends_on_the_calibrated_noise() {
    let plan = PrivacyPlan::calibrate(&request()).unwrap();
    let weaker = PrivacyPlan { real_noise_multiplier: 0.0, ..plan.clone() };
    assert_ne!(plan.digest(), weaker.digest());
    let weaker = PrivacyPlan { noise_multiplier: 0.0, ..plan.clone() };
    assert_ne!(plan.digest(), weaker.digest());
}

#[test]
fn real_noise_covers_rounding_at_every_size() {
    for n_parameters in [1, 1000, 1_000_000, 1_000_000_000_000] {
        let plan = PrivacyPlan::calibrate(&PrivacyRequest { n_parameters, ..request() }).unwrap();
        let clip = plan.clip_norm_l2();
        let gamma = plan.real_noise_multiplier() * clip / 2.0_f64.powi(30);
        let sensitivity = clip * (1.0 + FLOAT_SLACK) + gamma * (n_parameters as f64).sqrt();
        let achieved = plan.real_noise_multiplier() * clip / sensitivity;
        assert!(achieved >= plan.noise_multiplier() * (1.0 - 1e-12), "{n_parameters}");
    }
    let huge = PrivacyRequest { n_parameters: u64::MAX, ..request() };
    let error = PrivacyPlan::calibrate(&huge).unwrap_err();
    assert!(matches!(error, PrivacyError::GridTooCoarse { .. }), "{error}");
}

#[test]
fn a_recorded_plan_is_read_back_only_if_it_agrees_with_itself() {
    let plan = PrivacyPlan::calibrate(&request()).unwrap();
    let json: serde_json::Value = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["noise"], "discrete_gaussian");
    assert_eq!(serde_json::from_value::<PrivacyPlan>(json.clone()).unwrap(), plan);
    for (field, forged) in [
        ("sampling_rate", json["sampling_rate"].as_f64().unwrap() / 2.0),
        ("real_noise_multiplier", json["real_noise_multiplier"].as_f64().unwrap() / 2.0),
        ("noise_multiplier", json["noise_multiplier"].as_f64().unwrap() * 2.0),
    ] {
        let mut json = json.clone();
        json[field] = forged.into();
        assert!(serde_json::from_value::<PrivacyPlan>(json).is_err(), "{field}");
    }
    let mut json = json;
    json["noise"] = "float_gaussian".into();
    assert!(serde_json::from_value::<PrivacyPlan>(json).is_err());
}

#[test]
fn impossible_requests_are_refused_with_a_remedy() {
    let base = request();
    for bad in [
        PrivacyRequest { units_declared: 0, ..base.clone() },
        PrivacyRequest { unit: PrivacyUnit::Person { records_max: 0 }, ..base.clone() },
        PrivacyRequest { batch_expected: 0, ..base.clone() },
        PrivacyRequest { steps_per_round: 0, ..base.clone() },
        PrivacyRequest { rounds: 0, ..base.clone() },
        PrivacyRequest { n_parameters: 0, ..base.clone() },
        PrivacyRequest { clip_norm_l2: 0.0, ..base.clone() },
        PrivacyRequest { clip_norm_l2: f64::NAN, ..base.clone() },
        PrivacyRequest { metrics_rho_per_round: -1.0, ..base.clone() },
        PrivacyRequest { metrics_rho_per_round: f64::NAN, ..base.clone() },
    ] {
        let error = PrivacyPlan::calibrate(&bad).unwrap_err();
        assert!(matches!(error, PrivacyError::OutOfRange { .. }), "{bad:?}: {error}");
    }
    let error = PrivacyPlan::calibrate(&PrivacyRequest { batch_expected: 2001, ..base.clone() })
        .unwrap_err();
    assert!(matches!(error, PrivacyError::SamplingRateAboveOne { .. }), "{error}");
    let loose = PrivacyRequest { budget: Budget::new(3.0, 1e-3).unwrap(), ..base.clone() };
    let error = PrivacyPlan::calibrate(&loose).unwrap_err();
    assert!(matches!(error, PrivacyError::DeltaNotBelowOneUnit { .. }), "{error}");
    let greedy = PrivacyRequest { metrics_rho_per_round: 5.0, ..base };
    let error = PrivacyPlan::calibrate(&greedy).unwrap_err();
    assert!(matches!(error, PrivacyError::FixedPartExceedsBudget { .. }), "{error}");
}

#[test]
fn a_reservation_for_anything_else_opens_no_session() {
    let plan = PrivacyPlan::calibrate(&request()).unwrap();
    let limit = Limit { budget: Some(Budget::new(100.0, 1e-5).unwrap()), exempt_allowed: true };
    let (mut ledger, mut store) = (Ledger::new(limit), Vec::new());
    let mut longer = plan.round_mechanisms();
    longer.push(Mechanism::Zcdp { rho: 0.1 });
    for (round, mechanisms, digest, id) in [
        (0, vec![Mechanism::Exempt], plan.digest(), 10),
        (1, vec![], plan.digest(), 11),
        (2, longer, plan.digest(), 12),
        (3, plan.round_mechanisms(), [0; 32], 13),
        (4, plan.round_mechanisms(), plan.digest(), 77),
    ] {
        let key = ReservationKey { run: round.to_string(), round };
        let charge = Charge::single(mechanisms, digest, Some(Randomness::seeded(id).id));
        let reservation = ledger.reserve(&mut store, key, charge).unwrap();
        let other = if id == 77 { 78 } else { id };
        let error = plan.session(reservation, Randomness::seeded(other)).unwrap_err();
        assert!(matches!(error, PrivacyError::ReservationMismatch { .. }), "{error}");
    }
}

#[test]
fn institutions_are_protected_without_counts_of_their_rows() {
    let counts = PrivacyRequest { unit: PrivacyUnit::Institution, ..request() };
    assert_eq!(PrivacyPlan::calibrate(&counts), Err(PrivacyError::CountsOfInstitutions));
    let loss = Some(LossRequest { rho_per_round: 1e-4, upper: 3.0 });
    let losses = PrivacyRequest { metrics_rho_per_round: 0.0, loss, ..counts.clone() };
    assert_eq!(PrivacyPlan::calibrate(&losses), Err(PrivacyError::CountsOfInstitutions));
    let plan =
        PrivacyPlan::calibrate(&PrivacyRequest { metrics_rho_per_round: 0.0, ..counts }).unwrap();
    assert_eq!(plan.unit(), PrivacyUnit::Institution);
    assert!(plan.epsilon_total().epsilon <= 3.0);
}
