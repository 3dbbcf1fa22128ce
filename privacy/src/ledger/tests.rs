use proptest::prelude::*;

use super::*;

const PLAN: [u8; 32] = [7; 32];

fn key(run: &str, round: u32) -> ReservationKey {
    ReservationKey { run: run.to_owned(), round }
}

fn limit(epsilon: f64) -> Limit {
    Limit { budget: Some(Budget::new(epsilon, 1e-5).unwrap()), exempt_allowed: false }
}

fn round() -> Vec<Mechanism> {
    vec![Mechanism::SampledGaussian { q: 0.1, sigma: 2.0, steps: 10 }]
}

/// A run of one such round.
fn single() -> Charge {
    Charge::single(round(), PLAN, None)
}

/// A round of a run of `n_rounds`, under keys that `id` names.
fn one_of(n_rounds: u64, id: u8) -> Charge {
    Charge {
        mechanisms: round(),
        schedule: vec![Mechanism::SampledGaussian { q: 0.1, sigma: 2.0, steps: 10 * n_rounds }],
        plan: PLAN,
        terms: None,
        randomness: Some([id; 32]),
    }
}

fn opened(run: &str) -> LedgerEntry {
    LedgerEntry::Opened { run: run.to_owned(), schedule: round(), plan: PLAN, terms: None }
}

fn reserved(run: &str) -> LedgerEntry {
    LedgerEntry::Reserved { key: key(run, 1), mechanisms: round(), randomness: None }
}

fn receipt(reservation: Reservation) -> Receipt {
    reservation.release(()).receipt().clone()
}

#[test]
fn reserving_past_the_budget_is_refused_with_the_figures() {
    let (mut ledger, mut store) = (Ledger::new(limit(1.5)), Vec::new());
    let mut n_reserved = 0_usize;
    let error = loop {
        match ledger.reserve(&mut store, key(&n_reserved.to_string(), 1), single()) {
            Ok(_) => n_reserved += 1,
            Err(error) => break error,
        }
    };
    assert!(n_reserved > 1);
    let PrivacyError::BudgetExceeded { spent, asked, budget, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(*spent, ledger.spent().epsilon);
    assert!(*spent <= *budget && *budget < *asked, "{error}");
    assert_eq!(store.len(), 2 * n_reserved);
}

#[test]
fn a_reservation_is_durable_before_it_is_handed_out() {
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let reservation = ledger.reserve(&mut store, key("a", 1), single()).unwrap();
    assert_eq!(store, [opened("a"), reserved("a")]);
    assert_eq!(ledger.entries(), store);
    assert_eq!(reservation.key(), &key("a", 1));
}

#[test]
fn a_crash_before_commit_reopens_the_round_without_a_second_charge() {
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let _lost = ledger.reserve(&mut store, key("a", 1), single()).unwrap();
    let spent = ledger.spent().epsilon;

    let mut ledger = Ledger::replay(limit(5.0), store.clone()).unwrap();
    let again = ledger.reserve(&mut store, key("a", 1), single()).unwrap();
    assert_eq!(store.len(), 3);
    assert_eq!(store[2], LedgerEntry::Reopened { key: key("a", 1), randomness: None });
    assert_eq!(ledger.spent().epsilon, spent);
    ledger.commit(&mut store, &receipt(again), [1; 32]).unwrap();
}

#[test]
fn a_reserved_round_is_reopened_even_when_the_budget_has_since_shrunk() {
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let _lost = ledger.reserve(&mut store, key("a", 1), single()).unwrap();
    let mut ledger = Ledger::replay(limit(0.01), store.clone()).unwrap();
    assert!(ledger.reserve(&mut store, key("a", 1), single()).is_ok());
    assert!(ledger.reserve(&mut store, key("b", 1), single()).is_err());
}

#[test]
fn a_reserved_round_is_not_reopened_for_anything_else() {
    let (mut ledger, mut store) = (Ledger::new(limit(50.0)), Vec::new());
    let _first = ledger.reserve(&mut store, key("a", 1), single()).unwrap();
    let more = vec![Mechanism::SampledGaussian { q: 0.1, sigma: 2.0, steps: 11 }];
    for (mechanisms, plan) in [(more, PLAN), (round(), [8; 32])] {
        let charge = Charge::single(mechanisms, plan, None);
        let error = ledger.reserve(&mut store, key("a", 1), charge).unwrap_err();
        assert!(matches!(error, PrivacyError::ReservationConflict { .. }), "{error}");
    }
}

#[test]
fn a_committed_round_is_never_released_again() {
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let first = receipt(ledger.reserve(&mut store, key("a", 1), single()).unwrap());
    let second = receipt(ledger.reserve(&mut store, key("a", 1), single()).unwrap());
    ledger.commit(&mut store, &first, [1; 32]).unwrap();
    ledger.commit(&mut store, &first, [1; 32]).unwrap();
    assert_eq!(store.len(), 4);

    let error = ledger.commit(&mut store, &second, [2; 32]).unwrap_err();
    assert!(matches!(error, PrivacyError::AlreadyReleased { .. }), "{error}");
    let mut replayed = Ledger::replay(limit(5.0), store.clone()).unwrap();
    for ledger in [&mut ledger, &mut replayed] {
        let error = ledger.reserve(&mut store, key("a", 1), single()).unwrap_err();
        assert!(matches!(error, PrivacyError::AlreadyReleased { .. }), "{error}");
    }
}

#[test]
fn a_release_that_was_not_reserved_here_is_not_committed() {
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let receipt = receipt(ledger.reserve(&mut store, key("a", 1), single()).unwrap());
    let error = Ledger::new(limit(5.0)).commit(&mut store, &receipt, [1; 32]).unwrap_err();
    assert!(matches!(error, PrivacyError::NotReserved { .. }), "{error}");
}

#[test]
fn exempt_releases_need_permission_and_do_not_use_the_budget() {
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let error = ledger.reserve(&mut store, key("a", 1), Charge::exempt(PLAN)).unwrap_err();
    assert!(matches!(error, PrivacyError::ExemptNotAllowed { .. }), "{error}");

    let open = Limit { exempt_allowed: true, ..limit(5.0) };
    let mut ledger = Ledger::new(open);
    let exempt = ledger.reserve(&mut store, key("a", 1), Charge::exempt(PLAN)).unwrap();
    assert_eq!(*exempt.release_exempt(5).unwrap().value(), 5);
    assert_eq!(ledger.spent().epsilon, f64::INFINITY);
    let private = ledger.reserve(&mut store, key("b", 1), single()).unwrap();
    assert!(private.release_exempt(5).is_err());

    // Once the permission is withdrawn, history counts.
    let mut strict = Ledger::replay(limit(5.0), store.clone()).unwrap();
    assert!(strict.reserve(&mut store, key("c", 1), single()).is_err());
}

#[test]
fn without_a_budget_nothing_private_is_allowed_unless_everything_is() {
    let mut store = Vec::new();
    let closed = Limit { budget: None, exempt_allowed: false };
    let error = Ledger::new(closed).reserve(&mut store, key("a", 1), single()).unwrap_err();
    assert!(matches!(error, PrivacyError::NoBudget { .. }), "{error}");
    let open = Limit { budget: None, exempt_allowed: true };
    assert!(Ledger::new(open).reserve(&mut store, key("a", 1), single()).is_ok());
}

#[test]
fn after_a_failed_write_the_ledger_refuses_until_it_is_replayed() {
    struct Full;
    impl LedgerStore for Full {
        fn append(&mut self, _: &LedgerEntry) -> Result<(), String> {
            Err("no space left on device".to_owned())
        }
    }
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let error = ledger.reserve(&mut Full, key("a", 1), single()).unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(ledger.reserve(&mut store, key("a", 1), single()).is_err());
    assert!(store.is_empty());
}

#[test]
fn entries_that_no_ledger_wrote_are_refused() {
    let committed = LedgerEntry::Committed { key: key("a", 1), release: [1; 32] };
    let reopened = LedgerEntry::Reopened { key: key("a", 1), randomness: None };
    let under = |round: u32, id: u8| LedgerEntry::Reserved {
        key: key("a", round),
        mechanisms: vec![],
        randomness: Some([id; 32]),
    };
    let meaningless = LedgerEntry::Opened {
        run: "a".to_owned(),
        schedule: vec![Mechanism::Zcdp { rho: -5.0 }],
        plan: PLAN,
        terms: None,
    };
    let too_much = LedgerEntry::Reserved {
        key: key("a", 2),
        mechanisms: vec![Mechanism::Zcdp { rho: 0.1 }],
        randomness: None,
    };
    for entries in [
        vec![committed.clone()],
        vec![reserved("a")],
        vec![opened("a"), opened("a")],
        vec![opened("a"), reserved("a"), reserved("a")],
        vec![opened("a"), reopened.clone()],
        vec![opened("a"), reserved("a"), too_much],
        vec![opened("a"), under(1, 5), under(2, 5)],
        vec![opened("a"), reserved("a"), committed.clone(), committed.clone()],
        vec![opened("a"), reserved("a"), committed, reopened],
        vec![LedgerEntry::Closed { run: "a".to_owned() }],
        vec![meaningless],
    ] {
        let n = entries.len();
        let error = Ledger::replay(limit(5.0), entries).unwrap_err();
        assert!(matches!(error, PrivacyError::LedgerInvalid { entry, .. } if entry + 1 == n));
    }
}

#[test]
fn what_each_run_spent_is_listed() {
    let (mut ledger, mut store) = (Ledger::new(limit(50.0)), Vec::new());
    for (id, (run, round_index)) in [("a", 1), ("b", 1), ("a", 2)].into_iter().enumerate() {
        let charge = one_of(2, id as u8);
        let _reservation = ledger.reserve(&mut store, key(run, round_index), charge).unwrap();
    }
    let by_run = ledger.spent_by_run(1e-5);
    assert_eq!(by_run.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert!(by_run["a"].epsilon > by_run["b"].epsilon);
    assert!(by_run["a"].epsilon < ledger.spent_at(1e-5).epsilon);
}

#[test]
fn the_format_of_an_entry_is_stable() {
    let entry = LedgerEntry::Committed { key: key("a", 1), release: [0xab; 32] };
    let text = serde_json::to_string(&entry).unwrap();
    let expected = format!(
        r#"{{"kind":"committed","key":{{"run":"a","round":1}},"release":"{}"}}"#,
        "ab".repeat(32)
    );
    assert_eq!(text, expected);
    assert_eq!(serde_json::from_str::<LedgerEntry>(&text).unwrap(), entry);
    let text = serde_json::to_string(&opened("a")).unwrap();
    assert_eq!(serde_json::from_str::<LedgerEntry>(&text).unwrap(), opened("a"));
    assert!(serde_json::from_str::<LedgerEntry>(&text.replace("0707", "zz07")).is_err());
    for randomness in [None, Some([3; 32])] {
        let entry = LedgerEntry::Reopened { key: key("a", 1), randomness };
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<LedgerEntry>(&text).unwrap(), entry);
    }
}

#[test]
fn a_run_that_the_budget_cannot_carry_is_refused_at_its_start() {
    let (mut ledger, mut store) = (Ledger::new(limit(1.5)), Vec::new());
    let error = ledger.reserve(&mut store, key("a", 1), one_of(50, 1)).unwrap_err();
    assert!(matches!(error, PrivacyError::BudgetExceeded { .. }), "{error}");
    assert!(store.is_empty());
    let forecast = ledger.forecast(&one_of(50, 1).schedule).epsilon;
    assert!(forecast > 1.5 && ledger.forecast(&round()).epsilon < 1.5);
}

#[test]
fn an_open_run_keeps_what_it_may_still_need_and_a_closed_one_gives_it_back() {
    let (mut ledger, mut store) = (Ledger::new(limit(3.0)), Vec::new());
    let _first = ledger.reserve(&mut store, key("long", 1), one_of(10, 1)).unwrap();
    let other = |id| Charge { randomness: Some([id; 32]), ..one_of(9, id) };
    let error = ledger.reserve(&mut store, key("other", 1), other(2)).unwrap_err();
    assert!(matches!(error, PrivacyError::BudgetExceeded { .. }), "{error}");
    ledger.close("long");
    let _second = ledger.reserve(&mut store, key("other", 1), other(2)).unwrap();
    let error = ledger.reserve(&mut store, key("long", 2), one_of(10, 3)).unwrap_err();
    assert!(matches!(error, PrivacyError::RunOver { .. }), "{error}");
}

#[test]
fn a_run_makes_no_more_rounds_than_its_plan_has() {
    let (mut ledger, mut store) = (Ledger::new(limit(3.0)), Vec::new());
    for round in 1..=2 {
        let _paid = ledger.reserve(&mut store, key("a", round), one_of(2, round as u8)).unwrap();
    }
    let error = ledger.reserve(&mut store, key("a", 3), one_of(2, 3)).unwrap_err();
    assert!(matches!(error, PrivacyError::ReservationConflict { .. }), "{error}");
}

#[test]
fn keys_of_noise_are_never_used_twice() {
    let (mut ledger, mut store) = (Ledger::new(limit(3.0)), Vec::new());
    let _first = ledger.reserve(&mut store, key("a", 1), one_of(3, 1)).unwrap();
    let mut ledger = Ledger::replay(limit(3.0), store.clone()).unwrap();
    for round in [1, 2] {
        let error = ledger.reserve(&mut store, key("a", round), one_of(3, 1)).unwrap_err();
        assert!(matches!(error, PrivacyError::RandomnessReused { .. }), "{error}");
    }
    assert!(ledger.reserve(&mut store, key("a", 1), one_of(3, 2)).is_ok());
}

#[derive(Debug, Clone)]
enum Op {
    Reserve { run: u8, round: u32, steps: u64 },
    Commit { which: usize, digest: u8 },
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..2_u8, 0..4_u32, 1..4_u64)
            .prop_map(|(run, round, steps)| Op::Reserve { run, round, steps }),
        2 => (0..8_usize, 0..2_u8).prop_map(|(which, digest)| Op::Commit { which, digest }),
        1 => Just(Op::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_spent_never_decreases_and_survives_crashes(
        ops in prop::collection::vec(op(), 1..30)
    ) {
        let (mut ledger, mut store) = (Ledger::new(limit(2.0)), Vec::new());
        let mut receipts = Vec::new();
        let mut last = 0.0;
        for op in ops {
            match op {
                Op::Reserve { run, round, steps } => {
                    let mechanisms =
                        vec![Mechanism::SampledGaussian { q: 1.0, sigma: 4.0, steps }];
                    let key = key(&run.to_string(), round);
                    let schedule = vec![Mechanism::SampledGaussian { q: 1.0, sigma: 4.0, steps: 6 }];
                    let charge = Charge { schedule, ..Charge::single(mechanisms, PLAN, None) };
                    if let Ok(reservation) = ledger.reserve(&mut store, key, charge) {
                        receipts.push(receipt(reservation));
                    }
                }
                Op::Commit { which, digest } => {
                    if let Some(receipt) = receipts.get(which) {
                        let _refused = ledger.commit(&mut store, receipt, [digest; 32]).is_err();
                    }
                }
                Op::Crash => ledger = Ledger::replay(limit(2.0), store.clone()).unwrap(),
            }
            let spent = ledger.spent().epsilon;
            prop_assert!(spent >= last && spent <= 2.0, "{spent} after {last}");
            prop_assert_eq!(ledger.entries(), &store[..]);
            last = spent;
        }
        let mut reserved = std::collections::BTreeSet::new();
        let mut committed = std::collections::BTreeSet::new();
        for entry in &store {
            let first = match entry {
                LedgerEntry::Reserved { key, .. } => reserved.insert(key.clone()),
                LedgerEntry::Committed { key, .. } => committed.insert(key.clone()),
                _ => true,
            };
            prop_assert!(first);
        }
        prop_assert!(committed.is_subset(&reserved));
    }
}
