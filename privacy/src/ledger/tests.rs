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

fn receipt(reservation: Reservation) -> Receipt {
    reservation.release(()).receipt().clone()
}

#[test]
fn reserving_past_the_budget_is_refused_with_the_figures() {
    let (mut ledger, mut store) = (Ledger::new(limit(1.5)), Vec::new());
    let mut n_reserved = 0;
    let error = loop {
        match ledger.reserve(&mut store, key("a", n_reserved), round(), PLAN) {
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
    assert_eq!(store.len(), n_reserved as usize);
}

#[test]
fn a_reservation_is_durable_before_it_is_handed_out() {
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let reservation = ledger.reserve(&mut store, key("a", 1), round(), PLAN).unwrap();
    assert_eq!(
        store,
        [LedgerEntry::Reserved { key: key("a", 1), mechanisms: round(), plan: PLAN }]
    );
    assert_eq!(ledger.entries(), store);
    assert_eq!(reservation.key(), &key("a", 1));
}

#[test]
fn a_crash_before_commit_reopens_the_round_without_a_second_charge() {
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let _lost = ledger.reserve(&mut store, key("a", 1), round(), PLAN).unwrap();
    let spent = ledger.spent().epsilon;

    let mut ledger = Ledger::replay(limit(5.0), store.clone()).unwrap();
    let again = ledger.reserve(&mut store, key("a", 1), round(), PLAN).unwrap();
    assert_eq!(store.len(), 1);
    assert_eq!(ledger.spent().epsilon, spent);
    ledger.commit(&mut store, &receipt(again), [1; 32]).unwrap();
}

#[test]
fn a_reserved_round_is_reopened_even_when_the_budget_has_since_shrunk() {
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let _lost = ledger.reserve(&mut store, key("a", 1), round(), PLAN).unwrap();
    let mut ledger = Ledger::replay(limit(0.01), store.clone()).unwrap();
    assert!(ledger.reserve(&mut store, key("a", 1), round(), PLAN).is_ok());
    assert!(ledger.reserve(&mut store, key("a", 2), round(), PLAN).is_err());
}

#[test]
fn a_reserved_round_is_not_reopened_for_anything_else() {
    let (mut ledger, mut store) = (Ledger::new(limit(50.0)), Vec::new());
    let _first = ledger.reserve(&mut store, key("a", 1), round(), PLAN).unwrap();
    let more = vec![Mechanism::SampledGaussian { q: 0.1, sigma: 2.0, steps: 11 }];
    for (mechanisms, plan) in [(more, PLAN), (round(), [8; 32])] {
        let error = ledger.reserve(&mut store, key("a", 1), mechanisms, plan).unwrap_err();
        assert!(matches!(error, PrivacyError::ReservationConflict { .. }), "{error}");
    }
}

#[test]
fn a_committed_round_is_never_released_again() {
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let first = receipt(ledger.reserve(&mut store, key("a", 1), round(), PLAN).unwrap());
    let second = receipt(ledger.reserve(&mut store, key("a", 1), round(), PLAN).unwrap());
    ledger.commit(&mut store, &first, [1; 32]).unwrap();
    ledger.commit(&mut store, &first, [1; 32]).unwrap();
    assert_eq!(store.len(), 2);

    let error = ledger.commit(&mut store, &second, [2; 32]).unwrap_err();
    assert!(matches!(error, PrivacyError::AlreadyReleased { .. }), "{error}");
    let mut replayed = Ledger::replay(limit(5.0), store.clone()).unwrap();
    for ledger in [&mut ledger, &mut replayed] {
        let error = ledger.reserve(&mut store, key("a", 1), round(), PLAN).unwrap_err();
        assert!(matches!(error, PrivacyError::AlreadyReleased { .. }), "{error}");
    }
}

#[test]
fn a_release_that_was_not_reserved_here_is_not_committed() {
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let receipt = receipt(ledger.reserve(&mut store, key("a", 1), round(), PLAN).unwrap());
    let error = Ledger::new(limit(5.0)).commit(&mut store, &receipt, [1; 32]).unwrap_err();
    assert!(matches!(error, PrivacyError::NotReserved { .. }), "{error}");
}

#[test]
fn exempt_releases_need_permission_and_do_not_use_the_budget() {
    let (mut ledger, mut store) = (Ledger::new(limit(5.0)), Vec::new());
    let error = ledger.reserve(&mut store, key("a", 1), vec![Mechanism::Exempt], PLAN).unwrap_err();
    assert!(matches!(error, PrivacyError::ExemptNotAllowed { .. }), "{error}");

    let open = Limit { exempt_allowed: true, ..limit(5.0) };
    let mut ledger = Ledger::new(open);
    let exempt = ledger.reserve(&mut store, key("a", 1), vec![Mechanism::Exempt], PLAN).unwrap();
    assert_eq!(*exempt.release_exempt(5).unwrap().value(), 5);
    assert_eq!(ledger.spent().epsilon, f64::INFINITY);
    let private = ledger.reserve(&mut store, key("a", 2), round(), PLAN).unwrap();
    assert!(private.release_exempt(5).is_err());

    // Once the permission is withdrawn, history counts.
    let mut strict = Ledger::replay(limit(5.0), store.clone()).unwrap();
    assert!(strict.reserve(&mut store, key("a", 3), round(), PLAN).is_err());
}

#[test]
fn without_a_budget_nothing_private_is_allowed_unless_everything_is() {
    let mut store = Vec::new();
    let closed = Limit { budget: None, exempt_allowed: false };
    let error = Ledger::new(closed).reserve(&mut store, key("a", 1), round(), PLAN).unwrap_err();
    assert!(matches!(error, PrivacyError::NoBudget { .. }), "{error}");
    let open = Limit { budget: None, exempt_allowed: true };
    assert!(Ledger::new(open).reserve(&mut store, key("a", 1), round(), PLAN).is_ok());
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
    let error = ledger.reserve(&mut Full, key("a", 1), round(), PLAN).unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(ledger.reserve(&mut store, key("a", 1), round(), PLAN).is_err());
    assert!(store.is_empty());
}

#[test]
fn entries_that_no_ledger_wrote_are_refused() {
    let reserved = LedgerEntry::Reserved { key: key("a", 1), mechanisms: round(), plan: PLAN };
    let committed = LedgerEntry::Committed { key: key("a", 1), release: [1; 32] };
    let meaningless = LedgerEntry::Reserved {
        key: key("a", 1),
        mechanisms: vec![Mechanism::Zcdp { rho: -5.0 }],
        plan: PLAN,
    };
    for entries in [
        vec![committed.clone()],
        vec![reserved.clone(), reserved.clone()],
        vec![reserved.clone(), committed.clone(), committed.clone()],
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
    for (run, round_index) in [("a", 1), ("b", 1), ("a", 2)] {
        let _reservation =
            ledger.reserve(&mut store, key(run, round_index), round(), PLAN).unwrap();
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
    let entry = LedgerEntry::Reserved { key: key("a", 1), mechanisms: round(), plan: PLAN };
    let text = serde_json::to_string(&entry).unwrap();
    assert_eq!(serde_json::from_str::<LedgerEntry>(&text).unwrap(), entry);
    assert!(serde_json::from_str::<LedgerEntry>(&text.replace("0707", "zz07")).is_err());
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
                    if let Ok(reservation) = ledger.reserve(&mut store, key, mechanisms, PLAN) {
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
            };
            prop_assert!(first);
        }
        prop_assert!(committed.is_subset(&reserved));
    }
}
