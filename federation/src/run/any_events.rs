//! Arbitrary events, in any order and at any time: what holds whatever happens.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::plan::tests::sample;

const START: ModelDigest = ModelDigest([0; 32]);
/// The plan names the first three.
const CLIENTS: [&str; 4] = ["KR/a", "JP/b", "VN/c", "KE/stranger"];

/// What is wrong with an event.
#[derive(Clone, Copy, Debug)]
enum Flaw {
    Plan,
    Base,
    Size(u64),
    Round(u32),
}

/// An event before it is known what would fit it.
#[derive(Clone, Debug)]
enum Draw {
    CheckIn(usize, Option<Flaw>),
    Decline(usize, String),
    Submit(usize, u8, Option<Flaw>),
    Withdraw(usize, Option<Flaw>),
    Aggregate(u8, Option<Flaw>),
    Cohort(Vec<usize>),
    Abort,
    Tick,
}

fn flaw() -> impl proptest::strategy::Strategy<Value = Option<Flaw>> {
    prop_oneof![
        12 => Just(None),
        1 => Just(Some(Flaw::Plan)),
        1 => Just(Some(Flaw::Base)),
        1 => prop_oneof![Just(0), Just(14), Just(16), any::<u64>()].prop_map(|n| Some(Flaw::Size(n))),
        1 => prop_oneof![0u32..4, any::<u32>()].prop_map(|round| Some(Flaw::Round(round))),
    ]
}

fn draw() -> impl proptest::strategy::Strategy<Value = Draw> {
    let client = || prop_oneof![20 => 0..3usize, 1 => Just(3)];
    prop_oneof![
        6 => (client(), flaw()).prop_map(|(client, flaw)| Draw::CheckIn(client, flaw)),
        1 => (client(), ".{0,4}").prop_map(|(client, reason)| Draw::Decline(client, reason)),
        12 => (client(), 1..6u8, flaw()).prop_map(|(c, mark, flaw)| Draw::Submit(c, mark, flaw)),
        1 => (client(), flaw()).prop_map(|(client, flaw)| Draw::Withdraw(client, flaw)),
        6 => (any::<u8>(), flaw()).prop_map(|(mark, flaw)| Draw::Aggregate(mark, flaw)),
        1 => prop::collection::vec(0..4usize, 0..4).prop_map(Draw::Cohort),
        1 => prop_oneof![9 => Just(Draw::Tick), 1 => Just(Draw::Abort)],
        2 => Just(Draw::Tick),
    ]
}

/// Mostly on the way of a run, whose deadlines are minutes apart; now and then anywhere.
fn time() -> impl proptest::strategy::Strategy<Value = Time> {
    prop_oneof![20 => 0..60_000u64, 1 => 0..400_000u64, 1 => any::<u64>()].prop_map(Time)
}

fn client(index: usize) -> ClientId {
    CLIENTS[index].parse().expect("a name")
}

impl Draw {
    /// The event that `run` may take now, but for the flaw.
    fn event(&self, run: &Run) -> Event {
        let plan_for = |flaw: &Option<Flaw>| match flaw {
            Some(Flaw::Plan) => PlanDigest([7; 32]),
            _ => run.plan_digest(),
        };
        let round_for = |flaw: &Option<Flaw>| match flaw {
            Some(Flaw::Round(round)) => *round,
            _ => run.last_round(),
        };
        match self {
            Self::CheckIn(who, flaw) => {
                Event::CheckedIn { client: client(*who), plan: plan_for(flaw) }
            }
            Self::Decline(who, reason) => {
                Event::Declined { client: client(*who), reason: reason.clone() }
            }
            Self::Submit(who, mark, flaw) => {
                let round = round_for(flaw);
                let fitting = match run.plan().analytics_request() {
                    Some(request) if run.last_round() == 0 => request.n_values(),
                    _ => run.n_parameters,
                };
                let contribution = Contribution {
                    round,
                    plan: plan_for(flaw),
                    base: match flaw {
                        Some(Flaw::Base) => ModelDigest([7; 32]),
                        _ => run.model(),
                    },
                    update: UpdateDigest([*mark; 32]),
                    n_parameters: match flaw {
                        Some(Flaw::Size(n)) => *n,
                        _ => fitting,
                    },
                    encoding: crate::UpdateEncoding::Int32,
                    n_correct: None,
                    loss_sum: None,
                };
                Event::Submitted { client: client(*who), contribution }
            }
            Self::Withdraw(who, flaw) => Event::Withdrew {
                client: client(*who),
                round: round_for(flaw),
                reason: "busy".to_owned(),
            },
            Self::Aggregate(mark, flaw) => {
                let round = round_for(flaw);
                let n = run.plan().analytics_request().map_or(0, |request| request.n_values());
                let n = if matches!(flaw, Some(Flaw::Size(_))) { n + 1 } else { n };
                Event::Aggregated {
                    round,
                    model: ModelDigest([*mark; 32]),
                    statistics: (round == 0).then(|| vec![1; n as usize]),
                }
            }
            Self::Cohort(members) => Event::Drawn {
                round: run.last_round(),
                cohort: members.iter().map(|member| client(*member)).collect(),
            },
            Self::Abort => Event::Ordered { command: Command::Abort { reason: "enough".into() } },
            Self::Tick => Event::Tick,
        }
    }
}

/// What the cases together have come to: a test in which nothing happens shows nothing.
#[derive(Default)]
struct Reached {
    n_accepted: Cell<u64>,
    n_rejected: Cell<u64>,
    n_finished: Cell<u64>,
    n_aborted: Cell<u64>,
}

fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

/// Plays `draws` on a new run of `plan` and checks what always holds.
fn play(plan: &Plan, draws: &[(Draw, Time)], reached: &Reached) -> Result<(), TestCaseError> {
    let new = || Run::new("sample-1".parse().expect("a name"), plan.clone(), START, Time(0));
    let mut run = new();
    let mut recorded = Vec::new();
    let mut accepted = BTreeMap::new();
    let take = |run: &mut Run, event: Event, now: Time, recorded: &mut Vec<_>| {
        let before = run.clone();
        match run.step(event.clone(), now) {
            Err(_) => {
                count(&reached.n_rejected);
                prop_assert_eq!(&*run, &before, "a rejection changed the run: {:?}", event);
                Ok(false)
            }
            Ok(effects) if effects.is_empty() => {
                prop_assert_eq!(&*run, &before, "a change went unrecorded: {:?}", event);
                Ok(false)
            }
            Ok(effects) => {
                prop_assert_eq!(&effects[0], &Effect::Record);
                prop_assert!(before.outcome().is_none(), "an ended run moved: {:?}", event);
                recorded.push((now, event));
                Ok(true)
            }
        }
    };
    for (draw, now) in draws {
        let event = draw.event(&run);
        if take(&mut run, event.clone(), *now, &mut recorded)?
            && let Event::Submitted { client, contribution } = event
        {
            count(&reached.n_accepted);
            let twice = accepted.insert((client.clone(), contribution.round), contribution.update);
            prop_assert!(twice.is_none(), "{} counts twice", client);
        }
    }
    // From wherever the events led, deadlines and a driver's own answers lead to the end.
    let (mut now, mut n_steps) = (Time(0), 0);
    while run.outcome().is_none() {
        n_steps += 1;
        prop_assert!(n_steps <= 4 * (plan.rounds as usize + 2), "no end: {:?}", run.report());
        now = run.deadline().unwrap_or(now).max(now);
        let event = match run.pending() {
            Some(Effect::Aggregate { .. }) => Draw::Aggregate(9, None).event(&run),
            Some(Effect::Draw { round, present }) => Event::Drawn { round, cohort: present },
            _ => Event::Tick,
        };
        prop_assert!(take(&mut run, event, now, &mut recorded)?, "nothing moves: {:?}", run);
    }
    count(match run.outcome() {
        Some(Outcome::Finished(_)) => &reached.n_finished,
        _ => &reached.n_aborted,
    });
    // What was accepted, and nothing else, is on record.
    let mut on_record = BTreeMap::new();
    for round in run.report().history {
        for c in round.contributions {
            let twice = on_record.insert((c.client, round.round), c.update);
            prop_assert!(twice.is_none(), "a client stands twice in round {}", round.round);
        }
    }
    prop_assert_eq!(on_record, accepted);
    let again = new().replay(recorded);
    prop_assert_eq!(again, Ok(run));
    Ok(())
}

/// Plays 2,000 lists of events on `plan`; all ends must have been reached.
fn play_many(plan: &Plan) {
    let reached = Reached::default();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) };
    let draws = prop::collection::vec((draw(), time()), 0..60);
    TestRunner::new(config)
        .run(&draws, |draws| play(plan, &draws, &reached))
        .unwrap_or_else(|failure| panic!("{failure}"));
    let Reached { n_accepted, n_rejected, n_finished, n_aborted } = reached;
    for cell in [n_accepted, n_rejected, n_finished, n_aborted] {
        assert!(cell.get() > 0, "some end was never reached");
    }
}

#[test]
fn whatever_happens_a_run_counts_once_replays_and_ends() {
    play_many(&sample());
}

#[test]
fn whatever_happens_a_run_with_statistics_counts_once_replays_and_ends() {
    let mut plan = sample();
    plan.analytics = Some(crate::Analytics {
        rho: 0.01,
        queries: vec![comity_privacy::Query::Count, comity_privacy::Query::LabelHistogram],
    });
    play_many(&plan);
}

#[test]
fn whatever_happens_a_run_with_capped_countries_counts_once_replays_and_ends() {
    let mut plan = sample();
    plan.aggregation.country_weight_max = Some(0.5);
    play_many(&plan);
}

#[test]
fn a_capped_round_that_too_few_countries_answered_ends_the_run() {
    let mut plan = sample();
    plan.aggregation.country_weight_max = Some(0.5);
    let mut run = Run::new("sample-1".parse().unwrap(), plan, START, Time(0));
    for who in 0..3 {
        let event = Draw::CheckIn(who, None).event(&run);
        run.step(event, Time(1)).unwrap();
    }
    let event = Draw::Submit(0, 1, None).event(&run);
    run.step(event, Time(2)).unwrap();
    run.step(Event::Tick, run.deadline().unwrap()).unwrap();
    assert!(matches!(run.outcome(), Some(Outcome::Aborted(why)) if why.contains("quorum")));
}
