use super::*;
use crate::plan::tests::sample;
use PolicyRefusal as No;

/// What allows the sample plan to `KR/a`, just so.
fn policy() -> Policy {
    let plan = sample();
    let budget = Some(Budget::new(8.0, 1e-5).unwrap());
    let manifest = plan.manifest().unwrap();
    Policy {
        operators: vec![PinnedOperator { name: "alice".into(), key: KeyFingerprint([1; 32]) }],
        purposes: vec!["A *.".into()],
        models: [ModelFamily::Dense].into(),
        parameters_max: manifest.n_parameters() as u64,
        units: [UnitKind::Record].into(),
        epsilon_run_max: 8.0,
        epsilon_year_max: 8.0,
        clients_min: 2,
        countries_min: 2,
        bytes_out_round_max: plan.bytes_out_round().unwrap(),
        ..Policy::of_plan(&plan, &plan.cohort.clients[0], budget)
    }
}

fn client() -> ClientId {
    "KR/a".parse().unwrap()
}

/// What `policy` says of `plan`; a refusal stands under `rule`, and there alone.
fn refusal(policy: &Policy, plan: &Plan, rule: &str) -> PolicyRefusal {
    let refusal = policy.review(plan, &client(), Circumstances::default()).unwrap_err();
    let findings = policy.findings(plan, &client(), Circumstances::default());
    let broken: Vec<_> = findings.iter().filter(|finding| !finding.holds).collect();
    assert_eq!(broken.len(), 1, "{broken:?}");
    assert_eq!((broken[0].rule, &broken[0].says), (rule, &refusal.to_string()));
    refusal
}

#[test]
fn a_plan_within_every_rule_is_agreed_to_and_each_rule_says_why() {
    let (policy, plan) = (policy(), sample());
    assert_eq!(policy.review(&plan, &client(), Circumstances::default()), Ok(()));
    let findings = policy.findings(&plan, &client(), Circumstances::default());
    assert!(findings.iter().all(|finding| finding.holds && !finding.says.is_empty()));
    let rules: Vec<_> = findings.iter().map(|finding| finding.rule).collect();
    assert!(
        rules.len() == 20
            && rules.contains(&"keeps")
            && rules.contains(&"hours")
            && rules.contains(&"approval")
    );
}

#[test]
fn each_rule_declines_by_name_what_passes_it() {
    let plan = sample();
    let with = |change: &dyn Fn(&mut Policy)| {
        let mut policy = policy();
        change(&mut policy);
        policy
    };
    let refused = |rule: &str, change: &dyn Fn(&mut Policy)| refusal(&with(change), &plan, rule);
    let said = refused("records", &|p| p.records_declared = 900);
    assert!(matches!(said, No::Records { planned: 1000, declared: 900, .. }));
    let said = refused("purposes", &|p| p.purposes = vec!["B*".into(), "A tes".into()]);
    assert!(matches!(said, No::Purpose { .. }));
    let said = refused("models", &|p| p.models = [ModelFamily::Transformer].into());
    assert_eq!(said.to_string().split("; ").nth(1), Some("this institution allows transformer"));
    assert!(matches!(refused("parameters_max", &|p| p.parameters_max -= 1), No::Parameters { .. }));
    let said = refused("units", &|p| p.units = [UnitKind::Person].into());
    assert!(matches!(said, No::Unit { unit: "record", .. }));
    assert_eq!(refused("epsilon", &|p| p.budget = None), No::NoBudget);
    let less = Budget::new(7.9, 1e-5).unwrap();
    assert!(matches!(refused("epsilon", &|p| p.budget = Some(less)), No::Budget { .. }));
    let less = Budget::new(8.0, 1e-6).unwrap();
    assert!(matches!(refused("epsilon", &|p| p.budget = Some(less)), No::Budget { .. }));
    let said = refused("epsilon_run_max", &|p| p.epsilon_run_max = 7.9);
    assert!(matches!(said, No::EpsilonRun { .. }));
    let said = refused("epsilon_year_max", &|p| p.epsilon_year_max = 7.9);
    assert!(matches!(said, No::EpsilonYear { .. }));
    assert!(matches!(refused("clients_min", &|p| p.clients_min = 3), No::Clients { .. }));
    assert!(matches!(refused("countries_min", &|p| p.countries_min = 3), No::Countries { .. }));
    let said = refused("secure_aggregation", &|p| {
        p.secure_aggregation = SecureAggregation::Required;
    });
    assert_eq!(said, No::SecureAggregation);
    let said = refused("bytes_out_round_max", &|p| p.bytes_out_round_max -= 1);
    assert!(matches!(said, No::BytesOut { bytes: 60, max: 59 }), "{said}");
    let other: ClientId = "KR/z".parse().unwrap();
    let said = policy().review(&plan, &other, Circumstances::default());
    assert_eq!(said, Err(No::NotNamed(other)));
}

#[test]
fn a_year_counts_the_runs_before() {
    let mut policy = policy();
    policy.epsilon_year_max = 12.0;
    let at = |epsilon| Circumstances { epsilon_year: Some(epsilon) };
    assert_eq!(policy.review(&sample(), &client(), at(12.0)), Ok(()));
    for epsilon in [12.1, f64::INFINITY, f64::NAN] {
        let said = policy.review(&sample(), &client(), at(epsilon));
        assert!(matches!(said, Err(No::EpsilonYear { .. })), "{epsilon}");
    }
}

#[test]
fn privacy_that_is_missing_or_made_elsewhere_is_declined() {
    let mut policy = policy();
    let open = Plan { privacy: PrivacyTerms::None, ..sample() };
    assert_eq!(refusal(&policy, &open, "without_dp"), No::WithoutDp);
    policy.without_dp_allowed = true;
    assert_eq!(policy.review(&open, &client(), Circumstances::default()), Ok(()));
    let mut elsewhere = sample();
    elsewhere.privacy = PrivacyTerms::DpFedavg {
        epsilon: 0.1,
        delta: 1e-5,
        clip_norm_l2: 1.0,
        clip_adaptive: None,
        cohort_expected: 2,
    };
    assert_eq!(refusal(&policy, &elsewhere, "without_dp"), No::NoiseElsewhere);
}

#[test]
fn persons_are_those_that_the_institution_declares() {
    let mut policy = policy();
    policy.units.insert(UnitKind::Person);
    let mut persons = sample();
    persons.cohort.clients[0].persons = Some(300);
    if let PrivacyTerms::DpSgd { unit, .. } = &mut persons.privacy {
        *unit = PrivacyUnit::Person { records_max: 4 };
    }
    for declared in [None, Some(299)] {
        policy.persons_declared = declared;
        assert!(matches!(refusal(&policy, &persons, "persons"), No::Persons { .. }));
    }
    policy.persons_declared = Some(300);
    assert_eq!(policy.review(&persons, &client(), Circumstances::default()), Ok(()));
}

#[test]
fn a_key_is_pinned_with_its_operators_name() {
    let policy = policy();
    assert!(policy.pins("alice", KeyFingerprint([1; 32])));
    assert!(!policy.pins("alice", KeyFingerprint([2; 32])));
    assert!(!policy.pins("bob", KeyFingerprint([1; 32])));
}

#[test]
fn a_star_stands_for_any_text() {
    for (pattern, text, expected) in [
        ("", "", true),
        ("", "a", false),
        ("*", "", true),
        ("*", "anything", true),
        ("a*", "a", true),
        ("a*", "ab", true),
        ("a*", "ba", false),
        ("*a", "ba", true),
        ("*a", "ab", false),
        ("a*a", "a", false),
        ("a*a", "aa", true),
        ("a*b*c", "a-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("a*b*c", "abc", true),
        ("a**c", "abc", true),
        ("*diabetes*", "Tell diabetes early", true),
        ("*Diabetes*", "Tell diabetes early", false),
        ("a*bb", "ab", false),
    ] {
        assert_eq!(fits(pattern, text), expected, "{pattern:?} {text:?}");
    }
}
