//! Rounds that do not wait for everybody: samples, late updates, buffers, exclusions, refusals.

use proptest::prelude::*;

use super::*;
use crate::plan::tests::SAMPLE;
use crate::{
    ClientStanding, Receipt, RecordBook, RecordDigest, RoundRecord, RunStatus, Standing, Terms,
};

const START: ModelDigest = ModelDigest([0; 32]);
const NAMES: [&str; 5] = ["JP/b", "KR/a", "TH/d", "VN/c", "VN/e"];

fn id(name: &str) -> ClientId {
    name.parse().unwrap()
}

fn model(round: u32) -> ModelDigest {
    ModelDigest([round as u8 + 100; 32])
}

/// A plan of five clients and four rounds with more lines in `[cohort]` and another strategy.
fn plan(cohort: &str, strategy: &str) -> Plan {
    let clients: String =
        NAMES.map(|name| format!("{{ id = \"{name}\", records = 500 }}, ")).concat();
    let text = SAMPLE
        .replace("rounds = 2", "rounds = 4")
        .replace("weights = \"declared\"", &format!("weights = \"declared\"\n{cohort}"))
        .replace("\"fedavg\"", strategy)
        .lines()
        .map(|line| match line.starts_with("clients =") {
            true => format!("clients = [{clients}]\n"),
            false => format!("{line}\n"),
        })
        .collect::<String>();
    Plan::from_toml(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// A run, what was recorded of it, and its time.
struct Play {
    run: Run,
    recorded: Vec<(Time, Event)>,
    now: Time,
    books: Books,
}

/// What every client believes of the records and receipts that an honest coordinator signs: all of them.
#[derive(Default)]
struct Books {
    of: BTreeMap<ClientId, RecordBook>,
    previous: Option<RecordDigest>,
    /// Receipts that reach their clients only with the next record.
    on_their_way: Vec<Receipt>,
    n_records: usize,
}

impl Books {
    fn note(&mut self, before: &Run, run: &Run, event: &Event) {
        let plan = run.plan();
        let (run_id, plan_digest) = (run.id(), run.plan_digest());
        fn of<'a>(run: &'a Run, me: &'a ClientId) -> Terms<'a> {
            let (run, plan, plan_digest) = (&run.id, &run.plan, run.plan_digest);
            Terms { federation: "test", run, plan, plan_digest, me: Some(me) }
        }
        if let Event::Submitted { client, contribution } = event {
            let book = self.of.entry(client.clone()).or_default();
            book.released(contribution);
            let receipt =
                run.receipt("test", client, contribution.update).expect("it was accepted");
            assert_eq!((receipt.round, &receipt.client), (contribution.round, client));
            // Some replies are lost for a while.
            match contribution.update.0[1] % 2 {
                0 => self.on_their_way.push(receipt),
                _ => {
                    book.check_receipt(&of(run, client), &receipt).unwrap();
                    book.take_receipt(&receipt);
                }
            }
        }
        let closed = before.rounds_from(0).len();
        let Some(round) = run.rounds_from(closed.saturating_sub(1)).first().cloned() else {
            return;
        };
        let Event::Aggregated { .. } = event else { return };
        let record = RoundRecord::of("test", run_id, plan_digest, self.previous, &round).unwrap();
        self.previous = Some(record.digest());
        self.n_records += 1;
        for name in NAMES.map(id) {
            let book = self.of.entry(name.clone()).or_default();
            assert_eq!(
                book.check(&of(run, &name), &record),
                Ok(Standing::Next),
                "{name}: {record:?}"
            );
            book.take(&of(run, &name), &record);
            if let Some(task) = run.task(&name) {
                assert_eq!(book.check_task(plan, &task), Ok(()), "{name}");
            }
        }
        for receipt in std::mem::take(&mut self.on_their_way) {
            let book = self.of.entry(receipt.client.clone()).or_default();
            book.check_receipt(&of(run, &receipt.client), &receipt).unwrap();
            book.take_receipt(&receipt);
        }
        if let Some(Outcome::Finished(model)) = run.outcome() {
            let book = &self.of[&NAMES.map(id)[0]];
            assert_eq!(book.check_finish(plan, *model), Ok(()));
        }
    }
}

impl Play {
    fn new(plan: &Plan) -> Self {
        let run = Run::new("sample-1".parse().unwrap(), plan.clone(), START, Time(0));
        Self { run, recorded: Vec::new(), now: Time(0), books: Books::default() }
    }

    /// With everybody there.
    fn gathered(plan: &Plan) -> Self {
        let mut play = Self::new(plan);
        for name in NAMES {
            let event = Event::CheckedIn { client: id(name), plan: plan.digest() };
            play.step(event).unwrap();
        }
        play
    }

    /// Steps, and checks that a refusal leaves no trace and that what was recorded folds to the same run.
    fn step(&mut self, event: Event) -> Result<Vec<Effect>, Rejection> {
        self.now = Time(self.now.0 + 1);
        let before = self.run.clone();
        let stepped = self.run.step(event.clone(), self.now);
        match &stepped {
            Ok(effects) if !effects.is_empty() => {
                self.recorded.push((self.now, event.clone()));
                self.books.note(&before, &self.run, &event);
            }
            _ => assert_eq!(self.run, before, "{event:?}"),
        }
        let again = Run::new(before.id.clone(), before.plan, START, Time(0));
        assert_eq!(again.replay(self.recorded.iter().cloned()).unwrap(), self.run);
        stepped
    }

    fn contribution(&self, name: &str, round: u32) -> Contribution {
        let task = self.run.task(&id(name)).filter(|task| task.round == round);
        let mut update = [name.as_bytes()[3]; 32];
        update[0] = round as u8;
        Contribution {
            round,
            plan: self.run.plan_digest(),
            base: task.map_or(if round < 2 { START } else { model(round - 1) }, |task| task.model),
            update: UpdateDigest(update),
            n_parameters: 15,
            encoding: crate::UpdateEncoding::Int32,
            n_correct: None,
            loss_sum: None,
        }
    }

    /// `name` submits what it trained for `round`.
    fn submit(&mut self, name: &str, round: u32) -> Result<Vec<Effect>, Rejection> {
        let contribution = self.contribution(name, round);
        self.step(Event::Submitted { client: id(name), contribution })
    }

    fn aggregated(&mut self) -> Vec<Effect> {
        let round = self.run.last_round();
        self.step(Event::Aggregated { round, model: model(round), statistics: None }).unwrap()
    }

    fn deadline(&mut self) -> Vec<Effect> {
        self.now = Time(self.run.deadline().unwrap().0);
        self.step(Event::Tick).unwrap()
    }

    fn standing(&self, name: &str) -> ClientStanding {
        let report = self.run.summary();
        report.clients.iter().find(|c| c.client == id(name)).unwrap().standing
    }

    /// Who is in the sum of `round`, how stale.
    fn counted(&self, round: u32) -> Vec<(String, u32)> {
        let report = self.run.report();
        let record = report.history.iter().find(|r| r.round == round).unwrap();
        record.contributions.iter().map(|c| (c.client.to_string(), c.staleness)).collect()
    }
}

fn readmit(name: &str) -> Command {
    Command::Readmit { client: id(name), reason: "corrected".into() }
}

fn invited(effects: &[Effect]) -> Vec<String> {
    effects
        .iter()
        .find_map(|effect| match effect {
            Effect::Invite { cohort, .. } => Some(cohort.iter().map(ToString::to_string).collect()),
            _ => None,
        })
        .unwrap_or_default()
}

fn folds(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Aggregate { .. }))
}

#[test]
fn a_sample_closes_with_the_first_contributions_and_says_who_was_not_needed() {
    let plan = plan("sample = { clients = 2, over_selection = 1 }", "\"fedavg\"");
    let mut play = Play::gathered(&plan);
    let cohort = play.run.report().history[0].cohort.clone();
    assert_eq!(cohort.len(), 3);
    let names: Vec<String> = cohort.iter().map(ToString::to_string).collect();
    assert!(!folds(&play.submit(&names[0], 1).unwrap()));
    // Two of one country are no quorum of two countries.
    let effects = play.submit(&names[1], 1).unwrap();
    assert!(folds(&effects), "{effects:?}");
    let record = &play.run.report().history[0];
    assert_eq!(record.missing[0].0, cohort[2]);
    assert!(record.missing[0].1.contains("enough contributions"), "{:?}", record.missing);
    assert!(matches!(play.submit(&names[2], 1), Err(Rejection::RoundNotOpen { .. })));
    // Each round has a cohort of its own, the same wherever it is computed.
    let mut cohorts = vec![cohort];
    for round in 2..=4 {
        let next = invited(&play.aggregated());
        cohorts.push(play.run.report().history.last().unwrap().cohort.clone());
        play.submit(&next[0], round).unwrap();
        play.submit(&next[1], round).unwrap();
    }
    cohorts.sort();
    cohorts.dedup();
    assert!(cohorts.len() > 1, "every round asked the same clients");
}

#[test]
fn a_sample_is_as_large_as_a_quorum_takes() {
    let plan = plan("sample = { clients = 2 }\nmin_weight_share = 0.75", "\"fedavg\"");
    let play = Play::gathered(&plan);
    assert_eq!(play.run.report().history[0].cohort.len(), 4);
}

#[test]
fn a_round_without_the_weight_that_the_plan_wants_aborts_and_says_so() {
    let mut play = Play::gathered(&plan("min_weight_share = 0.7", "\"fedavg\""));
    for name in &NAMES[..3] {
        play.submit(name, 1).unwrap();
    }
    let effects = play.deadline();
    let Effect::Finish(Outcome::Aborted(reason)) = &effects[1] else { panic!("{effects:?}") };
    assert!(reason.contains("0.6000 of at least 0.7 of the weight"), "{reason}");
    let mut play = Play::gathered(&plan("min_weight_share = 0.8", "\"fedavg\""));
    for name in &NAMES[..4] {
        play.submit(name, 1).unwrap();
    }
    assert!(folds(&play.deadline()));
}

#[test]
fn a_late_update_is_carried_into_the_round_that_is_open_when_it_comes() {
    let plan = plan("late = { carry = { rounds_max = 2 } }", "\"fedavg\"");
    let mut play = Play::gathered(&plan);
    for name in &NAMES[1..] {
        play.submit(name, 1).unwrap();
    }
    assert_eq!(play.standing("JP/b"), ClientStanding::Training);
    assert!(folds(&play.deadline()));
    assert!(play.run.report().history[0].missing[0].1.contains("still training"));
    assert_eq!(play.standing("JP/b"), ClientStanding::Late);
    // It is not asked again, and its old task stands under the new deadline.
    assert_eq!(invited(&play.aggregated()), NAMES[1..]);
    assert_eq!(play.run.task(&id("JP/b")).unwrap().model, START);
    assert!(play.run.blobs_needed().0.contains(&START));
    play.submit("KR/a", 2).unwrap();
    play.submit("JP/b", 1).unwrap();
    assert_eq!(play.submit("JP/b", 1), Ok(vec![]));
    assert_eq!(play.standing("JP/b"), ClientStanding::Contributed);
    for name in &NAMES[2..] {
        play.submit(name, 2).unwrap();
    }
    assert_eq!(play.counted(2)[0], ("JP/b".to_owned(), 1));
    assert_eq!(play.counted(2).len(), 5);
    // From then on it is as everybody else.
    assert_eq!(invited(&play.aggregated()), NAMES);
    assert_eq!(play.submit("JP/b", 1), Ok(vec![]));
}

#[test]
fn an_update_that_comes_while_a_round_is_folded_counts_in_the_next() {
    let plan = plan("late = { carry = { rounds_max = 1 } }", "\"fedavg\"");
    let mut play = Play::gathered(&plan);
    for name in &NAMES[1..] {
        play.submit(name, 1).unwrap();
    }
    play.deadline();
    assert_eq!(play.submit("JP/b", 1), Ok(vec![Effect::Record]));
    assert_eq!(play.submit("JP/b", 1), Ok(vec![]));
    assert_eq!(play.run.blobs_needed().1.len(), 5);
    play.aggregated();
    assert_eq!(play.counted(2), [("JP/b".to_owned(), 1)]);
    // In the last round nothing is taken that no model would count.
    for round in 2..=3 {
        for name in &NAMES[1..] {
            play.submit(name, round).unwrap();
        }
        if round == 3 {
            play.submit("JP/b", 3).unwrap();
        }
        play.aggregated();
    }
    for name in &NAMES[1..] {
        play.submit(name, 4).unwrap();
    }
    play.deadline();
    assert!(matches!(play.submit("JP/b", 4), Err(Rejection::RoundNotOpen { .. })));
}

#[test]
fn what_was_accepted_for_a_round_that_never_opens_stays_on_record() {
    let plan = plan("late = { carry = { rounds_max = 1 } }", "\"fedavg\"");
    let mut play = Play::gathered(&plan);
    for name in &NAMES[1..] {
        play.submit(name, 1).unwrap();
    }
    play.deadline();
    play.submit("JP/b", 1).unwrap();
    play.step(Event::Ordered { command: Command::Abort { reason: "enough".into() } }).unwrap();
    assert_eq!(play.counted(2), [("JP/b".to_owned(), 1)]);
    assert_eq!(play.submit("JP/b", 1), Ok(vec![]));
}

#[test]
fn who_is_too_late_to_count_is_asked_afresh() {
    let plan = plan("late = { carry = { rounds_max = 1 } }", "\"fedavg\"");
    let mut play = Play::gathered(&plan);
    for round in 1..=2 {
        for name in &NAMES[1..] {
            play.submit(name, round).unwrap();
        }
        if round == 1 {
            play.deadline();
        }
        let expected = if round == 1 { &NAMES[1..] } else { &NAMES[..] };
        assert_eq!(invited(&play.aggregated()), expected);
    }
    assert!(matches!(play.submit("JP/b", 1), Err(Rejection::RoundNotOpen { .. })));
    play.submit("JP/b", 3).unwrap();
}

#[test]
fn a_buffer_closes_its_round_and_ages_what_it_holds() {
    let plan = plan("", "{ fedbuff = { buffer = 3, staleness_max = 2 } }");
    let mut play = Play::gathered(&plan);
    play.submit("KR/a", 1).unwrap();
    play.submit("VN/c", 1).unwrap();
    let effects = play.submit("TH/d", 1).unwrap();
    assert!(folds(&effects));
    // Whoever is fast gets the new model; the others go on, and nobody gets a model twice.
    assert_eq!(invited(&play.aggregated()), ["KR/a", "TH/d", "VN/c"]);
    assert!(matches!(play.submit("KR/a", 1), Ok(effects) if effects.is_empty()));
    play.submit("KR/a", 2).unwrap();
    play.submit("JP/b", 1).unwrap();
    let effects = play.submit("VN/e", 1).unwrap();
    let Some(Effect::Aggregate { updates, .. }) = effects.last() else { panic!("{effects:?}") };
    let ratio = updates[0].1 as f64 / updates[1].1 as f64;
    assert!((ratio - 0.5f64.sqrt()).abs() < 1e-6, "{ratio}");
    let counted = play.counted(2);
    assert_eq!(counted.iter().map(|c| c.1).collect::<Vec<_>>(), [1, 0, 1]);
    // The buffer of a round may be full when it opens.
    for name in ["TH/d", "VN/c"] {
        play.submit(name, 2).unwrap();
    }
    assert_eq!(invited(&play.aggregated()), ["JP/b", "KR/a", "VN/e"]);
    assert!(folds(&play.submit("JP/b", 3).unwrap()));
}

#[test]
fn an_excluded_client_counts_no_more_and_can_be_taken_back() {
    let mut play = Play::gathered(&plan("", "\"fedavg\""));
    let exclude = |name: &str| Event::Ordered {
        command: Command::Exclude { client: id(name), reason: "wrong data".into() },
    };
    play.submit("KR/a", 1).unwrap();
    play.step(exclude("KR/a")).unwrap();
    assert_eq!(play.step(exclude("KR/a")), Ok(vec![]));
    assert_eq!(play.standing("KR/a"), ClientStanding::Excluded);
    assert!(matches!(play.submit("KR/a", 1), Err(Rejection::Excluded { .. })));
    assert!(matches!(play.step(exclude("KR/zz")), Err(Rejection::NotInPlan(_))));
    for name in ["JP/b", "TH/d", "VN/c"] {
        play.submit(name, 1).unwrap();
    }
    // The last one that is waited for.
    let effects = play.step(exclude("VN/e")).unwrap();
    assert!(folds(&effects));
    let missing = play.run.report().history[0].missing.clone();
    assert!(missing.iter().all(|(_, reason)| reason == "excluded: wrong data"), "{missing:?}");
    assert_eq!(play.counted(1).len(), 3);
    play.step(Event::Ordered { command: readmit("VN/e") }).unwrap();
    assert_eq!(invited(&play.aggregated()), ["JP/b", "TH/d", "VN/c", "VN/e"]);
}

#[test]
fn a_client_that_declines_in_the_middle_is_asked_for_nothing_more_until_it_agrees_again() {
    let plan = plan("late = { carry = { rounds_max = 2 } }", "\"fedavg\"");
    let mut play = Play::gathered(&plan);
    let no =
        |name: &str| Event::Declined { client: id(name), reason: "the steward refused".into() };
    // One that has contributed, one that is asked, and one that is late while the round is folded.
    play.submit("KR/a", 1).unwrap();
    play.step(no("KR/a")).unwrap();
    play.step(no("VN/e")).unwrap();
    assert!(play.run.task(&id("VN/e")).is_none());
    assert!(matches!(play.submit("VN/e", 1), Err(Rejection::Refused { .. })));
    play.submit("JP/b", 1).unwrap();
    play.submit("TH/d", 1).unwrap();
    assert!(folds(&play.deadline()));
    play.step(no("VN/c")).unwrap();
    assert!(play.submit("VN/c", 1).is_err());
    assert_eq!(play.counted(1).len(), 3, "what was accepted stays");
    assert_eq!(invited(&play.aggregated()), ["JP/b", "TH/d"]);
    for name in ["KR/a", "VN/c", "VN/e"] {
        assert_eq!(play.standing(name), ClientStanding::Declined);
    }
    let again = Event::CheckedIn { client: id("VN/e"), plan: plan.digest() };
    play.step(again).unwrap();
    play.submit("JP/b", 2).unwrap();
    assert!(folds(&play.submit("TH/d", 2).unwrap()));
    assert_eq!(invited(&play.aggregated()), ["JP/b", "TH/d", "VN/e"]);
}

// BAD_INPUTS 58
#[test]
fn a_copy_of_another_clients_update_is_refused_and_recorded() {
    let mut play = Play::gathered(&plan("", "\"fedavg\""));
    play.submit("KR/a", 1).unwrap();
    let copy = play.contribution("KR/a", 1);
    let submitted = Event::Submitted { client: id("VN/c"), contribution: copy };
    assert_eq!(play.step(submitted), Err(Rejection::Copied));
    let reason = Rejection::Copied.to_string();
    let refused = Event::Refused { client: id("VN/c"), round: 1, reason: reason.clone() };
    play.step(refused.clone()).unwrap();
    assert_eq!(play.step(refused), Ok(vec![]));
    assert!(matches!(play.submit("VN/c", 1), Err(Rejection::Refused { .. })));
    for name in ["JP/b", "TH/d", "VN/e"] {
        play.submit(name, 1).unwrap();
    }
    assert_eq!(play.run.report().history[0].missing, [(id("VN/c"), reason)]);
    assert_eq!(invited(&play.aggregated()), NAMES);
    // Two that change nothing are no copies.
    for name in ["KR/a", "VN/c"] {
        let zeros = UpdateDigest(*blake3::hash(&[0; 60]).as_bytes());
        let contribution = Contribution { update: zeros, ..play.contribution(name, 2) };
        play.step(Event::Submitted { client: id(name), contribution }).unwrap();
    }
}

// BAD_INPUTS 40, 42
#[test]
fn a_norm_at_the_plans_bound_is_accepted_and_one_grid_step_more_is_not() {
    let mut aggregation = plan("", "\"fedavg\"").aggregation;
    assert_eq!(aggregation.check_norm(u64::MAX), Ok(()));
    aggregation.update_norm_max_l2 = Some(2.0);
    assert_eq!(aggregation.check_norm(2 << 22), Ok(()));
    let refused = aggregation.check_norm((2 << 22) + 1).unwrap_err().to_string();
    assert!(refused.contains("passes 2"), "{refused}");
}

fn any_plan() -> impl Strategy<Value = Plan> {
    prop::sample::select(vec![
        ("", "\"fedavg\""),
        ("sample = { clients = 2, over_selection = 2 }", "\"fedavg\""),
        ("late = { carry = { rounds_max = 2 } }", "\"fedavg\""),
        ("late = { carry = { rounds_max = 1 } }\nsample = { clients = 3 }", "\"median\""),
        ("min_weight_share = 0.6", "{ fedbuff = { buffer = 3, staleness_max = 1 } }"),
        ("", "{ fedbuff = { buffer = 2, staleness_max = 3 } }"),
    ])
    .prop_map(|(cohort, strategy)| match strategy {
        "\"median\"" => {
            let mut plan = plan(cohort, "\"fedavg\"");
            plan.cohort.weights = crate::WeightRule::Uniform;
            plan.aggregation.strategy = crate::Strategy::Median;
            plan
        }
        _ => plan(cohort, strategy),
    })
}

proptest! {
    #[test]
    fn whatever_the_plan_each_update_counts_once_and_the_run_ends(
        plan in any_plan(),
        moves in prop::collection::vec((0usize..5, 0u8..24, 0u64..50_000), 0..120),
    ) {
        let mut play = Play::gathered(&plan);
        let mut accepted = BTreeSet::new();
        for (who, what, wait) in moves {
            let name = NAMES[who];
            let round = play.run.task(&id(name)).map_or(play.run.last_round(), |task| task.round);
            match what {
                0..=13 => {
                    if play.submit(name, round).is_ok() {
                        accepted.insert((round, name));
                    }
                }
                14..=16 => {
                    let reason = "cannot".to_owned();
                    let event = Event::Withdrew { client: id(name), round, reason };
                    let _ = play.step(event);
                }
                17 => {
                    let reason = "a copy".to_owned();
                    let _ = play.step(Event::Refused { client: id(name), round, reason });
                }
                18 => {
                    let command = Command::Exclude { client: id(name), reason: "no".into() };
                    let _ = play.step(Event::Ordered { command });
                }
                19 => {
                    let command = readmit(name);
                    let _ = play.step(Event::Ordered { command });
                }
                20 => {
                    play.now = Time(play.now.0 + wait);
                    let _ = play.step(Event::Tick);
                }
                _ => if matches!(play.run.pending(), Some(Effect::Aggregate { .. })) {
                    play.aggregated();
                }
            }
        }
        for _ in 0..20 {
            if matches!(play.run.pending(), Some(Effect::Aggregate { .. })) {
                play.aggregated();
            } else if play.run.deadline().is_some() {
                play.deadline();
            }
        }
        let report = play.run.report();
        prop_assert!(report.status.is_terminal());
        let mut counted = BTreeSet::new();
        for round in &report.history {
            for c in &round.contributions {
                prop_assert!(round.cohort.contains(&c.client));
                prop_assert!(c.staleness <= plan.staleness_max());
                prop_assert!(counted.insert(c.update), "{} counted twice", c.client);
            }
        }
        for (round, name) in accepted {
            let update = play.contribution(name, round).update;
            let excluded = report.history.iter().flat_map(|r| &r.missing).any(
                |(client, reason)| *client == id(name) && reason.starts_with("excluded"));
            prop_assert!(counted.contains(&update) || excluded, "{name} was told of {round}");
        }
        prop_assert!(matches!(report.status, RunStatus::Finished | RunStatus::Aborted));
    }
}
