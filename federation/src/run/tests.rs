//! Event lists in, effects out.

use proptest::prelude::*;

use super::*;
use crate::RunStatus;
use crate::plan::tests::sample;

const START: ModelDigest = ModelDigest([0; 32]);

fn client(name: &str) -> ClientId {
    match name {
        "a" => "KR/a",
        "b" => "JP/b",
        "c" => "VN/c",
        other => other,
    }
    .parse()
    .unwrap()
}

fn run() -> Run {
    Run::new("sample-1".parse().unwrap(), sample(), START, Time(0))
}

fn check_in(name: &str) -> Event {
    Event::CheckedIn { client: client(name), plan: sample().digest() }
}

fn contribution(round: u32, base: ModelDigest, mark: u8) -> Contribution {
    Contribution {
        round,
        plan: sample().digest(),
        base,
        update: UpdateDigest([mark; 32]),
        n_parameters: 15,
        encoding: crate::UpdateEncoding::Int32,
        n_correct: None,
        loss_sum: None,
    }
}

fn submit(name: &str, round: u32, base: ModelDigest, mark: u8) -> Event {
    Event::Submitted { client: client(name), contribution: contribution(round, base, mark) }
}

/// Steps through `events`, one millisecond apart, and returns the last step's result.
fn play(run: &mut Run, events: impl IntoIterator<Item = Event>) -> Result<Vec<Effect>, Rejection> {
    let mut last = Ok(Vec::new());
    for (i, event) in events.into_iter().enumerate() {
        last = run.step(event, Time(i as u64 + 1));
    }
    last
}

fn in_round_one() -> Run {
    let mut run = run();
    play(&mut run, ["a", "b", "c"].map(check_in)).unwrap();
    run
}

#[test]
fn a_run_goes_through_its_rounds_to_the_end() {
    let mut run = run();
    let effects = play(&mut run, ["a", "b", "c"].map(check_in)).unwrap();
    assert_eq!(effects[0], Effect::Record);
    assert!(matches!(&effects[1], Effect::Invite { round: 1, cohort, .. } if cohort.len() == 3));
    let effects = play(
        &mut run,
        [submit("a", 1, START, 1), submit("b", 1, START, 2), submit("c", 1, START, 3)],
    )
    .unwrap();
    let Effect::Aggregate { round: 1, base: START, updates, gain: 1.0 } = &effects[1] else {
        panic!("{effects:?}")
    };
    // Clients are in the order of their ids (JP, KR, VN), weights as declared.
    assert_eq!(
        updates.iter().map(|u| (u.0.0[0], u.1)).collect::<Vec<_>>(),
        [(2, 500), (1, 1000), (3, 500)]
    );
    let second = ModelDigest([9; 32]);
    let effects =
        play(&mut run, [Event::Aggregated { round: 1, model: second, statistics: None }]).unwrap();
    assert!(matches!(effects[1], Effect::Invite { round: 2, model, .. } if model == second));
    let last = ModelDigest([8; 32]);
    let effects = play(
        &mut run,
        [
            submit("a", 2, second, 4),
            submit("b", 2, second, 5),
            submit("c", 2, second, 6),
            Event::Aggregated { round: 2, model: last, statistics: None },
        ],
    )
    .unwrap();
    assert_eq!(effects, [Effect::Record, Effect::Finish(Outcome::Finished(last))]);
    assert_eq!(run.report().status, RunStatus::Finished);
    assert_eq!(run.deadline(), None);
}

#[test]
fn statistics_come_before_the_first_round_and_only_there() {
    let mut plan = sample();
    plan.analytics = Some(crate::Analytics {
        rho: 0.01,
        queries: vec![comity_privacy::Query::Count, comity_privacy::Query::LabelHistogram],
    });
    let digest = plan.digest();
    let new = || Run::new("sample-1".parse().unwrap(), plan.clone(), START, Time(0));
    let mut run = new();
    let mut recorded = Vec::new();
    let mut step = |run: &mut Run, event: Event| {
        let effects = run.step(event.clone(), Time(1))?;
        recorded.push((Time(1), event));
        Ok::<_, Rejection>(effects)
    };
    let submit = |name: &str, round, n_parameters, mark| {
        let contribution =
            Contribution { plan: digest, n_parameters, ..contribution(round, START, mark) };
        Event::Submitted { client: client(name), contribution }
    };
    let mut effects = Vec::new();
    for name in ["a", "b", "c"] {
        effects = step(&mut run, Event::CheckedIn { client: client(name), plan: digest }).unwrap();
    }
    assert!(matches!(effects[1], Effect::Invite { round: 0, .. }), "{effects:?}");
    let wrong = step(&mut run, submit("a", 0, 15, 1)).unwrap_err();
    assert_eq!(wrong, Rejection::WrongSize { expected: 4, got: 15 });
    assert!(step(&mut run, submit("a", 1, 15, 1)).is_err());
    for (name, mark) in [("a", 1), ("b", 2), ("c", 3)] {
        effects = step(&mut run, submit(name, 0, 4, mark)).unwrap();
    }
    let Effect::Aggregate { round: 0, updates, .. } = &effects[1] else { panic!("{effects:?}") };
    // Sums: everybody's count once, whatever the weights of the means.
    assert!(updates.iter().all(|(_, weight)| *weight == 1), "{updates:?}");
    let again = run.admit(
        &client("a"),
        &Contribution { plan: digest, n_parameters: 4, ..contribution(0, START, 1) },
    );
    assert_eq!(again, Ok(Admission::AlreadyHere));
    for statistics in [None, Some(vec![1; 3])] {
        let event = Event::Aggregated { round: 0, model: START, statistics };
        assert!(matches!(step(&mut run, event), Err(Rejection::OutOfPlace(_))));
    }
    let statistics = Some(vec![600, 200, 199, 201]);
    let event = Event::Aggregated { round: 0, model: START, statistics };
    effects = step(&mut run, event).unwrap();
    assert!(matches!(effects[1], Effect::Invite { round: 1, .. }), "{effects:?}");
    assert_eq!(run.report().statistics.unwrap()[0], comity_privacy::Estimate::Count { n: 600 });
    for round in 1..=2 {
        for (name, mark) in [("a", 1), ("b", 2), ("c", 3)] {
            step(&mut run, submit(name, round, 15, 10 * round as u8 + mark)).unwrap();
        }
        let with = Event::Aggregated { round, model: START, statistics: Some(vec![0; 4]) };
        assert!(matches!(step(&mut run, with), Err(Rejection::OutOfPlace(_))));
        step(&mut run, Event::Aggregated { round, model: START, statistics: None }).unwrap();
    }
    assert_eq!(run.report().status, RunStatus::Finished);
    let rounds: Vec<u32> = run.report().history.iter().map(|round| round.round).collect();
    assert_eq!(rounds, [0, 1, 2]);
    assert_eq!(new().replay(recorded).unwrap(), run);
}

#[test]
fn updates_that_do_not_belong_are_rejected_and_change_nothing() {
    let other = ModelDigest([7; 32]);
    let mut wrong_size = contribution(1, START, 1);
    wrong_size.n_parameters = 16;
    let mut wrong_plan = contribution(1, START, 1);
    wrong_plan.plan = PlanDigest([0; 32]);
    for (event, expected) in [
        (submit("a", 0, START, 1), "round 0 is not open"),
        (submit("a", 2, START, 1), "round 2 is not open"),
        (submit("a", 1, other, 1), "starts from model"),
        (submit("KR/zz", 1, START, 1), "not named"),
        (Event::Submitted { client: client("a"), contribution: wrong_size }, "16 parameters"),
        (Event::Submitted { client: client("a"), contribution: wrong_plan }, "plan's digest"),
        (Event::Aggregated { round: 1, model: other, statistics: None }, "no such round"),
    ] {
        let mut run = in_round_one();
        let before = run.clone();
        let error = run.step(event, Time(50)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(run, before);
    }
}

#[test]
fn the_same_update_again_is_a_success_and_a_different_one_is_rejected() {
    let mut run = in_round_one();
    run.step(submit("a", 1, START, 1), Time(5)).unwrap();
    assert_eq!(run.step(submit("a", 1, START, 1), Time(6)), Ok(vec![]));
    let error = run.step(submit("a", 1, START, 2), Time(7)).unwrap_err();
    assert_eq!(error, Rejection::AlreadyContributed(client("a")));
    // A reply that was lost while the round closed.
    play(&mut run, [submit("b", 1, START, 2), submit("c", 1, START, 3)]).unwrap();
    play(&mut run, [Event::Aggregated { round: 1, model: ModelDigest([9; 32]), statistics: None }])
        .unwrap();
    assert_eq!(run.step(submit("a", 1, START, 1), Time(20)), Ok(vec![]));
    let second = ModelDigest([9; 32]);
    let last = [("a", 5), ("b", 6), ("c", 4)].map(|(name, mark)| submit(name, 2, second, mark));
    play(&mut run, last).unwrap();
    play(&mut run, [Event::Aggregated { round: 2, model: START, statistics: None }]).unwrap();
    assert_eq!(run.step(submit("c", 2, second, 4), Time(30)), Ok(vec![]));
    assert!(matches!(run.step(submit("c", 2, second, 5), Time(31)), Err(Rejection::Ended(_))));
}

#[test]
fn a_countrys_weight_is_capped_where_the_plan_says_so() {
    let mut plan = sample();
    plan.aggregation.country_weight_max = Some(0.5);
    plan.cohort.clients[0].records = 3000;
    let digest = plan.digest();
    let mut run = Run::new("sample-1".parse().unwrap(), plan, START, Time(0));
    for name in ["a", "b", "c"] {
        run.step(Event::CheckedIn { client: client(name), plan: digest }, Time(1)).unwrap();
    }
    let mut effects = Vec::new();
    for (name, mark) in [("a", 1), ("b", 2), ("c", 3)] {
        let contribution = Contribution { plan: digest, ..contribution(1, START, mark) };
        let event = Event::Submitted { client: client(name), contribution };
        effects = run.step(event, Time(2)).unwrap();
    }
    let Effect::Aggregate { updates, .. } = &effects[1] else { panic!("{effects:?}") };
    // JP, KR, VN: KR declares three quarters and counts half; the record keeps what is declared.
    assert_eq!((updates[0].1, updates[2].1), (updates[1].1 / 2, updates[1].1 / 2));
    assert_eq!(run.pending(), Some(effects[1].clone()));
    assert_eq!(run.report().history[0].contributions[1].weight, 3000);
}

#[test]
fn late_update_is_rejected() {
    let mut run = in_round_one();
    play(&mut run, [submit("a", 1, START, 1), submit("b", 1, START, 2)]).unwrap();
    let effects = run.step(Event::Tick, run.deadline().unwrap()).unwrap();
    assert!(matches!(&effects[1], Effect::Aggregate { updates, .. } if updates.len() == 2));
    let error = run.step(submit("c", 1, START, 3), Time(500_000)).unwrap_err();
    assert_eq!(error, Rejection::RoundNotOpen { got: 1, open: 1 });
    let missing = &run.report().history[0].missing;
    assert_eq!(missing[0].0, client("c"));
    assert!(missing[0].1.contains("late"));
}

#[test]
fn a_round_without_quorum_aborts_and_names_who_is_missing() {
    let mut run = in_round_one();
    run.step(submit("a", 1, START, 1), Time(5)).unwrap();
    let effects = run.step(Event::Tick, run.deadline().unwrap()).unwrap();
    let Effect::Finish(Outcome::Aborted(reason)) = &effects[1] else { panic!("{effects:?}") };
    assert!(reason.contains("1 of at least 2 clients") && reason.contains("VN/c"), "{reason}");
    assert_eq!(run.report().history[0].contributions.len(), 1);
}

#[test]
fn a_tick_before_the_deadline_does_nothing() {
    let mut run = in_round_one();
    let before = run.clone();
    assert_eq!(run.step(Event::Tick, Time(10)), Ok(vec![]));
    assert_eq!(run, before);
}

#[test]
fn gathering_starts_with_a_quorum_at_the_deadline_and_a_late_client_joins_the_next_round() {
    let mut run = run();
    play(&mut run, ["a", "b"].map(check_in)).unwrap();
    let effects = run.step(Event::Tick, Time(60_000)).unwrap();
    assert!(matches!(&effects[1], Effect::Invite { cohort, .. } if cohort.len() == 2));
    assert_eq!(run.step(check_in("c"), Time(60_001)), Ok(vec![Effect::Record]));
    let error = run.step(submit("c", 1, START, 3), Time(60_002)).unwrap_err();
    assert!(matches!(error, Rejection::NotInvited { .. }));
    play(&mut run, [submit("a", 1, START, 1), submit("b", 1, START, 2)]).unwrap();
    let effects = play(
        &mut run,
        [Event::Aggregated { round: 1, model: ModelDigest([9; 32]), statistics: None }],
    );
    assert!(matches!(&effects.unwrap()[1], Effect::Invite { cohort, .. } if cohort.len() == 3));
}

#[test]
fn gathering_without_quorum_aborts_with_the_reasons_of_those_who_declined() {
    let mut run = run();
    let decline = |name| Event::Declined { client: client(name), reason: "over budget\n".into() };
    let effects = play(&mut run, [check_in("a"), decline("b"), decline("c")]).unwrap();
    let Effect::Finish(Outcome::Aborted(reason)) = &effects[1] else { panic!("{effects:?}") };
    assert!(reason.contains("JP/b (declined: over budget )"), "{reason}");
    let error = run.step(check_in("b"), Time(9)).unwrap_err();
    assert!(matches!(error, Rejection::Ended(_)));
}

#[test]
fn a_client_that_withdraws_is_recorded_with_its_reason() {
    let mut run = in_round_one();
    let withdraw =
        Event::Withdrew { client: client("b"), round: 1, reason: "budget spent".to_owned() };
    let effects =
        play(&mut run, [withdraw, submit("a", 1, START, 1), submit("c", 1, START, 3)]).unwrap();
    assert!(matches!(&effects[1], Effect::Aggregate { updates, .. } if updates.len() == 2));
    assert_eq!(run.report().history[0].missing, [(client("b"), "budget spent".to_owned())]);
}

/// Institutions are protected: the driver draws each round's cohort.
fn run_that_draws() -> Run {
    let mut plan = sample();
    plan.privacy = crate::PrivacyTerms::DpFedavg {
        epsilon: 8.0,
        delta: 1e-5,
        clip_norm_l2: 1.0,
        clip_adaptive: None,
        cohort_expected: 1,
    };
    plan.cohort.weights = crate::WeightRule::Uniform;
    Run::new("sample-1".parse().unwrap(), plan, START, Time(0))
}

#[test]
fn a_cohort_that_is_drawn_in_secret_may_be_of_any_size() {
    let mut run = run_that_draws();
    let digest = run.plan_digest();
    let mut recorded = Vec::new();
    let mut step = |run: &mut Run, event: Event| {
        let effects = run.step(event.clone(), Time(1))?;
        recorded.push((Time(1), event));
        Ok::<_, Rejection>(effects)
    };
    let mut effects = Vec::new();
    for name in ["a", "b", "c"] {
        effects = step(&mut run, Event::CheckedIn { client: client(name), plan: digest }).unwrap();
    }
    let Effect::Draw { round: 1, present } = &effects[1] else { panic!("{effects:?}") };
    assert_eq!(present.len(), 3);
    assert_eq!(run.pending().as_ref(), Some(&effects[1]));
    for (round, cohort) in [(2, vec!["a"]), (1, vec!["a", "a"]), (1, vec!["KR/zz"])] {
        let cohort = cohort.into_iter().map(client).collect();
        let before = run.clone();
        assert!(matches!(
            step(&mut run, Event::Drawn { round, cohort }),
            Err(Rejection::OutOfPlace(_))
        ));
        assert_eq!(run, before);
    }
    // Fewer than the quorum.
    let cohort = vec![client("b")];
    effects = step(&mut run, Event::Drawn { round: 1, cohort: cohort.clone() }).unwrap();
    assert!(matches!(&effects[1], Effect::Invite { round: 1, cohort: c, .. } if *c == cohort));
    let uninvited = contribution(1, START, 1);
    let uninvited = Event::Submitted {
        client: client("a"),
        contribution: Contribution { plan: digest, ..uninvited },
    };
    assert!(matches!(step(&mut run, uninvited), Err(Rejection::NotInvited { .. })));
    let contribution = Contribution { plan: digest, ..contribution(1, START, 1) };
    effects = step(&mut run, Event::Submitted { client: client("b"), contribution }).unwrap();
    assert!(matches!(&effects[1], Effect::Aggregate { updates, .. } if updates.len() == 1));
    let model = ModelDigest([9; 32]);
    effects = step(&mut run, Event::Aggregated { round: 1, model, statistics: None }).unwrap();
    assert!(matches!(effects[1], Effect::Draw { round: 2, .. }), "{effects:?}");
    // Nobody.
    effects = step(&mut run, Event::Drawn { round: 2, cohort: Vec::new() }).unwrap();
    assert!(
        matches!(&effects[1], Effect::Aggregate { round: 2, updates, .. } if updates.is_empty())
    );
    step(&mut run, Event::Aggregated { round: 2, model, statistics: None }).unwrap();
    assert_eq!(run.report().status, RunStatus::Finished);
    let drawn: Vec<usize> = run.report().history.iter().map(|r| r.cohort.len()).collect();
    assert_eq!(drawn, [1, 0]);
    assert_eq!(run_that_draws().replay(recorded).unwrap(), run);
}

#[test]
fn abort_ends_a_run_from_any_phase() {
    let abort = || Event::Ordered { command: Command::Abort { reason: "enough".into() } };
    for mut run in [run(), in_round_one()] {
        let effects = run.step(abort(), Time(99)).unwrap();
        assert_eq!(effects[1], Effect::Finish(Outcome::Aborted("enough".into())));
        assert!(run.step(abort(), Time(100)).is_err());
    }
}

/// Any event, most of them out of place.
fn any_event() -> impl Strategy<Value = Event> {
    let who = || prop::sample::select(vec!["a", "b", "c", "KR/zz"]);
    let base = || prop::sample::select(vec![START, ModelDigest([1; 32]), ModelDigest([2; 32])]);
    prop_oneof![
        3 => who().prop_map(check_in),
        1 => who().prop_map(|w| Event::Declined { client: client(w), reason: "no".into() }),
        8 => (who(), 0u32..4, base(), 0u8..3).prop_map(|(w, r, b, m)| submit(w, r, b, m)),
        1 => (who(), 0u32..4).prop_map(|(w, round)| Event::Withdrew {
            client: client(w), round, reason: "cannot".into() }),
        4 => (0u32..4).prop_map(|round| Event::Aggregated {
            round, model: ModelDigest([round as u8; 32]), statistics: None }),
        1 => Just(Event::Tick),
    ]
}

proptest! {
    #[test]
    fn any_events_keep_the_rules(events in prop::collection::vec((any_event(), 0u64..40_000), 0..80)) {
        let mut run = run();
        let mut now = Time(0);
        let mut recorded = Vec::new();
        for (event, wait) in events {
            now = Time(now.0 + wait);
            let before = run.clone();
            match run.step(event.clone(), now) {
                Err(_) => prop_assert_eq!(&run, &before),
                Ok(effects) if effects.is_empty() => prop_assert_eq!(&run, &before),
                Ok(effects) => {
                    prop_assert_eq!(&effects[0], &Effect::Record);
                    recorded.push((now, event));
                }
            }
            prop_assert!(run.history.len() >= before.history.len());
            prop_assert!(run.history.len() <= run.plan.rounds as usize);
            for round in &run.report().history {
                let who: BTreeSet<_> = round.contributions.iter().map(|c| &c.client).collect();
                prop_assert_eq!(who.len(), round.contributions.len());
                prop_assert!(who.iter().all(|c| round.cohort.contains(c)));
            }
            let aggregating = matches!(run.pending(), Some(Effect::Aggregate { .. }));
            let alive = run.deadline().is_some() || run.outcome().is_some() || aggregating;
            prop_assert!(alive, "nothing will ever happen again");
        }
        let replayed = super::tests::run().replay(recorded).unwrap();
        prop_assert_eq!(replayed, run);
    }

    #[test]
    fn every_run_ends_if_time_passes(n_present in 0usize..=3, n_submit in 0usize..=3) {
        let mut run = run();
        play(&mut run, ["a", "b", "c"].map(check_in).into_iter().take(n_present)).unwrap();
        for _ in 0..20 {
            if let Some(Effect::Aggregate { round, .. }) = run.pending() {
                run.step(Event::Aggregated { round, model: START, statistics: None }, Time(0)).unwrap();
            }
            let round = run.history.len() as u32;
            for name in ["a", "b", "c"].iter().take(n_submit) {
                let _ = run.step(submit(name, round, START, 1), Time(1));
            }
            if let Some(deadline) = run.deadline() {
                run.step(Event::Tick, deadline).unwrap();
            }
        }
        prop_assert!(run.outcome().is_some());
    }
}
